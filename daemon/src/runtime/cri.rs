//! Any runtime that speaks the kubelet's own interface, CRI: CRI-O, and whatever else is configured.
//!
//! CRI knows no PIDs; the runtimes tell theirs in the verbose part of a container's status, all of them as `pid` in the
//! JSON under `info`. Asks only: it starts, stops and removes nothing.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use k8s_cri::v1::{
    ContainerState, ContainerStatus, ContainerStatusRequest, VersionRequest,
    runtime_service_client::RuntimeServiceClient,
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};
use tonic::transport::Channel;

use super::{ContainerInfo, DEADLINE, LABEL_CONTAINER, LABEL_NAMESPACE, LABEL_POD, LABEL_POD_UID};
use super::{Runtime, RuntimeError, socket::Socket};

/// The scheme of CRI-O's container IDs.
pub const CRI_O: &str = "cri-o";
/// The name of whatever answers at a socket that was configured.
pub const ANY: &str = "cri";

const USUAL: [&str; 2] = ["/run/crio/crio.sock", "/var/run/crio/crio.sock"];

/// CRI tells nobody of an end; it has to be asked.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The client; it connects when it is first needed and keeps the connection.
pub struct Cri {
    scheme: &'static str,
    socket: Socket,
    channel: Mutex<Option<Channel>>,
}

impl Cri {
    /// CRI-O, at `socket` or at the first of the usual places under `root` that is there.
    pub fn cri_o(socket: Option<PathBuf>, root: &std::path::Path) -> Self {
        Self::at(CRI_O, Socket::new(CRI_O, socket, root, &USUAL))
    }

    /// Whatever speaks CRI at `socket`.
    pub fn any(socket: PathBuf) -> Self {
        Self::at(ANY, Socket::new(ANY, Some(socket), "/".as_ref(), &[]))
    }

    fn at(scheme: &'static str, socket: Socket) -> Self {
        Self { scheme, socket, channel: Mutex::new(None) }
    }

    async fn client(&self) -> Result<RuntimeServiceClient<Channel>, RuntimeError> {
        let mut channel = self.channel.lock().await;
        if let Some(channel) = &*channel {
            return Ok(RuntimeServiceClient::new(channel.clone()));
        }
        let path = self.socket.find()?;
        let connected = self.within("connect", containerd_client::connect(path)).await?;
        let connected = connected.map_err(|error| self.socket.lost(error.into()))?;
        *channel = Some(connected.clone());
        Ok(RuntimeServiceClient::new(connected))
    }

    async fn status(&self, id: &str) -> Result<(ContainerStatus, Option<i32>), RuntimeError> {
        let mut client = self.client().await?;
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = self.within("ContainerStatus", client.container_status(request)).await?;
        let answer =
            answer.map_err(|status| self.socket.refused_of("ContainerStatus", id, &status))?.into_inner();
        let gone = || RuntimeError::Gone { id: id.to_owned(), why: "it has no status".into() };
        Ok((answer.status.ok_or_else(gone)?, answer.info.get("info").and_then(|info| pid(info))))
    }

    async fn within<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = T>,
    ) -> Result<T, RuntimeError> {
        timeout(DEADLINE, future).await.map_err(|_| RuntimeError::Timeout { runtime: self.scheme, call })
    }
}

#[async_trait]
impl Runtime for Cri {
    fn scheme(&self) -> &'static str {
        self.scheme
    }

    fn socket(&self) -> String {
        self.socket.shown()
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        let mut client = self.client().await?;
        let request = VersionRequest { version: "v1".to_owned() };
        let answer = self.within("Version", client.version(request)).await?;
        answer.map(drop).map_err(|status| self.socket.refused("Version", &status))
    }

    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError> {
        let (status, pid) = self.status(id).await?;
        if status.state() != ContainerState::ContainerRunning {
            let why = format!("its state is {}", status.state().as_str_name());
            return Err(RuntimeError::Gone { id: id.to_owned(), why });
        }
        let nothing = || RuntimeError::Refused {
            runtime: self.scheme,
            call: "ContainerStatus",
            message: "its verbose answer names no PID".into(),
        };
        let init_pid = pid.filter(|pid| *pid > 1).ok_or_else(nothing)?;
        let mut labels = status.labels;
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
        loop {
            let (status, _) = self.status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// The PID in the verbose part of a status.
fn pid(info: &str) -> Option<i32> {
    #[derive(Deserialize)]
    struct Info {
        pid: i32,
    }
    serde_json::from_str::<Info>(info).ok().map(|info| info.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_is_found_in_what_runtimes_say() {
        assert_eq!(pid(r#"{"sandboxID":"s","pid":4242,"runtimeSpec":{"process":{"pid":1}}}"#), Some(4242));
        assert_eq!(pid(r#"{"sandboxID":"s"}"#), None);
        assert_eq!(pid("no JSON"), None);
    }
}
