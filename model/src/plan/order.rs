//! What a node's daemon is to do for an experiment.

use jiff::Timestamp;
use squall_api::podchaos::Target;

use super::PodRef;
use crate::spec::{Action, Spec, Whom};
use crate::stress::Stress;

/// A fault that a node's daemon shall carry out, prepare, or put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The node.
    pub node: String,
    /// Names it for good.
    pub id: String,
    /// The pod.
    pub pod: PodRef,
    /// The container's name.
    pub container: String,
    /// The container's ID, with the runtime's scheme.
    pub container_id: String,
    /// How far to go.
    pub stage: Stage,
    /// What is done.
    pub fault: NodeFault,
    /// When the node ends it by itself, though it be renewed; `None`: only when it isn't renewed any more.
    pub until: Option<Timestamp>,
}

/// How far a daemon shall go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Prepare only.
    Arm,
    /// Carry out.
    Fire,
    /// Put back what a lasting fault changed.
    Recover,
}

/// What a daemon does to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeFault {
    /// A signal.
    Kill {
        /// The signal's number.
        signal: i32,
        /// To which processes, and when.
        whom: Whom,
    },
    /// No process runs.
    Freeze,
    /// Hungry processes and lower limits.
    Stress(Box<Stress>),
}

impl NodeFault {
    /// What `spec` has daemons do; `None`: nothing.
    pub fn of(spec: &Spec) -> Option<Self> {
        match &spec.action {
            Action::PodKill { .. } | Action::PodFailure { .. } => None,
            Action::ContainerKill { signal, whom, .. } => {
                Some(Self::Kill { signal: signal.number(), whom: whom.clone() })
            }
            Action::ContainerFreeze => Some(Self::Freeze),
            Action::Stress(stress) => Some(Self::Stress(stress.clone())),
        }
    }
}

/// What an order is known by: it names this container of this pod for this experiment for good. A lasting fault
/// that is injected again has another name each time, for what a daemon has put back it never injects again.
pub(super) fn order_id(experiment: &str, target: &Target) -> Option<String> {
    let container = target.container_id.as_deref()?;
    let bare = container.split_once("://").map_or(container, |(_, id)| id);
    let attempt = target.attempt.filter(|attempt| *attempt > 0);
    let attempt = attempt.map(|attempt| format!("/{attempt}")).unwrap_or_default();
    Some(format!("{experiment}/{}/{bare}{attempt}", target.uid))
}

/// The order for one container.
pub(super) fn order(experiment: &str, target: &Target, fault: NodeFault, stage: Stage) -> Option<Order> {
    Some(Order {
        node: target.node.clone()?,
        id: order_id(experiment, target)?,
        pod: PodRef::of(target),
        container: target.container.clone()?,
        container_id: target.container_id.clone()?,
        stage,
        fault,
        until: None,
    })
}
