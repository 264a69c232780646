//! Which experiment is to be woken by which change, so that work grows with targets and not with the cluster.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use squall_model::pod::PodView;
use squall_model::select::{AtBirth, Selector};

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
    /// It still looks for pods: each that may be selected matters, and so do the namespaces that it looks into.
    pub looking: Option<Selector>,
    /// Namespaces whose opt-in or protection matters: those of the targets.
    pub opt_ins: BTreeSet<String>,
}

impl Interest {
    fn concerns(&self, pod: &PodView) -> bool {
        // What only the cluster knows (a node's labels) is for the plan to see.
        let may_be_selected = |selector: &Selector| {
            selector.namespaces.contains(&pod.namespace) && selector.at_birth(pod) != AtBirth::No
        };
        self.pods.contains(&pod.uid)
            || pod.owner.as_ref().is_some_and(|owner| self.owners.contains(&owner.uid))
            || self.looking.as_ref().is_some_and(may_be_selected)
    }
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

    /// Whom a change of a pod concerns, which was or is one of `views`.
    pub fn of_pod<'a>(&self, views: impl Iterator<Item = &'a PodView> + Clone) -> Vec<Named> {
        self.filter(|interest| views.clone().any(|pod| interest.concerns(pod)))
    }

    /// Whom a change of the namespace concerns.
    pub fn of_namespace(&self, name: &str) -> Vec<Named> {
        self.filter(|interest| {
            let looked_into = interest.looking.as_ref().is_some_and(|it| it.namespaces.contains(name));
            looked_into || interest.opt_ins.contains(name)
        })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::api::ObjectMeta;
    use squall_api::PodChaos;
    use squall_model::experiment::{Kind, parsed};

    use super::*;

    #[test]
    fn who_looks_for_pods_is_woken_by_those_that_may_be_selected_only() {
        let labels: BTreeMap<String, String> = [("app".to_owned(), "web".to_owned())].into();
        let chaos: PodChaos = serde_json::from_value(serde_json::json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos", "metadata": { "name": "x", "namespace": "shop" },
            "spec": { "action": "pod-failure", "mode": "one", "selector": { "labelSelectors": labels } },
        }))
        .expect("a PodChaos");
        let meta: &ObjectMeta = &chaos.metadata;
        let spec = parsed(meta, &chaos.spec).expect("valid");
        let interests = Interests::default();
        let experiment = Named { kind: Kind::PodChaos, namespace: "shop".into(), name: "x".into() };
        let interest = Interest {
            experiment: experiment.clone(),
            pods: HashSet::new(),
            owners: HashSet::new(),
            nodes: HashSet::new(),
            node_labels: false,
            looking: Some(spec.selector),
            opt_ins: BTreeSet::new(),
        };
        interests.set("1", interest);
        let woken = |namespace: &str, before: &BTreeMap<String, String>, now: &BTreeMap<String, String>| {
            let view = |labels: &BTreeMap<String, String>| PodView {
                namespace: namespace.to_owned(),
                labels: labels.clone(),
                ..PodView::default()
            };
            interests.of_pod([view(before), view(now)].iter())
        };
        let none = BTreeMap::new();
        assert_eq!(woken("shop", &none, &labels), std::slice::from_ref(&experiment));
        // One that is selected no longer matters, too; once is enough.
        assert_eq!(woken("shop", &labels, &none), std::slice::from_ref(&experiment));
        assert_eq!(woken("shop", &labels, &labels), std::slice::from_ref(&experiment));
        assert!(woken("shop", &none, &none).is_empty());
        assert!(woken("other", &labels, &labels).is_empty());
        assert_eq!(interests.of_namespace("shop"), [experiment]);
    }
}
