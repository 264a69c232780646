//! Finds the container of an order, and makes sure that it is that one.
//!
//! The runtime says which process is its first and whose pod it is; the kernel says whose cgroup that process is in;
//! the order must agree with both. Whatever differs is refused. No effect.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    cgroup::{CgroupError, Target},
    kill::Tools,
    order::ContainerRef,
    process::{Process, ProcessError},
    report::Reason,
    runtime::{ContainerInfo, RuntimeError},
};

/// A process whose cgroup is gone is given so long to be gone, too.
const ENDING: Duration = Duration::from_millis(200);

/// A runtime that does not answer is asked again for so long, and so soon for the first time.
const ASKED_FOR: Duration = Duration::from_secs(5);
const ASKED_AFTER: Duration = Duration::from_millis(100);

/// Why a container is not to be hit.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Nothing in that namespace is ever hit.
    #[error("namespace {namespace} is protected: nothing in it is ever hit")]
    Protected {
        /// The namespace.
        namespace: String,
    },
    /// The runtime could not tell.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The container is not the one in the order.
    #[error("container {id} is not the one of the order: {why}")]
    Mismatch {
        /// The container.
        id: String,
        /// What differs.
        why: String,
    },
    /// The process could not be held.
    #[error("container {id}: {source}")]
    Process {
        /// The container.
        id: String,
        /// Why.
        source: ProcessError,
    },
    /// Its cgroup could not be found.
    #[error("container {id}: {source}")]
    Cgroup {
        /// The container.
        id: String,
        /// Why.
        source: CgroupError,
    },
}

impl ContainerError {
    /// The word of the contract for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Protected { .. } => Reason::ProtectedNamespace,
            Self::Runtime(error) => match error {
                RuntimeError::UnknownScheme { .. } => Reason::UnknownRuntime,
                RuntimeError::NotFound { .. } | RuntimeError::Gone { .. } => Reason::ContainerGone,
                RuntimeError::NoSocket { .. }
                | RuntimeError::Connect { .. }
                | RuntimeError::Timeout { .. }
                | RuntimeError::Refused { .. } => Reason::RuntimeError,
            },
            Self::Mismatch { .. } => Reason::ContainerMismatch,
            Self::Process { source, .. } => match source {
                ProcessError::Gone { .. } | ProcessError::Reused { .. } => Reason::ContainerGone,
                ProcessError::Open { .. }
                | ProcessError::Read { .. }
                | ProcessError::Signal { .. }
                | ProcessError::Wait { .. }
                | ProcessError::Cgroup(_) => Reason::Internal,
            },
            Self::Cgroup { .. } => Reason::Internal,
        }
    }
}

/// A container that was found and checked.
#[derive(Debug)]
pub struct Container {
    /// What the order says of it.
    pub order: ContainerRef,
    /// Its cgroup.
    pub target: Target,
    /// Its first process.
    pub init: Process,
}

/// Asks the runtime; one that is slow, or just being restarted, is asked again.
async fn ask(tools: &Tools, order: &ContainerRef) -> Result<ContainerInfo, RuntimeError> {
    let (end, mut wait) = (Instant::now() + ASKED_FOR, ASKED_AFTER);
    loop {
        match tools.runtimes.container(&order.scheme, &order.id).await {
            Err(error) if error.may_pass() && Instant::now() + wait < end => {
                tracing::warn!(container = order.id, %error, "the runtime is asked again");
                sleep(wait).await;
                wait *= 2;
            }
            answer => return answer,
        }
    }
}

impl Container {
    /// Finds the container of `order`.
    pub async fn find(tools: &Tools, order: &ContainerRef) -> Result<Self, ContainerError> {
        if squall_api::names::is_protected_namespace(&order.namespace) {
            return Err(ContainerError::Protected { namespace: order.namespace.clone() });
        }
        let info = ask(tools, order).await?;
        if let Some(why) = info.mismatch(order) {
            return Err(ContainerError::Mismatch { id: order.id.clone(), why });
        }
        Self::of(tools, order, info.init_pid)
    }

    /// As [`Container::find`], when its first process is known.
    pub fn of(tools: &Tools, order: &ContainerRef, init_pid: i32) -> Result<Self, ContainerError> {
        let id = || order.id.clone();
        let init = Process::open(tools.cgroups.proc(), init_pid)
            .map_err(|source| ContainerError::Process { id: id(), source })?;
        let target = tools.cgroups.container(init_pid, &order.id);
        // Of a process that has ended neither the cgroup nor its path says anything.
        let now = init.memberships().map_err(|source| ContainerError::Process { id: id(), source })?;
        let target = target.map_err(|source| {
            // A process on its way out leaves its cgroup a moment before it has ended.
            if init.ends_within(ENDING) {
                ContainerError::Process { id: id(), source: ProcessError::Gone { pid: init_pid } }
            } else {
                ContainerError::Cgroup { id: id(), source }
            }
        })?;
        let mismatch = |why: String| ContainerError::Mismatch { id: id(), why };
        // The runtime says which process it is; the kernel says whose cgroup that process is in.
        if !target.memberships.mention(&order.id) {
            let path = now.v2().or(now.0.first().map(|one| one.path.as_str())).unwrap_or("none");
            return Err(mismatch(format!("the cgroup of its process {init_pid} is {path}")));
        }
        if !target.holds(&now) {
            return Err(mismatch(format!("its process {init_pid} has left the container's cgroup")));
        }
        Ok(Self { order: order.clone(), target, init })
    }

    /// Since it was found it may have been replaced, and its PID given to another.
    pub fn check_again(&self) -> Result<(), ContainerError> {
        let id = || self.order.id.clone();
        let now = self.init.memberships().map_err(|source| ContainerError::Process { id: id(), source })?;
        if self.target.holds(&now) {
            return Ok(());
        }
        let why = format!("its process {} has left the container's cgroup", self.init.pid());
        Err(ContainerError::Mismatch { id: id(), why })
    }
}
