//! Policies of the tests: each for the test's own namespace alone, and gone with the test.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use squall_api::chaospolicy::PolicyState;
use squall_api::status::Phase;
use squall_api::{ChaosPolicy, PodChaos, names};

use crate::cluster::{Ran, kubectl, kubectl_stdin};
use crate::events::events_about;
use crate::experiment::ExperimentExt as _;
use crate::namespace::Ns;
use crate::pods::PodExt as _;
use crate::wait::until;

/// A policy for one namespace, of the same name.
pub struct Policy {
    /// Its name.
    pub name: String,
}

impl Policy {
    /// An open one.
    pub async fn make(ns: &Ns, rules: Value) -> Result<Self> {
        Self::make_that_is(ns, rules, PolicyState::Open).await
    }

    /// Applies it as an administrator does, and waits until the controller has read it.
    pub async fn make_that_is(ns: &Ns, rules: Value, state: PolicyState) -> Result<Self> {
        let made = Self { name: ns.name.clone() };
        let mut spec = rules;
        spec["namespaceSelector"] = json!({ "matchLabels": { "kubernetes.io/metadata.name": ns.name } });
        let object = json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy",
            "metadata": { "name": made.name }, "spec": spec,
        });
        kubectl_stdin(&["create", "-f", "-"], &object.to_string())?.ok()?;
        made.state(ns, state).await?;
        Ok(made)
    }

    /// As it is now.
    pub async fn now(&self, ns: &Ns) -> Result<ChaosPolicy> {
        Ok(Api::all(ns.client.clone()).get(&self.name).await?)
    }

    /// As it is when its status says so, of what is written now.
    pub async fn state(&self, ns: &Ns, wanted: PolicyState) -> Result<ChaosPolicy> {
        until(&format!("the policy is {wanted:?}"), async || {
            let now = self.now(ns).await?;
            let status = now.status.clone().unwrap_or_default();
            let fits = status.state == Some(wanted) && status.observed_generation == now.metadata.generation;
            Ok(if fits { Ok(now) } else { Err(format!("{status:?}")) })
        })
        .await
    }

    /// Merges `patch` into it.
    pub fn patch(&self, patch: &str) -> Result<String> {
        kubectl(&["patch", "chaospolicy", &self.name, "--type=merge", "-p", patch])?.ok()
    }
}

impl Drop for Policy {
    /// Also when an assertion fails.
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "chaospolicy", &self.name, "--ignore-not-found", "--wait=false"]);
    }
}

/// Why an experiment may not be: from admission, or from its status where admission, which only advises, let it in.
pub async fn refusal(ns: &Ns, chaos: &PodChaos) -> Result<String> {
    match ns.api::<PodChaos>().create(&PostParams::default(), chaos).await {
        Err(kube::Error::Api(status)) => Ok(status.message.clone()),
        Err(error) => Err(error.into()),
        Ok(made) => {
            let name = made.metadata.name.context("it has no name")?;
            let ended = ns.completed(&name).await?;
            ensure!(matches!(ended.phase(), Phase::Failed | Phase::Halted), "{}", ended.shown());
            Ok(ended.told().message.unwrap_or_default())
        }
    }
}

/// Whether all of `parts` are said.
pub fn says(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is missing in: {text}");
    }
    Ok(())
}

/// Names of the pods with this label that are hit: by their image, or by what says that they shall be.
pub async fn hit(ns: &Ns, app: &str) -> Result<BTreeSet<String>> {
    let pods = ns.pods(app).await?;
    let hit = pods.iter().filter(|pod| {
        pod.label(names::FAULT).is_some() || !pod.holders().is_empty() || !pod.substituted().is_empty()
    });
    Ok(hit.map(|pod| pod.name()).collect())
}

/// No pod of that application is hit.
pub async fn nothing_is_hit(ns: &Ns, app: &str) -> Result<()> {
    let hit = hit(ns, app).await?;
    ensure!(hit.is_empty(), "{hit:?}");
    Ok(())
}

/// Labels a pod with the switch, as kubectl does, with more arguments of it.
pub fn switch(ns: &Ns, pod: &str, extra: &[&str]) -> Result<Ran> {
    let mut args = vec!["-n", &ns.name, "label", "pod", pod, "squall.dev/fault=pod-failure"];
    args.extend(extra);
    kubectl(&args)
}

/// Takes the switch away again.
pub fn switch_off(ns: &Ns, pod: &str) -> Result<()> {
    kubectl(&["-n", &ns.name, "label", "pod", pod, "squall.dev/fault-"])?.ok().map(drop)
}

/// Waits for an Event on the pod that says why it was let go.
pub async fn released(ns: &Ns, pod: &str, parts: &[&str]) -> Result<()> {
    until(&format!("an Event on {pod} says why"), async || {
        let events = events_about(ns, pod).await?;
        let about: Vec<String> = events
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some("Released"))
            .filter_map(|event| event.message)
            .collect();
        let said = about.iter().any(|text| says(text, parts).is_ok());
        Ok(if said { Ok(()) } else { Err(format!("{about:?}")) })
    })
    .await
}
