//! Which of the drawn pods may be hit, beside all that is hit already.
//!
//! The draw's order is kept: a pod that a limit leaves no room for is passed over for the next. An experiment that
//! can't have as many pods as it asks for gets none, with the reason: nobody is quietly given less. Only pods whose
//! disruption budget is used up are left out, as if they weren't there.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::ledger::{Held, Hold};
use super::used::Over;
use super::{Labels, Limits, Policy, Refusal, Rule};
use crate::plan::World;
use crate::pod::PodView;
use crate::substitute::MANUAL;

/// A PodDisruptionBudget as decisions see it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its pods.
    pub pods: Labels,
    /// `status.desiredHealthy`.
    pub desired: usize,
    /// `status.disruptionsAllowed`.
    pub allowed: usize,
}

/// What may be hit.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Choice<'a> {
    /// These, in the order of the draw.
    pub taken: Vec<&'a PodView>,
    /// These not, though they were drawn.
    pub spared: Vec<(&'a PodView, Refusal)>,
}

/// A workload: its namespace, and its kind and name.
type Workload<'a> = (&'a str, Cow<'a, str>);

/// How the pods of a workload stand.
#[derive(Clone, Copy, Default)]
struct Count {
    all: usize,
    /// Ready, and not held.
    free: usize,
    held: usize,
}

/// Take `wanted` of `ranked` for the experiment `own`, which holds `mine` already.
pub fn choose<'a>(
    world: &'a dyn World,
    own: &str,
    mine: &Hold,
    ranked: &[&'a PodView],
    wanted: usize,
    now: Timestamp,
) -> Result<Choice<'a>, Refusal> {
    if world.policies().iter().next().is_none() {
        return Ok(Choice { taken: ranked.iter().take(wanted).copied().collect(), spared: Vec::new() });
    }
    let mut hall = Hall::of(world, own, mine, now);
    if mine.pods.is_empty() {
        hall.another_experiment(own, ranked.iter().map(|pod| pod.namespace.as_str()).collect())?;
    }
    let mut choice = Choice::default();
    let mut refused = None;
    for pod in ranked {
        if choice.taken.len() == wanted {
            break;
        }
        match hall.admit(pod, pod.ready, Some(wanted)) {
            Ok(()) => choice.taken.push(pod),
            Err(refusal) if refusal.rule == Rule::Budgets => choice.spared.push((pod, refusal)),
            Err(refusal) => {
                refused.get_or_insert(refusal);
            }
        }
    }
    match refused {
        Some(refusal) if choice.taken.len() < wanted.min(ranked.len() - choice.spared.len()) => Err(refusal),
        Some(_) | None => Ok(choice),
    }
}

/// Of what is held, what is more than a policy allows: UIDs of pods with the refusal. The newest go first, those that
/// are held by hand before those of experiments.
///
/// Who chooses for an experiment asks once how many pods of a workload are Ready and what a budget has left, and so is
/// it with the hand: `settled` are the pods that it holds and that were found to be within these limits. Asked again,
/// the pods that were let go a moment ago and aren't Ready yet would have the next one let go, and so on.
pub fn excess(world: &dyn World, settled: &BTreeSet<String>, now: Timestamp) -> BTreeMap<String, Refusal> {
    let mut excess = BTreeMap::new();
    if world.policies().iter().next().is_none() {
        return excess;
    }
    let mut all: Vec<(Timestamp, &str, &Held)> = Vec::new();
    for (_, hold) in world.ledger().iter() {
        let held = hold.pods.iter().filter(|(_, held)| held.until.is_none());
        all.extend(held.map(|(uid, held)| (hold.since.unwrap_or(now), uid.as_str(), held)));
    }
    all.sort_by_key(|(since, uid, _)| (*since, *uid));
    // Later than every experiment: a hand can't know what else is hit.
    let mut hands: Vec<(Option<Timestamp>, &PodView)> =
        world.held_by(MANUAL).map(|pod| (by_hand_since(pod), pod)).collect();
    hands.sort_by(|(a, one), (b, other)| (a, &one.uid).cmp(&(b, &other.uid)));

    let mut hall = Hall::empty(world);
    hall.away.extend(all.iter().map(|(_, uid, _)| *uid));
    for (_, pod) in &hands {
        if !hall.away.contains(pod.uid.as_str()) && !settled.contains(&pod.uid) {
            hall.judged.insert(&pod.uid);
        }
        hall.away.insert(&pod.uid);
    }
    for (_, uid, held) in all {
        if let Err(refusal) = hall.stays(uid, &held.namespace, Cow::Borrowed(&held.workload)) {
            excess.entry(uid.to_owned()).or_insert(refusal);
        }
    }
    for (_, pod) in hands {
        let stays = if hall.judged.contains(pod.uid.as_str()) {
            // Whatever it is now, it was Ready before or may be again.
            hall.admit(pod, true, None)
        } else {
            hall.stays(&pod.uid, &pod.namespace, Cow::Owned(pod.workload()))
        };
        if let Err(refusal) = stays {
            excess.entry(pod.uid.clone()).or_insert(refusal);
        }
    }
    excess
}

/// Since when the hand holds `pod`, where its record says so: an earlier version's doesn't.
fn by_hand_since(pod: &PodView) -> Option<Timestamp> {
    pod.held_by.iter().find(|holder| holder.uid == MANUAL)?.since
}

/// All that is held, counted as policies count it.
struct Hall<'a> {
    world: &'a dyn World,
    over: Over<'a>,
    /// UIDs of all held pods.
    held: HashSet<&'a str>,
    /// The same, and those that are still to be taken in: none of them is free.
    away: HashSet<&'a str>,
    /// Held by hand, and to be let go if there is no room: until they are taken in, they count as free.
    judged: HashSet<&'a str>,
    /// By the policy's name.
    targets: HashMap<&'a str, usize>,
    counts: HashMap<Workload<'a>, Count>,
    counted: HashSet<&'a str>,
    /// What is left of each budget, by namespace and name.
    budgets: HashMap<(&'a str, &'a str), usize>,
}

impl<'a> Hall<'a> {
    fn empty(world: &'a dyn World) -> Self {
        Self {
            world,
            over: Over::new(world),
            held: HashSet::new(),
            away: HashSet::new(),
            judged: HashSet::new(),
            targets: HashMap::new(),
            counts: HashMap::new(),
            counted: HashSet::new(),
            budgets: HashMap::new(),
        }
    }

    fn of(world: &'a dyn World, own: &str, mine: &'a Hold, now: Timestamp) -> Self {
        let mut hall = Self::empty(world);
        let others = world.ledger().iter().filter(|(uid, _)| *uid != own).map(|(_, hold)| hold);
        for (uid, held) in others.chain([mine]).flat_map(|hold| &hold.pods) {
            if held.until.is_none_or(|until| until > now) {
                hall.put(uid, &held.namespace, Cow::Borrowed(&held.workload));
            }
        }
        for pod in world.held_by(MANUAL) {
            hall.put(&pod.uid, &pod.namespace, Cow::Owned(pod.workload()));
        }
        hall
    }

    fn put(&mut self, uid: &'a str, namespace: &'a str, workload: Cow<'a, str>) {
        if !self.held.insert(uid) {
            return;
        }
        self.away.insert(uid);
        for policy in self.over.policies(namespace).iter() {
            *self.targets.entry(&policy.name).or_default() += 1;
        }
        self.counts.entry((namespace, workload)).or_default().held += 1;
    }

    fn another_experiment(&mut self, own: &str, namespaces: BTreeSet<&'a str>) -> Result<(), Refusal> {
        let mut concerned: BTreeMap<&str, &Policy> = BTreeMap::new();
        for namespace in namespaces {
            let limited = self.over.policies(namespace);
            let limited = limited.iter().filter(|policy| policy.limits.experiments.is_some());
            concerned.extend(limited.map(|policy| (policy.name.as_str(), *policy)));
        }
        if concerned.is_empty() {
            return Ok(());
        }
        let mut others: HashMap<&str, usize> = HashMap::new();
        for (_, hold) in self.world.ledger().iter().filter(|(uid, hold)| *uid != own && hold.active) {
            for policy in self.over.any(&hold.namespaces) {
                *others.entry(policy).or_default() += 1;
            }
        }
        for (name, policy) in concerned {
            let with_this = others.get(name).copied().unwrap_or_default() + 1;
            if let Some(most) = policy.limits.experiments
                && with_this > most
            {
                let found = format!("{with_this} with this one");
                return Err(policy.refuse(Rule::Experiments, found, most.to_string()));
            }
        }
        Ok(())
    }

    /// Take `pod` in, unless a policy leaves no room for it. `ready`: it is one less that is Ready. `wanted`: it is one
    /// of so many that are asked for.
    fn admit(&mut self, pod: &'a PodView, ready: bool, wanted: Option<usize>) -> Result<(), Refusal> {
        if self.held.contains(pod.uid.as_str()) {
            // It is hit already: nothing more is away because of this one.
            return Ok(());
        }
        let workload: Workload<'a> = (pod.namespace.as_str(), Cow::Owned(pod.workload()));
        for policy in self.over.policies(&pod.namespace).iter() {
            let Limits { targets, percent, available, experiments: _, duration: _, age: _, budgets } =
                &policy.limits;
            self.within_targets(policy, *targets, wanted)?;
            self.within_percent(policy, *percent, &workload)?;
            if let Some(least) = available {
                let left = self.count(&workload).free.saturating_sub(usize::from(ready));
                if left < *least {
                    let found = format!("{left} pods of {} that would stay Ready", workload.1);
                    return Err(policy.refuse(Rule::Available, found, format!("at least {least}")));
                }
            }
            if *budgets {
                self.within_budgets(policy, pod)?;
            }
        }
        if ready {
            self.count(&workload);
            if let Some(count) = self.counts.get_mut(&workload) {
                count.free = count.free.saturating_sub(1);
            }
            let world = self.world;
            for budget in
                world.budgets(&pod.namespace).iter().filter(|budget| budget.pods.matches(&pod.labels))
            {
                if let Some(left) = self.budgets.get_mut(&(budget.namespace.as_str(), budget.name.as_str())) {
                    *left = left.saturating_sub(1);
                }
            }
        }
        self.put(&pod.uid, workload.0, workload.1);
        Ok(())
    }

    /// Count in what is held anyway, unless it is more than a policy allows.
    fn stays(&mut self, uid: &'a str, namespace: &'a str, workload: Cow<'a, str>) -> Result<(), Refusal> {
        if self.held.contains(uid) {
            return Ok(());
        }
        let workload = (namespace, workload);
        for policy in self.over.policies(namespace).iter() {
            self.within_targets(policy, policy.limits.targets, None)?;
            self.within_percent(policy, policy.limits.percent, &workload)?;
        }
        self.put(uid, workload.0, workload.1);
        Ok(())
    }

    fn within_targets(
        &self,
        policy: &Policy,
        most: Option<usize>,
        wanted: Option<usize>,
    ) -> Result<(), Refusal> {
        let there = self.targets.get(policy.name.as_str()).copied().unwrap_or_default();
        let Some(most) = most.filter(|most| there + 1 > *most) else { return Ok(()) };
        let found = match wanted {
            Some(wanted) => format!("{wanted} asked for, {there} hit when it came to this one"),
            None => (there + 1).to_string(),
        };
        Err(policy.refuse(Rule::Targets, found, most.to_string()))
    }

    fn within_percent(
        &mut self,
        policy: &Policy,
        percent: Option<usize>,
        workload: &Workload<'a>,
    ) -> Result<(), Refusal> {
        let Some(percent) = percent else { return Ok(()) };
        let Count { all, free: _, held } = self.count(workload);
        let (most, there) = (all * percent / 100, held + 1);
        if there > most {
            let found = format!("{there} of the {all} pods of {}", workload.1);
            return Err(policy.refuse(
                Rule::Percent,
                found,
                format!("{most} ({percent} % of {all} is {most})"),
            ));
        }
        Ok(())
    }

    fn within_budgets(&mut self, policy: &Policy, pod: &PodView) -> Result<(), Refusal> {
        let world = self.world;
        for budget in world.budgets(&pod.namespace).iter().filter(|budget| budget.pods.matches(&pod.labels)) {
            let key = (budget.namespace.as_str(), budget.name.as_str());
            let left = match self.budgets.get(&key) {
                Some(left) => *left,
                None => {
                    // The budget's own count comes late; what is Ready and not held is known at once.
                    let free = world
                        .pods(&pod.namespace)
                        .filter(|pod| budget.pods.matches(&pod.labels) && !pod.terminating)
                        .filter(|pod| self.is_free(pod))
                        .count();
                    // Where it comes to what is held already, the budget's own count has that in it, or hasn't.
                    let allowed = if self.judged.is_empty() { budget.allowed } else { usize::MAX };
                    let left = allowed.min(free.saturating_sub(budget.desired));
                    self.budgets.insert(key, left);
                    left
                }
            };
            if left == 0 {
                let found = format!("PodDisruptionBudget {} with 0 disruptions left", budget.name);
                return Err(policy.refuse(Rule::Budgets, found, "pods whose budget has some left"));
            }
        }
        Ok(())
    }

    fn is_free(&self, pod: &PodView) -> bool {
        let uid = pod.uid.as_str();
        (self.judged.contains(uid) && !self.held.contains(uid)) || (pod.ready && !self.away.contains(uid))
    }

    /// How the pods of `workload` stand; a namespace is counted through once.
    fn count(&mut self, workload: &Workload<'a>) -> Count {
        let world = self.world;
        if self.counted.insert(workload.0) {
            for pod in world.pods(workload.0) {
                if pod.terminating || pod.phase == "Succeeded" || pod.phase == "Failed" {
                    continue;
                }
                let free = usize::from(self.is_free(pod));
                let count = self.counts.entry((workload.0, Cow::Owned(pod.workload()))).or_default();
                count.all += 1;
                count.free += free;
            }
        }
        self.counts.get(workload).copied().unwrap_or_default()
    }
}
