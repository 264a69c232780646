//! The life of a lasting fault: found, injected when ordered, watched, and put back, whatever ends it.
//!
//! It ends when it is told to, when it is not listed any more, when its order is not renewed in time, with the
//! container, with the daemon, or by itself. How it is put back is in the journal before anything is done. Its task is
//! never dropped while something stands: it is told to recover instead.

use std::{
    collections::BTreeSet,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, sleep_until},
};

use super::{Command, Inner, Node};
use crate::{
    container::Container,
    journal::{Journal, Progress},
    lasting::{Event, Lasting, LastingError, Measured, kind},
    order::{Action, Order, Stage},
    report::{self, Effect, FaultReport, Reason, State},
    setting::{SettingError, Settings, Undo, put_back_all},
    usage::{Meter, Reading},
};

/// What was used before is measured over no less than this; a shorter time says nothing.
const BEFORE: Duration = Duration::from_millis(10);
/// What is used afterwards is measured over this long.
const AFTER: Duration = Duration::from_millis(50);
/// A value that could not be put back is tried again after this long, so many times.
const AGAIN: (Duration, u32) = (Duration::from_millis(200), 10);

/// How a turn ended.
enum End {
    /// Final, with this to tell.
    Told(FaultReport),
    /// The order was not renewed: the next one injects again.
    Expired(FaultReport),
    /// The daemon ends.
    Interrupted,
    /// Not everything could be put back: what is left stays in the journal for the next time.
    Left(FaultReport, Vec<Undo>),
}

/// Sees `order` through, again and again if it is ordered anew while it ends.
pub(super) async fn run(
    node: Arc<Node>,
    order: Order,
    mut commands: watch::Receiver<Command>,
    progress: Option<Progress>,
) {
    let Order { id, experiment: _, container, stage: _, ttl: _, action } = order;
    let mut interruptions = match progress {
        None | Some(Progress::Intended { .. } | Progress::Fired { .. }) => 0,
        Some(Progress::Standing { interruptions, .. } | Progress::Interrupted { interruptions }) => {
            interruptions
        }
        Some(Progress::Final(report)) => report.lasting.interruptions,
    };
    loop {
        let mut turn = Turn {
            node: &node,
            id: &id,
            lasting: report::Lasting { interruptions, ..report::Lasting::default() },
            left: Vec::new(),
        };
        let end = match (&action, turn.put_back_left_over().await) {
            (_, Some(end)) => end,
            (Some(action), None) => turn.take(&container, action, &mut commands).await,
            (None, None) => turn.told(State::Refused(Reason::Unsupported), UNKNOWN.into()),
        };
        match node.finish(&id, end, interruptions) {
            Next::Nothing => return,
            Next::Again { interruptions: so_far } => interruptions = so_far,
        }
    }
}

/// What is said of an action or a stage of a later controller's.
pub(super) const UNKNOWN: &str =
    "this daemon does not know that kind of fault; it is older than the controller";

/// What is said of a fault that a daemon before this one left standing.
pub(super) fn left_over(id: &str, state: State, interruptions: u32) -> FaultReport {
    let message = match state {
        State::Armed => "it was put back when the daemon ended, and waits for its order",
        _ => "what a daemon before this one changed could not be put back yet",
    };
    let lasting = report::Lasting { interruptions, ..report::Lasting::default() };
    FaultReport { lasting, ..FaultReport::new(id, state, message.to_owned()) }
}

/// Puts back everything that the journal lists, before any order is obeyed. What can't be stays in the journal.
pub(super) fn put_back_left_over(journal: &mut Journal) {
    let standing: Vec<(String, Vec<Undo>, u32)> = journal
        .faults()
        .filter_map(|(id, progress)| match progress {
            Progress::Standing { undos, interruptions } => Some((id.clone(), undos.clone(), *interruptions)),
            Progress::Intended { .. }
            | Progress::Fired { .. }
            | Progress::Interrupted { .. }
            | Progress::Final(_) => None,
        })
        .collect();
    if standing.is_empty() {
        return;
    }
    let undos = standing.iter().flat_map(|(id, undos, _)| undos.iter().map(|undo| (id.as_str(), undo)));
    let mut left = BTreeSet::new();
    for (id, outcome) in put_back_all(undos) {
        match outcome {
            Ok(None) => tracing::info!(fault = id, "put back what a daemon before this one changed"),
            Ok(Some(warning)) => tracing::warn!(fault = id, warning, "left as it is"),
            Err(error) => {
                tracing::error!(fault = id, %error, "could not be put back");
                left.insert(id);
            }
        }
    }
    for (id, _, interruptions) in standing.iter().filter(|(id, ..)| !left.contains(id.as_str())) {
        let interruptions = interruptions.saturating_add(1);
        journal.note_soon(id, Progress::Interrupted { interruptions });
    }
    if let Err(error) = journal.write() {
        // Putting back twice does no harm.
        tracing::error!(%error, "the journal could not be written");
    }
}

/// What follows a turn.
#[derive(Debug, PartialEq)]
enum Next {
    Nothing,
    /// It was ordered anew meanwhile.
    Again {
        interruptions: u32,
    },
}

impl Node {
    /// Notes and tells how a turn ended, unless it is ordered anew.
    fn finish(&self, id: &str, end: End, interruptions: u32) -> Next {
        let mut inner = self.lock();
        // Whoever waits for it looks when the lock is free again.
        self.ended.notify_waiters();
        let command = inner.running.get(id).map(|running| *running.command.borrow());
        let Some(command) = command.filter(|command| command.listed) else {
            // Nobody is interested any more.
            inner.running.remove(id);
            inner.reports.remove(id);
            match end {
                End::Left(_, undos) => {
                    inner.journal.note_soon(id, Progress::Standing { undos, interruptions });
                }
                End::Told(_) | End::Expired(_) | End::Interrupted => {
                    inner.journal.forget(id);
                }
            }
            self.write.notify_one();
            return Next::Nothing;
        };
        let (report, progress) = match end {
            End::Interrupted => {
                inner.running.remove(id);
                inner
                    .journal
                    .note_soon(id, Progress::Interrupted { interruptions: interruptions.saturating_add(1) });
                self.write.notify_one();
                return Next::Nothing;
            }
            End::Told(report) => {
                // Recovered, and ordered again before this was told.
                if report.state == State::Recovered && command.stage == Stage::Fire {
                    return self.again(&mut inner, id, interruptions);
                }
                let progress = Progress::Final(report.clone());
                (report, progress)
            }
            End::Left(report, undos) => (report, Progress::Standing { undos, interruptions }),
            End::Expired(report) => {
                if command.expires > tokio::time::Instant::now() && command.stage == Stage::Fire {
                    return self.again(&mut inner, id, interruptions.saturating_add(1));
                }
                (report, Progress::Interrupted { interruptions: interruptions.saturating_add(1) })
            }
        };
        inner.running.remove(id);
        inner.journal.note_soon(id, progress);
        self.write.notify_one();
        self.broadcast(&mut inner, report);
        Next::Nothing
    }

    /// Everything was let go of. Did the journal still say that it stands, it would be put back once more before it is
    /// injected again, and another fault may hold the same value.
    fn again(&self, inner: &mut Inner, id: &str, interruptions: u32) -> Next {
        inner.journal.note_soon(id, Progress::Interrupted { interruptions });
        self.write.notify_one();
        Next::Again { interruptions }
    }
}

struct Turn<'a> {
    node: &'a Arc<Node>,
    id: &'a str,
    lasting: report::Lasting,
    /// What could not be put back.
    left: Vec<Undo>,
}

impl Turn<'_> {
    /// Puts back what could not be put back the last time; the end, if it still can't.
    async fn put_back_left_over(&mut self) -> Option<End> {
        let undos = match self.node.lock().journal.progress(self.id) {
            Some(Progress::Standing { undos, .. }) => undos.clone(),
            Some(
                Progress::Intended { .. }
                | Progress::Fired { .. }
                | Progress::Interrupted { .. }
                | Progress::Final(_),
            )
            | None => return None,
        };
        let mut why = None;
        for undo in undos.into_iter().rev() {
            match self.set(&undo, Settings::put_back).await {
                Ok(warning) => self.lasting.warnings.extend(warning),
                Err(error) => {
                    why = Some(error);
                    self.left.insert(0, undo);
                }
            }
        }
        let message = format!("an earlier change could not be put back: {}", why?);
        Some(self.what_is_left(message))
    }

    fn report(&self, state: State, message: String) -> FaultReport {
        FaultReport { lasting: self.lasting.clone(), ..FaultReport::new(self.id, state, message) }
    }

    fn told(&self, state: State, message: String) -> End {
        End::Told(self.report(state, message))
    }

    fn what_is_left(&mut self, message: String) -> End {
        End::Left(self.report(State::Failed(Reason::Internal), message), mem::take(&mut self.left))
    }

    fn refused(&self, error: &LastingError) -> End {
        self.told(State::Refused(error.reason()), error.to_string())
    }

    fn tell(&self, state: State, message: &str) {
        self.node.tell(self.report(state, message.to_owned()), None);
    }

    async fn take(
        &mut self,
        order: &crate::order::ContainerRef,
        action: &Action,
        commands: &mut watch::Receiver<Command>,
    ) -> End {
        if commands.borrow().stage == Stage::Recover {
            return self.told(State::Recovered, "nothing was left to put back".into());
        }
        let Some(mut fault) = kind(self.node.tools(), self.id, action) else {
            return self.told(State::Refused(Reason::Unsupported), UNKNOWN.into());
        };
        let container = match Container::find(self.node.tools(), order).await {
            Ok(container) => container,
            Err(error) => return self.refused(&error.into()),
        };
        let meter = Meter::new(&container.target);
        let first = meter.read();
        if commands.borrow().stage == Stage::Arm {
            fault.arm();
        }
        if let Some(end) = self.until_fired(&container, commands).await {
            return end;
        }
        self.stand(&container, &mut *fault, (&meter, first), commands).await
    }

    /// Waits for the order to fire; `Some` when the fault ends before.
    async fn until_fired(
        &self,
        container: &Container,
        commands: &mut watch::Receiver<Command>,
    ) -> Option<End> {
        if commands.borrow().stage == Stage::Arm {
            self.tell(State::Armed, "");
        }
        let mut renewals = commands.clone();
        let fired = async {
            let command = commands.wait_for(|command| command.stage != Stage::Arm || command.ending).await;
            command.map(|command| *command)
        };
        tokio::select! {
            biased;
            command = fired => match command {
                Ok(command) if command.ending => Some(End::Interrupted),
                Ok(command) if command.stage == Stage::Recover => {
                    Some(self.told(State::Recovered, "nothing had been done yet".into()))
                }
                Ok(_) => None,
                Err(_) => Some(End::Interrupted),
            },
            () = super::fault::expiry(&mut renewals) => {
                let message = "the order was not renewed in time; nothing was done".to_owned();
                Some(self.told(State::Failed(Reason::Expired), message))
            }
            _ = container.init.exited() => {
                let message = "the container ended before anything was done".to_owned();
                Some(self.told(State::Refused(Reason::ContainerGone), message))
            }
        }
    }

    /// Injects, watches, and puts back.
    async fn stand(
        &mut self,
        container: &Container,
        fault: &mut dyn Lasting,
        (meter, first): (&Meter, Reading),
        commands: &mut watch::Receiver<Command>,
    ) -> End {
        let undos = match self.intend(container, fault).await {
            Ok(undos) => undos,
            Err(error) => return self.refused(&error),
        };
        let last = meter.read();
        let before = before(container, first, last);
        self.lasting.effect = Some(Effect { before: Some(before), ..Effect::default() });

        let mut over = pin!(over(commands.clone()));
        // From here on nothing returns without putting back.
        let ended = match self.hold(&undos, commands).await {
            Err(error) => Ended::Failed(error),
            Ok(()) => tokio::select! {
                biased;
                ended = &mut over => ended,
                injected = fault.inject(container) => match injected {
                    Err(error) => Ended::Failed(error),
                    Ok(()) => {
                        self.tell(State::Injected, "");
                        let begun = Begun { meter, before, first: last };
                        self.watch(container, fault, &begun, over).await
                    }
                },
            },
        };
        let during = meter.read();
        self.put_back(fault, &undos).await;
        let command = *commands.borrow();
        let effect = self.lasting.effect.get_or_insert_default();
        effect.during = Some(during.since(&last));
        if command.listed && !command.ending && !matches!(ended, Ended::Gone) {
            let reverted = meter.read();
            sleep(AFTER).await;
            effect.after = Some(meter.read().since(&reverted));
        }
        if !self.left.is_empty() {
            let message = "not everything could be put back; it is tried again when the daemon starts";
            return self.what_is_left(message.into());
        }
        match ended {
            Ended::Recover if commands.borrow().ending => End::Interrupted,
            Ended::Recover => self.told(State::Recovered, String::new()),
            Ended::Expired => {
                let message = "the order was not renewed in time: everything is put back";
                End::Expired(self.report(State::Recovered, message.into()))
            }
            Ended::Gone => self.told(State::Failed(Reason::ContainerGone), "the container has ended".into()),
            Ended::Failed(error) => self.told(State::Failed(error.reason()), error.to_string()),
        }
    }

    /// What will be lowered, and how it is put back; in the journal when this returns.
    async fn intend(
        &self,
        container: &Container,
        fault: &mut dyn Lasting,
    ) -> Result<Vec<Undo>, LastingError> {
        container.check_again()?;
        let wanted = fault.intend(container).await?;
        let settings = self.node.settings();
        let undos: Vec<Undo> =
            wanted.iter().map(|wanted| settings.intend(wanted)).collect::<Result<_, _>>()?;
        let standing = Progress::Standing { undos: undos.clone(), interruptions: self.lasting.interruptions };
        let noted = self.node.lock().journal.note(self.id, standing);
        noted.map_err(|error| {
            let message =
                format!("nothing was done, for it could not be written how to put it back: {error}");
            LastingError::because(Reason::Internal, message)
        })?;
        Ok(undos)
    }

    /// Lowers one value after the other, until it is over. What a thread has in hand can't be called off, and would
    /// lower a value behind the back of whoever puts it back; so each is waited for.
    async fn hold(
        &mut self,
        undos: &[Undo],
        commands: &watch::Receiver<Command>,
    ) -> Result<(), LastingError> {
        for undo in undos {
            if is_over(&commands.borrow()) {
                break;
            }
            let warning = self.set(undo, Settings::hold).await?;
            self.lasting.warnings.extend(warning);
        }
        Ok(())
    }

    /// Changes a value off the daemon's thread: the kernel may take its time, and no other fault shall wait.
    async fn set(&self, undo: &Undo, change: Change) -> Result<Option<String>, SettingError> {
        let (settings, id, given) = (self.node.settings().clone(), self.id.to_owned(), undo.clone());
        match spawn_blocking(move || change(&settings, &id, &given)).await {
            Ok(done) => done,
            // There are no threads any more when the daemon ends.
            Err(_) => change(self.node.settings(), self.id, undo),
        }
    }

    async fn watch(
        &mut self,
        container: &Container,
        fault: &mut dyn Lasting,
        begun: &Begun<'_>,
        mut over: Pin<&mut impl Future<Output = Ended>>,
    ) -> Ended {
        let mut gone = pin!(async {
            if let Err(error) = container.init.exited().await {
                // Its stressors look after that themselves, and the deadline stands.
                tracing::warn!(%error, "the container's end is not waited for");
                std::future::pending::<()>().await;
            }
        });
        let mut due = fault.shows_within().map(|after| tokio::time::Instant::now() + after);
        loop {
            tokio::select! {
                ended = &mut over => return ended,
                () = &mut gone => return Ended::Gone,
                () = at(due) => {
                    due = None;
                    let now = begun.meter.read();
                    let during = now.since(&begun.first);
                    if let Some(effect) = &mut self.lasting.effect {
                        effect.during = Some(during);
                    }
                    if let Err(error) = fault.judge(&Measured { before: begun.before, during, now }) {
                        return Ended::Failed(error);
                    }
                    self.tell(State::Injected, "");
                }
                event = fault.watch() => match event {
                    Event::Warning(warning) => {
                        self.warn(warning);
                        self.tell(State::Injected, "");
                    }
                    Event::Ended(error) => return Ended::Failed(error),
                },
            }
        }
    }

    async fn put_back(&mut self, fault: &mut dyn Lasting, undos: &[Undo]) {
        for warning in fault.revert().await {
            self.warn(warning);
        }
        for undo in undos.iter().rev() {
            let mut tries = 0;
            loop {
                match self.set(undo, Settings::release).await {
                    Ok(warning) => {
                        self.lasting.warnings.extend(warning);
                        break;
                    }
                    Err(error) if tries < AGAIN.1 => {
                        tracing::warn!(fault = self.id, %error, "could not be put back; trying again");
                        tries += 1;
                        sleep(AGAIN.0).await;
                    }
                    Err(error) => {
                        self.warn(format!("could not be put back: {error}"));
                        self.left.insert(0, undo.clone());
                        break;
                    }
                }
            }
        }
    }

    /// Says a thing once.
    fn warn(&mut self, warning: String) {
        if !self.lasting.warnings.contains(&warning) {
            self.lasting.warnings.push(warning);
        }
    }
}

/// [`Settings::hold`], [`Settings::release`] or [`Settings::put_back`].
type Change = fn(&Settings, &str, &Undo) -> Result<Option<String>, SettingError>;

/// Why a fault that stands ends.
enum Ended {
    Recover,
    Expired,
    Gone,
    Failed(LastingError),
}

/// Waits until it shall stand no longer.
async fn over(mut commands: watch::Receiver<Command>) -> Ended {
    let mut renewals = commands.clone();
    tokio::select! {
        biased;
        // Nobody gives orders any more only when the daemon ends.
        _ = commands.wait_for(ends) => Ended::Recover,
        () = super::fault::expiry(&mut renewals) => Ended::Expired,
    }
}

fn ends(command: &Command) -> bool {
    command.stage == Stage::Recover || command.ending
}

fn is_over(command: &Command) -> bool {
    ends(command) || command.expires <= tokio::time::Instant::now()
}

struct Begun<'a> {
    meter: &'a Meter,
    before: report::Usage,
    first: Reading,
}

/// What was used before: between two readings if they are far enough from each other, else on average since the
/// container started, because nobody waits for a measurement.
fn before(container: &Container, first: Reading, last: Reading) -> report::Usage {
    if last.at().saturating_duration_since(first.at()) >= BEFORE {
        return last.since(&first);
    }
    match container.init.age() {
        Some(age) => last.over(age),
        None => last.since(&first),
    }
}

async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::tests::{stands, tools},
        setting::{Setting, Value},
    };

    #[tokio::test]
    async fn the_journal_says_what_stands_when_a_turn_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new("n".into(), tools(), Journal::open(dir.path()).unwrap());
        let _ordered = stands(&node, "a", true);
        let undo = |name: &str| {
            let setting = Setting::new(dir.path().join(name), Value::Number);
            Undo { setting, original: None, wanted: 5 }
        };
        let report = |state| FaultReport::new("a", state, String::new());
        let over = |end| {
            let standing = Progress::Standing { undos: vec![undo("a"), undo("b")], interruptions: 1 };
            node.lock().journal.note("a", standing).unwrap();
            let next = node.finish("a", end, 1);
            (next, node.lock().journal.progress("a").cloned())
        };
        // Ordered anew meanwhile: nothing stands, and so nothing is put back before it is injected again.
        for (end, interruptions) in
            [(End::Told(report(State::Recovered)), 1), (End::Expired(report(State::Recovered)), 2)]
        {
            let again = (Next::Again { interruptions }, Some(Progress::Interrupted { interruptions }));
            assert_eq!(over(end), again);
        }
        let left = Progress::Standing { undos: vec![undo("b")], interruptions: 1 };
        let end = || End::Left(report(State::Failed(Reason::Internal)), vec![undo("b")]);
        assert_eq!(over(end()), (Next::Nothing, Some(left.clone())));
        // Nobody lists it any more.
        assert_eq!(over(end()), (Next::Nothing, Some(left)));
        assert_eq!(over(End::Told(report(State::Recovered))), (Next::Nothing, None));
    }
}
