//! Generated pods, and the nodes that they run on.

use std::collections::BTreeMap;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use squall_model::pod::PodView;
use squall_model::select::Nodes;

use crate::world::labels;

/// Nodes by name.
#[derive(Debug, Clone, Default)]
pub struct SomeNodes(BTreeMap<String, BTreeMap<String, String>>);

impl Nodes for SomeNodes {
    fn labels(&self, node: &str) -> Option<&BTreeMap<String, String>> {
        self.0.get(node)
    }
}

/// Up to two nodes; `n3` is never there.
pub fn nodes() -> impl Strategy<Value = SomeNodes> {
    (option::of(labels()), option::of(labels())).prop_map(|(n1, n2)| {
        let nodes = [("n1", n1), ("n2", n2)];
        SomeNodes(nodes.into_iter().filter_map(|(name, labels)| Some((name.to_owned(), labels?))).collect())
    })
}

/// A pod as it is when it runs, or not yet.
pub fn pod() -> impl Strategy<Value = PodView> {
    let meta = (select(vec!["a", "b", "c"]), select(vec!["p0", "p1", "p2", "p3"]), labels(), labels());
    let node = option::of(select(vec!["n1", "n2", "n3"]));
    let rest = (
        node,
        select(vec!["Pending", "Running", "Failed", ""]),
        option::of(select(vec!["Always", "Never"])),
        option::of(Just("10.0.0.1")),
    );
    (meta, rest).prop_map(|((namespace, name, labels, annotations), (node, phase, restart, ip))| {
        let mut fields = BTreeMap::new();
        if let Some(restart) = restart {
            fields.insert("spec.restartPolicy", restart.to_owned());
        }
        if let Some(ip) = ip {
            fields.insert("status.podIP", ip.to_owned());
        }
        PodView {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{namespace}-{name}"),
            labels,
            annotations,
            node: node.map(str::to_owned),
            phase: phase.to_owned(),
            fields,
            ..PodView::default()
        }
    })
}

/// The same pod as it was born: what it gets later is not there yet.
pub fn newborn(pod: &PodView, generated_name: bool) -> PodView {
    let mut born = pod.clone();
    born.uid.clear();
    born.node = None;
    born.phase.clear();
    born.fields.remove("status.podIP");
    if generated_name {
        born.name.clear();
    }
    born
}
