//! ChaosPolicy as written → [`Policy`]: every error by its field.

use std::time::Duration;

use squall_api::chaospolicy::{self, ChaosPolicy, ChaosPolicySpec};

use super::{Labels, Limits, Policy, Window};
use crate::error::FieldError;
use crate::probe::{self, Place};
use crate::signal::Signal;
use crate::time::parse_duration;

impl Policy {
    /// `policy` as decisions see it. One that makes no sense refuses everything where it applies, and keeps its
    /// halt: to stop is always understood.
    pub fn of(policy: &ChaosPolicy) -> Self {
        let name = policy.metadata.name.clone().unwrap_or_default();
        let halt = policy.spec.halt.as_ref().filter(|halt| halt.active);
        let halt = halt.map(|halt| halt.reason.clone().unwrap_or_default());
        let failing = policy.status.iter().flat_map(|status| &status.probes);
        let tripped = failing
            .filter(|probe| probe.healthy == "False")
            .map(|probe| format!("{}: {}", probe.name, probe.message.as_deref().unwrap_or("unhealthy")))
            .next()
            // What a probe said of an older spec says nothing of this one.
            .filter(|_| !policy.spec.halt_when.is_empty());
        let unseen = policy.status.as_ref().is_none_or(|status| {
            status.observed_generation != policy.metadata.generation
                || status.probes.len() < policy.spec.halt_when.len()
                || status.probes.iter().any(|probe| probe.healthy == "Unknown")
        }) && !policy.spec.halt_when.is_empty();
        let usage = policy.status.as_ref().and_then(|status| status.usage.as_ref());
        let hit = usage.and_then(|usage| usize::try_from(usage.targets).ok()).unwrap_or_default();
        match Self::parse(&name, &policy.spec) {
            Ok(parsed) => Self { halt, tripped, unseen, hit, ..parsed },
            Err(errors) => {
                let invalid = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                let mut ignored = Vec::new();
                let selector = policy.spec.namespace_selector.as_ref();
                let namespaces = selector
                    .map(|selector| Labels::parse("", selector, &mut ignored))
                    .filter(|_| ignored.is_empty())
                    .unwrap_or_default();
                Self { name, namespaces, invalid: Some(invalid), halt, tripped, ..Self::default() }
            }
        }
    }

    /// Parse `spec`; every error at once.
    pub fn parse(name: &str, spec: &ChaosPolicySpec) -> Result<Self, Vec<FieldError>> {
        // No `..`: a field that is added must be dealt with here.
        let ChaosPolicySpec { namespace_selector, allow, limits, windows, protect, halt_when, halt: _ } =
            spec;
        let mut errors = Vec::new();
        let namespaces = namespace_selector
            .as_ref()
            .map(|selector| Labels::parse("spec.namespaceSelector", selector, &mut errors))
            .unwrap_or_default();
        let chaospolicy::Allow { actions, signals, users, groups } = allow.clone().unwrap_or_default();
        let signals = signals.map(|signals| {
            let parsed = signals.iter().enumerate().filter_map(|(index, written)| {
                let parsed = Signal::parse(&format!("spec.allow.signals[{index}]"), written);
                parsed.map(Signal::number).map_err(|error| errors.push(error)).ok()
            });
            let mut numbers: Vec<i32> = parsed.collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
        });
        let limits = parse_limits(&limits.clone().unwrap_or_default(), &mut errors);
        let windows = windows.as_ref().map(|windows| {
            let parse =
                |(index, window)| Window::parse(&format!("spec.windows[{index}]"), window, &mut errors);
            windows.iter().enumerate().filter_map(parse).collect()
        });
        let protect = protect
            .as_ref()
            .map(|protect| Labels::parse("spec.protect.podSelector", &protect.pod_selector, &mut errors));
        for (index, written) in halt_when.iter().enumerate() {
            if let Err(more) = probe::Probe::parse(&format!("spec.haltWhen[{index}]"), written, Place::Policy)
            {
                errors.extend(more);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            name: name.to_owned(),
            namespaces,
            invalid: None,
            actions: actions.map(|actions| actions.into_iter().collect()),
            signals,
            users: users.map(|users| users.into_iter().collect()),
            groups: groups.map(|groups| groups.into_iter().collect()),
            limits,
            windows,
            protect,
            halt: None,
            tripped: None,
            unseen: false,
            hit: 0,
        })
    }
}

fn parse_limits(written: &chaospolicy::Limits, errors: &mut Vec<FieldError>) -> Limits {
    let chaospolicy::Limits {
        max_targets,
        max_percent_per_workload,
        min_available_per_workload,
        max_concurrent_experiments,
        max_duration,
        min_pod_age,
        respect_disruption_budgets,
    } = written;
    let mut whole = |field: &str, value: &Option<i32>, most: i32| -> Option<usize> {
        let value = (*value)?;
        if !(0..=most).contains(&value) {
            let allowed = format!("write a whole number from 0 to {most}");
            errors.push(FieldError::new(format!("spec.limits.{field}"), value, allowed));
        }
        usize::try_from(value).ok()
    };
    let targets = whole("maxTargets", max_targets, 1_000_000);
    let percent = whole("maxPercentPerWorkload", max_percent_per_workload, 100);
    let available = whole("minAvailablePerWorkload", min_available_per_workload, 1_000_000);
    let experiments = whole("maxConcurrentExperiments", max_concurrent_experiments, 1_000_000);
    let mut duration = |field: &str, value: &Option<String>| -> Option<Duration> {
        let parsed = parse_duration(&format!("spec.limits.{field}"), value.as_ref()?);
        parsed.map_err(|error| errors.push(error)).ok()
    };
    Limits {
        targets,
        percent,
        available,
        experiments,
        duration: duration("maxDuration", max_duration),
        age: duration("minPodAge", min_pod_age),
        budgets: respect_disruption_budgets.unwrap_or(false),
    }
}
