//! Which of the drawn pods may be hit, beside all that is hit already.
//!
//! The draw's order is kept: a pod that a limit leaves no room for is passed over for the next. An experiment that
//! can't have as many pods as it asks for gets none, with the reason: nobody is quietly given less. Only pods whose
//! disruption budget is used up are left out, as if they weren't there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::ledger::{Held, Hold};
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
type Workload = (String, String);

/// How the pods of a workload stand.
#[derive(Clone, Copy, Default)]
struct Count {
    all: usize,
    /// Ready, and not held.
    free: usize,
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
        let namespaces: BTreeSet<&str> = ranked.iter().map(|pod| pod.namespace.as_str()).collect();
        hall.another_experiment(own, &namespaces)?;
    }
    let mut choice = Choice::default();
    let mut refused = None;
    for pod in ranked {
        if choice.taken.len() == wanted {
            break;
        }
        match hall.admit(pod, wanted) {
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
pub fn excess(world: &dyn World, now: Timestamp) -> BTreeMap<String, Refusal> {
    let mut excess = BTreeMap::new();
    if world.policies().iter().next().is_none() {
        return excess;
    }
    let mut all: Vec<(Option<Timestamp>, &str, Held)> = Vec::new();
    for (_, hold) in world.ledger().iter() {
        let held = hold.pods.iter().filter(|(_, held)| held.until.is_none());
        all.extend(held.map(|(uid, held)| (Some(hold.since.unwrap_or(now)), uid.as_str(), held.clone())));
    }
    // Later than every experiment: a hand can't know what else is hit.
    all.extend(world.held_by(MANUAL).map(|pod| (None, pod.uid.as_str(), Held::by_hand(pod))));
    all.sort_by(|a, b| (a.0.is_none(), a.0, a.1).cmp(&(b.0.is_none(), b.0, b.1)));
    let mut hall = Hall::empty(world);
    for (_, uid, held) in all {
        if let Err(refusal) = hall.stays(uid, &held) {
            excess.entry(uid.to_owned()).or_insert(refusal);
        }
    }
    excess
}

/// How many pods are held in the namespaces of `policy`, how many of them by hand, and by how many experiments.
pub fn usage(world: &dyn World, policy: &Policy, now: Timestamp) -> (usize, usize, usize) {
    let over = |name: &str| world.namespace(name).is_some_and(|namespace| policy.is_for(namespace));
    let mut pods: BTreeSet<&str> = BTreeSet::new();
    let mut experiments = 0;
    for (_, hold) in world.ledger().iter() {
        experiments += usize::from(hold.active && hold.namespaces.iter().any(|name| over(name)));
        let held = hold.pods.iter().filter(|(_, held)| held.until.is_none_or(|until| until > now));
        pods.extend(held.filter(|(_, held)| over(&held.namespace)).map(|(uid, _)| uid.as_str()));
    }
    let by_hand: Vec<&str> =
        world.held_by(MANUAL).filter(|pod| over(&pod.namespace)).map(|pod| pod.uid.as_str()).collect();
    pods.extend(&by_hand);
    (pods.len(), by_hand.len(), experiments)
}

/// All that is held, counted as policies count it.
struct Hall<'a> {
    world: &'a dyn World,
    /// UIDs of all held pods.
    held: BTreeSet<String>,
    /// By the policy's name.
    targets: HashMap<&'a str, BTreeSet<String>>,
    workloads: HashMap<Workload, BTreeSet<String>>,
    counts: HashMap<Workload, Count>,
    counted: BTreeSet<String>,
    /// What is left of each budget, by namespace and name.
    budgets: HashMap<Workload, usize>,
}

impl<'a> Hall<'a> {
    fn empty(world: &'a dyn World) -> Self {
        Self {
            world,
            held: BTreeSet::new(),
            targets: HashMap::new(),
            workloads: HashMap::new(),
            counts: HashMap::new(),
            counted: BTreeSet::new(),
            budgets: HashMap::new(),
        }
    }

    fn of(world: &'a dyn World, own: &str, mine: &Hold, now: Timestamp) -> Self {
        let mut hall = Self::empty(world);
        let others = world.ledger().iter().filter(|(uid, _)| *uid != own).map(|(_, hold)| hold);
        for (uid, held) in others.chain([mine]).flat_map(|hold| &hold.pods) {
            if held.until.is_none_or(|until| until > now) {
                hall.put(uid, held);
            }
        }
        for pod in world.held_by(MANUAL) {
            hall.put(&pod.uid, &Held::by_hand(pod));
        }
        hall
    }

    fn policies(&self, namespace: &str) -> impl Iterator<Item = &'a Policy> + use<'a> {
        let world = self.world;
        let namespace = world.namespace(namespace);
        world
            .policies()
            .iter()
            .filter(move |policy| namespace.is_some_and(|namespace| policy.is_for(namespace)))
    }

    fn put(&mut self, uid: &str, held: &Held) {
        for policy in self.policies(&held.namespace) {
            self.targets.entry(&policy.name).or_default().insert(uid.to_owned());
        }
        let workload = (held.namespace.clone(), held.workload.clone());
        self.workloads.entry(workload).or_default().insert(uid.to_owned());
        self.held.insert(uid.to_owned());
    }

    fn another_experiment(&self, own: &str, namespaces: &BTreeSet<&str>) -> Result<(), Refusal> {
        let concerned: BTreeMap<&str, &Policy> = namespaces
            .iter()
            .flat_map(|name| self.policies(name))
            .map(|policy| (policy.name.as_str(), policy))
            .collect();
        for policy in concerned.into_values() {
            let Some(most) = policy.limits.experiments else { continue };
            let over =
                |name: &String| self.world.namespace(name).is_some_and(|namespace| policy.is_for(namespace));
            let others = self
                .world
                .ledger()
                .iter()
                .filter(|(uid, hold)| *uid != own && hold.active && hold.namespaces.iter().any(over))
                .count();
            if others + 1 > most {
                let found = format!("{} with this one", others + 1);
                return Err(policy.refuse(Rule::Experiments, found, most.to_string()));
            }
        }
        Ok(())
    }

    /// Take `pod` in, unless a policy leaves no room for it.
    fn admit(&mut self, pod: &PodView, wanted: usize) -> Result<(), Refusal> {
        let held = Held::by_hand(pod);
        let workload = (held.namespace.clone(), held.workload.clone());
        if self.held.contains(&pod.uid) {
            // It is hit already: nothing more is away because of this one.
            return Ok(());
        }
        for policy in self.policies(&pod.namespace) {
            let Limits { targets, percent, available, experiments: _, duration: _, age: _, budgets } =
                &policy.limits;
            if let Some(most) = targets {
                let there = self.targets.get(policy.name.as_str()).map_or(0, BTreeSet::len);
                if there + 1 > *most {
                    let found = format!("{wanted} asked for, {there} hit when it came to this one");
                    return Err(policy.refuse(Rule::Targets, found, most.to_string()));
                }
            }
            self.within_percent(policy, *percent, &workload, 1)?;
            if let Some(least) = available {
                let free = self.count(&workload).free;
                let left = free.saturating_sub(usize::from(pod.ready));
                if left < *least {
                    let found = format!("{left} pods of {} that would stay Ready", workload.1);
                    return Err(policy.refuse(Rule::Available, found, format!("at least {least}")));
                }
            }
            if *budgets {
                self.within_budgets(policy, pod)?;
            }
        }
        self.count(&workload);
        if let Some(count) = self.counts.get_mut(&workload) {
            count.free = count.free.saturating_sub(usize::from(pod.ready));
        }
        if pod.ready {
            for budget in
                self.world.budgets(&pod.namespace).iter().filter(|budget| budget.pods.matches(&pod.labels))
            {
                if let Some(left) = self.budgets.get_mut(&(budget.namespace.clone(), budget.name.clone())) {
                    *left = left.saturating_sub(1);
                }
            }
        }
        self.put(&pod.uid, &held);
        Ok(())
    }

    /// Count in what is held anyway, unless it is more than a policy allows.
    fn stays(&mut self, uid: &str, held: &Held) -> Result<(), Refusal> {
        if self.held.contains(uid) {
            return Ok(());
        }
        let workload = (held.namespace.clone(), held.workload.clone());
        for policy in self.policies(&held.namespace) {
            if let Some(most) = policy.limits.targets {
                let there = self.targets.get(policy.name.as_str()).map_or(0, BTreeSet::len);
                if there + 1 > most {
                    return Err(policy.refuse(Rule::Targets, (there + 1).to_string(), most.to_string()));
                }
            }
            self.within_percent(policy, policy.limits.percent, &workload, 1)?;
        }
        self.put(uid, held);
        Ok(())
    }

    fn within_percent(
        &mut self,
        policy: &Policy,
        percent: Option<usize>,
        workload: &Workload,
        more: usize,
    ) -> Result<(), Refusal> {
        let Some(percent) = percent else { return Ok(()) };
        let all = self.count(workload).all;
        let most = all * percent / 100;
        let there = self.workloads.get(workload).map_or(0, BTreeSet::len) + more;
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
            let key = (budget.namespace.clone(), budget.name.clone());
            let left = match self.budgets.get(&key) {
                Some(left) => *left,
                None => {
                    // The budget's own count comes late; what is Ready and not held is known at once.
                    let free = world
                        .pods(&pod.namespace)
                        .filter(|pod| budget.pods.matches(&pod.labels))
                        .filter(|pod| pod.ready && !pod.terminating && !self.held.contains(&pod.uid))
                        .count();
                    let left = budget.allowed.min(free.saturating_sub(budget.desired));
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

    /// How the pods of `workload` stand; a namespace is counted through once.
    fn count(&mut self, workload: &Workload) -> Count {
        if self.counted.insert(workload.0.clone()) {
            for pod in self.world.pods(&workload.0) {
                if pod.terminating || pod.phase == "Succeeded" || pod.phase == "Failed" {
                    continue;
                }
                let count = self.counts.entry((workload.0.clone(), pod.workload())).or_default();
                count.all += 1;
                count.free += usize::from(pod.ready && !self.held.contains(&pod.uid));
            }
        }
        self.counts.get(workload).copied().unwrap_or_default()
    }
}
