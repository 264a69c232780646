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
    cgroup::{CgroupRoot, Target},
    container::{Container, ContainerError},
    ebpf::{Armed, EbpfError, Engine, Records, Scope as Programs, Warm, WatchSpec},
    order::{ContainerRef, Kill, Scope},
    report::{Evidence, Reason},
    runtime::Runtimes,
};
use receipt::Collector;
use strike::Striker;

/// How long a kill waits for arming that has not finished.
pub const ARMING_PATIENCE: Duration = Duration::from_millis(10);

/// Why a kill was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The container is not to be hit.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The intent could not be written, so nothing was done.
    #[error("nothing was done, for the intent could not be written: {0}")]
    Intent(String),
}

impl KillError {
    /// The word of the contract for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Container(error) => error.reason(),
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
    arming: Arming,
}

/// A watch on its way. Arming blocks for milliseconds, so it has a thread of its own.
struct Arming {
    watch: oneshot::Receiver<Result<(Arc<Armed>, Records), EbpfError>>,
    attached: JoinHandle<Result<(), EbpfError>>,
    /// Keeps the programs loaded until they are armed.
    _warm: Option<JoinHandle<Warm>>,
}

/// Finds the container, checks that it is the one of the order, and starts to arm. No effect on the container.
pub async fn prepare(tools: &Tools, container: &ContainerRef, kill: Kill) -> Result<Prepared, KillError> {
    // Loading takes as long as asking the runtime, so both are done at once.
    let engine = Arc::clone(&tools.engine);
    let warm = tokio::task::spawn_blocking(move || engine.warm());
    Ok(Prepared::new(tools, Container::find(tools, container).await?, kill, Some(warm)))
}

/// As [`prepare`], for a container whose first process is known.
pub fn prepare_process(
    tools: &Tools,
    container: &ContainerRef,
    kill: Kill,
    init_pid: i32,
) -> Result<Prepared, KillError> {
    Ok(Prepared::new(tools, Container::of(tools, container, init_pid)?, kill, None))
}

impl Prepared {
    fn new(tools: &Tools, container: Container, kill: Kill, warm: Option<JoinHandle<Warm>>) -> Self {
        let spec = WatchSpec {
            scope: match kill.scope {
                Scope::Init => Programs::Init,
                Scope::All => Programs::All,
            },
            signal: kill.signal,
            init_pid: container.init.pid(),
            init_start: container.init.start(),
        };
        let arming = Arming::start(&tools.engine, &container.target, spec, warm);
        Self { container, kill, arming }
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

    /// Signals. `intent` is called after the last check and before the first effect; if it fails, nothing is done.
    /// What comes of it is collected from the [`Collector`].
    pub async fn fire(
        self,
        ordered: SystemTime,
        intent: impl FnOnce(i32, u64) -> Result<(), String>,
    ) -> Result<Collector, KillError> {
        let Self { container, kill, arming } = self;
        let (watch, evidence_error) = arming.finish().await;
        container.check_again()?;
        let Container { order: _, target, init } = container;
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
    fn start(engine: &Arc<Engine>, target: &Target, spec: WatchSpec, warm: Option<JoinHandle<Warm>>) -> Self {
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
        Self { watch, attached, _warm: warm }
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
