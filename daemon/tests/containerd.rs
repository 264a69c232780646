//! The client for containerd against a real one that runs containers of Kubernetes.

use std::{env, path::Path};

use containerd_client::{
    services::v1::ListContainersRequest,
    tonic::{Request, metadata::MetadataValue},
};
use squall_daemon::{
    cgroup::CgroupRoot,
    runtime::{Runtime, RuntimeError, containerd::Containerd},
};

#[tokio::test]
#[ignore = "needs a containerd with pods, at SQUALL_CONTAINERD_SOCKET: see `cargo xtask cluster status`"]
async fn every_running_container_is_known_with_its_pod_and_its_cgroup() {
    let socket = env::var("SQUALL_CONTAINERD_SOCKET").expect("SQUALL_CONTAINERD_SOCKET");
    let client = containerd_client::Client::from_path(&socket).await.expect("connecting");
    let mut list = Request::new(ListContainersRequest::default());
    list.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
    let containers = client.containers().list(list).await.expect("a list").into_inner().containers;

    let runtime = Containerd::new(Some(socket.into()), "/".as_ref());
    runtime.check().await.expect("it answers");
    let cgroups = CgroupRoot::discover(Path::new("/sys/fs/cgroup"), Path::new("/proc")).expect("cgroups");
    let mut running = 0;
    for container in containers {
        let info = match runtime.container(&container.id).await {
            Ok(info) => info,
            Err(RuntimeError::Gone { .. }) => continue,
            Err(error) => panic!("{}: {error}", container.id),
        };
        let target = cgroups.target(info.init_pid).expect("its cgroup");
        assert!(target.memberships.mention(&container.id), "{:?}", target.memberships);
        assert!(target.processes().contains(&info.init_pid));
        assert!(info.namespace.is_some() && info.pod.is_some() && info.pod_uid.is_some(), "{info:?}");
        running += 1;
    }
    assert!(running > 0, "no container runs there");
    let unknown = runtime.container("there-is-none").await;
    assert!(matches!(unknown, Err(RuntimeError::Gone { .. })), "{unknown:?}");
}
