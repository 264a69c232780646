//! The life of one fault: found and armed, fired when ordered, watched until its end or its deadline.
//!
//! It ends when it is told to (its task is dropped, and with it everything that it holds), when its order is not
//! renewed, or with an outcome. After a restart it never signals again what was signalled before.

use std::{sync::Arc, time::SystemTime};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, sleep_until},
};

use super::{Command, Node};
use crate::{
    journal::Progress,
    kill::{
        Fired, KillError, Prepared, prepare,
        receipt::{SURVIVED_AFTER, shell_code},
        trigger::{Triggered, Waiting},
    },
    order::{Action, ContainerRef, Kill, Order, Processes, Scope, Stage, Whom},
    process::{Process, ProcessError},
    report::{Evidence, FaultReport, ProcessReceipt, Reason, Receipt, State},
};

/// Sees `order` through; lets go of `found` when the container is found, or won't be.
pub(super) async fn run(
    node: Arc<Node>,
    order: Order,
    mut commands: watch::Receiver<Command>,
    progress: Option<Progress>,
    found: watch::Sender<()>,
) {
    let Order { id, experiment: _, container, stage: _, ttl: _, action } = order;
    let report =
        |state, message: String, receipt| FaultReport { receipt, ..FaultReport::new(&id, state, message) };
    let kill = match action {
        Some(Action::Kill(kill)) => kill,
        // Lasting faults have a life of their own.
        Some(Action::Freeze | Action::Stress(_)) | None => {
            let message =
                "this daemon does not know that kind of fault; it is older than the controller".to_owned();
            node.tell(report(State::Refused(Reason::Unsupported), message, None), None);
            return;
        }
    };
    let mut again = false;
    match progress {
        // The other two are of lasting faults alone.
        None | Some(Progress::Standing { .. } | Progress::Interrupted { .. }) => {}
        Some(Progress::Final(known)) => return node.tell(known, None),
        Some(Progress::Fired { pid, start, report: known }) => {
            let outcome = resume(&node, &mut commands, &kill, (pid, start), known).await;
            return node.tell(outcome, None);
        }
        Some(Progress::Intended { pid, start }) => {
            let found = Process::open_started(node.tools().cgroups.proc(), pid, start).map(drop);
            if let Some((state, message)) = interrupted(&kill, found) {
                return node.tell(report(state, message, None), None);
            }
            tracing::warn!(fault = id, pid, "the daemon was interrupted while it signalled: once more");
            again = true;
        }
    }
    let mut renewals = commands.clone();
    let prepared = tokio::select! {
        prepared = until_fired(&node, &id, &container, kill, &mut commands, found) => prepared,
        () = expiry(&mut renewals) => {
            let message = "the order was not renewed in time; nothing was signalled".to_owned();
            Err((State::Failed(Reason::Expired), message, None))
        }
    };
    let ended = match prepared {
        Ok((prepared, ordered)) => fire(&node, &id, &container, prepared, ordered, &mut renewals).await,
        Err(ended) => ended,
    };
    let (state, message, receipt) = if again { second_time(ended) } else { ended };
    node.tell(report(state, message, receipt), None);
}

/// What becomes of a fault whose signal may or may not have been sent; `None`: it may be sent once more.
fn interrupted(kill: &Kill, found: Result<(), ProcessError>) -> Option<(State, String)> {
    if let Whom::Trigger(_) = kill.whom {
        let message = "the daemon was interrupted while the trigger was armed; whether it has fired is not known, so it \
                       is not armed again";
        return Some((State::Failed(Reason::Internal), message.to_owned()));
    }
    match found {
        // Whoever was meant has died of it, and who has that name now may have been started since.
        Ok(()) if is_of_some(kill) => {
            let message = "the daemon was interrupted while it signalled; a signal to some of a container's processes is \
                           not sent a second time";
            Some((State::Failed(Reason::Internal), message.to_owned()))
        }
        // A process can die of it only once, so a second one does no harm.
        Ok(()) if kill.signal == libc::SIGKILL => None,
        // It may be about to end by the first one, and a second one may cut that short.
        Ok(()) => {
            let message = "the daemon was interrupted while it signalled; it is not sent a second time";
            Some((State::Failed(Reason::Internal), message.to_owned()))
        }
        Err(ProcessError::Gone { .. } | ProcessError::Reused { .. }) => {
            let message = "the daemon was interrupted while it signalled; the process is gone";
            Some((State::Done, message.to_owned()))
        }
        // Nothing is known of the process, so nothing is done.
        Err(
            error @ (ProcessError::Open { .. }
            | ProcessError::Read { .. }
            | ProcessError::Signal { .. }
            | ProcessError::Wait { .. }
            | ProcessError::Cgroup(_)),
        ) => {
            let message = format!("the daemon was interrupted while it signalled: {error}");
            Some((State::Failed(Reason::Internal), message))
        }
    }
}

/// Whether it is for some of the container's processes, by what they are at the moment.
fn is_of_some(kill: &Kill) -> bool {
    match &kill.whom {
        Whom::Processes(Processes { scope: Scope::All, comm, exe }) => comm.is_some() || exe.is_some(),
        Whom::Processes(Processes { scope: Scope::Init, comm: _, exe: _ }) | Whom::Trigger(_) => false,
    }
}

/// After a second SIGKILL: a container that is gone is the first one's work.
fn second_time((state, message, receipt): Ended) -> Ended {
    match state {
        State::Refused(Reason::ContainerGone) | State::Failed(Reason::ContainerGone) => {
            let message = format!("the daemon was interrupted while it signalled; {message}");
            (State::Done, message, receipt)
        }
        // Expired means that nothing was signalled, which nobody knows.
        State::Failed(Reason::Expired) => {
            let message = "the daemon was interrupted while it signalled; whether the signal was sent is not known, and it is \
                           not sent again"
                .to_owned();
            (State::Failed(Reason::Internal), message, receipt)
        }
        State::Armed
        | State::Fired
        | State::Done
        | State::Refused(_)
        | State::Failed(_)
        | State::Injected
        | State::Recovered => (state, message, receipt),
    }
}

type Ended = (State, String, Option<Receipt>);

/// Prepares, and waits for the order to fire.
async fn until_fired(
    node: &Node,
    id: &str,
    container: &ContainerRef,
    kill: Kill,
    commands: &mut watch::Receiver<Command>,
    found: watch::Sender<()>,
) -> Result<(Prepared, SystemTime), Ended> {
    let mut prepared = prepare(node.tools(), container, kill).await.map_err(refused)?;
    drop(found);
    if commands.borrow().stage == Stage::Arm {
        // Who orders to fire meanwhile does not wait for what is still missing.
        let problem = tokio::select! {
            armed = prepared.armed() => armed.err().unwrap_or_default(),
            _ = commands.wait_for(|command| command.stage == Stage::Fire) => String::new(),
        };
        if commands.borrow().stage == Stage::Arm {
            node.tell(FaultReport::new(id, State::Armed, problem), None);
        }
    }
    match commands.wait_for(|command| command.stage == Stage::Fire).await {
        Ok(command) => Ok((prepared, command.ordered)),
        // The task is about to be dropped.
        Err(_) => Err((State::Failed(Reason::Internal), "nobody gives orders any more".into(), None)),
    }
}

/// A task that ends with whoever waits for it: this fault's own may be dropped at any time.
struct Aborted<T>(JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Fires, and collects what comes of it.
async fn fire(
    node: &Node,
    id: &str,
    container: &ContainerRef,
    prepared: Prepared,
    ordered: SystemTime,
    renewals: &mut watch::Receiver<Command>,
) -> Ended {
    let init = prepared.init();
    let intend = |pid, start| node.intend(id, pid, start).map_err(|error| error.to_string());
    let (mut collector, hit) = match prepared.fire(ordered, intend).await {
        Ok(Fired::Struck(collector)) => (collector, init),
        Ok(Fired::Waiting(waiting)) => match wait(node, id, waiting, renewals).await {
            Triggered::Fired(collector) => {
                let hit = collector.first_hit().unwrap_or(init);
                (*collector, hit)
            }
            Triggered::Ended(state, message, receipt) => return (state, message, Some(receipt)),
        },
        Err(error) => return refused(error),
    };
    let receipt = collector.receipt();
    // Without the programs only the runtime knows the exit code, and only if it is asked before the end.
    let mut asked = match receipt.evidence {
        Evidence::Ebpf => None,
        Evidence::Pidfd => node.tools().runtimes.get(&container.scheme).ok().map(|runtime| {
            let container = container.id.clone();
            Aborted(tokio::spawn(async move { runtime.exit_code(&container).await.ok() }))
        }),
    };
    let message = match receipt.fired_at_count {
        0 => "the signal is sent".to_owned(),
        count => format!("the trigger has fired at count {count}: the signal is sent"),
    };
    let report = FaultReport { receipt: Some(receipt), ..FaultReport::new(id, State::Fired, message) };
    node.tell(report, Some(hit));

    let exit_code = async { (&mut asked.as_mut()?.0).await.ok().flatten() };
    let outcome = tokio::select! {
        outcome = collector.collect(exit_code) => Some(outcome),
        () = expiry(renewals) => None,
    };
    drop(asked);
    let unfinished = collector.receipt();
    // The last watch takes the programs out of the kernel, which takes a moment; the report does not wait for it.
    drop(tokio::task::spawn_blocking(move || drop(collector)));
    match outcome {
        Some(outcome) => (outcome.state, outcome.message, Some(outcome.receipt)),
        None => {
            let message =
                "the signal was sent; the order was not renewed, so nobody waits for the end".to_owned();
            (State::Failed(Reason::Expired), message, Some(unfinished))
        }
    }
}

/// Has a trigger wait until it fires, can't any more, or its time is over.
async fn wait(node: &Node, id: &str, waiting: Waiting, renewals: &mut watch::Receiver<Command>) -> Triggered {
    node.tell(FaultReport::new(id, State::Armed, waiting.describe()), None);
    let mut unfired = Unfired { node, id, waiting: Some(waiting) };
    let fires = async {
        match &mut unfired.waiting {
            Some(waiting) => waiting.wait().await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        () = fires => Reason::ContainerGone,
        () = expiry(renewals) => Reason::NotTriggered,
    };
    match unfired.waiting.take() {
        Some(waiting) => waiting.end(why).await,
        None => std::future::pending().await,
    }
}

/// A trigger that may be let go of at any moment: what it intended is taken back then, if it has not fired, so that the
/// next daemon arms it again.
struct Unfired<'a> {
    node: &'a Node,
    id: &'a str,
    waiting: Option<Waiting>,
}

impl Drop for Unfired<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take()
            && waiting.take_back()
        {
            self.node.withdraw(self.id);
        }
    }
}

fn refused(error: KillError) -> Ended {
    (State::Refused(error.reason()), error.to_string(), None)
}

/// After a restart: the signal was sent, so what is left is to see whether it did its work on those who were signalled;
/// where none is named, on `first`, the container's first process.
async fn resume(
    node: &Node,
    commands: &mut watch::Receiver<Command>,
    kill: &Kill,
    first: (i32, u64),
    mut known: FaultReport,
) -> FaultReport {
    let mut hit: Vec<&mut ProcessReceipt> =
        known.receipt.iter_mut().flat_map(|receipt| &mut receipt.processes).collect();
    let named = hit.iter().map(|process| (process.pid, process.start)).collect::<Vec<_>>();
    if named.is_empty() && is_of_some(kill) {
        let message = "the daemon was interrupted while it signalled, and knew of nobody who had been";
        return FaultReport { state: State::Failed(Reason::NoProcess), message: message.to_owned(), ..known };
    }
    let named = if named.is_empty() { vec![first] } else { named };
    let mut left = FuturesUnordered::new();
    let mut problem = None;
    for (place, (pid, start)) in named.into_iter().enumerate() {
        if hit.get(place).is_some_and(|process| process.exited.is_some()) {
            continue;
        }
        match Process::open_started(node.tools().cgroups.proc(), pid, start) {
            Ok(process) => left.push(async move {
                let ended = process.exited().await;
                (place, ended, process.exit_status())
            }),
            Err(ProcessError::Gone { .. } | ProcessError::Reused { .. }) => {
                if let Some(process) = hit.get_mut(place) {
                    process.exited = Some(SystemTime::now());
                }
            }
            Err(error) => problem = Some(error),
        }
    }
    let goes_on = !left.is_empty();
    let all_exited = async {
        while let Some((place, ended, status)) = left.next().await {
            ended?;
            if let Some(process) = hit.get_mut(place) {
                process.exited = Some(SystemTime::now());
                process.exit_code = process.exit_code.or(status.map(shell_code));
            }
        }
        problem.map_or(Ok(()), Err)
    };
    let (state, message) = to_the_end(all_exited, sleep(SURVIVED_AFTER), expiry(commands)).await;
    let message = if state == State::Done && !goes_on {
        "everyone who was signalled ended while the daemon was away".to_owned()
    } else {
        message
    };
    FaultReport { state, message, ..known }
}

/// Waits for the end of those who were signalled before a restart.
async fn to_the_end(
    exited: impl Future<Output = Result<(), ProcessError>>,
    survived: impl Future<Output = ()>,
    expired: impl Future<Output = ()>,
) -> (State, String) {
    let goes_on = State::Failed(Reason::SignalIgnored);
    tokio::select! {
        exited = exited => match exited {
            Ok(()) => (
                State::Done,
                "who was signalled before the daemon's restart has exited".to_owned(),
            ),
            Err(error) => (State::Failed(Reason::Internal), error.to_string()),
        },
        () = survived => (goes_on, format!(
            "some who were signalled before the daemon's restart go on after {} s",
            SURVIVED_AFTER.as_secs()
        )),
        () = expired => {
            (goes_on, "some who were signalled before the daemon's restart go on".to_owned())
        }
    }
}

/// Ends when the order has not been renewed in time.
pub(super) async fn expiry(commands: &mut watch::Receiver<Command>) {
    loop {
        let expires = commands.borrow_and_update().expires;
        tokio::select! {
            () = sleep_until(expires) => return,
            changed = commands.changed() => if changed.is_err() {
                // No more orders: what is running is dropped by whoever dropped them.
                std::future::pending::<()>().await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Comm;

    #[test]
    fn only_sigkill_is_sent_once_more_after_an_interruption() {
        let of = |signal, found| interrupted(&Kill::now(signal, Scope::Init), found).map(|(state, _)| state);
        let internal = Some(State::Failed(Reason::Internal));
        assert_eq!(of(libc::SIGKILL, Ok(())), None);
        assert_eq!(of(libc::SIGTERM, Ok(())), internal);
        for signal in [libc::SIGKILL, libc::SIGTERM] {
            assert_eq!(of(signal, Err(ProcessError::Gone { pid: 7 })), Some(State::Done));
            let reused = ProcessError::Reused { pid: 7, wanted: 1, found: 2 };
            assert_eq!(of(signal, Err(reused)), Some(State::Done));
            let source = std::io::Error::from_raw_os_error(libc::EMFILE);
            assert_eq!(of(signal, Err(ProcessError::Open { pid: 7, source })), internal);
        }
    }

    #[test]
    fn a_kill_of_some_is_never_repeated() {
        let comm = Comm::new("worker");
        for processes in [
            Processes { scope: Scope::All, comm, exe: None },
            Processes { scope: Scope::All, comm: None, exe: Some("/worker".into()) },
        ] {
            let kill = Kill { signal: libc::SIGKILL, whom: Whom::Processes(processes) };
            let (state, _) = interrupted(&kill, Ok(())).expect("an end");
            assert_eq!(state, State::Failed(Reason::Internal));
        }
        // The first process is one and the same, whatever is asked of it.
        let first = Processes { scope: Scope::Init, comm, exe: None };
        let kill = Kill { signal: libc::SIGKILL, whom: Whom::Processes(first) };
        assert_eq!(interrupted(&kill, Ok(())), None);
    }

    #[test]
    fn a_container_that_is_gone_at_the_second_sigkill_is_done() {
        let of = |state| second_time((state, String::new(), None)).0;
        assert_eq!(of(State::Refused(Reason::ContainerGone)), State::Done);
        assert_eq!(of(State::Failed(Reason::ContainerGone)), State::Done);
        // Nor is it said of one that was taken back meanwhile that it was not hit.
        assert_eq!(of(State::Failed(Reason::Expired)), State::Failed(Reason::Internal));
        assert_eq!(of(State::Refused(Reason::RuntimeError)), State::Refused(Reason::RuntimeError));
    }

    #[tokio::test]
    async fn after_a_restart_only_an_end_that_was_seen_is_one() {
        use std::future::{pending, ready};
        let seen = to_the_end(ready(Ok(())), pending(), pending()).await;
        assert_eq!(seen.0, State::Done);
        let source = std::io::Error::from_raw_os_error(libc::EMFILE);
        let blind = to_the_end(ready(Err(ProcessError::Wait { pid: 7, source })), pending(), pending()).await;
        assert_eq!(blind.0, State::Failed(Reason::Internal));
        assert_eq!(to_the_end(pending(), ready(()), pending()).await.0, State::Failed(Reason::SignalIgnored));
        assert_eq!(to_the_end(pending(), pending(), ready(())).await.0, State::Failed(Reason::SignalIgnored));
    }

    #[tokio::test]
    async fn a_dropped_fault_leaves_no_task_behind() {
        let held = Arc::new(());
        let theirs = Arc::clone(&held);
        let task = Aborted(tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(theirs);
        }));
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 2);
        drop(task);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
