//! One schedule's turn: which run is due, what becomes of it, and what of the experiments before it.
//!
//! A run that is due becomes an experiment first and is written down after it; the experiment's name is the run's, so
//! a crash in between, or a second controller, finds it there. Of several runs that are due only the newest begins:
//! the others are missed, counted and told.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use sha2::{Digest, Sha256};
use squall_api::schedule::{ConcurrencyPolicy, ScheduleStatus};

use super::{Draw, Schedule};
use crate::time::format_duration;

/// How far the clock may be put back before what was written then is taken to be wrong.
const AHEAD: SignedDuration = SignedDuration::from_hours(1);
/// How many runs are counted one by one.
const COUNTED: u32 = 1000;

/// An experiment of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// It is over.
    pub completed: bool,
    /// It is on its way out.
    pub deleting: bool,
}

/// Everything that a turn depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Now.
    pub now: Timestamp,
    /// The object's name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// When it was made.
    pub created: Timestamp,
    /// Its generation.
    pub generation: Option<i64>,
    /// The pause annotation is there.
    pub paused: bool,
    /// What is to be done.
    pub schedule: &'a Schedule,
    /// The status as it was last written.
    pub status: &'a ScheduleStatus,
    /// Its experiments.
    pub children: &'a [Child],
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// The experiment to make, by name; one that is there already is as good.
    pub make: Option<String>,
    /// The status afterwards.
    pub status: ScheduleStatus,
    /// Experiments to end, once the status is written: by their being there it is known that they began.
    pub delete: Vec<String>,
    /// What to tell, once the status is written.
    pub said: Vec<Said>,
    /// When to look again if nothing happens.
    pub wake: Option<Timestamp>,
}

/// Something to tell in an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Someone should look.
    pub warning: bool,
    /// A stable word.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// The name of the experiment that the run due at `due` becomes. For each schedule and second one, and no other.
pub fn name_of(schedule: &str, uid: &str, due: Timestamp) -> String {
    const LONGEST: usize = 253;
    let digest = Sha256::digest(format!("{uid}\0{}", due.as_second()).as_bytes());
    let digest: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    // UTC, to the second, in letters that a name may have.
    let end = format!("{}-{digest}", due.strftime("%Y%m%d-%H%M%S"));
    let stem: String = schedule.chars().take(LONGEST - end.len() - 1).collect();
    format!("{}-{end}", stem.trim_end_matches(['.', '-']))
}

/// What is due now.
pub fn turn(input: Input<'_>) -> Turn {
    let Input { now, name, uid, created, generation, paused, schedule, status, children } = input;
    let mut turn = Turn { status: status.clone(), ..Turn::default() };
    let draw = Draw { uid, seed: schedule.seed };
    let suspended = paused || schedule.suspend;
    let was_suspended = condition(status, "Suspended");
    let changed = status.observed_generation != generation;

    // A clock that was put back a little has the next run wait; one that was far ahead would have it wait for ever.
    let far = now.saturating_add(AHEAD).unwrap_or(now);
    let ahead =
        [status.last_due_time.as_ref().map(|due| due.0), status.counted_from.as_ref().map(|from| from.0)];
    let ahead = ahead.into_iter().flatten().max().filter(|at| *at > far);
    // Runs are counted from now on where what they were counted by is no longer so.
    let anchor = match &status.counted_from {
        Some(from) if !changed && !was_suspended && ahead.is_none() => from.0,
        Some(_) => whole(now),
        None => whole(created),
    };
    turn.status.counted_from = Some(MicroTime(anchor));
    turn.status.observed_generation = generation;
    if let Some(ahead) = ahead {
        turn.status.last_due_time = None;
        let message =
            format!("the clock was at {ahead}, and is at {} now: runs are counted from now on", whole(now));
        turn.said.push(Said { warning: true, reason: "ClockPutBack", message });
    }
    let last = turn.status.last_due_time.as_ref().map_or(anchor, |time| time.0.max(anchor));

    let mut next = None;
    let mut message = None;
    if suspended {
        let why = if paused { "by the annotation squall.dev/pause" } else { "by spec.suspend" };
        message = Some(format!("suspended {why}: no run begins"));
    } else {
        let begins = |due: Timestamp| match schedule.jitter {
            Some(jitter) => due.saturating_add(draw.delay(due, jitter)).unwrap_or(due),
            None => due,
        };
        let deadline = SignedDuration::try_from(schedule.deadline).unwrap_or(SignedDuration::MAX);
        let mut missed: u32 = 0;
        // The run, and what it comes after.
        let mut due: Option<(Timestamp, Timestamp)> = None;
        let mut seen = last;
        next = schedule.when.next(seen, anchor, draw);
        while let Some(run) = next
            && begins(run) <= now
        {
            match due {
                // Whoever made it could not write that down any more.
                Some((one, _)) if begun(&input, one) => began(&mut turn, &input, one),
                Some(_) => missed += 1,
                None => {}
            }
            due = Some((run, seen));
            seen = run;
            if missed >= COUNTED {
                // Long ago: from here on what could still begin is looked at, and nothing else.
                let recent = now.saturating_sub(deadline).unwrap_or(now);
                seen = seen.max(whole(recent));
            }
            next = schedule.when.next(seen, anchor, draw);
        }
        let mut gives_up = None;
        if let Some((run, before)) = due {
            let late = now.duration_since(begins(run)) > deadline && !begun(&input, run);
            missed += u32::from(late);
            let waits = if late { None } else { run_now(&mut turn, &input, run) };
            if waits.is_none() {
                turn.status.last_due_time = Some(Time(run));
            } else {
                // It stays due. What was due before it is settled.
                if before > last {
                    turn.status.last_due_time = Some(Time(before));
                }
                gives_up = begins(run).checked_add(deadline).ok();
            }
            if missed > 0 {
                let all = turn.status.missed.unwrap_or_default() + i64::from(missed);
                turn.status.missed = Some(all);
                let many = if missed >= COUNTED { "at least " } else { "" };
                let last = if late { run } else { before };
                let text = format!(
                    "{many}{missed} missed, the last due at {last}: nobody could begin it within {}",
                    format_duration(schedule.deadline)
                );
                message = Some(text.clone());
                turn.said.push(Said { warning: true, reason: "Missed", message: text });
            }
            message = waits.or(message);
        }
        let then = next.map(begins);
        if then.is_none() && gives_up.is_none() {
            message = Some("no run is due any more".to_owned());
        }
        turn.status.next_schedule_time = then.map(|at| Time(whole(at)));
        turn.wake = [then, gives_up].into_iter().flatten().min();
    }
    if next.is_none() {
        turn.status.next_schedule_time = None;
    }
    set_suspended(&mut turn.status, suspended, generation, now);
    turn.status.message = match (message, turn.said.last()) {
        (Some(message), _) => Some(message),
        (None, Some(said)) => Some(said.message.clone()),
        // It spoke of another spec, or of the suspension.
        (None, None) if changed || was_suspended || status.message.is_none() => Some(schedule.when.said()),
        (None, None) => status.message.clone(),
    };
    let last = name_of_last(&turn.status, name, uid);
    history(&mut turn, children, schedule.history, last.as_deref());
    let made = turn.make.iter().filter(|made| !children.iter().any(|child| child.name == **made));
    let mut names: Vec<String> = children
        .iter()
        .filter(|child| !child.completed && !child.deleting)
        .map(|child| child.name.clone())
        .filter(|name| !turn.delete.contains(name))
        .chain(made.cloned())
        .collect();
    names.sort();
    turn.status.active_count = Some(i32::try_from(names.len()).unwrap_or(i32::MAX));
    names.truncate(20);
    turn.status.active = names;
    turn
}

/// The run `due` is to begin now, if its like let it. What it waits for, if it has to.
fn run_now(turn: &mut Turn, input: &Input<'_>, due: Timestamp) -> Option<String> {
    // One that is on its way out hits pods until it is gone, and counts for whatever is limited.
    let others = || input.children.iter().filter(|child| !child.completed);
    // Begun before, what was to be written then is written now.
    if !begun(input, due)
        && let Some(other) = others().min_by(|a, b| a.name.cmp(&b.name))
    {
        match input.schedule.concurrency {
            ConcurrencyPolicy::Allow => {}
            ConcurrencyPolicy::Replace => {
                turn.delete.extend(others().filter(|child| !child.deleting).map(|child| child.name.clone()));
                return Some(format!(
                    "the run due at {due} begins when {} is gone (concurrencyPolicy Replace)",
                    other.name
                ));
            }
            ConcurrencyPolicy::Forbid => {
                turn.status.forbidden = Some(turn.status.forbidden.unwrap_or_default() + 1);
                let message = format!(
                    "the run due at {due} was skipped, since {} is active (concurrencyPolicy Forbid)",
                    other.name
                );
                turn.said.push(Said { warning: false, reason: "Forbidden", message });
                return None;
            }
        }
    }
    began(turn, input, due);
    turn.make = Some(name_of(input.name, input.uid, due));
    None
}

/// Whether the run's experiment is there.
fn begun(input: &Input<'_>, due: Timestamp) -> bool {
    let name = name_of(input.name, input.uid, due);
    input.children.iter().any(|child| child.name == name)
}

/// Count the run `due`, and tell of it.
fn began(turn: &mut Turn, input: &Input<'_>, due: Timestamp) {
    turn.status.last_schedule_time = Some(Time(due));
    turn.status.runs = Some(turn.status.runs.unwrap_or_default() + 1);
    let name = name_of(input.name, input.uid, due);
    let message = format!("the run due at {due} is {name}");
    turn.said.push(Said { warning: false, reason: "Begun", message });
}

/// The oldest of those that are over go; never the last that began, by whose being there nothing begins twice.
fn history(turn: &mut Turn, children: &[Child], limit: usize, last: Option<&str>) {
    let mut over: Vec<&Child> = children.iter().filter(|child| child.completed && !child.deleting).collect();
    over.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
    let old = over.into_iter().skip(limit).filter(|child| Some(child.name.as_str()) != last);
    turn.delete.extend(old.map(|child| child.name.clone()));
}

fn name_of_last(status: &ScheduleStatus, name: &str, uid: &str) -> Option<String> {
    status.last_schedule_time.as_ref().map(|due| name_of(name, uid, due.0))
}

fn condition(status: &ScheduleStatus, kind: &str) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

fn set_suspended(status: &mut ScheduleStatus, is: bool, generation: Option<i64>, now: Timestamp) {
    let word = if is { "True" } else { "False" };
    let since = status.conditions.iter().find(|one| one.type_ == "Suspended" && one.status == word);
    let since = since.map_or_else(|| Time(whole(now)), |one| one.last_transition_time.clone());
    status.conditions.retain(|one| one.type_ != "Suspended");
    status.conditions.push(Condition {
        type_: "Suspended".to_owned(),
        status: word.to_owned(),
        reason: if is { "Suspended" } else { "Running" }.to_owned(),
        message: String::new(),
        last_transition_time: since,
        observed_generation: generation,
    });
}

fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
