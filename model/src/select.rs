//! Which pods, which of their containers, and why the rest are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::pod::{ContainerView, NamespaceView, PodView};
use crate::spec::{Mode, Spec};

/// A valid selector: what it means is settled.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Selector {
    /// The namespaces that it looks into, sorted; never empty.
    pub namespaces: BTreeSet<String>,
    // helper (model core): the private, parsed rest: labels, expressions, annotations, fields, nodes, node
    // labels, pods, phases
}

/// The labels of a node, by its name.
pub trait Nodes {
    /// `None`: there is no such node.
    fn labels(&self, node: &str) -> Option<&BTreeMap<String, String>>;
}

/// What a selector says of a pod at its birth, when it has no node, phase or UID yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBirth {
    /// It is selected.
    Yes,
    /// It is not.
    No,
    /// The object alone doesn't tell.
    Unknown,
}

impl Selector {
    /// Whether `pod` is selected (eligibility apart).
    pub fn matches(&self, pod: &PodView, nodes: &dyn Nodes) -> bool {
        let _ = (pod, nodes);
        todo!("helper: model core")
    }

    /// The same for a pod that is being created.
    pub fn at_birth(&self, pod: &PodView) -> AtBirth {
        let _ = pod;
        todo!("helper: model core")
    }

    /// In words, which part of the selector left nothing of `pods` (all the pods of its namespaces): the
    /// first field after which none is left. For the message of an experiment without targets.
    pub fn explain_nothing<'a>(&self, pods: impl Iterator<Item = &'a PodView>, nodes: &dyn Nodes) -> String {
        let _ = (pods.count(), nodes);
        todo!("helper: model core")
    }
}

/// Why a selected pod, or container, is not hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// The namespace is not opted in.
    NotOptedIn,
    /// The namespace can't be opted in.
    ProtectedNamespace,
    /// `squall.dev/protect` on the pod or its namespace; says which.
    Protected(&'static str),
    /// A static pod's mirror.
    MirrorPod,
    /// It has a deletion mark.
    Terminating,
    /// Succeeded or Failed.
    Completed,
    /// container-kill: no container of it runs.
    NotRunning,
    /// The fault could end it for good.
    WouldNotRecover,
    /// It has none of the containers asked for.
    NoSuchContainer(Vec<String>),
}

impl Ineligible {
    /// The stable word for `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotOptedIn => "NotOptedIn",
            Self::ProtectedNamespace => "ProtectedNamespace",
            Self::Protected(_) => "Protected",
            Self::MirrorPod => "MirrorPod",
            Self::Terminating => "Terminating",
            Self::Completed => "Completed",
            Self::NotRunning => "NotRunning",
            Self::WouldNotRecover => "WouldNotRecover",
            Self::NoSuchContainer(_) => "NoSuchContainer",
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // helper (model core): a sentence each, saying what to do about it
        f.write_str(self.reason())
    }
}

/// Whether a selected pod may be hit by `spec`, and which of its containers: for pod-failure those whose
/// images are substituted, for container-kill those that are signalled (running ones), for pod-kill none.
pub fn eligible<'a>(
    spec: &Spec,
    pod: &'a PodView,
    namespace: &NamespaceView,
) -> Result<Vec<&'a ContainerView>, Ineligible> {
    let _ = (spec, pod, namespace);
    todo!("helper: model core")
}

/// How many of `found` pods `mode` asks for.
pub fn count(mode: Mode, found: usize, seed: u64) -> usize {
    let _ = (mode, found, seed);
    todo!("helper: model core")
}

/// Draw `n` of `uids`: which ones depends on the seed and on the set, not on the order. Sorted by the draw's
/// own rank, so that drawing more keeps those drawn before (a prefix).
pub fn draw<'a>(uids: impl Iterator<Item = &'a str>, n: usize, seed: u64) -> Vec<&'a str> {
    let _ = (uids.count(), n, seed);
    todo!("helper: model core")
}
