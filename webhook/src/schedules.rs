//! Reviews of schedules: who asked is written down; then the schedule and the experiment in it are checked, for whoever
//! writes them, as if he asked for the experiment itself. Its runs are not asked for again.
//!
//! They are made in the name of whoever asked, so that must be who said what they do and when. Whoever changes that is
//! checked like a schedule's maker and written down in his place. The maker's name would let anybody who may edit the
//! object hit pods under it; refusing would have a team unable to change what a colleague made. What only holds a
//! schedule up or tidies up after it (`suspend`, `historyLimit`) changes neither, and nobody is asked about it: neither
//! a policy nor whether the user may do to pods what the schedule does.
//! Nobody can write the name himself: any other than these two is refused.
//!
//! In doubt the schedule is refused.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;
use squall_api::names;
use squall_api::schedule::{Schedule, ScheduleSpec, ScheduleType};
use squall_model::error::FieldError;
use squall_model::experiment::ExperimentSpec;
use squall_model::policy;
use squall_model::schedule::validate;
use squall_model::spec::Spec;
use squall_model::validate::warnings;

use crate::experiments::{self, Ask, Verdict, Wanted, entry, right, value};
use crate::pods;
use crate::review::{Answer, Denied, Request};

/// Whether the request is about a schedule.
pub fn concerns(request: &Request<'_>) -> bool {
    request.kind.is(names::GROUP, names::VERSION, "Schedule")
}

/// Who asked.
pub fn mutate(request: &Request<'_>) -> Answer {
    sign(request).unwrap_or_else(Into::into)
}

fn sign(request: &Request<'_>) -> Result<Answer, Denied> {
    let before = value("object", request.object)?;
    let mut after = before.clone();
    let Some(object) = after.as_object_mut() else { return Ok(Answer::default()) };
    let changed = || {
        let (old, new) = (value("oldObject", request.old_object)?, value("object", request.object)?);
        Ok::<bool, Denied>(is_another(&read("oldObject", old)?, &read("object", new)?))
    };
    // What can't be read is refused by the validating path, with its reason.
    let asks = request.operation == "CREATE" || changed().unwrap_or_default();
    let metadata = entry(object, "metadata")?;
    if asks {
        experiments::sign(request, metadata)?;
    } else {
        experiments::keep(names::REQUESTED_BY, &value("oldObject", request.old_object)?, metadata)?;
    }
    Ok(Answer { patch: Some(json_patch::diff(&before, &after)), ..Answer::default() })
}

/// Fields, and what is still to be asked.
pub fn check(request: &Request<'_>, now: Timestamp) -> Verdict {
    match try_check(request, now) {
        Ok(verdict) => verdict,
        Err(denied) => Verdict::Answered(denied.into()),
    }
}

fn try_check(request: &Request<'_>, now: Timestamp) -> Result<Verdict, Denied> {
    let new = read("object", value("object", request.object)?)?;
    let (schedule, spec) = validate(&new.spec, &request.namespace).map_err(Denied::invalid)?;
    let mut before = BTreeSet::new();
    if request.operation == "UPDATE" {
        let old = read("oldObject", value("oldObject", request.old_object)?)?;
        let asks = is_another(&old, &new);
        experiments::is_signed(request, asks, requester(&old), requester(&new), "schedule")?;
        if !asks {
            return Ok(Verdict::Answered(Answer::default()));
        }
        // A namespace that no longer takes part must not keep a schedule from being changed.
        if let Ok((_, spec)) = validate(&old.spec, &request.namespace) {
            before = spec.selector.namespaces;
        }
    }
    schedule.check(&new.spec, now).map_err(|error| Denied::invalid(vec![error]))?;
    let namespaces = spec.selector.namespaces.clone();
    experiments::within_reach(&namespaces, selector(&new), "schedules")?;
    let (verb, subresource) = right(&spec);
    let user = Some(request.user_info.clone());
    let opted_in = namespaces.difference(&before).cloned().collect();
    // Each run is judged again.
    let wanted = Wanted { ask: policy::Ask::of(&spec), who: pods::who(&request.user_info), begins: false };
    let ask = Ask { user, verb, subresource, namespaces, opted_in, wanted: Some(wanted) };
    Ok(Verdict::Ask(ask, said(&new, &spec)))
}

/// Whether other things happen under `new`, or at other times.
fn is_another(old: &Schedule, new: &Schedule) -> bool {
    let asked =
        |schedule: &Schedule| ScheduleSpec { suspend: None, history_limit: None, ..schedule.spec.clone() };
    asked(old) != asked(new)
}

/// The errors speak of the experiment where it stands in the schedule.
fn selector(schedule: &Schedule) -> &'static str {
    match schedule.spec.type_ {
        ScheduleType::PodChaos => "spec.podChaos.selector",
        ScheduleType::StressChaos => "spec.stressChaos.selector",
    }
}

fn said(schedule: &Schedule, spec: &Spec) -> Vec<String> {
    let ScheduleSpec { pod_chaos, stress_chaos, .. } = &schedule.spec;
    let pod = pod_chaos.iter().flat_map(ExperimentSpec::ignored);
    let stress = stress_chaos.iter().flat_map(ExperimentSpec::ignored);
    pod.chain(stress).chain(warnings(spec)).map(|warning| format!("squall: {warning}")).collect()
}

fn read(what: &str, value: Value) -> Result<Schedule, Denied> {
    serde_json::from_value(value).map_err(|error| {
        let found = format!("{what}: {error}");
        Denied::invalid(vec![FieldError::new(
            "spec",
            found,
            "see `kubectl explain schedules.squall.dev.spec`",
        )])
    })
}

fn requester(schedule: &Schedule) -> Option<&str> {
    schedule.metadata.annotations.as_ref()?.get(names::REQUESTED_BY).map(String::as_str)
}
