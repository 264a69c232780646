//! Wires the daemon: flags, memory, enrolment, the port, and the end.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use squall_api::names;
use squall_daemon::{
    EBPF_LOG_TARGET,
    cgroup::{CgroupRoot, namespace},
    ebpf::{Engine, opener},
    enrol::Enrolment,
    health,
    journal::Journal,
    kill::Tools,
    node::Node,
    readiness::Readiness,
    runtime::{Runtime, Runtimes, by_cgroup::ByCgroup, containerd::Containerd, cri::Cri, docker::Docker},
    server,
    stress::{spawn, stressor},
    tls::{Bundle, Current, ServerTls},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Looking for stressors that are left takes milliseconds, unless somebody holds it up.
const SWEPT_WITHIN: Duration = Duration::from_secs(5);

/// Squall's node daemon.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Address to listen on.
    #[arg(long, env = "POD_IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
    /// Port for the controller.
    #[arg(long, default_value_t = names::DAEMON_PORT)]
    port: u16,
    /// Port for the kubelet's probes and for Prometheus.
    #[arg(long, default_value_t = names::HEALTH_PORT)]
    health_port: u16,
    /// The controller's enrolment server, HOST:PORT; unset: its Service.
    #[arg(long, env = "SQUALL_ENROLMENT_ADDRESS")]
    controller: Option<String>,
    /// Directory with the projected `token` and the CA bundle `ca.crt`.
    #[arg(long, default_value = "/var/run/squall-enrolment")]
    enrolment: PathBuf,
    /// Directory of the journal.
    #[arg(long, default_value = "/run/squall/journal")]
    journal: PathBuf,
    /// Where the host's cgroup file systems are mounted.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    cgroups: PathBuf,
    /// Where the host's processes are shown.
    #[arg(long, default_value = "/proc")]
    proc: PathBuf,
    /// containerd's socket; unset: looked for at the usual places.
    #[arg(long, env = "SQUALL_CONTAINERD_SOCKET")]
    containerd_socket: Option<PathBuf>,
    /// CRI-O's socket; unset: looked for at the usual places.
    #[arg(long, env = "SQUALL_CRI_O_SOCKET")]
    cri_o_socket: Option<PathBuf>,
    /// Docker's socket; unset: looked for at the usual places.
    #[arg(long, env = "SQUALL_DOCKER_SOCKET")]
    docker_socket: Option<PathBuf>,
    /// Socket of another runtime that speaks CRI; unset: its containers are found by their cgroups.
    #[arg(long, env = "SQUALL_CRI_SOCKET")]
    cri_socket: Option<PathBuf>,
    /// Log what the eBPF programs do.
    #[arg(long, env = "SQUALL_EBPF_LOG")]
    ebpf_log: bool,
}

fn main() -> Result<()> {
    stressor::run_if_asked();
    let args = Args::parse();
    let mut filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    if args.ebpf_log {
        let theirs = format!("{EBPF_LOG_TARGET}=debug");
        filter = filter.add_directive(theirs.parse().context("adding the programs to the log")?);
    }
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    // A task that died would leave a daemon that looks alive; a new one begins with the journal.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        std::process::abort();
    }));
    // Before any other thread is there.
    raise_descriptor_limit();
    keep_memory_small();
    use_administration(&args.proc);
    // One thread: the daemon waits nearly always, and memory is what it is measured by. What blocks gets a thread of
    // its own for a moment.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let ended = runtime.block_on(run(args));
    // A thread may hang in a container's dead file system; everything is put back and written down.
    runtime.shutdown_background();
    ended
}

async fn run(args: Args) -> Result<()> {
    let Args {
        node: name,
        address,
        port,
        health_port,
        controller,
        enrolment,
        journal,
        cgroups,
        proc,
        containerd_socket,
        cri_o_socket,
        docker_socket,
        cri_socket,
        ebpf_log,
    } = args;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let journal = Journal::open(&journal)?;
    let cgroups = CgroupRoot::discover(&cgroups, &proc)?;
    let root = "/".as_ref();
    let others: Arc<dyn Runtime> = match cri_socket {
        Some(socket) => Arc::new(Cri::any(socket)),
        None => Arc::new(ByCgroup::new(cgroups.clone())),
    };
    let runtimes = Runtimes::new(vec![
        Arc::new(Containerd::new(containerd_socket, root)),
        Arc::new(Cri::cri_o(cri_o_socket, root)),
        Arc::new(Docker::new(docker_socket, root)),
    ])
    .or_else(others);
    let engine = Engine::new(ebpf_log).sparing_children_of(std::process::id());
    let tools = Tools { engine: Arc::new(engine), cgroups, runtimes };
    // First of all it puts back: what follows asks others, and some of them may hang.
    let node = Node::new(name.clone(), tools.clone(), journal);
    match spawn::sweep(&proc, SWEPT_WITHIN) {
        Ok(0) => {}
        Ok(ended) => tracing::warn!(ended, "ended stressors of a daemon that is no more"),
        Err(error) => tracing::warn!(%error, "stressors of a daemon that is no more may be left"),
    }
    let readiness = Readiness::find(tools).await;
    give_memory_back();

    let current = Arc::new(Current::default());
    let bundle_changed = Arc::new(Notify::new());
    let bundle = || Bundle::new(enrolment.join("ca.crt"));
    let enrolment = Enrolment {
        addresses: controller.map_or_else(controller_service, |address| vec![address]),
        token: enrolment.join("token"),
        bundle: bundle(),
        node: name,
    };
    let tls = Arc::new(ServerTls::new(bundle(), Arc::clone(&current)));
    let listener =
        TcpListener::bind((address, port)).await.with_context(|| format!("listening on {address}:{port}"))?;
    let probes = TcpListener::bind((address, health_port))
        .await
        .with_context(|| format!("listening on {address}:{health_port}"))?;

    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let watched = Arc::clone(&node);
    let served = tokio::select! {
        served = server::serve(listener, tls, Arc::clone(&bundle_changed), Arc::clone(&node), readiness, std::future::pending()) => {
            served.context("the port for the controller")
        }
        never = health::serve(probes, Arc::clone(&current), Arc::clone(&node)) => match never {},
        () = enrolment.keep(&current, &bundle_changed) => Ok(()),
        () = watched.keep_written() => Ok(()),
        () = end => Ok(()),
    };
    // What lasts is put back. Armed watches are let go of; a signal that was sent can't be taken back, and its outcome is looked up again by the
    // next daemon.
    node.put_back().await;
    node.shut_down();
    tracing::info!("ended");
    served
}

/// The Service, as the kubelet told it when this pod was started, which takes no DNS; and by its name, which also finds one
/// that was made anew since and has another address.
fn controller_service() -> Vec<String> {
    let told = std::env::var("SQUALL_CONTROLLER_SERVICE_HOST").ok();
    let at = |host: String| {
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        format!("{host}:{}", names::ENROLMENT_PORT)
    };
    told.into_iter().chain([names::CONTROLLER_SERVER_NAME.to_owned()]).map(at).collect()
}

/// Does what takes SYS_ADMIN, and gives it up. Without it most things work, and the others say so where they need it.
fn use_administration(proc: &Path) {
    if let Err(error) = namespace::enter_nodes(proc) {
        tracing::warn!(%error, "not in the node's cgroup namespace: stress may be refused by the kernel");
    }
    match opener::keep_if_needed() {
        Ok(true) => tracing::info!("perf events take SYS_ADMIN here: one thread keeps it for opening them"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "whether perf events take SYS_ADMIN here was not found out"),
    }
    if let Err(error) = namespace::give_up_administration() {
        tracing::warn!(%error, "a capability that is not needed any more could not be given up");
    }
}

/// One arena for all threads, and big pieces (the kernel's type information is one) by mmap, so that they go back to
/// the system when they are freed.
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: before any other thread is there.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
    }
}

/// What the look at the node needed is not needed again.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A descriptor is held for each process that is waited for, and for each CPU of each armed watch.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "could not raise the limit of descriptors");
    }
}
