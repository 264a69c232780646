//! A real Prometheus for the tests of probes: the program of Debian's package, unpacked and not installed. So nothing is
//! started on this machine, and nothing has to be taken away.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{build, sh};

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
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("can't make {}", work.display()))?;
    let download = || {
        let mut command = Command::new("apt-get");
        sh::output(command.args(["-qq", "download", PACKAGE]).current_dir(&work))
    };
    if download().is_err() {
        sh::output(Command::new("apt-get").args(["-qq", "update"])).context("can't refresh apt's lists")?;
        download().context("the tests of probes need Debian's package prometheus")?;
    }
    let tree = work.join("tree");
    for entry in fs::read_dir(&work).context("can't look at what was fetched")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            sh::output(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&tree))?;
        }
    }
    fs::rename(&tree, checkout.join("target/prometheus")).context("can't put Prometheus into its place")?;
    fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))?;
    ensure!(program(&checkout).is_some(), "Debian's package prometheus has no usr/bin/prometheus");
    Ok(())
}
