//! `cargo xtask cluster`: a real one-node Kubernetes in a mount and a network namespace of its own.
//!
//! Real etcd, API server, controller manager, scheduler, kubelet, kube-proxy, containerd and runc. All state is in one
//! directory, all pods are below one cgroup, and the only way in is a forwarder on 127.0.0.1. Two checkouts have two
//! clusters. It never touches another cluster, the host's network, sysctls or mounts, nor anybody's kubeconfig.

mod components;
mod config;
mod down;
mod forward;
pub mod kubernetes;
mod node;
mod pki;
pub mod prereq;
mod process;
mod status;
mod up;

pub use config::BUSYBOX_IMAGE;

use std::{
    env, fs,
    fs::File,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command as Process,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::FlockOperation;

use crate::{build, image, prometheus, sh};

/// The environment variable that names another cluster than the checkout's own.
pub const NAME_VARIABLE: &str = "SQUALL_CLUSTER";
/// Every cluster's name begins with this, so that no state directory can be somebody else's.
const PREFIX: &str = "squall-";

/// The local one-node Kubernetes.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Start it, or whatever part of it is not running. The first time Kubernetes is built (some 8 minutes).
    Up,
    /// Kill it and remove all of it.
    Down,
    /// Say what runs; fails when it is not up.
    Status,
    /// Print the path of a kubeconfig that works from this machine.
    Kubeconfig,
    /// Load images from a docker archive.
    Load {
        /// The archive, as `docker save` or `cargo xtask images` writes it.
        tar: PathBuf,
    },
    /// Run a command that finds the cluster by its environment, as tests do; `kubectl` is the cluster's.
    Run {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Pass connections on into the cluster's network namespace.
    #[command(hide = true)]
    Forward {
        /// Where to listen; when that port is taken, at the next free one.
        listen: SocketAddr,
        /// A process in the network namespace.
        pid: i32,
        /// Where connections go there.
        target: SocketAddr,
    },
    /// Become the process that holds the node's namespaces.
    #[command(hide = true)]
    Node {
        /// The cluster's state directory.
        state: PathBuf,
    },
}

/// Does what the command says.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Forward { listen, pid, target } => return forward::run(listen, pid, target),
        Command::Node { state } => return node::become_holder(&state),
        Command::Up
        | Command::Down
        | Command::Status
        | Command::Kubeconfig
        | Command::Load { .. }
        | Command::Run { .. } => {}
    }
    let cluster = Cluster::of_this_checkout()?;
    match command {
        Command::Up => {
            cluster.up()?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            println!("export PATH={}:$PATH", cluster.state_dir().join("bin").display());
            Ok(())
        }
        Command::Down => cluster.down(),
        Command::Status => status::print(&cluster),
        Command::Kubeconfig => {
            let path = cluster.kubeconfig();
            ensure!(path.exists(), "there is no cluster {}; run `cargo xtask cluster up`", cluster.name());
            println!("{}", path.display());
            Ok(())
        }
        Command::Load { tar } => cluster.load(&tar),
        Command::Run { command } => run_in_environment(&cluster, &command),
        Command::Forward { .. } | Command::Node { .. } => Ok(()),
    }
}

fn run_in_environment(cluster: &Cluster, words: &[String]) -> Result<()> {
    ensure!(cluster.is_up(), "the cluster {} is not up; run `cargo xtask cluster up`", cluster.name());
    let (program, args) = words.split_first().context("no command given")?;
    let mut command = sh::command(program, args);
    cluster.export(&mut command);
    let path = format!("{}:{}", cluster.state.join("bin").display(), prereq::search_path());
    sh::run(command.env("KUBECONFIG", cluster.kubeconfig()).env("PATH", path))
}

/// One cluster: its name, and where its things are.
pub struct Cluster {
    name: String,
    state: PathBuf,
    checkout: PathBuf,
}

impl Cluster {
    /// The cluster of this checkout, or the one that `SQUALL_CLUSTER` names. It need not be up.
    pub fn of_this_checkout() -> Result<Self> {
        let checkout = build::checkout()?;
        let name = match env::var(NAME_VARIABLE) {
            Ok(name) if !name.is_empty() => name,
            Ok(_) | Err(env::VarError::NotPresent) => name_of(&checkout),
            Err(error @ env::VarError::NotUnicode(_)) => bail!("{NAME_VARIABLE}: {error}"),
        };
        check_name(&name)?;
        Ok(Self { state: Path::new("/var/lib").join(&name), name, checkout })
    }

    /// Its name: of a-z, 0-9 and `-`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where all of its state is.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// An administrator's kubeconfig that works from this machine; certificates are in it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.conf")
    }

    /// The kubectl of the cluster's own version.
    pub fn kubectl(&self) -> PathBuf {
        self.state.join("bin/kubectl")
    }

    /// kubectl for this cluster, with these arguments; its cache is in the state directory.
    pub fn kubectl_command(&self, args: &[&str]) -> Process {
        let mut command = sh::command(self.kubectl(), args);
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.state.join("kubectl"));
        command
    }

    /// containerd's socket, as seen from the host.
    pub fn containerd_socket(&self) -> PathBuf {
        self.state.join("node/run/containerd/containerd.sock")
    }

    /// The process that holds the node's namespaces: `nsenter -t PID -m -n` is a shell on the node.
    pub fn namespace_pid(&self) -> Option<i32> {
        self.pid(node::HOLDER)
    }

    /// Starts it, or whatever part of it is not running, and waits until its node is Ready.
    pub fn up(&self) -> Result<()> {
        up::up(self)
    }

    /// Kills it and removes all of it.
    pub fn down(&self) -> Result<()> {
        down::down(self)
    }

    /// Whether the API server answers and the node is Ready.
    pub fn is_up(&self) -> bool {
        status::is_up(self)
    }

    /// Imports the images of a docker archive.
    pub fn load(&self, tar: &Path) -> Result<()> {
        ensure!(
            self.is_alive("containerd"),
            "the cluster {} is not up; run `cargo xtask cluster up`",
            self.name
        );
        sh::output(self.ctr(&["images", "import"]).arg(tar))
            .with_context(|| format!("can't load {}", tar.display()))?;
        Ok(())
    }

    /// The names of all images that containerd has for pods.
    pub fn image_names(&self) -> Result<Vec<String>> {
        let names = sh::output(&mut self.ctr(&["images", "ls", "-q"]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Tells a process (a test) by environment variables where the cluster is.
    pub fn export(&self, command: &mut Process) {
        command
            .env(NAME_VARIABLE, &self.name)
            .env("SQUALL_KUBECONFIG", self.kubeconfig())
            .env("SQUALL_KUBECTL", self.kubectl())
            .env("SQUALL_CONTAINERD_SOCKET", self.containerd_socket())
            .env("SQUALL_STATE", &self.state)
            .env("KUBECACHEDIR", self.state.join("kubectl"));
        if let Some(program) = prometheus::program(&self.checkout) {
            command.env(prometheus::VARIABLE, program);
        }
        if let Some(pid) = self.namespace_pid() {
            command.env("SQUALL_NODE_PID", pid.to_string());
        }
    }

    fn ctr(&self, args: &[&str]) -> Process {
        let mut command = Process::new("ctr");
        command.arg("-a").arg(self.containerd_socket()).args(["-n", "k8s.io"]).args(args);
        command
    }

    /// The name of the cgroup of all its pods, in each hierarchy.
    fn cgroup(&self) -> String {
        format!("kube-{}", self.name)
    }

    /// Refuses a directory that is there but was not made by `up`.
    fn check_is_ours(&self) -> Result<()> {
        let ours = !self.state.exists() || self.lock_path().exists();
        ensure!(ours, "{} exists and is not a cluster's; leaving it alone", self.state.display());
        Ok(())
    }

    fn lock_path(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// One `up` or `down` at a time. The lock lives in the directory that `down` removes, so look again after waiting.
    fn lock(&self) -> Result<File> {
        loop {
            fs::create_dir_all(&self.state)
                .with_context(|| format!("can't make {}", self.state.display()))?;
            let path = self.lock_path();
            let file = File::options().append(true).create(true).open(&path);
            let file = match file {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("can't open {}", path.display())),
            };
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("can't lock {}", path.display()))?;
            let held = file.metadata()?;
            if fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
                return Ok(file);
            }
        }
    }
}

/// The name that belongs to a checkout.
fn name_of(checkout: &Path) -> String {
    let digest = image::hex_digest(checkout.as_os_str().as_encoded_bytes());
    format!("{PREFIX}{}", &digest[..6])
}

/// It becomes part of paths, cgroups and link names.
fn check_name(name: &str) -> Result<()> {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let plain = rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    ensure!(
        plain && (1..=32).contains(&rest.len()),
        "a cluster's name is {PREFIX} and 1 to 32 of a-z, 0-9 and -; {name:?} is not ({NAME_VARIABLE})"
    );
    Ok(())
}

fn need_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the local cluster needs root: namespaces, cgroups, containerd"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_checkouts_have_two_names() {
        let one = name_of(Path::new("/a/squall"));
        assert_eq!(one, name_of(Path::new("/a/squall")));
        assert_ne!(one, name_of(Path::new("/b/squall")));
        check_name(&one).unwrap();
    }

    #[test]
    fn a_name_can_not_lead_elsewhere() {
        for bad in ["", "kubelet", "squall-", "squall-a/b", "squall-..", "squall-A", "squall-a b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
