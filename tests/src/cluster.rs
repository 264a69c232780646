//! Where the cluster is, and the ways to talk to it: a typed client, kubectl, and this machine's `/proc`.
//!
//! It reads what `cargo xtask test` says by environment variables, and refuses to guess.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A runtime for one test: each has its own thread, and nothing is shared.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("can't start a runtime")
}

/// A variable that xtask sets.
pub(crate) fn variable(name: &str) -> Result<String> {
    env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .with_context(|| format!("{name} is not set: run `cargo xtask test`"))
}

async fn config() -> Result<Config> {
    let path = variable("SQUALL_KUBECONFIG")?;
    let kubeconfig = Kubeconfig::read_from(&path)
        .with_context(|| format!("SQUALL_KUBECONFIG={path} can't be read: run `cargo xtask test`"))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{path} is no usable kubeconfig"))?;
    // What a test is answered is what it wants to know.
    config.default_retry = false;
    Ok(config)
}

/// A client with an administrator's rights.
pub async fn client() -> Result<Client> {
    Client::try_from(config().await?).context("can't make a client")
}

/// A client that acts as `user` with `groups`.
pub async fn client_as(user: &str, groups: &[&str]) -> Result<Client> {
    let mut config = config().await?;
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = Some(groups.iter().map(|&group| group.to_owned()).collect());
    Client::try_from(config).context("can't make a client")
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Whether it succeeded.
    pub success: bool,
    /// What it wrote, warnings and errors after the rest.
    pub text: String,
}

impl Ran {
    /// Its output, if it succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.success, "kubectl failed: {}", self.text);
        Ok(self.text)
    }

    /// Its output, if it failed.
    pub fn refused(self) -> Result<String> {
        ensure!(!self.success, "kubectl succeeded, and should have failed: {}", self.text);
        Ok(self.text)
    }
}

fn kubectl_command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(variable("SQUALL_KUBECTL")?);
    command.arg("--kubeconfig").arg(variable("SQUALL_KUBECONFIG")?).args(args).stdin(Stdio::null());
    Ok(command)
}

/// Runs kubectl as a user does.
pub fn kubectl(args: &[&str]) -> Result<Ran> {
    let output = kubectl_command(args)?.output().context("can't run kubectl")?;
    Ok(ran(output))
}

/// Runs kubectl with `input`.
pub fn kubectl_stdin(args: &[&str], input: &str) -> Result<Ran> {
    let mut child = kubectl_command(args)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't run kubectl")?;
    child.stdin.take().context("kubectl has no input")?.write_all(input.as_bytes())?;
    Ok(ran(child.wait_with_output()?))
}

/// Starts kubectl; the caller waits for it.
pub fn spawn_kubectl(args: &[&str]) -> Result<Child> {
    kubectl_command(args)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("can't run kubectl")
}

fn ran(output: std::process::Output) -> Ran {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ran { success: output.status.success(), text }
}

/// The processes of a container on this machine, oldest first. Fails where the cluster's node is another one.
pub fn containers_processes(container_id: &str) -> Result<Vec<i32>> {
    variable("SQUALL_NODE_PID").context("the cluster's node is not this machine")?;
    let id = container_id.rsplit('/').next().unwrap_or(container_id);
    ensure!(id.len() >= 12, "{container_id:?} is no container ID");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("can't read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        if !cgroups.contains(id) {
            continue;
        }
        // Field 22, the start time, counted from the end of the name, which may hold anything.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let started = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(19).and_then(|ticks| ticks.parse::<u64>().ok()));
        if let Some(started) = started {
            found.push((started, pid));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, pid)| pid).collect())
}
