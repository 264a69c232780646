//! The container runtimes of this node behind one small trait; the scheme of a container ID picks the client.
//!
//! They are asked what a container is and which process is its first. Refuses a scheme that it has no client for, by
//! name, and never waits without a deadline.

pub mod containerd;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::order::ContainerRef;

/// How long a runtime may take for an answer.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// What can go wrong when a runtime is asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No client for this scheme.
    #[error("no client for container IDs that start with {scheme}://; this daemon speaks to {known}")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
        /// Those that it has a client for.
        known: String,
    },
    /// The runtime's socket is not where it was looked for.
    #[error("no socket of {runtime} found at {}", tried.join(", "))]
    NoSocket {
        /// The runtime.
        runtime: &'static str,
        /// Where it was looked for.
        tried: Vec<String>,
    },
    /// Connecting failed.
    #[error("connecting to {runtime} at {}: {source}", socket.display())]
    Connect {
        /// The runtime.
        runtime: &'static str,
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{runtime} gave no answer to {call} within {DEADLINE:?}")]
    Timeout {
        /// The runtime.
        runtime: &'static str,
        /// What was asked.
        call: &'static str,
    },
    /// It answered with an error.
    #[error("{runtime} refused {call}: {message}")]
    Refused {
        /// The runtime.
        runtime: &'static str,
        /// What was asked.
        call: &'static str,
        /// What it said.
        message: String,
    },
    /// There is no such container, or it does not run.
    #[error("container {id} is not running: {why}")]
    Gone {
        /// The container.
        id: String,
        /// More on that.
        why: String,
    },
}

/// What a runtime knows of a running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInfo {
    /// The container's first process, in the PID namespace of the runtime (the host's).
    pub init_pid: i32,
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The pod's UID.
    pub pod_uid: Option<String>,
    /// The container's name in the pod.
    pub name: Option<String>,
}

impl ContainerInfo {
    /// What of `order` is not true of this container.
    pub fn mismatch(&self, order: &ContainerRef) -> Option<String> {
        let ContainerRef { namespace, pod, pod_uid, name, scheme: _, id: _ } = order;
        [
            ("namespace", &self.namespace, namespace),
            ("pod", &self.pod, pod),
            ("pod UID", &self.pod_uid, pod_uid),
            ("name", &self.name, name),
        ]
        .into_iter()
        .find(|(_, found, wanted)| found.as_ref() != Some(*wanted))
        .map(|(what, found, wanted)| {
            let found = found.as_deref().unwrap_or("none");
            format!("its {what} is {found}, the order says {wanted}")
        })
    }
}

/// One runtime.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// What stands before `://` in its container IDs.
    fn scheme(&self) -> &'static str;
    /// Where its socket is, or is looked for.
    fn socket(&self) -> String;
    /// Whether it answers.
    async fn check(&self) -> Result<(), RuntimeError>;
    /// What it knows of a container that runs.
    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError>;
    /// Waits for the end of the container's first process, and returns its exit code; has no deadline of its own.
    async fn exit_code(&self, id: &str) -> Result<i32, RuntimeError>;
}

/// Every runtime that the daemon has a client for.
#[derive(Clone, Default)]
pub struct Runtimes(Vec<Arc<dyn Runtime>>);

impl Runtimes {
    /// These runtimes.
    pub fn new(runtimes: Vec<Arc<dyn Runtime>>) -> Self {
        Self(runtimes)
    }

    /// The client for `scheme`.
    pub fn get(&self, scheme: &str) -> Result<Arc<dyn Runtime>, RuntimeError> {
        self.0.iter().find(|runtime| runtime.scheme() == scheme).cloned().ok_or_else(|| {
            let known: Vec<_> = self.0.iter().map(|runtime| runtime.scheme()).collect();
            RuntimeError::UnknownScheme { scheme: scheme.to_owned(), known: known.join(", ") }
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Runtime>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_order_is_compared() {
        let order = ContainerRef {
            namespace: "ns".into(),
            pod: "p".into(),
            pod_uid: "u".into(),
            name: "c".into(),
            scheme: "containerd".into(),
            id: "abc".into(),
        };
        let info = ContainerInfo {
            init_pid: 1,
            namespace: Some("ns".into()),
            pod: Some("p".into()),
            pod_uid: Some("u".into()),
            name: Some("c".into()),
        };
        assert_eq!(info.mismatch(&order), None);
        assert!(ContainerInfo { namespace: None, ..info.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { pod: Some("q".into()), ..info.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { pod_uid: Some("v".into()), ..info.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { name: Some("d".into()), ..info }.mismatch(&order).is_some());
    }

    #[test]
    fn an_unknown_scheme_is_refused_by_name() {
        let refused = Runtimes::default().get("rkt").map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("rkt://"));
    }
}
