//! A signal to processes of a container, at once or when one of them does something, and the receipt for it.
//!
//! In steps: [`prepare`] finds the container and starts to arm (no effect, may be done long before); [`Prepared::fire`]
//! checks once more, has the intent written, and signals by both ways at once, or lets a trigger wait; [`receipt`]
//! collects what came of it. Refuses whatever is not exactly the container of the order. For a signal at once eBPF is no
//! condition: without it the signal goes through pidfds, and the receipt says so and why.

mod oom;
pub mod receipt;
mod strike;
pub mod trigger;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use crate::{
    cgroup::{CgroupRoot, Target},
    container::{Container, ContainerError},
    ebpf::{Armed, EbpfError, Engine, Records, Scope as Programs, TriggerSpec, Warm, WatchSpec},
    inside::Unasked,
    order::{ContainerRef, Kill, Processes, Scope, Whom},
    process::ProcessError,
    report::{Evidence, Reason},
    runtime::Runtimes,
};
use oom::OomKills;
use receipt::{Collector, Evidenced, Times};
use strike::{Mismatch, Striker};
use trigger::Waiting;

/// How long a kill waits for arming that has not finished.
pub const ARMING_PATIENCE: Duration = Duration::from_millis(10);
/// How long a trigger waits for it: nothing else can do its work.
const TRIGGER_PATIENCE: Duration = Duration::from_secs(5);

/// Why a kill was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The container is not to be hit.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// There is nobody to be signalled.
    #[error("container {id}: {why}")]
    NoProcess {
        /// The container.
        id: String,
        /// Whom it lacks.
        why: String,
    },
    /// Whether a process is meant can't be seen.
    #[error("container {id}: {source}")]
    Unseen {
        /// The container.
        id: String,
        /// Why.
        source: ProcessError,
    },
    /// The trigger can't be armed here, and nothing else can do its work.
    #[error("container {id}: the trigger can't be armed: {why}")]
    Trigger {
        /// The container.
        id: String,
        /// Why.
        why: String,
    },
    /// The intent could not be written, so nothing was done.
    #[error("nothing was done, for the intent could not be written: {0}")]
    Intent(String),
}

impl KillError {
    /// The word of the contract for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Container(error) => error.reason(),
            Self::NoProcess { .. } => Reason::NoProcess,
            Self::Unseen { .. } | Self::Trigger { .. } => Reason::Unsupported,
            Self::Intent(_) => Reason::Internal,
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
    container: Container,
    kill: Kill,
    spared: Option<i32>,
    arming: Arming,
}

/// A watch on its way. Arming blocks for milliseconds, so it has a thread of its own.
struct Arming {
    watch: oneshot::Receiver<Watched>,
    attached: JoinHandle<Result<(), EbpfError>>,
    /// Keeps the programs loaded until they are armed.
    _warm: Option<JoinHandle<Warm>>,
}

/// Finds the container, checks that it is the one of the order, and starts to arm. No effect on the container.
pub async fn prepare(tools: &Tools, container: &ContainerRef, kill: Kill) -> Result<Prepared, KillError> {
    // Loading takes as long as asking the runtime, so both are done at once.
    let engine = Arc::clone(&tools.engine);
    let warm = tokio::task::spawn_blocking(move || engine.warm());
    Prepared::new(tools, Container::find(tools, container).await?, kill, Some(warm))
}

/// As [`prepare`], for a container whose first process is known.
pub fn prepare_process(
    tools: &Tools,
    container: &ContainerRef,
    kill: Kill,
    init_pid: i32,
) -> Result<Prepared, KillError> {
    Prepared::new(tools, Container::of(tools, container, init_pid)?, kill, None)
}

impl Prepared {
    fn new(
        tools: &Tools,
        container: Container,
        kill: Kill,
        warm: Option<JoinHandle<Warm>>,
    ) -> Result<Self, KillError> {
        let (init_pid, init_start) = (container.init.pid(), container.init.start());
        let arming = match &kill.whom {
            Whom::Processes(Processes { scope, comm, exe }) => {
                let scope = match (exe, scope) {
                    // The programs see no paths: they only observe, and the daemon alone signals.
                    (Some(_), _) => Programs::Observe,
                    (None, Scope::Init) => Programs::Init,
                    (None, Scope::All) => Programs::All,
                };
                let comm = comm.map(|comm| comm.bytes()).unwrap_or_default();
                let spec = WatchSpec { scope, signal: kill.signal, init_pid, init_start, comm };
                Arming::start(&tools.engine, &container.target, warm, move |engine, target| {
                    engine.arm(target, spec)
                })
            }
            Whom::Trigger(trigger) => {
                let spec = trigger::spec(trigger, kill.signal).map_err(|error| KillError::Trigger {
                    id: container.order.id.clone(),
                    why: error.to_string(),
                })?;
                let root = tools.cgroups.proc().join(format!("{init_pid}/root"));
                let spec = trigger::by_all_names(spec, root);
                Arming::start_trigger(&tools.engine, &container.target, warm, spec)
            }
        };
        Ok(Self { container, kill, spared: tools.engine.spared(), arming })
    }

    /// The container's first process: PID and start time.
    pub fn init(&self) -> (i32, u64) {
        (self.container.init.pid(), self.container.init.start())
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

    /// Signals, or lets the trigger wait. `intent` is called after the last check and before the first effect; if it
    /// fails, nothing is done.
    pub async fn fire(
        self,
        ordered: SystemTime,
        intent: impl FnOnce(i32, u64) -> Result<(), String>,
    ) -> Result<Fired, KillError> {
        let Self { container, kill, spared, arming } = self;
        match &kill.whom {
            Whom::Processes(processes) => {
                let (watch, evidence_error) = arming.finish(ARMING_PATIENCE).await;
                container.check_again()?;
                if processes.scope == Scope::Init {
                    let id = || container.order.id.clone();
                    strike::matches(processes, &container.init).map_err(|mismatch| match mismatch {
                        Mismatch::Another(why) => KillError::NoProcess { id: id(), why },
                        Mismatch::Unseen(source) => KillError::Unseen { id: id(), source },
                    })?;
                }
                let Container { order: _, target, init } = container;
                // Before anything can come of a signal.
                let ooms = OomKills::begin(&target);
                intent(init.pid(), init.start()).map_err(KillError::Intent)?;

                let (armed, records) = match watch {
                    Some((armed, records)) => (Some(armed), Some(records)),
                    None => (None, None),
                };
                let mut striker = Striker::new(target, kill, init, armed).sparing_children_of(spared);
                let (evidence, evidence_error) = match striker.open_fire() {
                    Ok(true) => (Evidence::Ebpf, evidence_error),
                    Ok(false) => (Evidence::Pidfd, evidence_error),
                    Err(error) => (Evidence::Pidfd, error.to_string()),
                };
                let times = Times { ordered, fired: SystemTime::now() };
                striker.strike().await;
                let evidence = Evidenced { evidence, evidence_error };
                Ok(Fired::Struck(Collector::new(striker, records, evidence, times, ooms)))
            }
            Whom::Trigger(trigger) => {
                let (watch, problem) = arming.finish(TRIGGER_PATIENCE).await;
                container.check_again()?;
                let failed = |why| KillError::Trigger { id: container.order.id.clone(), why };
                let (armed, records) = match watch {
                    Some(watch) if problem.is_empty() => watch,
                    Some(_) | None => return Err(failed(problem)),
                };
                intent(container.init.pid(), container.init.start()).map_err(KillError::Intent)?;
                armed.fire().map_err(|error| failed(error.to_string()))?;
                let trigger = trigger.clone();
                let Container { order: _, target, init } = container;
                Ok(Fired::Waiting(Waiting::new(trigger, target, kill, init, armed, records, ordered)))
            }
        }
    }
}

/// What was done when it was time.
pub enum Fired {
    /// The signal was sent.
    Struck(Collector),
    /// A trigger waits.
    Waiting(Waiting),
}

type Watched = Result<(Arc<Armed>, Records), EbpfError>;

/// Hands the watch over, and has its program run. Blocks.
fn attach(
    armed: Result<(Armed, Records), EbpfError>,
    sender: oneshot::Sender<Watched>,
) -> Result<(), EbpfError> {
    match armed {
        Ok((armed, records)) => {
            let armed = Arc::new(armed);
            // Nobody waits any more: dropping the watch disarms it.
            sender.send(Ok((Arc::clone(&armed), records))).map_err(drop).map_or(Ok(()), |()| armed.attach())
        }
        Err(error) => {
            // Who waits gets the error; who doesn't has no use for it.
            let _ = sender.send(Err(error));
            Ok(())
        }
    }
}

impl Arming {
    fn start(
        engine: &Arc<Engine>,
        target: &Target,
        warm: Option<JoinHandle<Warm>>,
        arm: impl FnOnce(&Engine, &Target) -> Result<(Armed, Records), EbpfError> + Send + 'static,
    ) -> Self {
        let (sender, watch) = oneshot::channel();
        let (engine, target) = (Arc::clone(engine), target.clone());
        let attached = tokio::task::spawn_blocking(move || attach(arm(&engine, &target), sender));
        Self { watch, attached, _warm: warm }
    }

    /// The same for a trigger, as soon as `spec` is there.
    fn start_trigger(
        engine: &Arc<Engine>,
        target: &Target,
        warm: Option<JoinHandle<Warm>>,
        spec: impl Future<Output = Result<TriggerSpec, Unasked>> + Send + 'static,
    ) -> Self {
        let (sender, watch) = oneshot::channel();
        let (engine, target) = (Arc::clone(engine), target.clone());
        let attached = tokio::spawn(async move {
            let spec = spec.await.map_err(EbpfError::from);
            let attaching = tokio::task::spawn_blocking(move || {
                attach(spec.and_then(|spec| engine.arm_trigger(&target, spec)), sender)
            });
            // It panicked, or the daemon ends: then nobody was sent a watch, and that is known.
            attaching.await.unwrap_or(Ok(()))
        });
        Self { watch, attached, _warm: warm }
    }

    /// The watch, if it is there or comes soon, and what of arming did not work.
    async fn finish(mut self, patience: Duration) -> (Option<(Arc<Armed>, Records)>, String) {
        let late = || format!("arming took longer than {patience:?}");
        let whole = async {
            match self.watch.await {
                // Without the signalling program the tracepoints still give evidence.
                Ok(Ok(watch)) => (Some(watch), String::new()),
                Ok(Err(error)) => (None, error.to_string()),
                Err(_) => (None, "arming was given up".to_owned()),
            }
        };
        let (watch, problem) = match timeout(patience, whole).await {
            Ok(done) => done,
            Err(_) => return (None, late()),
        };
        // A signal at once does not wait for the program, the daemon signals too; a trigger has nothing else.
        if watch.is_some() && (self.attached.is_finished() || patience > ARMING_PATIENCE) {
            return match timeout(patience, &mut self.attached).await {
                Ok(Ok(Ok(()))) => (watch, problem),
                Ok(Ok(Err(error))) => (watch, format!("the signalling program is not attached: {error}")),
                Ok(Err(error)) => (watch, error.to_string()),
                Err(_) => (watch, late()),
            };
        }
        (watch, problem)
    }
}
