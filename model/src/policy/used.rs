//! Which policies what is hit concerns, and how much of it each has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use jiff::Timestamp;

use super::Policy;
use crate::plan::World;
use crate::substitute::MANUAL;

/// What is hit in the namespaces of one policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Pods.
    pub pods: usize,
    /// Those of them that are hit by hand.
    pub by_hand: usize,
    /// Experiments.
    pub experiments: usize,
}

/// What is hit under each policy, by its name; those under which nothing is are left out.
pub fn usage(world: &dyn World, now: Timestamp) -> HashMap<&str, Used> {
    let mut over = Over::new(world);
    let mut used: HashMap<&str, Used> = HashMap::new();
    let mut pods: HashSet<&str> = HashSet::new();
    for (_, hold) in world.ledger().iter() {
        if hold.active {
            for policy in over.any(&hold.namespaces) {
                used.entry(policy).or_default().experiments += 1;
            }
        }
        for (uid, held) in hold.pods.iter().filter(|(_, held)| held.until.is_none_or(|until| until > now)) {
            if pods.insert(uid) {
                for policy in over.policies(&held.namespace).iter() {
                    used.entry(&policy.name).or_default().pods += 1;
                }
            }
        }
    }
    for pod in world.held_by(MANUAL) {
        let another = usize::from(pods.insert(&pod.uid));
        for policy in over.policies(&pod.namespace).iter() {
            let used = used.entry(&policy.name).or_default();
            used.by_hand += 1;
            used.pods += another;
        }
    }
    used
}

/// The policies for each namespace, asked for once.
pub(super) struct Over<'a> {
    world: &'a dyn World,
    known: HashMap<&'a str, Rc<[&'a Policy]>>,
}

impl<'a> Over<'a> {
    pub(super) fn new(world: &'a dyn World) -> Self {
        Self { world, known: HashMap::new() }
    }

    pub(super) fn policies(&mut self, namespace: &'a str) -> Rc<[&'a Policy]> {
        let world = self.world;
        let find = || {
            let view = world.namespace(namespace);
            view.into_iter().flat_map(|view| world.policies().over(view)).collect()
        };
        self.known.entry(namespace).or_insert_with(find).clone()
    }

    /// The names of those for any of `namespaces`, each once.
    pub(super) fn any(&mut self, namespaces: &'a BTreeSet<String>) -> BTreeSet<&'a str> {
        let mut names = BTreeSet::new();
        for namespace in namespaces {
            names.extend(self.policies(namespace).iter().map(|policy| policy.name.as_str()));
        }
        names
    }
}
