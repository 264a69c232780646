//! Which experiment is to be woken by which change, so that work grows with targets and not with the cluster.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use squall_model::pod::PodView;

use crate::chaos::Named;

/// What one experiment depends on.
#[derive(Clone, Debug)]
pub struct Interest {
    /// The experiment.
    pub experiment: Named,
    /// UIDs of pods.
    pub pods: HashSet<String>,
    /// UIDs of workloads whose new pods matter.
    pub owners: HashSet<String>,
    /// Nodes whose daemons matter.
    pub nodes: HashSet<String>,
    /// It looks for pods by the labels of their nodes.
    pub node_labels: bool,
    /// Namespaces in which every pod matters.
    pub namespaces: BTreeSet<String>,
    /// Namespaces whose opt-in or protection matters: those of the targets.
    pub opt_ins: BTreeSet<String>,
}

/// The interests of all experiments, by UID.
#[derive(Clone, Default)]
pub struct Interests(Arc<RwLock<HashMap<String, Interest>>>);

impl Interests {
    /// What the experiment `uid` depends on from now on.
    pub fn set(&self, uid: &str, interest: Interest) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), interest);
    }

    /// It depends on nothing any more.
    pub fn forget(&self, uid: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Nobody depends on anything: another leader begins.
    pub fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whom a change of `pod` concerns.
    pub fn of_pod(&self, pod: &PodView) -> Vec<Named> {
        self.filter(|interest| {
            interest.pods.contains(&pod.uid)
                || interest.namespaces.contains(&pod.namespace)
                || pod.owner.as_ref().is_some_and(|owner| interest.owners.contains(&owner.uid))
        })
    }

    /// Whom a change of the namespace concerns.
    pub fn of_namespace(&self, name: &str) -> Vec<Named> {
        self.filter(|interest| interest.namespaces.contains(name) || interest.opt_ins.contains(name))
    }

    /// Whom news from the node's daemon concern.
    pub fn of_node(&self, name: &str) -> Vec<Named> {
        self.filter(|interest| interest.nodes.contains(name))
    }

    /// Whom other labels of a node concern. Of any node: whether pods of theirs are on it is for the plan to see.
    pub fn of_labels(&self) -> Vec<Named> {
        self.filter(|interest| interest.node_labels)
    }

    /// The experiment `uid`.
    pub fn of_experiment(&self, uid: &str) -> Option<Named> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .map(|interest| interest.experiment.clone())
    }

    fn filter(&self, concerns: impl Fn(&Interest) -> bool) -> Vec<Named> {
        let interests = self.0.read().unwrap_or_else(PoisonError::into_inner);
        interests
            .values()
            .filter(|interest| concerns(interest))
            .map(|interest| interest.experiment.clone())
            .collect()
    }
}
