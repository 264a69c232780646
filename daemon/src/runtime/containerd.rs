//! containerd, through its own gRPC interface; Kubernetes keeps its containers in the namespace `k8s.io`.
//!
//! Asks only: it starts, stops and deletes nothing.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use containerd_client::{
    Client,
    services::v1::{GetContainerRequest, GetRequest, WaitRequest},
    tonic::{Code, Request, metadata::MetadataValue},
};
use tokio::{sync::Mutex, time::timeout};

use super::{ContainerInfo, DEADLINE, LABEL_CONTAINER, LABEL_NAMESPACE, LABEL_POD, LABEL_POD_UID};
use super::{Runtime, RuntimeError, socket::Socket};

const NAME: &str = "containerd";
const NAMESPACE: &str = "k8s.io";

/// Where distributions put the socket.
const USUAL: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
];

/// The client; it connects when it is first needed and keeps the connection.
pub struct Containerd {
    socket: Socket,
    client: Mutex<Option<Client>>,
}

impl Containerd {
    /// A client for the socket at `socket`, or for the first of the usual ones under `root` that is there.
    pub fn new(socket: Option<PathBuf>, root: &std::path::Path) -> Self {
        Self { socket: Socket::new(NAME, socket, root, &USUAL), client: Mutex::new(None) }
    }

    async fn client(&self) -> Result<Client, RuntimeError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(Client::from(client.channel()));
        }
        let socket = self.socket.find()?;
        let connected = within("connect", DEADLINE, Client::from_path(socket)).await?;
        let connected = connected.map_err(|error| self.socket.lost(error.into()))?;
        let channel = connected.channel();
        *client = Some(connected);
        Ok(Client::from(channel))
    }
}

#[async_trait]
impl Runtime for Containerd {
    fn scheme(&self) -> &'static str {
        NAME
    }

    fn socket(&self) -> String {
        self.socket.shown()
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        let client = self.client().await?;
        let answer = within("version", DEADLINE, async { client.version().version(()).await }).await?;
        answer.map(drop).map_err(|status| self.socket.refused("version", &status))
    }

    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError> {
        let client = self.client().await?;
        let (mut containers, mut tasks) = (client.containers(), client.tasks());
        let about = containers.get(in_namespace(GetContainerRequest { id: id.to_owned() }));
        let task =
            tasks.get(in_namespace(GetRequest { container_id: id.to_owned(), exec_id: String::new() }));
        let both = async { futures::join!(about, task) };
        let (about, task) = within("get", DEADLINE, both).await?;
        let mut labels = about
            .map_err(|status| self.socket.refused_of("get", id, &status))?
            .into_inner()
            .container
            .map(|container| container.labels)
            .unwrap_or_default();
        let process = match task {
            Ok(task) => task.into_inner().process.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => {
                return Err(RuntimeError::Gone { id: id.to_owned(), why: "it has no task".into() });
            }
            Err(status) => return Err(self.socket.refused("get", &status)),
        };
        let running = containerd_client::types::v1::Status::Running;
        let init_pid = i32::try_from(process.pid).unwrap_or(0);
        if process.status() != running || init_pid < 2 {
            let why = format!("its task is {}", process.status().as_str_name());
            return Err(RuntimeError::Gone { id: id.to_owned(), why });
        }
        Ok(ContainerInfo {
            init_pid,
            namespace: labels.remove(LABEL_NAMESPACE),
            pod: labels.remove(LABEL_POD),
            pod_uid: labels.remove(LABEL_POD_UID),
            name: labels.remove(LABEL_CONTAINER),
            by_cgroup: false,
        })
    }

    async fn exit_code(&self, id: &str) -> Result<i32, RuntimeError> {
        let client = self.client().await?;
        let request = in_namespace(WaitRequest { container_id: id.to_owned(), exec_id: String::new() });
        let answer = client
            .tasks()
            .wait(request)
            .await
            .map_err(|status| self.socket.refused_of("wait", id, &status))?;
        Ok(i32::try_from(answer.into_inner().exit_status).unwrap_or(i32::MAX))
    }
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

async fn within<T>(
    call: &'static str,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<T, RuntimeError> {
    timeout(limit, future).await.map_err(|_| RuntimeError::Timeout { runtime: NAME, call })
}
