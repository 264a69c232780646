//! `cluster up`: starts what does not run, in order, and waits until pods can be made. Doing it again does nothing.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, getrlimit};

use super::{
    Cluster, components,
    config::{self, IP, Identity, NODE, PORT},
    down, kubernetes, need_root, node, pki, prereq, process, status,
};
use crate::{
    image::{self, Config, Content, Files},
    progress::Step,
    sh,
};

/// Starts the cluster, or whatever part of it is not running.
pub fn up(cluster: &Cluster) -> Result<()> {
    need_root()?;
    prereq::ensure()?;
    let program = kubernetes::program(&cluster.checkout)?;
    cluster.check_is_ours()?;
    let _lock = cluster.lock()?;
    let began = Instant::now();
    process::let_go_of_descriptors()?;
    prepare(cluster, &program)?;
    let step = Step::begin(format!("starting the cluster {}", cluster.name()));
    node::make_cgroups(cluster)?;
    let port = forwarder(cluster)?;
    pki::ensure(&cluster.state.join("pki"), cluster.name())?;
    write_configuration(cluster, port)?;
    start(cluster, "etcd")?;
    start(cluster, "kube-apiserver")?;
    start(cluster, "containerd")?;
    cluster.wait("containerd", 30, "containerd answers", || sh::succeeds(&mut cluster.ctr(&["version"])))?;
    load_own_images(cluster)?;
    let get = |path: &str| sh::succeeds(&mut cluster.kubectl_command(&["get", "--raw", path]));
    cluster.wait("kube-apiserver", 60, "the API server is ready", || {
        cluster.is_alive("etcd") && get("/readyz")
    })?;
    for component in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
        start(cluster, component)?;
    }
    cluster.wait("kubelet", 90, "the node is Ready", || status::node_is_ready(cluster))?;
    // It may be Ready only as it was before the kubelet died.
    let health = format!("/api/v1/nodes/{NODE}/proxy/healthz");
    cluster.wait("kubelet", 30, "the kubelet answers", || get(&health))?;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    cluster.wait("kube-controller-manager", 30, "the service account default is there", || get(account))?;
    step.done();
    eprintln!(
        "the cluster {} is up, its node {NODE} Ready after {:.1} s",
        cluster.name(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Directories, links to programs, and the namespaces; a new node starts as after a boot.
fn prepare(cluster: &Cluster, program: &Path) -> Result<()> {
    if !cluster.is_alive(node::HOLDER) {
        down::sweep(cluster)?;
        let run = cluster.state.join("node/run");
        if run.exists() {
            fs::remove_dir_all(&run).with_context(|| format!("can't remove {}", run.display()))?;
        }
    }
    for directory in ["bin", "pid", "log", "pki", "images", "sysctl", "node/cni"] {
        let path = cluster.state.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
    }
    for link in components::LINKS {
        let path = cluster.state.join("bin").join(link);
        if fs::read_link(&path).is_ok_and(|to| to == program) {
            continue;
        }
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        symlink(program, &new)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("can't link {}", path.display()))?;
    }
    node::ensure(cluster)
}

fn start(cluster: &Cluster, component: &str) -> Result<()> {
    let words = components::words(component, cluster.name(), &cluster.state);
    cluster.start(component, &cluster.on_node(words)?)
}

/// The way in, at the port that it had before or at the next free one. It runs in the node's mount namespace, by which
/// `down` knows it, and in the host's network.
fn forwarder(cluster: &Cluster) -> Result<u16> {
    let kept = cluster.state.join("port");
    if !cluster.is_alive("forward") {
        let port = fs::read_to_string(&kept).ok().and_then(|port| port.trim().parse().ok()).unwrap_or(PORT);
        let pid = cluster.namespace_pid().context("the node's namespaces are gone")?;
        let xtask = cluster.state.join("bin/xtask");
        let line = format!(
            "nsenter -t {pid} -m -- {} cluster forward 127.0.0.1:{port} {pid} {IP}:6443",
            xtask.display()
        );
        fs::write(cluster.log_path("forward"), "")?;
        cluster.start("forward", &line.split(' ').map(str::to_owned).collect::<Vec<_>>())?;
    }
    let mut port = None;
    cluster.wait("forward", 10, "the forwarder listens", || {
        let log = fs::read_to_string(cluster.log_path("forward")).unwrap_or_default();
        port = log.lines().find_map(|line| line.parse::<SocketAddr>().ok()).map(|address| address.port());
        port.is_some()
    })?;
    let port = port.context("the forwarder did not say where it listens")?;
    write(&kept, &format!("{port}\n"), 0o644)?;
    Ok(port)
}

fn write_configuration(cluster: &Cluster, port: u16) -> Result<()> {
    let state = &cluster.state;
    let pki = state.join("pki");
    let read = |file: &str| {
        fs::read(pki.join(file)).with_context(|| format!("can't read {file} in {}", pki.display()))
    };
    let (ca, certificate, key) = (read("ca.crt")?, read("admin.crt")?, read("admin.key")?);
    let identity = Identity::Inline(&ca, &certificate, &key);
    let outside = format!("https://127.0.0.1:{port}");
    write(&cluster.kubeconfig(), &config::kubeconfig(cluster.name(), &outside, &pki, &identity), 0o600)?;
    let inside = format!("https://{IP}:6443");
    for user in pki::CLIENTS.into_iter().chain(["kubelet"]) {
        let text = config::kubeconfig(cluster.name(), &inside, &pki, &Identity::Paths(user));
        write(&state.join(format!("{user}.conf")), &text, 0o600)?;
    }
    let plugins = prereq::cni_plugins().context("the CNI plugins are gone")?;
    let node = state.join("node");
    write(&node.join("cni/10-cni0.conflist"), &config::cni(), 0o644)?;
    write(&state.join("containerd.toml"), &config::containerd(&node, &plugins, snapshotter(&node)?), 0o644)?;
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    write(&state.join("kubelet.yaml"), &config::kubelet(&pki, &cluster.cgroup(), open_files), 0o644)
}

/// An overlay can't lie on an overlay, as it would in a container.
fn snapshotter(directory: &Path) -> Result<&'static str> {
    const OVERLAYFS: i64 = 0x794c_7630;
    let found =
        rustix::fs::statfs(directory).with_context(|| format!("can't statfs {}", directory.display()))?;
    Ok(if found.f_type == OVERLAYFS { "native" } else { "overlayfs" })
}

/// The two images that the cluster itself brings: nothing can be pulled there.
fn load_own_images(cluster: &Cluster) -> Result<()> {
    let sandbox = cluster.state.join("images/pause.tar");
    if !sandbox.exists() {
        let pause = fs::read(cluster.state.join("bin/pause")).context("can't read pause")?;
        let files = Files::from([("pause".to_owned(), Content::File(pause, 0o755))]);
        let config = Config { entrypoint: vec!["/pause".to_owned()], ..Config::default() };
        load_new(cluster, &sandbox, &image::archive(config::SANDBOX_IMAGE, &files, &config)?)?;
    }
    let busybox = cluster.state.join("images/busybox.tar");
    if !busybox.exists() {
        load_new(cluster, &busybox, &busybox_image()?)?;
    }
    Ok(())
}

fn busybox_image() -> Result<Vec<u8>> {
    let program = prereq::busybox().context("busybox is gone")?;
    let mut files = Files::from([
        ("bin/busybox".to_owned(), Content::File(fs::read(&program)?, 0o755)),
        ("etc/passwd".to_owned(), Content::File(b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644)),
        ("root".to_owned(), Content::Directory(0o700)),
        ("tmp".to_owned(), Content::Directory(0o1777)),
    ]);
    for command in sh::output(sh::command(&program, ["--list"]).env_clear())?.lines() {
        let path = format!("bin/{command}");
        files.entry(path).or_insert_with(|| Content::Link("busybox".to_owned()));
    }
    let config =
        Config { cmd: vec!["sh".to_owned()], env: vec!["PATH=/bin".to_owned()], ..Config::default() };
    image::archive(config::BUSYBOX_IMAGE, &files, &config)
}

/// The archive gets its name only once it is loaded.
fn load_new(cluster: &Cluster, path: &Path, archive: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, archive).with_context(|| format!("can't write {}", new.display()))?;
    cluster.load(&new)?;
    fs::rename(&new, path).with_context(|| format!("can't rename {}", new.display()))
}

/// Whole or not at all: a running component may read it at any time.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    if fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("can't write {}", path.display()))
}
