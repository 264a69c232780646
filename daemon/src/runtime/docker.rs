//! Docker, through its API on the socket; Kubernetes reaches it through cri-dockerd, which keeps the pod in the labels.
//!
//! Two questions only, so a few lines of HTTP instead of a client for all of it. Nothing is started, stopped or removed.

use std::path::PathBuf;

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::{ContainerInfo, DEADLINE, LABEL_CONTAINER, LABEL_NAMESPACE, LABEL_POD, LABEL_POD_UID};
use super::{Runtime, RuntimeError, socket::Socket};

const NAME: &str = "docker";
const USUAL: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];
/// What is told of a container has tens of kilobytes.
const LARGEST: usize = 4 << 20;

/// The client. Each question has a connection of its own: they are rare, and nothing is left of a dockerd that went.
pub struct Docker {
    socket: Socket,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: State,
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    running: bool,
    pid: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<std::collections::HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Waited {
    status_code: i32,
}

#[derive(Deserialize)]
struct Complaint {
    message: String,
}

impl Docker {
    /// A client for the socket at `socket`, or for the first of the usual ones under `root` that is there.
    pub fn new(socket: Option<PathBuf>, root: &std::path::Path) -> Self {
        Self { socket: Socket::new(NAME, socket, root, &USUAL) }
    }

    async fn ask(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), RuntimeError> {
        let lost = |error: hyper::Error| self.socket.lost(error.into());
        let refused = |message| RuntimeError::Refused { runtime: NAME, call, message };
        let stream = within("connect", UnixStream::connect(self.socket.find()?)).await?;
        let stream = stream.map_err(|error| self.socket.lost(error.into()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", NAME)
            .body(Empty::<Bytes>::new())
            .map_err(|error| refused(error.to_string()))?;
        // Dropped with this call, and the connection with it.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        // A dockerd that goes now is one that comes back.
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(error) => refused(error.to_string()),
            Err(error) => self.socket.lost(error),
        })?;
        Ok((status, body.to_bytes()))
    }

    async fn of<T: for<'a> Deserialize<'a>>(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        id: &str,
    ) -> Result<T, RuntimeError> {
        let (status, body) = self.ask(call, method, path).await?;
        let refused = |message| RuntimeError::Refused { runtime: NAME, call, message };
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|error| refused(error.to_string())),
            StatusCode::NOT_FOUND => Err(RuntimeError::NotFound { id: id.to_owned() }),
            other => {
                let complaint = serde_json::from_slice::<Complaint>(&body).map(|complaint| complaint.message);
                Err(refused(complaint.unwrap_or_else(|_| other.to_string())))
            }
        }
    }
}

#[async_trait]
impl Runtime for Docker {
    fn scheme(&self) -> &'static str {
        NAME
    }

    fn socket(&self) -> String {
        self.socket.shown()
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        let (status, _) = within("ping", self.ask("ping", Method::GET, "/_ping")).await??;
        if status == StatusCode::OK {
            return Ok(());
        }
        Err(RuntimeError::Refused { runtime: NAME, call: "ping", message: status.to_string() })
    }

    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError> {
        let path = format!("/containers/{id}/json");
        let Inspected { state, config } =
            within("inspect", self.of("inspect", Method::GET, &path, id)).await??;
        if !state.running || state.pid < 2 {
            let why = format!("its state is {}", state.status);
            return Err(RuntimeError::Gone { id: id.to_owned(), why });
        }
        let mut labels = config.labels.unwrap_or_default();
        Ok(ContainerInfo {
            init_pid: state.pid,
            namespace: labels.remove(LABEL_NAMESPACE),
            pod: labels.remove(LABEL_POD),
            pod_uid: labels.remove(LABEL_POD_UID),
            name: labels.remove(LABEL_CONTAINER),
            by_cgroup: false,
        })
    }

    async fn exit_code(&self, id: &str) -> Result<i32, RuntimeError> {
        let path = format!("/containers/{id}/wait");
        let Waited { status_code } = self.of("wait", Method::POST, &path, id).await?;
        Ok(status_code)
    }
}

async fn within<T>(call: &'static str, future: impl Future<Output = T>) -> Result<T, RuntimeError> {
    timeout(DEADLINE, future).await.map_err(|_| RuntimeError::Timeout { runtime: NAME, call })
}
