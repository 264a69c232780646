//! The container runtimes of this node behind one small trait; the scheme of a container ID picks the client.
//!
//! They are asked what a container is and which process is its first. One of a scheme that there is no client for, or of a
//! runtime without a socket here, is found the way that needs none, where there is one; else it is refused by name. That
//! way can't tell namespaces, so it is taken only for what no runtime here knows. Never waits without a deadline.

pub mod by_cgroup;
pub mod containerd;
pub mod cri;
pub mod docker;
mod socket;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::order::ContainerRef;

/// How long a runtime may take for an answer.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// What the kubelet writes on every container, whatever the runtime.
const LABEL_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const LABEL_POD: &str = "io.kubernetes.pod.name";
const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
const LABEL_CONTAINER: &str = "io.kubernetes.container.name";

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
    /// It knows no such container.
    #[error("container {id} is not running: there is no such container")]
    NotFound {
        /// The container.
        id: String,
    },
    /// The container does not run.
    #[error("container {id} is not running: {why}")]
    Gone {
        /// The container.
        id: String,
        /// More on that.
        why: String,
    },
}

impl RuntimeError {
    /// Whether another answer may be had a moment later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoSocket { .. } | Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::UnknownScheme { .. } | Self::Refused { .. } | Self::NotFound { .. } | Self::Gone { .. } => {
                false
            }
        }
    }
}

const POD_UID: &str = "pod UID";

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
    /// No runtime was asked: what is `None` is not known, instead of not there. The UID is always known.
    pub by_cgroup: bool,
}

impl ContainerInfo {
    /// What of `order` is not true of this container.
    pub fn mismatch(&self, order: &ContainerRef) -> Option<String> {
        let ContainerRef { namespace, pod, pod_uid, name, scheme: _, id: _ } = order;
        // A UID is given once for all time, so it alone names the pod.
        let unknown =
            |what: &str, found: &Option<String>| self.by_cgroup && found.is_none() && what != POD_UID;
        [
            ("namespace", &self.namespace, namespace),
            ("pod", &self.pod, pod),
            (POD_UID, &self.pod_uid, pod_uid),
            ("name", &self.name, name),
        ]
        .into_iter()
        .filter(|(what, found, _)| !unknown(what, found))
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
pub struct Runtimes {
    clients: Vec<Arc<dyn Runtime>>,
    others: Option<Arc<dyn Runtime>>,
}

impl Runtimes {
    /// These runtimes.
    pub fn new(clients: Vec<Arc<dyn Runtime>>) -> Self {
        Self { clients, others: None }
    }

    /// And whatever no other has is this one's.
    pub fn or_else(self, others: Arc<dyn Runtime>) -> Self {
        Self { others: Some(others), ..self }
    }

    /// The client for `scheme`.
    pub fn get(&self, scheme: &str) -> Result<Arc<dyn Runtime>, RuntimeError> {
        let client = self.clients.iter().find(|runtime| runtime.scheme() == scheme);
        client.or(self.others.as_ref()).cloned().ok_or_else(|| self.unknown(scheme))
    }

    /// What is known of the container `id`, of which an order says that it is of `scheme`.
    pub async fn container(&self, scheme: &str, id: &str) -> Result<ContainerInfo, RuntimeError> {
        let answer = match self.clients.iter().find(|runtime| runtime.scheme() == scheme) {
            Some(runtime) => runtime.container(id).await,
            None => Err(self.unknown(scheme)),
        };
        let (Some(others), Err(RuntimeError::NoSocket { .. } | RuntimeError::UnknownScheme { .. })) =
            (&self.others, &answer)
        else {
            return answer;
        };
        // The scheme is only what the order says. Whoever knows the container decides; and while one that may can't
        // answer, nobody does.
        for runtime in &self.clients {
            match runtime.container(id).await {
                Err(RuntimeError::NoSocket { .. } | RuntimeError::NotFound { .. }) => {}
                answer => return answer,
            }
        }
        others.container(id).await
    }

    fn unknown(&self, scheme: &str) -> RuntimeError {
        let known: Vec<_> = self.clients.iter().map(|runtime| runtime.scheme()).collect();
        RuntimeError::UnknownScheme { scheme: scheme.to_owned(), known: known.join(", ") }
    }

    /// All that there are clients for.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Runtime>> {
        self.clients.iter()
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
            by_cgroup: false,
        };
        assert_eq!(info.mismatch(&order), None);
        assert!(ContainerInfo { namespace: None, ..info.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { pod: Some("q".into()), ..info.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { pod_uid: Some("v".into()), ..info.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { name: Some("d".into()), ..info.clone() }.mismatch(&order).is_some());

        // Without a runtime the names may be unknown, but never the UID, and what is known has to be true.
        let bare = ContainerInfo { namespace: None, pod: None, name: None, by_cgroup: true, ..info };
        assert_eq!(bare.mismatch(&order), None);
        assert!(ContainerInfo { name: Some("d".into()), ..bare.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { pod_uid: Some("v".into()), ..bare.clone() }.mismatch(&order).is_some());
        assert!(ContainerInfo { pod_uid: None, ..bare }.mismatch(&order).is_some());
    }

    #[test]
    fn an_unknown_scheme_is_refused_by_name() {
        let refused = Runtimes::default().get("rkt").map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("rkt://"));
    }

    /// Answers every question with the same.
    struct Says(&'static str, fn() -> Result<ContainerInfo, RuntimeError>);

    #[async_trait]
    impl Runtime for Says {
        fn scheme(&self) -> &'static str {
            self.0
        }

        fn socket(&self) -> String {
            String::new()
        }

        async fn check(&self) -> Result<(), RuntimeError> {
            Ok(())
        }

        async fn container(&self, _: &str) -> Result<ContainerInfo, RuntimeError> {
            (self.1)()
        }

        async fn exit_code(&self, _: &str) -> Result<i32, RuntimeError> {
            std::future::pending().await
        }
    }

    fn of_the_cluster() -> Result<ContainerInfo, RuntimeError> {
        Ok(ContainerInfo {
            init_pid: 2,
            namespace: Some("kube-system".into()),
            pod: None,
            pod_uid: None,
            name: None,
            by_cgroup: false,
        })
    }

    fn by_cgroup() -> Result<ContainerInfo, RuntimeError> {
        of_the_cluster().map(|info| ContainerInfo { namespace: None, by_cgroup: true, ..info })
    }

    fn no_socket() -> Result<ContainerInfo, RuntimeError> {
        Err(RuntimeError::NoSocket { runtime: "docker", tried: vec![] })
    }

    fn not_found() -> Result<ContainerInfo, RuntimeError> {
        Err(RuntimeError::NotFound { id: "abc".into() })
    }

    fn silent() -> Result<ContainerInfo, RuntimeError> {
        Err(RuntimeError::Timeout { runtime: "containerd", call: "get" })
    }

    fn paused() -> Result<ContainerInfo, RuntimeError> {
        Err(RuntimeError::Gone { id: "abc".into(), why: "its task is PAUSED".into() })
    }

    /// What an order of `scheme` comes to on a node of containerd that says `answer`, and without Docker.
    async fn found(
        scheme: &str,
        answer: fn() -> Result<ContainerInfo, RuntimeError>,
    ) -> Result<ContainerInfo, RuntimeError> {
        Runtimes::new(vec![Arc::new(Says("containerd", answer)), Arc::new(Says("docker", no_socket))])
            .or_else(Arc::new(Says("none", by_cgroup)))
            .container(scheme, "abc")
            .await
    }

    #[tokio::test]
    async fn a_false_scheme_does_not_lead_past_a_runtime_that_knows_the_container() {
        for scheme in ["x", "docker"] {
            let info = found(scheme, of_the_cluster).await.unwrap();
            assert_eq!(info.namespace.as_deref(), Some("kube-system"), "{scheme}");
            // Whether it is one of its this one can't say now, or it is and does not run.
            assert!(matches!(found(scheme, silent).await, Err(RuntimeError::Timeout { .. })), "{scheme}");
            assert!(matches!(found(scheme, paused).await, Err(RuntimeError::Gone { .. })), "{scheme}");
        }
    }

    #[tokio::test]
    async fn what_no_runtime_here_knows_is_found_without() {
        for scheme in ["x", "docker"] {
            assert!(found(scheme, not_found).await.unwrap().by_cgroup, "{scheme}");
        }
        assert!(found("x", no_socket).await.unwrap().by_cgroup);
        // Its own runtime was asked, and that settles it.
        assert!(matches!(found("containerd", not_found).await, Err(RuntimeError::NotFound { .. })));
    }
}
