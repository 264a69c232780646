//! Schedules: when an experiment runs again, and what becomes of the runs.
//!
//! A run is known by the second that it is due, and so is the experiment that it becomes: the same run can't begin
//! twice, whoever begins it and however often. [`turn`] says what is due; [`validate`] refuses what makes no sense.

mod turn;
mod when;

use std::time::Duration;

use jiff::Timestamp;
use squall_api::schedule::{ConcurrencyPolicy, ScheduleSpec, ScheduleType};

pub use self::turn::{Child, Input, Said, Turn, name_of, turn};
pub use self::when::{Draw, When};

use crate::error::FieldError;
use crate::experiment::ExperimentSpec;
use crate::spec::Spec;
use crate::time::{format_duration, parse_duration};
use crate::zone::time_zone;

/// How late a run may begin if the spec doesn't say.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How many experiments that are over are kept if the spec doesn't say.
const HISTORY: i32 = 1;
/// How many runs ahead are looked at for what can't be.
const LOOKED_AT: usize = 16;
/// The shortest time from one run to the next.
const SHORTEST: Duration = Duration::from_secs(1);

/// A valid schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// When.
    pub when: When,
    /// How much later at most.
    pub jitter: Option<Duration>,
    /// The seed that the user chose.
    pub seed: Option<i64>,
    /// How late a run may begin.
    pub deadline: Duration,
    /// What becomes of a run while another is active.
    pub concurrency: ConcurrencyPolicy,
    /// How many experiments that are over are kept.
    pub history: usize,
    /// No run begins.
    pub suspend: bool,
}

/// Parse the spec of a schedule in `namespace`; every error at once.
pub fn validate(spec: &ScheduleSpec, namespace: &str) -> Result<(Schedule, Spec), Vec<FieldError>> {
    // No `..`: a field that is added must be dealt with here.
    let ScheduleSpec {
        schedule,
        time_zone: zone,
        mtbf,
        jitter,
        seed,
        starting_deadline_seconds,
        concurrency_policy,
        history_limit,
        suspend,
        type_,
        pod_chaos,
        stress_chaos,
    } = spec;
    let mut errors = Vec::new();
    let mut only_schedule = |set: bool, field: &str| {
        if set && mtbf.is_some() {
            let allowed =
                format!("{field} belongs to schedule only: remove it, or write schedule and no mtbf");
            errors.push(FieldError::new(format!("spec.{field}"), "set", allowed));
        }
    };
    only_schedule(schedule.is_some(), "schedule");
    only_schedule(zone.is_some(), "timeZone");
    only_schedule(jitter.is_some(), "jitter");

    let mut keep = |result: Result<Option<Duration>, FieldError>| match result {
        Ok(value) => value,
        Err(error) => {
            errors.push(error);
            None
        }
    };
    let jitter = keep(jitter.as_deref().map(|text| parse_duration("spec.jitter", text)).transpose());
    let mtbf = keep(mtbf.as_deref().map(|text| at_least("spec.mtbf", text)).transpose());
    let when = match (schedule, mtbf) {
        (Some(text), _) => {
            let zone = match zone.as_deref().map(|name| time_zone("spec.timeZone", name)).transpose() {
                Ok(zone) => zone.unwrap_or(jiff::tz::TimeZone::UTC),
                Err(error) => {
                    errors.push(error);
                    jiff::tz::TimeZone::UTC
                }
            };
            match When::parse("spec.schedule", text, zone) {
                Ok(when) => Some(when),
                Err(error) => {
                    errors.push(error);
                    None
                }
            }
        }
        (None, Some(mean)) => Some(When::Mtbf(mean)),
        (None, None) => {
            if spec.mtbf.is_none() {
                let allowed = "write schedule (\"0 9 * * mon-fri\", \"@every 90m\") or mtbf (\"4h\")";
                errors.push(FieldError::new("spec.schedule", "nothing", allowed));
            }
            None
        }
    };
    let deadline = match starting_deadline_seconds {
        None => Some(DEADLINE),
        Some(seconds) => within("spec.startingDeadlineSeconds", *seconds, 1, 2_592_000, &mut errors)
            .map(Duration::from_secs),
    };
    let history = i64::from(history_limit.unwrap_or(HISTORY));
    let history = within("spec.historyLimit", history, 1, 100, &mut errors);
    let embedded = match (type_, pod_chaos, stress_chaos) {
        (ScheduleType::PodChaos, Some(chaos), None) => {
            chaos.parse(namespace).map_err(|more| inside("podChaos", more))
        }
        (ScheduleType::StressChaos, None, Some(chaos)) => {
            chaos.parse(namespace).map_err(|more| inside("stressChaos", more))
        }
        (ScheduleType::PodChaos, _, _) => Err(vec![FieldError::new(
            "spec.type",
            "PodChaos",
            "write podChaos, and nothing else, with type PodChaos",
        )]),
        (ScheduleType::StressChaos, _, _) => Err(vec![FieldError::new(
            "spec.type",
            "StressChaos",
            "write stressChaos, and nothing else, with type StressChaos",
        )]),
    };
    let embedded = match embedded {
        Ok(embedded) => Some(embedded),
        Err(more) => {
            errors.extend(more);
            None
        }
    };
    match (when, deadline, history, embedded) {
        (Some(when), Some(deadline), Some(history), Some(embedded)) if errors.is_empty() => {
            let schedule = Schedule {
                when,
                jitter,
                seed: *seed,
                deadline,
                concurrency: concurrency_policy.unwrap_or_default(),
                history: usize::try_from(history).unwrap_or(1),
                suspend: suspend.unwrap_or(false),
            };
            Ok((schedule, embedded))
        }
        _ => Err(errors),
    }
}

impl Schedule {
    /// What makes no sense from now on: a schedule that never runs, and jitter that would have runs overtake each
    /// other.
    pub fn check(&self, spec: &ScheduleSpec, now: Timestamp) -> Result<(), FieldError> {
        let Self { when, jitter, .. } = self;
        let draw = Draw { uid: "", seed: None };
        let mut runs = Vec::new();
        let mut last = now;
        while runs.len() < LOOKED_AT
            && let Some(run) = when.next(last, now, draw)
        {
            runs.push(run);
            last = run;
        }
        let Some(_) = runs.first() else {
            let found = spec.schedule.as_deref().unwrap_or_default();
            return Err(FieldError::new("spec.schedule", found, "it never runs: there is no such time"));
        };
        let least = runs.windows(2).map(|pair| pair[1].duration_since(pair[0])).min();
        let least = least.and_then(|least| Duration::try_from(least).ok());
        if let (Some(jitter), Some(least)) = (jitter, least)
            && *jitter >= least
        {
            let found = spec.jitter.as_deref().unwrap_or_default();
            let allowed =
                format!("write less than the time from one run to the next, {}", format_duration(least));
            return Err(FieldError::new("spec.jitter", found, allowed));
        }
        Ok(())
    }
}

fn at_least(field: &str, text: &str) -> Result<Duration, FieldError> {
    let duration = parse_duration(field, text)?;
    if duration < SHORTEST {
        return Err(FieldError::new(field, text, "write at least 1s"));
    }
    Ok(duration)
}

fn within(field: &str, found: i64, least: i64, most: i64, errors: &mut Vec<FieldError>) -> Option<u64> {
    if !(least..=most).contains(&found) {
        errors.push(FieldError::new(field, found, format!("write a whole number from {least} to {most}")));
        return None;
    }
    u64::try_from(found).ok()
}

/// The errors of the experiment `part`, as they are found in the schedule.
fn inside(part: &str, errors: Vec<FieldError>) -> Vec<FieldError> {
    let moved = |error: FieldError| {
        let field = match error.field.strip_prefix("spec") {
            Some(rest) => format!("spec.{part}{rest}"),
            None => format!("spec.{part}: {}", error.field),
        };
        FieldError { field, ..error }
    };
    errors.into_iter().map(moved).collect()
}
