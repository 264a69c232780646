//! The runtimes' clients against real ones: a containerd (its own interface, and CRI at the same socket) and a dockerd,
//! each started for the test in a directory of its own, and ended with it. Neither touches this machine's runtimes.
//!
//! Needs root, containerd, runc, dockerd and a static busybox; without them it fails, it never skips.

mod runtimes {
    pub mod engine;
    pub mod image;
}

use std::{path::Path, sync::Arc, time::Duration};

use runtimes::engine::{Container, Containerd as RealContainerd, Docker as RealDocker, POD};
use squall_daemon::{
    cgroup::CgroupRoot,
    container::{Container as Found, ContainerError},
    ebpf::Engine,
    kill::Tools,
    order::ContainerRef,
    runtime::{
        ContainerInfo, DEADLINE, Runtime, RuntimeError, Runtimes, by_cgroup::ByCgroup,
        containerd::Containerd, cri::Cri, docker::Docker,
    },
};

fn cgroups() -> CgroupRoot {
    CgroupRoot::discover(Path::new("/sys/fs/cgroup"), Path::new("/proc")).expect("cgroups")
}

/// What each client has to know of a container that runs.
async fn is_known(runtime: &dyn Runtime, container: &Container) -> ContainerInfo {
    runtime.check().await.unwrap_or_else(|error| panic!("{}: {error}", runtime.scheme()));
    let info = runtime.container(&container.id).await;
    let info = info.unwrap_or_else(|error| panic!("{}: {error}", runtime.scheme()));
    assert_eq!(info.init_pid, container.pid, "{}", runtime.scheme());
    assert_eq!(info.pod_uid.as_deref(), Some(POD.uid), "{}", runtime.scheme());
    let target = cgroups().container(info.init_pid, &container.id).expect("its cgroup");
    assert!(target.processes().contains(&info.init_pid), "{:?}", target.memberships);
    if !info.by_cgroup {
        let told = (info.namespace.as_deref(), info.pod.as_deref(), info.name.as_deref());
        assert_eq!(told, (Some(POD.namespace), Some(POD.name), Some(POD.container)), "{}", runtime.scheme());
    }
    let unknown = runtime.container(&"0".repeat(64)).await;
    let told = match &unknown {
        Err(RuntimeError::NotFound { .. }) => !info.by_cgroup,
        Err(RuntimeError::Gone { .. }) => info.by_cgroup,
        _ => false,
    };
    assert!(told, "{}: {unknown:?}", runtime.scheme());
    info
}

/// Asked before the end, each client that can tell exit codes tells the same; afterwards the container is gone.
async fn its_end_is_told(clients: &[&dyn Runtime], container: &Container, by_cgroup: &ByCgroup) {
    let asked = clients.iter().map(|runtime| runtime.exit_code(&container.id));
    let killed = async {
        // SAFETY: no pointer; the container is the test's own and runs, as was just seen.
        unsafe { libc::kill(container.pid, libc::SIGKILL) };
    };
    let limit = Duration::from_secs(30);
    let (codes, ()) =
        tokio::time::timeout(limit, futures::future::join(futures::future::join_all(asked), killed))
            .await
            .expect("its end is told");
    for (runtime, code) in clients.iter().zip(codes) {
        assert_eq!(code.expect("a code"), 137, "{}", runtime.scheme());
        let gone = runtime.container(&container.id).await;
        assert!(matches!(gone, Err(RuntimeError::Gone { .. })), "{}: {gone:?}", runtime.scheme());
    }
    let gone = by_cgroup.container(&container.id).await;
    assert!(matches!(gone, Err(RuntimeError::Gone { .. })), "{gone:?}");
}

#[tokio::test]
async fn containerd_is_understood_by_its_own_interface_by_cri_and_without_any() {
    let real = RealContainerd::start();
    let container = real.run().await;
    let containerd = Containerd::new(Some(real.socket.clone()), "/".as_ref());
    let (cri_o, any) = (Cri::cri_o(Some(real.socket.clone()), "/".as_ref()), Cri::any(real.socket.clone()));
    let by_cgroup = ByCgroup::new(cgroups());
    for runtime in [&containerd as &dyn Runtime, &cri_o, &any, &by_cgroup] {
        is_known(runtime, &container).await;
    }
    its_end_is_told(&[&containerd, &cri_o, &any], &container, &by_cgroup).await;
}

#[tokio::test]
async fn docker_is_understood() {
    let real = RealDocker::start();
    let container = real.run();
    let docker = Docker::new(Some(real.socket.clone()), "/".as_ref());
    let by_cgroup = ByCgroup::new(cgroups());
    for runtime in [&docker as &dyn Runtime, &by_cgroup] {
        is_known(runtime, &container).await;
    }
    its_end_is_told(&[&docker], &container, &by_cgroup).await;
}

fn clients(socket: &Path) -> [Box<dyn Runtime>; 3] {
    let (at, root) = (Some(socket.to_owned()), Path::new("/"));
    [
        Box::new(Containerd::new(at.clone(), root)),
        Box::new(Cri::cri_o(at.clone(), root)),
        Box::new(Docker::new(at, root)),
    ]
}

#[tokio::test]
async fn a_runtime_that_does_not_answer_has_a_deadline() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("slow.sock");
    // Connections are taken by the kernel, and nobody ever reads.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    for runtime in clients(&socket) {
        let began = std::time::Instant::now();
        let error = runtime.container("abc").await.expect_err("nobody answers");
        assert!(matches!(error, RuntimeError::Timeout { .. }), "{}: {error}", runtime.scheme());
        assert!(error.to_string().contains(runtime.scheme()), "{error}");
        // To connect and to ask have one each.
        assert!(began.elapsed() < 3 * DEADLINE, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_dead_runtime_is_named_with_its_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("dead.sock");
    for runtime in clients(&socket) {
        let missing = runtime.container("abc").await.expect_err("there is no socket");
        assert!(matches!(missing, RuntimeError::NoSocket { .. }), "{missing}");
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
        let dead = runtime.container("abc").await.expect_err("nobody listens");
        assert!(matches!(dead, RuntimeError::Connect { .. }), "{dead}");
        assert!(dead.to_string().contains("dead.sock"), "{dead}");
        std::fs::remove_file(&socket).expect("removing the socket");
    }
}

fn order(scheme: &str, id: &str) -> ContainerRef {
    ContainerRef {
        namespace: POD.namespace.into(),
        pod: POD.name.into(),
        pod_uid: POD.uid.into(),
        name: POD.container.into(),
        scheme: scheme.into(),
        id: id.into(),
    }
}

fn tools(clients: Vec<Arc<dyn Runtime>>) -> Tools {
    let runtimes = Runtimes::new(clients).or_else(Arc::new(ByCgroup::new(cgroups())));
    Tools { engine: Arc::new(Engine::new(false)), cgroups: cgroups(), runtimes }
}

#[tokio::test]
async fn a_runtime_that_is_restarted_is_asked_again() {
    let mut real = RealContainerd::start();
    let container = real.run().await;
    let containerd: Arc<dyn Runtime> = Arc::new(Containerd::new(Some(real.socket.clone()), "/".as_ref()));
    let cri: Arc<dyn Runtime> = Arc::new(Cri::any(real.socket.clone()));
    // From here on each has a connection that it keeps.
    for runtime in [&containerd, &cri] {
        is_known(&**runtime, &container).await;
    }
    let asked = async {
        let mut answers = Vec::new();
        // On that connection, and on one that can't be made.
        for runtime in [&containerd, &cri, &containerd, &cri] {
            answers.push((runtime.scheme(), runtime.container(&container.id).await));
        }
        answers
    };
    for (runtime, answer) in real.away(asked).await {
        let error = answer.expect_err("it is away");
        assert!(error.may_pass(), "{runtime}: {error}");
        assert!(error.to_string().contains("containerd.sock"), "{runtime}: {error}");
    }
    let found = Found::find(&tools(vec![containerd]), &order("containerd", &container.id)).await;
    assert_eq!(found.expect("it is back").init.pid(), container.pid);
}

#[tokio::test]
async fn a_container_of_another_pod_is_refused_whatever_the_scheme() {
    let real = RealContainerd::start();
    let container = real.run().await;
    let containerd: Arc<dyn Runtime> = Arc::new(Containerd::new(Some(real.socket.clone()), "/".as_ref()));
    let docker: Arc<dyn Runtime> = Arc::new(Docker::new(Some("/nowhere/docker.sock".into()), "/".as_ref()));
    let tools = tools(vec![containerd, docker]);
    // Its UID is the pod's, and its cgroup is there to be found: only the runtime knows that it is none of this namespace.
    for scheme in ["containerd", "docker", "x"] {
        let true_one = order(scheme, &container.id);
        let strange = ContainerRef { namespace: "another".into(), ..true_one.clone() };
        let refused = Found::find(&tools, &strange).await.map(|found| found.init.pid());
        assert!(matches!(refused, Err(ContainerError::Mismatch { .. })), "{scheme}: {refused:?}");
        let found = Found::find(&tools, &true_one).await;
        assert_eq!(found.expect("its own").init.pid(), container.pid, "{scheme}");
    }
}

#[test]
fn the_scheme_picks_the_client_and_others_need_none() {
    let all = || {
        Runtimes::new(vec![
            Arc::new(Containerd::new(None, "/".as_ref())),
            Arc::new(Cri::cri_o(None, "/".as_ref())),
            Arc::new(Docker::new(None, "/".as_ref())),
        ])
    };
    for scheme in ["containerd", "cri-o", "docker"] {
        assert_eq!(all().get(scheme).map(|runtime| runtime.scheme()).expect("a client"), scheme);
    }
    let refused = all().get("rkt").map(drop).expect_err("there is no client").to_string();
    assert!(refused.contains("rkt://") && refused.contains("containerd, cri-o, docker"), "{refused}");
    let with = all().or_else(Arc::new(ByCgroup::new(cgroups())));
    assert_eq!(with.get("rkt").map(|runtime| runtime.scheme()).expect("a way"), "none");
}
