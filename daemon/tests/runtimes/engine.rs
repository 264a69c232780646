//! Real runtimes, each with one container of one pod in a cgroup like the kubelet's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest, ImageSpec,
    ImageStatusRequest, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::image;

/// Who the container says it belongs to.
pub struct Pod {
    pub namespace: &'static str,
    pub name: &'static str,
    pub uid: &'static str,
    pub container: &'static str,
}

pub const POD: Pod =
    Pod { namespace: "shop", name: "web-0", uid: "5f1c2e9a-0000-4000-8000-0123456789ab", container: "app" };

/// A started container.
pub struct Container {
    pub id: String,
    pub pid: i32,
}

fn labels() -> [(&'static str, &'static str); 4] {
    [
        ("io.kubernetes.pod.namespace", POD.namespace),
        ("io.kubernetes.pod.name", POD.name),
        ("io.kubernetes.pod.uid", POD.uid),
        ("io.kubernetes.container.name", POD.container),
    ]
}

/// As with `--cgroup-root`, so that several tests, and a kubelet, don't meet.
fn kubelet_root(of: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/squall-test-{of}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Ours to end.
struct Server {
    command: Command,
    socket: PathBuf,
    child: Child,
    cgroup: String,
    /// Mounts below it are undone before it goes.
    dir: TempDir,
}

impl Server {
    fn start(mut command: Command, socket: &Path, dir: TempDir, cgroup: String) -> Self {
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = spawn(&mut command);
        let mut server = Self { command, socket: socket.to_owned(), child, cgroup, dir };
        server.listens();
        server
    }

    fn listens(&mut self) {
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            let ended = self.child.try_wait().expect("looking at a child");
            assert!(ended.is_none() && began.elapsed() < Duration::from_secs(60), "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As an upgrade ends it. Unless it is gone already.
    fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: no pointer; the child has not been waited for, so its PID is its own.
            unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
            let _ = self.child.wait();
        }
    }

    fn start_again(&mut self) {
        self.child = spawn(&mut self.command);
        self.listens();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.stop();
        end_what_is_in(&self.cgroup);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |line: &str| {
            line.split(' ').nth(4).map(PathBuf::from).filter(|at| at.starts_with(self.dir.path()))
        };
        for mount in mounts.lines().filter_map(below).collect::<Vec<_>>().iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"))
}

/// Ends every process below a cgroup of the test's own, and removes it in every hierarchy.
fn end_what_is_in(cgroup: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let v1 = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let tops: Vec<PathBuf> = v1
        .filter(|path| !path.is_symlink())
        .chain([root.to_owned()])
        .map(|mount| mount.join(cgroup.trim_start_matches('/')))
        .filter(|path| path.is_dir())
        .collect();
    for _ in 0..200 {
        let mut left = false;
        for dir in tops.iter().flat_map(|top| tree(top)) {
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                // SAFETY: no pointer; whoever is in this cgroup was started by this test.
                unsafe { libc::kill(pid.parse().expect("a PID"), libc::SIGKILL) };
            }
            left |= fs::remove_dir(&dir).is_err() && dir.exists();
        }
        if !left {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("{cgroup} could not be removed");
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.flat_map(|entry| tree(&entry.path())).chain([dir.to_owned()]).collect()
}

fn succeed(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// A containerd with its CRI plugin.
pub struct Containerd {
    pub socket: PathBuf,
    server: Server,
}

impl Containerd {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let socket = at("containerd.sock");
        // Its state elsewhere would need a network of its own for pods: these are in the host's.
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             [grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = {image:?}\nrestrict_oom_score_adj = true\ndisable_tcp_service = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n",
            root = at("root"),
            state = at("state"),
            opt = at("opt"),
            image = image::NAME,
        );
        fs::write(at("config.toml"), config).expect("a configuration");
        let archive = at("image.tar");
        image::write(&archive);
        let mut command = Command::new("containerd");
        command.arg("--config").arg(at("config.toml"));
        let server = Server::start(command, &socket, dir, kubelet_root("containerd"));
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&socket).args([
            "-n",
            "k8s.io",
            "images",
            "import",
            "--snapshotter",
            "native",
        ]);
        succeed(ctr.arg("--no-unpack").arg(archive));
        Self { socket, server }
    }

    /// A pod in the host's network with one container, as the kubelet would ask for it.
    pub async fn run(&self) -> Container {
        let mut client = self.client().await;
        let parent = format!("{}/kubepods/besteffort/pod{}", self.server.cgroup, POD.uid);
        let host = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        let sandbox = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: POD.name.into(),
                uid: POD.uid.into(),
                namespace: POD.namespace.into(),
                attempt: 0,
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: parent,
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(host),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
        self.knows_the_image().await;
        let pod = client.run_pod_sandbox(request).await.expect("a sandbox").into_inner().pod_sandbox_id;
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: POD.container.into(), attempt: 0 }),
            image: Some(ImageSpec { image: image::NAME.into(), ..ImageSpec::default() }),
            labels: labels().map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod,
            config: Some(container),
            sandbox_config: Some(sandbox),
        };
        let id = client.create_container(request).await.expect("a container").into_inner().container_id;
        client.start_container(StartContainerRequest { container_id: id.clone() }).await.expect("a start");
        // Told by containerd's own tool, not by what is tested here.
        let mut ctr = Command::new("ctr");
        let tasks = succeed(ctr.arg("--address").arg(&self.socket).args(["-n", "k8s.io", "tasks", "list"]));
        let line = tasks.lines().find(|line| line.starts_with(&id)).expect("its task");
        let pid = line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("its PID");
        let status = ContainerStatusRequest { container_id: id.clone(), verbose: false };
        client.container_status(status).await.expect("its status");
        Container { id, pid }
    }

    /// What `ask` comes to while it is away. Its containers run on.
    pub async fn away<T>(&mut self, ask: impl Future<Output = T>) -> T {
        self.server.stop();
        let answer = ask.await;
        self.server.start_again();
        answer
    }

    /// The CRI plugin hears of an imported image a moment after it is there; until then it would pull it.
    async fn knows_the_image(&self) {
        let channel = containerd_client::connect(&self.socket).await.expect("connecting");
        let mut images = ImageServiceClient::new(channel);
        let wanted = ImageSpec { image: image::NAME.into(), ..ImageSpec::default() };
        let known = async {
            loop {
                let request = ImageStatusRequest { image: Some(wanted.clone()), verbose: false };
                if images.image_status(request).await.is_ok_and(|status| status.into_inner().image.is_some())
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), known).await.expect("the imported image is not known");
    }

    async fn client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(containerd_client::connect(&self.socket).await.expect("connecting"))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims outlive their containerd: the pods go first, by what would also work where the client does not.
        let socket = self.socket.clone();
        let removing = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let channel = containerd_client::connect(&socket).await.ok()?;
                let mut client = RuntimeServiceClient::new(channel);
                let pods =
                    client.list_pod_sandbox(k8s_cri::v1::ListPodSandboxRequest::default()).await.ok()?;
                for pod in pods.into_inner().items {
                    let pod_sandbox_id = pod.id;
                    let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
                    client.stop_pod_sandbox(stop).await.ok()?;
                    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.ok()?;
                }
                Some(())
            })
        });
        if !matches!(removing.join(), Ok(Some(()))) {
            eprintln!("pods of {} could not be removed", self.socket.display());
        }
    }
}

/// A dockerd without network and iptables.
pub struct Docker {
    pub socket: PathBuf,
    server: Server,
}

impl Docker {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let socket = at("docker.sock");
        let archive = at("image.tar");
        image::write(&archive);
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .args(["--iptables=false", "--bridge=none", "--storage-driver=vfs"]);
        let server = Server::start(command, &socket, dir, kubelet_root("docker"));
        let docker = Self { socket, server };
        succeed(docker.command().arg("load").arg("--input").arg(archive));
        docker
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket.display()));
        command
    }

    /// A container with the labels and the cgroup that cri-dockerd gives one.
    pub fn run(&self) -> Container {
        let mut command = self.command();
        command.args(["run", "--detach", "--net=none"]);
        command.arg("--cgroup-parent");
        command.arg(format!("{}/kubepods/besteffort/pod{}", self.server.cgroup, POD.uid));
        for (key, value) in labels() {
            command.arg("--label").arg(format!("{key}={value}"));
        }
        let id = succeed(command.arg(image::NAME));
        let pid = succeed(self.command().args(["inspect", "--format", "{{.State.Pid}}", &id]));
        Container { pid: pid.parse().expect("its PID"), id }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let all = succeed(self.command().args(["ps", "--all", "--quiet"]));
        for id in all.lines() {
            let _ = self.command().args(["rm", "--force", id]).output();
        }
    }
}
