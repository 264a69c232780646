//! Spec as written → [`Spec`].
//!
//! Says again everything that the schema's rules say (an API server may hold objects from before a rule), and
//! what a rule can't say. Decides nothing about the world: opt-in and access are the webhook's to look up.

mod common;
mod stress;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use squall_api::podchaos::{self, PodChaosSpec};

use crate::error::FieldError;
use crate::experiment::{ExperimentSpec, Kind};
use crate::probe::{Place, Probe};
use crate::select::Selector;
use crate::spec::{Action, Mode, Signal, Spec, Whom};
use crate::stress::Stress;
use crate::syntax;
use common::Common;

const MOST_CONTAINERS: usize = 100;
const LONGEST_GRACE: i64 = 86_400;

/// Fill in what is unset and has one default. Done at admission, so that `kubectl get -o yaml` shows it.
///
/// Only what can have no other meaning later is filled in: the signal and the scope of container-kill, the load of
/// a stressor. The namespace of the selector stays unset, because "the experiment's own" survives a copy to another.
pub fn defaults<S: ExperimentSpec>(spec: &mut S) {
    spec.fill_in();
}

/// Parse the spec of an experiment in `namespace`; every error at once.
pub fn validate<S: ExperimentSpec>(spec: &S, namespace: &str) -> Result<Spec, Vec<FieldError>> {
    spec.parse(namespace)
}

impl ExperimentSpec for PodChaosSpec {
    const KIND: Kind = Kind::PodChaos;

    fn parse(&self, namespace: &str) -> Result<Spec, Vec<FieldError>> {
        parse(self, namespace)
    }

    fn fill_in(&mut self) {
        match self.action {
            podchaos::Action::ContainerKill => {
                self.signal.get_or_insert_with(|| IntOrString::String(Signal::KILL.to_string()));
                // With a trigger nobody is chosen beforehand.
                if self.trigger.is_none() {
                    self.processes.get_or_insert_default();
                }
            }
            podchaos::Action::PodKill | podchaos::Action::PodFailure | podchaos::Action::ContainerFreeze => {}
        }
    }

    fn action_word(&self) -> &'static str {
        match self.action {
            podchaos::Action::PodKill => "pod-kill",
            podchaos::Action::PodFailure => "pod-failure",
            podchaos::Action::ContainerKill => "container-kill",
            podchaos::Action::ContainerFreeze => "container-freeze",
        }
    }

    fn mode(&self) -> (podchaos::Mode, Option<&str>) {
        (self.mode, self.value.as_deref())
    }

    fn differs_freely(&self, old: &Self) -> bool {
        let mut same = old.clone();
        same.duration.clone_from(&self.duration);
        same.grace_period = self.grace_period;
        same.on_halt = self.on_halt;
        same == *self
    }

    fn ignored(&self) -> Vec<String> {
        Vec::new()
    }
}

fn parse(spec: &PodChaosSpec, namespace: &str) -> Result<Spec, Vec<FieldError>> {
    // No `..`: a field that is added must be dealt with here.
    let PodChaosSpec {
        action,
        mode,
        value,
        selector,
        container_names,
        grace_period,
        duration,
        signal,
        processes,
        trigger,
        evict,
        fast,
        fault_style,
        allow_terminal,
        seed,
        dry_run,
        steady_state,
        on_halt,
        remote_cluster,
    } = spec;
    let mut errors = Vec::new();

    belongs(spec, &mut errors);

    let grace = grace_period.and_then(|seconds| keep(parse_grace(seconds), &mut errors));
    let signal = match signal {
        Some(written) => keep(Signal::parse("spec.signal", written), &mut errors),
        None => Some(Signal::KILL),
    };
    let whom = Whom::parse(processes.as_ref(), trigger.as_ref(), &mut errors);
    let action = match action {
        podchaos::Action::PodKill => Some(Action::PodKill { grace, evict: evict.unwrap_or(false) }),
        podchaos::Action::PodFailure => {
            Some(Action::PodFailure { style: *fault_style, fast: fast.unwrap_or(false) })
        }
        podchaos::Action::ContainerKill => signal.map(|signal| Action::ContainerKill {
            signal,
            whom,
            allow_terminal: allow_terminal.unwrap_or(false),
        }),
        podchaos::Action::ContainerFreeze => Some(Action::ContainerFreeze),
    };
    let common = Common {
        mode: *mode,
        value: value.as_ref(),
        selector,
        container_names,
        duration: duration.as_ref(),
        seed: *seed,
        dry_run: *dry_run,
        steady_state,
        on_halt: *on_halt,
        remote_cluster: remote_cluster.as_ref(),
    };
    common.parse(namespace, action, errors)
}

/// The probes of an experiment in `namespace`, which look only where its targets are.
fn parse_steady(
    written: &[squall_api::probe::Probe],
    namespace: &str,
    selector: Option<&Selector>,
    errors: &mut Vec<FieldError>,
) -> Vec<Probe> {
    let Some(selector) = selector else { return Vec::new() };
    let place = Place::Experiment { own: namespace, namespaces: &selector.namespaces };
    let mut probes = Vec::new();
    for (index, written) in written.iter().enumerate() {
        match Probe::parse(&format!("spec.steadyState[{index}]"), written, place) {
            Ok(probe) => probes.push(probe),
            Err(more) => errors.extend(more),
        }
    }
    probes
}

/// What may change from `old` to `new`. While an experiment is active (it has chosen its targets and has not
/// completed) only `duration`, `gracePeriod` and a narrowed selector may.
///
/// Says first what [`validate`] says of `new`. For a completed experiment pass `active` too: nothing that has
/// been done can be asked for differently.
pub fn validate_update<S: ExperimentSpec>(
    old: &S,
    new: &S,
    namespace: &str,
    active: bool,
) -> Result<(), Vec<FieldError>> {
    let parsed = validate(new, namespace)?;
    let mut errors = Vec::new();
    let fixed = "can't be changed: make another experiment instead";
    if old.action_word() != new.action_word() {
        errors.push(FieldError::new("spec.action", new.action_word(), fixed));
    }
    if old.mode().0 != new.mode().0 {
        errors.push(FieldError::new("spec.mode", written(&new.mode().0), fixed));
    }
    if active && errors.is_empty() {
        match validate(old, namespace) {
            Ok(before) => active_changes(&before, &parsed, new.mode().1.unwrap_or_default(), &mut errors),
            // Written before a rule of today. Nothing can be compared, so only what is free may change.
            Err(_) if new.differs_freely(old) => {}
            Err(_) => errors.push(FieldError::new("spec", "a change", ACTIVE)),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What a user should know about a spec that is accepted; shown by kubectl as warnings.
pub fn warnings(spec: &Spec) -> Vec<String> {
    let mut warnings = Vec::new();
    if spec.lasting() && spec.duration.is_none() {
        warnings.push(
            "spec.duration is unset: the fault lasts until the experiment is deleted or paused".to_owned(),
        );
    }
    let overridden = spec.selector.overridden();
    if !overridden.is_empty() {
        warnings.push(format!(
            "spec.selector.pods overrides the other fields of the selector; ignored: {}",
            overridden.join(", ")
        ));
    }
    if spec.selector.is_everything() && spec.mode == Mode::All {
        let namespaces: Vec<&str> = spec.selector.namespaces.iter().map(String::as_str).collect();
        warnings.push(format!(
            "spec.selector selects every pod in {}, and mode all hits each of them",
            namespaces.join(", ")
        ));
    }
    match &spec.action {
        Action::PodKill { grace, .. } => {
            if !spec.containers.is_empty() {
                warnings.push("spec.containerNames is ignored: pod-kill deletes whole pods".to_owned());
            }
            if *grace == Some(0) {
                warnings.push(
                    "spec.gracePeriod 0 removes pods at once, even before their processes have ended"
                        .to_owned(),
                );
            }
        }
        Action::PodFailure { .. } | Action::ContainerFreeze => {}
        Action::Stress(stress) => {
            if stress.allow_oom {
                warnings.push(
                    "spec.allowOOM: the kernel may end the container's own processes for want of memory as well"
                        .to_owned(),
                );
            }
        }
        Action::ContainerKill { signal, whom, allow_terminal } => {
            if whom.waits() && spec.duration.is_none() {
                warnings.push(
                    "spec.duration is unset: if the trigger does not fire within 60s, nothing will be hit"
                        .to_owned(),
                );
            }
            if !signal.ends_by_default() {
                warnings.push(format!("spec.signal {signal} ends no process by default"));
            }
            if *allow_terminal {
                warnings.push(
                    "spec.allowTerminal: containers with restartPolicy Never or OnFailure, and pods of a Job, may end for good"
                        .to_owned(),
                );
            }
        }
    }
    if spec.dry_run {
        warnings.push("spec.dryRun: nothing will be hit; the status will say what would be".to_owned());
    }
    warnings
}

const ACTIVE: &str = "can't be changed once the targets are chosen: only duration, gracePeriod, onHalt and a narrowed \
                      selector can; make another experiment instead";

/// The changes of an active experiment that are not allowed.
fn active_changes(before: &Spec, after: &Spec, value: &str, errors: &mut Vec<FieldError>) {
    // No `..`: a field that is added must be dealt with here.
    let Spec { action, mode, selector, containers, duration: _, seed, dry_run, steady, on_halt: _ } = after;
    let mut refuse = |field: &str, found: String| errors.push(FieldError::new(field, found, ACTIVE));
    match (&before.action, action) {
        (Action::PodKill { grace: _, evict: old }, Action::PodKill { grace: _, evict }) => {
            if evict != old {
                refuse("spec.evict", evict.to_string());
            }
        }
        (Action::PodFailure { style: old_style, fast: old_fast }, Action::PodFailure { style, fast }) => {
            if style != old_style {
                refuse("spec.faultStyle", written(style));
            }
            if fast != old_fast {
                refuse("spec.fast", fast.to_string());
            }
        }
        (
            Action::ContainerKill { signal: old_signal, whom: old_whom, allow_terminal: old_terminal },
            Action::ContainerKill { signal, whom, allow_terminal },
        ) => {
            if signal != old_signal {
                refuse("spec.signal", signal.to_string());
            }
            if whom != old_whom {
                let field = if whom.waits() || old_whom.waits() { "spec.trigger" } else { "spec.processes" };
                refuse(field, "a change".to_owned());
            }
            if allow_terminal != old_terminal {
                refuse("spec.allowTerminal", allow_terminal.to_string());
            }
        }
        (Action::ContainerFreeze, Action::ContainerFreeze) => {}
        (Action::Stress(old), Action::Stress(stress)) => {
            let Stress { cpu, memory, io, pids, squeeze, allow_oom, on_oom } = &**stress;
            let same = (cpu, memory, io, pids) == (&old.cpu, &old.memory, &old.io, &old.pids);
            for (same, field) in [
                (same, "stressors"),
                (*squeeze == old.squeeze, "squeeze"),
                (*allow_oom == old.allow_oom, "allowOOM"),
                (*on_oom == old.on_oom, "onOOM"),
            ] {
                if !same {
                    refuse(&format!("spec.{field}"), "a change".to_owned());
                }
            }
        }
        (
            Action::PodKill { .. }
            | Action::PodFailure { .. }
            | Action::ContainerKill { .. }
            | Action::ContainerFreeze
            | Action::Stress(_),
            _,
        ) => {
            refuse("spec.action", action.word().to_owned());
        }
    }
    if *mode != before.mode {
        refuse("spec.value", value.to_owned());
    }
    if *containers != before.containers {
        refuse("spec.containerNames", containers.join(", "));
    }
    if *steady != before.steady {
        refuse("spec.steadyState", "a change".to_owned());
    }
    if *seed != before.seed {
        refuse("spec.seed", seed.map(|seed| seed.to_string()).unwrap_or_default());
    }
    if *dry_run != before.dry_run {
        refuse("spec.dryRun", dry_run.to_string());
    }
    if let Err(widened) = selector.narrows(&before.selector) {
        for field in widened {
            let allowed = "once the targets are chosen the selector can only be narrowed: keep what it asks for and \
                           add to it, or shorten a list of namespaces, nodes, pods or phases";
            errors.push(FieldError::new(format!("spec.selector.{field}"), "a change", allowed));
        }
    }
}

/// Fields that belong to another action. What Chaos Mesh's manifests carry without a meaning (`gracePeriod: 0`)
/// is let through.
fn belongs(spec: &PodChaosSpec, errors: &mut Vec<FieldError>) {
    let mut only = |set: bool, action: podchaos::Action, field: &str| {
        if set && spec.action != action {
            let allowed = format!("{field} belongs to action {} only: remove it", written(&action));
            errors.push(FieldError::new(format!("spec.{field}"), "set", allowed));
        }
    };
    use podchaos::Action::{ContainerKill, PodFailure, PodKill};
    only(spec.grace_period.is_some_and(|seconds| seconds != 0), PodKill, "gracePeriod");
    only(spec.evict == Some(true), PodKill, "evict");
    only(spec.fast == Some(true), PodFailure, "fast");
    only(spec.fault_style.is_some(), PodFailure, "faultStyle");
    only(spec.signal.is_some(), ContainerKill, "signal");
    only(spec.processes.is_some(), ContainerKill, "processes");
    only(spec.trigger.is_some(), ContainerKill, "trigger");
    only(spec.allow_terminal == Some(true), ContainerKill, "allowTerminal");
}

fn parse_mode(mode: podchaos::Mode, value: Option<&str>) -> Result<Mode, FieldError> {
    let error = |allowed: &str| Err(FieldError::new("spec.value", value.unwrap_or_default(), allowed));
    let number = match value {
        None | Some("") => None,
        Some(text) if text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse::<u32>().ok()
        }
        Some(_) => {
            return error("write a whole number without sign or unit, such as \"3\" or \"50\"");
        }
    };
    let percent =
        || number.and_then(|number| u8::try_from(number).ok()).filter(|share| (1..=100).contains(share));
    match mode {
        podchaos::Mode::One => Ok(Mode::One),
        podchaos::Mode::All => Ok(Mode::All),
        podchaos::Mode::Fixed => match number {
            Some(number) if number >= 1 => Ok(Mode::Fixed(number)),
            Some(_) | None => error("mode fixed needs a number of pods, at least 1"),
        },
        podchaos::Mode::FixedPercent => match percent() {
            Some(share) => Ok(Mode::FixedPercent(share)),
            None => error("mode fixed-percent needs a percentage, 1 to 100"),
        },
        podchaos::Mode::RandomMaxPercent => match percent() {
            Some(share) => Ok(Mode::RandomMaxPercent(share)),
            None => error("mode random-max-percent needs a percentage, 1 to 100"),
        },
    }
}

/// The names in the order written, each once.
fn parse_containers(written: &[String], errors: &mut Vec<FieldError>) -> Vec<String> {
    if written.len() > MOST_CONTAINERS {
        let found = format!("{} names", written.len());
        errors.push(FieldError::new("spec.containerNames", found, "name at most 100 containers"));
    }
    let mut containers: Vec<String> = Vec::new();
    for (index, name) in written.iter().enumerate() {
        if let Err(allowed) = syntax::dns_label(name) {
            errors.push(FieldError::new(format!("spec.containerNames[{index}]"), name, allowed));
        } else if !containers.contains(name) {
            containers.push(name.clone());
        }
    }
    containers
}

fn parse_grace(seconds: i64) -> Result<u32, FieldError> {
    u32::try_from(seconds)
        .ok()
        .filter(|_| seconds <= LONGEST_GRACE)
        .ok_or_else(|| FieldError::new("spec.gracePeriod", seconds, "write seconds, 0 to 86400"))
}

fn keep<T>(result: Result<T, FieldError>, errors: &mut Vec<FieldError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// A value as it is written in the manifest.
fn written(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}
