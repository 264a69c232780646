//! A real Prometheus for the tests of probes: the program of Debian's package, unpacked and not installed. So nothing is
//! started on this machine, and nothing has to be taken away.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{build, debian};

/// Where tests learn of it.
pub const VARIABLE: &str = "SQUALL_PROMETHEUS";
const PACKAGE: &str = "prometheus";

/// The program, if it is there: one that is installed, or ours.
pub fn program(checkout: &Path) -> Option<PathBuf> {
    let ours = checkout.join("target/prometheus/usr/bin/prometheus");
    [PathBuf::from("/usr/bin/prometheus"), ours].into_iter().find(|path| path.exists())
}

/// Makes sure that it is there.
pub fn provide() -> Result<()> {
    let checkout = build::checkout()?;
    if program(&checkout).is_some() {
        return Ok(());
    }
    let work = checkout.join("target/prometheus.new");
    let tree =
        debian::fetch(PACKAGE, &work).context("the tests of probes need Debian's package prometheus")?;
    fs::rename(&tree, checkout.join("target/prometheus")).context("can't put Prometheus into its place")?;
    fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))?;
    ensure!(program(&checkout).is_some(), "Debian's package prometheus has no usr/bin/prometheus");
    Ok(())
}
