//! The one fault of now: a signal to a container's first process, or to all of them, and the receipt for it.
//!
//! In steps: [`prepare`] resolves the container and checks it against the order (no effect, may be done long before);
//! [`Prepared::fire`] checks once more, has the intent written, and signals by both ways at once; [`receipt`] collects
//! what came of it. Refuses whatever is not exactly the container of the order. eBPF is never a condition: without it
//! the signal goes through pidfds, and the receipt says so and why.

pub mod receipt;
mod strike;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use crate::{
    cgroup::{CgroupError, CgroupRoot, Target},
    ebpf::{Armed, EbpfError, Engine, Records, Scope as Programs, WatchSpec},
    order::{ContainerRef, Kill, Scope},
    process::{Process, ProcessError},
    report::{Evidence, Reason},
    runtime::{RuntimeError, Runtimes},
};
use receipt::Collector;
use strike::Striker;

/// A process whose cgroup is gone is given so long to be gone, too.
const ENDING: Duration = Duration::from_millis(200);
/// How long a kill waits for arming that has not finished.
pub const ARMING_PATIENCE: Duration = Duration::from_millis(10);

/// Why a kill was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
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
    /// The intent could not be written, so nothing was done.
    #[error("nothing was done, for the intent could not be written: {0}")]
    Intent(String),
}

impl KillError {
    /// The word of the contract for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Protected { .. } => Reason::ProtectedNamespace,
            Self::Runtime(error) => match error {
                RuntimeError::UnknownScheme { .. } => Reason::UnknownRuntime,
                RuntimeError::Gone { .. } => Reason::ContainerGone,
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
            Self::Cgroup { .. } | Self::Intent(_) => Reason::Internal,
        }
    }
}

/// What a kill works with.
#[derive(Clone)]
pub struct Tools {
    /// The programs.
    pub engine: Arc<Engine>,
    /// The cgroups.
    pub cgroups: CgroupRoot,
    /// The runtimes.
    pub runtimes: Runtimes,
}

/// A container that was found and checked, with its watch being armed.
pub struct Prepared {
    container: ContainerRef,
    kill: Kill,
    target: Target,
    init: Process,
    arming: Arming,
}

/// A watch on its way. Arming blocks for milliseconds, so it has a thread of its own.
struct Arming {
    watch: oneshot::Receiver<Result<(Arc<Armed>, Records), EbpfError>>,
    attached: JoinHandle<Result<(), EbpfError>>,
}

/// Finds the container, checks that it is the one of the order, and starts to arm. No effect on the container.
pub async fn prepare(tools: &Tools, container: &ContainerRef, kill: Kill) -> Result<Prepared, KillError> {
    if squall_api::names::is_protected_namespace(&container.namespace) {
        return Err(KillError::Protected { namespace: container.namespace.clone() });
    }
    let info = tools.runtimes.get(&container.scheme)?.container(&container.id).await?;
    if let Some(why) = info.mismatch(container) {
        return Err(KillError::Mismatch { id: container.id.clone(), why });
    }
    prepare_process(tools, container, kill, info.init_pid)
}

/// As [`prepare`], for a container whose first process is known.
pub fn prepare_process(
    tools: &Tools,
    container: &ContainerRef,
    kill: Kill,
    init_pid: i32,
) -> Result<Prepared, KillError> {
    let id = || container.id.clone();
    let init = Process::open(tools.cgroups.proc(), init_pid)
        .map_err(|source| KillError::Process { id: id(), source })?;
    let target = tools.cgroups.container(init_pid, &container.id);
    // Of a process that has ended neither the cgroup nor its path says anything.
    let now = init.memberships().map_err(|source| KillError::Process { id: id(), source })?;
    let target = target.map_err(|source| {
        // A process on its way out leaves its cgroup a moment before it has ended.
        if init.ends_within(ENDING) {
            KillError::Process { id: id(), source: ProcessError::Gone { pid: init_pid } }
        } else {
            KillError::Cgroup { id: id(), source }
        }
    })?;
    let mismatch = |why: String| KillError::Mismatch { id: id(), why };
    // The runtime says which process it is; the kernel says whose cgroup that process is in.
    if !target.memberships.mention(&container.id) {
        let path = now.v2().or(now.0.first().map(|one| one.path.as_str())).unwrap_or("none");
        return Err(mismatch(format!("the cgroup of its process {init_pid} is {path}")));
    }
    if !target.holds(&now) {
        return Err(mismatch(format!("its process {init_pid} has left the container's cgroup")));
    }
    let spec = WatchSpec {
        scope: match kill.scope {
            Scope::Init => Programs::Init,
            Scope::All => Programs::All,
        },
        signal: kill.signal,
        init_pid,
        init_start: init.start(),
    };
    let arming = Arming::start(&tools.engine, &target, spec);
    Ok(Prepared { container: container.clone(), kill, target, init, arming })
}

impl Prepared {
    /// The container's first process: PID and start time.
    pub fn init(&self) -> (i32, u64) {
        (self.init.pid(), self.init.start())
    }

    /// Waits until arming has come to its end; `Err` says what of it did not work.
    pub async fn armed(&mut self) -> Result<(), String> {
        match (&mut self.arming.attached).await {
            Ok(Ok(())) => {
                // Keep an answer for `fire`.
                self.arming.attached = tokio::spawn(std::future::ready(Ok(())));
                Ok(())
            }
            Ok(Err(error)) => {
                let text = error.to_string();
                self.arming.attached = tokio::spawn(std::future::ready(Err(error)));
                Err(text)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Signals. `intent` is called after the last check and before the first effect; if it fails, nothing is done.
    /// What comes of it is collected from the [`Collector`].
    pub async fn fire(
        self,
        ordered: SystemTime,
        intent: impl FnOnce(i32, u64) -> Result<(), String>,
    ) -> Result<Collector, KillError> {
        let Self { container, kill, target, init, arming } = self;
        let (watch, evidence_error) = arming.finish().await;
        let gone = |source| KillError::Process { id: container.id.clone(), source };
        // Since it was prepared the container may have been replaced, and the PID given to another.
        if !target.holds(&init.memberships().map_err(gone)?) {
            let why = format!("its process {} has left the container's cgroup", init.pid());
            return Err(KillError::Mismatch { id: container.id, why });
        }
        intent(init.pid(), init.start()).map_err(KillError::Intent)?;

        let (armed, records) = match watch {
            Some((armed, records)) => (Some(armed), Some(records)),
            None => (None, None),
        };
        let mut striker = Striker::new(target, kill, init, armed);
        let (evidence, evidence_error) = match striker.open_fire() {
            Ok(true) => (Evidence::Ebpf, evidence_error),
            Ok(false) => (Evidence::Pidfd, evidence_error),
            Err(error) => (Evidence::Pidfd, error.to_string()),
        };
        let fired = SystemTime::now();
        striker.strike().await;
        Ok(Collector::new(striker, records, evidence, evidence_error, ordered, fired))
    }
}

impl Arming {
    fn start(engine: &Arc<Engine>, target: &Target, spec: WatchSpec) -> Self {
        let (sender, watch) = oneshot::channel();
        let (engine, target) = (Arc::clone(engine), target.clone());
        let attached = tokio::task::spawn_blocking(move || match engine.arm(&target, spec) {
            Ok((armed, records)) => {
                let armed = Arc::new(armed);
                // Nobody waits any more: dropping the watch disarms it.
                sender
                    .send(Ok((Arc::clone(&armed), records)))
                    .map_err(drop)
                    .map_or(Ok(()), |()| armed.attach())
            }
            Err(error) => {
                // Who waits gets the error; who doesn't has no use for it.
                let _ = sender.send(Err(error));
                Ok(())
            }
        });
        Self { watch, attached }
    }

    /// The watch, if it is there or comes soon, and what of arming did not work.
    async fn finish(self) -> (Option<(Arc<Armed>, Records)>, String) {
        let late = || format!("arming took longer than {ARMING_PATIENCE:?}");
        let whole = async {
            match self.watch.await {
                // Without the signalling program the tracepoints still give evidence.
                Ok(Ok(watch)) => (Some(watch), String::new()),
                Ok(Err(error)) => (None, error.to_string()),
                Err(_) => (None, "arming was given up".to_owned()),
            }
        };
        let (watch, problem) = match timeout(ARMING_PATIENCE, whole).await {
            Ok(done) => done,
            Err(_) => return (None, late()),
        };
        if watch.is_some() && self.attached.is_finished() {
            return match self.attached.await {
                Ok(Ok(())) => (watch, problem),
                Ok(Err(error)) => (watch, format!("the signalling program is not attached: {error}")),
                Err(error) => (watch, error.to_string()),
            };
        }
        (watch, problem)
    }
}
