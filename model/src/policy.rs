//! Policies: what may be hit, how much, when and by whom; and what stops everything.
//!
//! - [`Policy`]: a ChaosPolicy parsed once. One that makes no sense allows nothing until it does.
//! - [`Policies`]: all there are. Each that matches a namespace is asked, and each can refuse: so allow-lists and
//!   windows intersect, limits take the minimum, and what protects or halts unites.
//! - [`Policies::permits`]: whether an experiment may be at all; the same at admission (advice) and when targets are
//!   chosen (binding).
//! - [`choice`]: which pods of those that are drawn, beside all that is hit already ([`ledger`]).
//! - [`used`]: how much is hit under each policy.
//! - [`Policies::stop`]: what ends or forbids everything somewhere.
//!
//! Recovery is never asked about here.

pub mod choice;
mod labels;
pub mod ledger;
mod parse;
pub mod used;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use squall_api::chaospolicy::{ChaosPolicySpec, PolicyAction};
use squall_api::names;

pub use self::labels::Labels;
pub use self::window::Window;
use crate::pod::{NamespaceView, PodView};
use crate::spec::{Action, Mode, Spec};
use crate::time::format_duration;

/// A ChaosPolicy as decisions see it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Policy {
    /// Its name.
    pub name: String,
    namespaces: Labels,
    /// Why it makes no sense.
    invalid: Option<String>,
    actions: Option<BTreeSet<PolicyAction>>,
    signals: Option<Vec<i32>>,
    users: Option<BTreeSet<String>>,
    groups: Option<BTreeSet<String>>,
    /// How much.
    pub limits: Limits,
    windows: Option<Vec<Window>>,
    protect: Option<Labels>,
    /// Its own halt, and why.
    halt: Option<String>,
    /// A probe of it that fails, and the evidence.
    tripped: Option<String>,
    /// A probe of it has not been looked at yet, as it is written now.
    unseen: bool,
    /// How many pods were hit in its namespaces when that was last written to its status.
    hit: usize,
}

/// How much may be hit at a time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// Pods.
    pub targets: Option<usize>,
    /// Percent of a workload's pods.
    pub percent: Option<usize>,
    /// Pods of a workload that stay Ready.
    pub available: Option<usize>,
    /// Experiments.
    pub experiments: Option<usize>,
    /// How long a lasting fault may be asked for.
    pub duration: Option<Duration>,
    /// How old a pod has to be.
    pub age: Option<Duration>,
    /// Whether PodDisruptionBudgets count.
    pub budgets: bool,
}

/// The part of a policy that refuses. Its number is bounded: it is a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the field that `path` says")]
pub enum Rule {
    Actions,
    Signals,
    Users,
    Targets,
    Percent,
    Available,
    Experiments,
    Duration,
    Age,
    Budgets,
    Windows,
    Protect,
    Halt,
    HaltWhen,
    Invalid,
}

impl Rule {
    /// The field of the policy.
    pub fn path(self) -> &'static str {
        match self {
            Self::Actions => "allow.actions",
            Self::Signals => "allow.signals",
            Self::Users => "allow.users",
            Self::Targets => "limits.maxTargets",
            Self::Percent => "limits.maxPercentPerWorkload",
            Self::Available => "limits.minAvailablePerWorkload",
            Self::Experiments => "limits.maxConcurrentExperiments",
            Self::Duration => "limits.maxDuration",
            Self::Age => "limits.minPodAge",
            Self::Budgets => "limits.respectDisruptionBudgets",
            Self::Windows => "windows",
            Self::Protect => "protect",
            Self::Halt => "halt",
            Self::HaltWhen => "haltWhen",
            Self::Invalid => "spec",
        }
    }
}

/// A policy says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub policy: String,
    /// By which rule.
    pub rule: Rule,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, rule, found, allowed } = self;
        write!(f, "ChaosPolicy {policy}, {}: found {found}; allowed: {allowed}", rule.path())
    }
}

impl std::error::Error for Refusal {}

/// What ends every lasting fault somewhere, and forbids new ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The word for `reason`: `Halted` or `WindowClosed`.
    pub reason: &'static str,
    /// What says so: `Namespace shop`, `ChaosPolicy team-a`.
    pub by: String,
    /// In words.
    pub message: String,
    /// The rule, where a policy says so.
    pub rule: Option<Rule>,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Who {
    /// The user's name; empty if it is not known.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

impl Who {
    /// Nobody that is known.
    pub const NOBODY: Self = Self { user: String::new(), groups: Vec::new() };

    /// As [`names::REQUESTED_BY`] has it. Who can't be read is nobody.
    pub fn recorded(annotation: Option<&str>) -> Self {
        #[derive(serde::Deserialize)]
        struct Record {
            #[serde(default)]
            username: String,
            #[serde(default)]
            groups: Vec<String>,
        }
        annotation
            .and_then(|text| serde_json::from_str::<Record>(text).ok())
            .map(|Record { username, groups }| Self { user: username, groups })
            .unwrap_or_default()
    }
}

/// What is asked for, as far as it is the same for every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The action.
    pub action: PolicyAction,
    /// The signal's number, where one is sent.
    pub signal: Option<i32>,
    /// For how long; `None` where it is not said. What happens once is asked for zero, a trigger for as long as it waits.
    pub duration: Option<Duration>,
    /// How many pods, where that is said beforehand.
    pub pods: Option<usize>,
}

impl Ask {
    /// What `spec` asks for.
    pub fn of(spec: &Spec) -> Self {
        let (action, signal) = match &spec.action {
            Action::PodKill { .. } => (PolicyAction::PodKill, None),
            Action::PodFailure { .. } => (PolicyAction::PodFailure, None),
            Action::ContainerKill { signal, .. } => (PolicyAction::ContainerKill, Some(signal.number())),
            Action::ContainerFreeze => (PolicyAction::ContainerFreeze, None),
            Action::Stress(_) => (PolicyAction::Stress, None),
        };
        Self {
            action,
            signal,
            duration: match &spec.action {
                // Its process may die at any moment until then.
                Action::ContainerKill { whom, .. } if whom.waits() => Some(spec.patience()),
                Action::PodKill { .. } | Action::ContainerKill { .. } => Some(Duration::ZERO),
                Action::PodFailure { .. } | Action::ContainerFreeze | Action::Stress(_) => spec.duration,
            },
            pods: match spec.mode {
                Mode::One => Some(1),
                Mode::Fixed(count) => Some(usize::try_from(count).unwrap_or(usize::MAX)),
                Mode::All | Mode::FixedPercent(_) | Mode::RandomMaxPercent(_) => None,
            },
        }
    }

    /// What the label on a pod asks for.
    pub fn by_hand(duration: Option<Duration>) -> Self {
        Self { action: PolicyAction::PodFailure, signal: None, duration, pods: Some(1) }
    }
}

/// All policies, by name.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Policies(Vec<Arc<Policy>>);

impl Policies {
    /// None.
    pub const NONE: Self = Self(Vec::new());

    /// These. Whoever keeps them replaces the one that changed, which may be often: its usage is written to its status.
    pub fn new(policies: impl IntoIterator<Item = impl Into<Arc<Policy>>>) -> Self {
        let mut all: Vec<Arc<Policy>> = policies.into_iter().map(Into::into).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Self(all)
    }

    /// `policy` in the place of the one of its name, if there is one. Whether anything but what is hit under it changed.
    pub fn put(&mut self, policy: Policy) -> bool {
        match self.0.binary_search_by(|known| known.name.cmp(&policy.name)) {
            Ok(at) => {
                let known = std::mem::replace(&mut self.0[at], Arc::new(policy));
                Policy { hit: self.0[at].hit, ..known.as_ref().clone() } != *self.0[at]
            }
            Err(at) => {
                self.0.insert(at, Arc::new(policy));
                true
            }
        }
    }

    /// Every one.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Those for `namespace`.
    pub fn over<'a>(&'a self, namespace: &'a NamespaceView) -> impl Iterator<Item = &'a Policy> {
        self.iter().filter(|policy| policy.is_for(namespace))
    }

    /// What ends or forbids everything in `namespace`; `system` is Squall's own, whose halt means the whole cluster.
    pub fn stop(
        &self,
        namespace: &NamespaceView,
        system: Option<&NamespaceView>,
        now: Timestamp,
    ) -> Option<Stop> {
        if let Some(why) = system.and_then(|system| system.halt.as_deref()) {
            return Some(Stop::by_annotation(names::NAMESPACE, why));
        }
        if let Some(why) = namespace.halt.as_deref() {
            return Some(Stop::by_annotation(&namespace.name, why));
        }
        self.over(namespace).find_map(|policy| policy.stop(now))
    }

    /// A policy for `namespace` of whose `haltWhen` it isn't known yet how it stands.
    pub fn unseen(&self, namespace: &NamespaceView) -> Option<&str> {
        self.iter()
            .find(|policy| policy.unseen && policy.is_for(namespace))
            .map(|policy| policy.name.as_str())
    }

    /// When [`Self::stop`] may say something else for `namespace` though nothing changes: a window opens or closes.
    pub fn turns(&self, namespace: &NamespaceView, now: Timestamp) -> Option<Timestamp> {
        self.over(namespace).filter_map(|policy| policy.turns(now)).min()
    }

    /// Whether `who` may have `ask` in `namespace` at all. Halts and windows are [`Self::stop`]'s.
    pub fn permits(&self, namespace: &NamespaceView, ask: &Ask, who: &Who) -> Result<(), Refusal> {
        self.over(namespace).try_for_each(|policy| policy.permits(ask, who))
    }

    /// [`Self::spares`] for whoever asks about each pod of `namespace`.
    pub fn sieve<'a>(&'a self, namespace: &'a NamespaceView, now: Timestamp) -> Sieve<'a> {
        let policies: Vec<&Policy> = self.over(namespace).collect();
        let age = policies.iter().filter_map(|policy| policy.limits.age).max();
        let mut protected: Vec<&Labels> = Vec::new();
        for labels in policies.iter().filter_map(|policy| policy.protect.as_ref()) {
            if !protected.contains(&labels) {
                protected.push(labels);
            }
        }
        // Before all time nothing was created: where the age is absurd, each policy is asked for each pod.
        let old = age.map(|age| now.checked_sub(age).unwrap_or(Timestamp::MIN));
        Sieve { policies, now, old, protected }
    }

    /// Whether `pod` may be hit as far as it is about the pod alone.
    pub fn spares(&self, namespace: &NamespaceView, pod: &PodView, now: Timestamp) -> Option<Refusal> {
        self.over(namespace).find_map(|policy| policy.spares(pod, now))
    }
}

/// The policies of a namespace together: of most pods none says anything, and that is one question, not one to each.
#[derive(Clone, Debug)]
pub struct Sieve<'a> {
    policies: Vec<&'a Policy>,
    now: Timestamp,
    /// What was created later is too young for one of them.
    old: Option<Timestamp>,
    /// What they protect, each selector once.
    protected: Vec<&'a Labels>,
}

impl Sieve<'_> {
    /// As [`Policies::spares`].
    pub fn spares(&self, pod: &PodView) -> Option<Refusal> {
        let young = self.old.is_some_and(|old| pod.created.is_none_or(|created| created > old));
        if !young && !self.protected.iter().any(|labels| labels.matches(&pod.labels)) {
            return None;
        }
        self.policies.iter().find_map(|policy| policy.spares(pod, self.now))
    }
}

impl Stop {
    /// The policy that says so; `None` where a namespace is halted by its annotation.
    pub fn policy(&self) -> Option<&str> {
        self.by.strip_prefix("ChaosPolicy ")
    }

    fn by_annotation(namespace: &str, why: &str) -> Self {
        let what = if namespace == names::NAMESPACE {
            "the whole cluster is halted".to_owned()
        } else {
            format!("namespace {namespace} is halted")
        };
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        Self {
            reason: "Halted",
            by: format!("Namespace {namespace}"),
            message: format!(
                "{what}{why} (to lift it: kubectl annotate namespace {namespace} {}-)",
                names::HALT
            ),
            rule: None,
        }
    }
}

impl Policy {
    /// Whether it applies in `namespace`. One whose selector makes no sense applies everywhere.
    pub fn is_for(&self, namespace: &NamespaceView) -> bool {
        self.namespaces.matches(&namespace.labels)
    }

    /// What the author of `spec`, which makes sense, may not have meant.
    pub fn warnings(spec: &ChaosPolicySpec) -> Vec<String> {
        let ChaosPolicySpec { namespace_selector, allow, limits: _, windows, protect, halt_when, halt: _ } =
            spec;
        let everything = |selector: &LabelSelector| {
            let LabelSelector { match_labels, match_expressions } = selector;
            match_labels.as_ref().is_none_or(BTreeMap::is_empty)
                && match_expressions.as_ref().is_none_or(Vec::is_empty)
        };
        let mut warnings = Vec::new();
        let mut warn = |what: &str| warnings.push(format!("squall: spec.{what}"));
        if windows.as_ref().is_some_and(Vec::is_empty) {
            warn("windows is an empty list: nothing may ever be hit");
        }
        if allow.as_ref().is_some_and(|allow| allow.actions.as_ref().is_some_and(Vec::is_empty)) {
            warn("allow.actions is an empty list: no action is allowed");
        }
        if namespace_selector.as_ref().is_some_and(everything) {
            warn("namespaceSelector is empty: the policy is for every namespace");
        }
        if protect.as_ref().is_some_and(|protect| everything(&protect.pod_selector)) {
            warn("protect.podSelector is empty: it protects every pod");
        }
        for (index, probe) in halt_when.iter().enumerate() {
            if probe.availability.as_ref().is_some_and(|probe| everything(&probe.pod_selector)) {
                warn(&format!(
                    "haltWhen[{index}].availability.podSelector is empty: it counts every pod of a namespace"
                ));
            }
        }
        warnings
    }

    /// Why it makes no sense, if it doesn't.
    pub fn invalid(&self) -> Option<&str> {
        self.invalid.as_deref()
    }

    /// What it stops at `now`.
    pub fn stop(&self, now: Timestamp) -> Option<Stop> {
        let by = format!("ChaosPolicy {}", self.name);
        let halted = |rule: Rule, message: String| {
            Some(Stop { reason: "Halted", by: by.clone(), message, rule: Some(rule) })
        };
        if let Some(why) = &self.halt {
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            return halted(Rule::Halt, format!("ChaosPolicy {}, spec.halt: halted{why}", self.name));
        }
        if let Some(evidence) = &self.tripped {
            return halted(Rule::HaltWhen, format!("ChaosPolicy {}, haltWhen: {evidence}", self.name));
        }
        if let Some(windows) = &self.windows
            && !windows.iter().any(|window| window.open_until(now).is_some())
        {
            let next = windows.iter().filter_map(|window| window.opens_after(now)).min();
            let next = match next {
                Some(at) => format!("the next window opens at {}", seconds(at)),
                None => "no window ever opens".to_owned(),
            };
            return Some(Stop {
                reason: "WindowClosed",
                by,
                message: format!(
                    "ChaosPolicy {}, windows: found the time {}; allowed: inside a window, and {next}",
                    self.name,
                    seconds(now)
                ),
                rule: Some(Rule::Windows),
            });
        }
        None
    }

    /// When a window opens or closes next.
    pub fn turns(&self, now: Timestamp) -> Option<Timestamp> {
        self.windows
            .iter()
            .flatten()
            .filter_map(|window| window.open_until(now).or_else(|| window.opens_after(now)))
            .min()
    }

    fn refuse(&self, rule: Rule, found: impl Into<String>, allowed: impl Into<String>) -> Refusal {
        Refusal { policy: self.name.clone(), rule, found: found.into(), allowed: allowed.into() }
    }

    fn permits(&self, ask: &Ask, who: &Who) -> Result<(), Refusal> {
        let Ask { action, signal, duration, pods } = ask;
        if let Some(why) = &self.invalid {
            return Err(self.refuse(Rule::Invalid, why, "nothing until the policy is corrected"));
        }
        if let Some(actions) = &self.actions
            && !actions.contains(action)
        {
            let allowed = list(actions.iter().map(|action| word(*action).to_owned()));
            return Err(self.refuse(Rule::Actions, word(*action), allowed));
        }
        if let (Some(allowed), Some(signal)) = (&self.signals, signal)
            && !allowed.contains(signal)
        {
            let name = |number: &i32| crate::signal::name(*number);
            return Err(self.refuse(Rule::Signals, name(signal), list(allowed.iter().map(name))));
        }
        self.permits_user(who)?;
        if let Some(most) = self.limits.duration
            && duration.is_none_or(|asked| asked > most)
        {
            let found = match duration {
                Some(asked) => format_duration(*asked),
                None => "no duration".to_owned(),
            };
            return Err(self.refuse(Rule::Duration, found, format!("at most {}", format_duration(most))));
        }
        // With 0 nothing fits, whatever is asked for.
        if let Some(most) = self.limits.targets
            && pods.unwrap_or(1) > most
        {
            return Err(self.refuse(Rule::Targets, pods.unwrap_or(1).to_string(), most.to_string()));
        }
        if self.limits.experiments == Some(0) {
            return Err(self.refuse(Rule::Experiments, "1", "0"));
        }
        Ok(())
    }

    fn permits_user(&self, who: &Who) -> Result<(), Refusal> {
        let (users, groups) = (&self.users, &self.groups);
        if users.is_none() && groups.is_none() {
            return Ok(());
        }
        let named = users.as_ref().is_some_and(|users| users.contains(&who.user))
            || groups.as_ref().is_some_and(|groups| who.groups.iter().any(|group| groups.contains(group)));
        if named {
            return Ok(());
        }
        let user = if who.user.is_empty() { "nobody known" } else { &who.user };
        let mut allowed = Vec::new();
        if let Some(users) = users {
            allowed.push(format!("users {}", list(users.iter().cloned())));
        }
        if let Some(groups) = groups {
            allowed.push(format!("groups {}", list(groups.iter().cloned())));
        }
        Err(self.refuse(Rule::Users, user, allowed.join(", ")))
    }

    pub(crate) fn spares(&self, pod: &PodView, now: Timestamp) -> Option<Refusal> {
        if self.protect.as_ref().is_some_and(|protect| protect.matches(&pod.labels)) {
            return Some(self.refuse(
                Rule::Protect,
                "a pod that podSelector selects",
                "pods that it does not select",
            ));
        }
        if let Some(least) = self.limits.age {
            // A pod at its birth has no age; in doubt it is young, also after a jump of a clock.
            let age = pod.created.map(|created| now.duration_since(created)).unwrap_or_default();
            if SignedDuration::try_from(least).is_ok_and(|least| age < least) {
                let age = Duration::try_from(age).unwrap_or_default();
                let found = format!("an age of {}", format_duration(Duration::from_secs(age.as_secs())));
                return Some(self.refuse(Rule::Age, found, format!("at least {}", format_duration(least))));
            }
        }
        None
    }

    /// Whether all that halts it has been looked at, as it is written now: for those who begin nothing later.
    pub fn has_looked(&self) -> Result<(), Refusal> {
        if self.unseen {
            let allowed = "what begins after every probe was seen: try again in some seconds";
            return Err(self.refuse(Rule::HaltWhen, "a probe that has not been looked at yet", allowed));
        }
        Ok(())
    }

    /// Whether one more pod may be hit, going by what was last written of it: for those who can't count themselves.
    pub fn has_room(&self) -> Result<(), Refusal> {
        match self.limits.targets {
            Some(most) if self.hit >= most => {
                let found = format!("1 asked for, {} hit", self.hit);
                Err(self.refuse(Rule::Targets, found, most.to_string()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// When a pod that is too young now will be old enough for this policy.
    pub fn old_enough(&self, pod: &PodView) -> Option<Timestamp> {
        let least = SignedDuration::try_from(self.limits.age?).ok()?;
        pod.created?.checked_add(least).ok()
    }
}

/// The action, as users write it.
pub fn word(action: PolicyAction) -> &'static str {
    match action {
        PolicyAction::PodKill => "pod-kill",
        PolicyAction::PodFailure => "pod-failure",
        PolicyAction::ContainerKill => "container-kill",
        PolicyAction::ContainerFreeze => "container-freeze",
        PolicyAction::Stress => "stress",
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match items.len() {
        0 => "none".to_owned(),
        1..=10 => items.join(", "),
        more => format!("{}, and {} more", items[..10].join(", "), more - 10),
    }
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
