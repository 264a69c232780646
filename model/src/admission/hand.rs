//! What the hand asks for: the label, and the annotations beside it.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use squall_api::names;
use squall_api::podchaos::FaultStyle;

use super::{Denial, Guard, Setting};
use crate::error::FieldError;
use crate::pod::PodView;
use crate::policy::{Ask, Policy};
use crate::select::Ineligible;
use crate::substitute::record::annotation;
use crate::substitute::{Holder, MANUAL, container_names, would_recover};
use crate::time::{format_duration, parse_until};

/// The annotations with which the owner shapes the fault.
pub(super) const INPUTS: [&str; 3] = [names::CONTAINERS, names::FAULT_STYLE, names::UNTIL];

/// When a fault by hand ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    /// As the annotation says, or after the limit.
    Asked,
    /// As it was settled before.
    Kept(Option<Timestamp>),
}

/// The holder that the hand asks for on `pod`, which it holds as `held` already.
pub(super) fn holder(
    pod: &Pod,
    end: End,
    held: Option<&Holder>,
    setting: &Setting<'_>,
) -> Result<Holder, Denial> {
    if let Some(why) = forbidden(pod, setting) {
        return Err(Denial::Ineligible(why));
    }
    would_recover(pod).map_err(Denial::Refusal)?;
    let containers = containers(pod)?;
    let style = style(pod)?;
    let until = match (end, annotation(pod, names::UNTIL)) {
        (End::Kept(until), _) => until,
        (End::Asked, Some(text)) => Some(parse_until(text.trim(), setting.now).map_err(Denial::Field)?),
        (End::Asked, None) => limit(setting).and_then(|limit| {
            SignedDuration::try_from(limit).ok().and_then(|limit| setting.now.checked_add(limit).ok())
        }),
    };
    permitted(pod, until, held.is_some(), setting)?;
    Ok(Holder {
        kind: "Manual".to_owned(),
        namespace: String::new(),
        name: String::new(),
        uid: MANUAL.to_owned(),
        containers,
        style,
        since: held.map_or(Some(setting.now), |held| held.since),
        until,
    })
}

/// For how long a fault by hand lasts that doesn't say: as long as the flag says, and no longer than policies allow.
fn limit(setting: &Setting<'_>) -> Option<std::time::Duration> {
    let most = setting.namespace.into_iter().flat_map(|namespace| setting.guard.policies.over(namespace));
    let most = most.filter_map(|policy| policy.limits.duration).min();
    let flag = Some(setting.manual_limit).filter(|limit| !limit.is_zero());
    [flag, most].into_iter().flatten().min()
}

/// Whether halts and policies let the hand fail `pod`. One that it has already takes no more room, and does not begin.
fn permitted(pod: &Pod, until: Option<Timestamp>, has_it: bool, setting: &Setting<'_>) -> Result<(), Denial> {
    let Setting { images: _, now, manual_limit: _, namespace, shielded: _, guard } = *setting;
    let Some(namespace) = namespace else { return Ok(()) };
    let Guard { policies, system, who } = guard;
    if let Some(stop) = policies.stop(namespace, system, now) {
        return Err(Denial::Stopped(Box::new(stop)));
    }
    let duration =
        until.map(|until| std::time::Duration::try_from(until.duration_since(now)).unwrap_or_default());
    let lets_begin = |policy: &Policy| policy.has_room().and_then(|()| policy.has_looked());
    policies
        .permits(namespace, &Ask::by_hand(duration), who)
        .and_then(|()| policies.spares(namespace, &PodView::of(pod), now).map_or(Ok(()), Err))
        .and_then(|()| if has_it { Ok(()) } else { policies.over(namespace).try_for_each(lets_begin) })
        .map_err(|refusal| Denial::Policy(Box::new(refusal)))
}

/// What kubectl shows when the fault by hand is on.
pub(super) fn says(pod: &Pod, holder: &Holder, setting: &Setting<'_>) -> String {
    let name = Name(pod);
    match holder.until {
        Some(until) => {
            let left = std::time::Duration::try_from(until.duration_since(setting.now)).unwrap_or_default();
            let left = format_duration(std::time::Duration::from_secs(left.as_secs_f64().round() as u64));
            let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
            format!(
                "squall: pod {name} fails until {until} ({left}), or until you remove the label {}",
                names::FAULT
            )
        }
        None => format!("squall: pod {name} fails until you remove the label {}", names::FAULT),
    }
}

/// Why `pod` must not be failed, whoever asks.
pub(super) fn forbidden(pod: &Pod, setting: &Setting<'_>) -> Option<Ineligible> {
    let view = PodView::of(pod);
    let namespace = setting.namespace;
    if names::is_protected_namespace(&view.namespace) {
        Some(Ineligible::ProtectedNamespace)
    } else if view.is_protected() {
        Some(Ineligible::Protected("pod"))
    } else if setting.shielded {
        Some(Ineligible::Protected("pod's workload"))
    } else if namespace.is_some_and(|namespace| namespace.protect) {
        Some(Ineligible::Protected("namespace"))
    } else if view.mirror {
        Some(Ineligible::MirrorPod)
    } else if view.terminating {
        Some(Ineligible::Terminating)
    } else if view.phase == "Succeeded" || view.phase == "Failed" {
        Some(Ineligible::Completed)
    } else {
        None
    }
}

fn containers(pod: &Pod) -> Result<Vec<String>, Denial> {
    let Some(text) = annotation(pod, names::CONTAINERS) else { return Ok(Vec::new()) };
    let there = container_names(pod);
    let mut asked: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    asked.dedup();
    let unknown: Vec<&str> = asked.iter().map(String::as_str).filter(|name| !there.contains(name)).collect();
    if asked.is_empty() || !unknown.is_empty() {
        let found = if asked.is_empty() { text.to_owned() } else { unknown.join(", ") };
        let allowed =
            format!("allowed are names of this pod's containers, separated by commas: {}", there.join(", "));
        return Err(Denial::Field(FieldError::new(field(names::CONTAINERS), found, allowed)));
    }
    Ok(asked)
}

fn style(pod: &Pod) -> Result<Option<FaultStyle>, Denial> {
    match annotation(pod, names::FAULT_STYLE) {
        None => Ok(None),
        Some("pause") => Ok(Some(FaultStyle::Pause)),
        Some("crash") => Ok(Some(FaultStyle::Crash)),
        Some(other) => {
            Err(Denial::Field(FieldError::new(field(names::FAULT_STYLE), other, "allowed are: pause, crash")))
        }
    }
}

fn field(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

/// A pod's name, as far as it has one.
pub(super) struct Name<'a>(pub(super) &'a Pod);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meta = &self.0.metadata;
        match (&meta.name, &meta.generate_name) {
            (Some(name), _) if !name.is_empty() => f.write_str(name),
            (_, Some(stem)) => write!(f, "{stem}*"),
            (_, None) => f.write_str("(unnamed)"),
        }
    }
}
