//! Experiments at admission: what is refused, by whom, and what the refusal says; what is accepted and how.

mod accepted;
mod access;
mod refused;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use squall_tests::{Ns, kubectl_stdin};

/// A manifest as somebody writes it.
fn manifest(name: &str, spec: Value) -> String {
    json!({
        "apiVersion": "squall.dev/v1alpha1",
        "kind": "PodChaos",
        "metadata": { "name": name },
        "spec": spec,
    })
    .to_string()
}

fn apply(ns: &Ns, text: &str) -> Result<squall_tests::Ran> {
    kubectl_stdin(&["-n", &ns.name, "apply", "-f", "-"], text)
}

/// Applies `spec`, which is to be refused with all of `words`.
fn refuses(ns: &Ns, spec: Value, words: &[&str]) -> Result<()> {
    let said =
        apply(ns, &manifest("wrong", spec.clone()))?.refused().with_context(|| format!("for {spec}"))?;
    for word in words {
        assert!(said.contains(word), "{word:?} is not in the refusal of {spec}: {said}");
    }
    Ok(())
}
