//! kwok: nodes and pods that exist in the API server only. For measuring what Squall does in a large cluster.
//!
//! Built once from its published module, beside the local cluster's own program. It looks after nodes that are
//! annotated for it, and no others.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cluster::kubernetes, progress::Step, sh};

const VERSION: &str = "v0.7.0";
const PACKAGE: &str = "sigs.k8s.io/kwok/cmd/kwok";

/// A running kwok; it ends with this.
pub struct Kwok(Child);

impl Kwok {
    /// Starts it for the cluster of `kubeconfig`; what it says goes into `logs`.
    pub fn start(kubeconfig: &Path, logs: &Path) -> Result<Self> {
        let path = logs.join("kwok.log");
        let log = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        let mut command = Command::new(program()?);
        command.arg("--kubeconfig").arg(kubeconfig).args([
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            "--server-address=127.0.0.1:10247",
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}", sh::show(&command)))?;
        Ok(Self(child))
    }
}

impl Drop for Kwok {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program; built when the cache does not have it.
fn program() -> Result<PathBuf> {
    let directory = kubernetes::cache()?.join(format!("kwok-{VERSION}"));
    let program = directory.join("kwok");
    if program.exists() {
        return Ok(program);
    }
    ensure!(
        sh::succeeds(&mut sh::command("go", ["version"])),
        "Go is needed to build kwok: install Go 1.24 or newer"
    );
    fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let step = Step::begin(format!("building kwok {VERSION}, once (a minute and a half on 2 cores)"));
    let mut go = sh::command("go", ["install", &format!("{PACKAGE}@{VERSION}")]);
    let output = go.env("CGO_ENABLED", "0").env("GOBIN", &directory).output().context("can't start go")?;
    if !output.status.success() {
        bail!("go install ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    step.done();
    Ok(program)
}
