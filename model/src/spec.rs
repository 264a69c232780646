//! The spec of an experiment, parsed once. Values of these types exist only if they make sense.

use std::time::Duration;

pub use squall_api::podchaos::{FaultStyle, Scope};

pub use crate::kill::Whom;

pub use crate::signal::Signal;
pub use squall_api::probe::OnHalt;

use crate::probe::Probe;
use crate::select::Selector;
use crate::stress::Stress;

/// A valid experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What is done.
    pub action: Action,
    /// To how many.
    pub mode: Mode,
    /// To which pods.
    pub selector: Selector,
    /// To which containers by name; empty means the action's default.
    pub containers: Vec<String>,
    /// How long; see [`Spec::lasting`] for what that means.
    pub duration: Option<Duration>,
    /// The seed of the draw, if the user chose one.
    pub seed: Option<i64>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// What has to hold meanwhile.
    pub steady: Vec<Probe>,
    /// What becomes of it when it is halted.
    pub on_halt: OnHalt,
}

impl Spec {
    /// Whether the fault lasts and is recovered (true), or happens once (false).
    pub fn lasting(&self) -> bool {
        match self.action {
            Action::PodFailure { .. } | Action::ContainerFreeze | Action::Stress(_) => true,
            Action::PodKill { .. } | Action::ContainerKill { .. } => false,
        }
    }

    /// For how long a one-shot that can't be carried out is tried.
    pub fn patience(&self) -> Duration {
        self.duration.unwrap_or(match self.action {
            Action::PodKill { evict: true, .. } => Duration::from_secs(300),
            Action::PodKill { evict: false, .. }
            | Action::ContainerKill { .. }
            | Action::PodFailure { .. }
            | Action::ContainerFreeze
            | Action::Stress(_) => Duration::from_secs(60),
        })
    }
}

/// What is done, with what belongs to it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Graceful deletion.
    PodKill {
        /// Seconds; `None` means the pod's own.
        grace: Option<u32>,
        /// Through the Eviction API.
        evict: bool,
    },
    /// Image substitution.
    PodFailure {
        /// `None` means by container.
        style: Option<FaultStyle>,
        /// The daemon ends the old processes at once.
        fast: bool,
    },
    /// A signal.
    ContainerKill {
        /// 1 to 64.
        signal: Signal,
        /// To which processes, and when.
        whom: Whom,
        /// Also where the container would not be started again.
        allow_terminal: bool,
    },
    /// No process of a container runs, for a while.
    ContainerFreeze,
    /// Hungry processes in a container's cgroup, and lower limits for it.
    Stress(Box<Stress>),
}

impl Action {
    /// In one word, as users write it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::PodKill { .. } => "pod-kill",
            Self::PodFailure { .. } => "pod-failure",
            Self::ContainerKill { .. } => "container-kill",
            Self::ContainerFreeze => "container-freeze",
            Self::Stress(_) => "stress",
        }
    }

    /// What has become of a target that it hit: "failed by".
    pub fn deed(&self) -> &'static str {
        match self {
            Self::PodKill { .. } | Self::ContainerKill { .. } => "killed",
            Self::PodFailure { .. } => "failed",
            Self::ContainerFreeze => "frozen",
            Self::Stress(_) => "stressed",
        }
    }

    /// Whether a node's daemon carries it out, on containers.
    pub fn on_containers(&self) -> bool {
        match self {
            Self::PodKill { .. } | Self::PodFailure { .. } => false,
            Self::ContainerKill { .. } | Self::ContainerFreeze | Self::Stress(_) => true,
        }
    }
}

/// How many of the eligible pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One.
    One,
    /// All.
    All,
    /// At most so many.
    Fixed(u32),
    /// So many percent, rounded up.
    FixedPercent(u8),
    /// A random percentage of 1 to so many, rounded up.
    RandomMaxPercent(u8),
}
