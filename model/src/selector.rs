//! The selector: parsed once, asked for every pod, and compared with its successor.
//!
//! Knows nothing of eligibility (opt-in, protection, state): that is `select`'s.

mod narrow;
pub(crate) mod parse;

use std::collections::{BTreeMap, BTreeSet};

use crate::pod::PodView;

/// A valid selector: what it means is settled.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Selector {
    /// The namespaces that it looks into, sorted; never empty.
    pub namespaces: BTreeSet<String>,
    /// Pods by namespace and name. If set, nothing below is looked at, and `namespaces` are the keys.
    pods: Option<BTreeMap<String, BTreeSet<String>>>,
    /// The fields that were written beside `pods`, for a warning.
    overridden: Vec<&'static str>,
    labels: BTreeMap<String, String>,
    expressions: Vec<Expression>,
    annotations: BTreeMap<String, String>,
    fields: BTreeMap<Field, String>,
    nodes: BTreeSet<String>,
    node_labels: BTreeMap<String, String>,
    phases: BTreeSet<String>,
    /// See [`Selector::narrow_to`].
    only: Option<Only>,
}

/// One object's pods, of those that are selected.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Only {
    /// What belongs to this workload, `KIND/NAME`: others' pods may have its labels too.
    Workload(String),
    /// The pod with this UID: another may have its name later.
    Pod(String),
    /// No pod: nobody knows any more whose were meant.
    Nothing,
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

/// A requirement on the labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expression {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

/// A field that can be selected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Name,
    Namespace,
    NodeName,
    RestartPolicy,
    SchedulerName,
    ServiceAccountName,
    Phase,
    PodIp,
}

/// One part of a selector, in the order in which they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Namespaces,
    Pods,
    Labels,
    Expressions,
    Annotations,
    Fields,
    Nodes,
    Phases,
    Only,
}

const PARTS: [Part; 9] = [
    Part::Namespaces,
    Part::Pods,
    Part::Labels,
    Part::Expressions,
    Part::Annotations,
    Part::Fields,
    Part::Nodes,
    Part::Phases,
    Part::Only,
];

impl Selector {
    /// Of what is selected nothing else.
    pub(crate) fn narrow_to(&mut self, only: Only) {
        self.only = Some(only);
    }

    /// Whether `pod` is selected (eligibility apart).
    pub fn matches(&self, pod: &PodView, nodes: &dyn Nodes) -> bool {
        PARTS.into_iter().all(|part| self.part_matches(part, pod, nodes))
    }

    /// The same for a pod that is being created.
    pub fn at_birth(&self, pod: &PodView) -> AtBirth {
        let mut all = AtBirth::Yes;
        for part in PARTS {
            match self.part_at_birth(part, pod) {
                AtBirth::No => return AtBirth::No,
                AtBirth::Unknown => all = AtBirth::Unknown,
                AtBirth::Yes => {}
            }
        }
        all
    }

    /// The names asked for in `namespace`, where the selector asks for pods by name: then a caller need not
    /// scan. `None`: the selector doesn't go by names, or not in this namespace (see [`Selector::namespaces`]).
    pub fn names_in(&self, namespace: &str) -> Option<&BTreeSet<String>> {
        self.pods.as_ref().and_then(|pods| pods.get(namespace))
    }

    /// The fields beside `pods` that mean nothing because of it.
    pub fn overridden(&self) -> &[&'static str] {
        &self.overridden
    }

    /// Whether every pod of its namespaces is selected.
    pub fn is_everything(&self) -> bool {
        PARTS.into_iter().all(|part| part == Part::Namespaces || !self.constrains(part))
    }

    /// Whether it depends on the labels of nodes.
    pub fn asks_for_node_labels(&self) -> bool {
        !self.node_labels.is_empty() && self.pods.is_none()
    }

    /// In words, which part of the selector left nothing of `pods` (all the pods of its namespaces): the
    /// first field after which none is left. For the message of an experiment without targets.
    pub fn explain_nothing<'a>(&self, pods: impl Iterator<Item = &'a PodView>, nodes: &dyn Nodes) -> String {
        let mut left: Vec<&PodView> = pods.collect();
        for part in PARTS {
            let before = left.len();
            left.retain(|pod| self.part_matches(part, pod, nodes));
            if left.is_empty() {
                return self.explain_part(part, before);
            }
        }
        format!("the selector matches {}", counted(left.len()))
    }

    fn constrains(&self, part: Part) -> bool {
        match part {
            Part::Namespaces => !self.namespaces.is_empty(),
            Part::Pods => self.pods.is_some(),
            Part::Labels => !self.labels.is_empty(),
            Part::Expressions => !self.expressions.is_empty(),
            Part::Annotations => !self.annotations.is_empty(),
            Part::Fields => !self.fields.is_empty(),
            Part::Nodes => !self.nodes.is_empty() || !self.node_labels.is_empty(),
            Part::Phases => !self.phases.is_empty(),
            Part::Only => self.only.is_some(),
        }
    }

    fn part_matches(&self, part: Part, pod: &PodView, nodes: &dyn Nodes) -> bool {
        if !self.constrains(part) {
            // A selector without namespaces (only `default()` makes one) selects nothing.
            return part != Part::Namespaces;
        }
        match part {
            Part::Namespaces => self.namespaces.contains(&pod.namespace),
            Part::Pods => self.names_in(&pod.namespace).is_some_and(|names| names.contains(&pod.name)),
            Part::Labels => contains(&pod.labels, &self.labels),
            Part::Expressions => self.expressions.iter().all(|expression| expression.matches(&pod.labels)),
            Part::Annotations => contains(&pod.annotations, &self.annotations),
            Part::Fields => self.fields.iter().all(|(field, value)| field.of(pod) == value),
            Part::Nodes => pod.node.as_ref().is_some_and(|node| {
                self.nodes.contains(node)
                    || (!self.node_labels.is_empty()
                        && nodes.labels(node).is_some_and(|labels| contains(labels, &self.node_labels)))
            }),
            Part::Phases => self.phases.contains(&pod.phase),
            Part::Only => self.is_only(pod),
        }
    }

    fn part_at_birth(&self, part: Part, pod: &PodView) -> AtBirth {
        if !self.constrains(part) {
            return if part == Part::Namespaces { AtBirth::No } else { AtBirth::Yes };
        }
        match part {
            Part::Namespaces if pod.namespace.is_empty() => AtBirth::Unknown,
            Part::Namespaces => self.namespaces.contains(&pod.namespace).into(),
            Part::Pods if pod.name.is_empty() || pod.namespace.is_empty() => AtBirth::Unknown,
            Part::Pods => self.names_in(&pod.namespace).is_some_and(|names| names.contains(&pod.name)).into(),
            Part::Labels => contains(&pod.labels, &self.labels).into(),
            Part::Expressions => {
                self.expressions.iter().all(|expression| expression.matches(&pod.labels)).into()
            }
            Part::Annotations => contains(&pod.annotations, &self.annotations).into(),
            Part::Fields => self.fields_at_birth(pod),
            Part::Nodes | Part::Phases => AtBirth::Unknown,
            Part::Only if matches!(self.only, Some(Only::Pod(_))) && pod.uid.is_empty() => AtBirth::Unknown,
            Part::Only => self.is_only(pod).into(),
        }
    }

    fn is_only(&self, pod: &PodView) -> bool {
        match &self.only {
            None => true,
            // Through its ReplicaSet or by itself: a ReplicaSet may stand alone.
            Some(Only::Workload(workload)) => {
                let owner = pod.owner.as_ref().map(|owner| format!("{}/{}", owner.kind, owner.name));
                owner.as_ref() == Some(workload) || pod.workload() == *workload
            }
            Some(Only::Pod(uid)) => pod.uid == *uid,
            Some(Only::Nothing) => false,
        }
    }

    fn fields_at_birth(&self, pod: &PodView) -> AtBirth {
        let mut all = AtBirth::Yes;
        for (field, value) in &self.fields {
            let there = field.of(pod);
            if !field.is_of_the_object() || there.is_empty() {
                all = AtBirth::Unknown;
            } else if there != value {
                return AtBirth::No;
            }
        }
        all
    }

    fn explain_part(&self, part: Part, before: usize) -> String {
        let of = counted(before);
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
        let map = |map: &BTreeMap<String, String>| {
            map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
        };
        match part {
            Part::Namespaces => format!("there is no pod in {}", list(&self.namespaces)),
            Part::Pods => {
                let named = self.pods.iter().flatten();
                let named: Vec<String> = named
                    .flat_map(|(namespace, names)| {
                        names.iter().map(move |name| format!("{namespace}/{name}"))
                    })
                    .collect();
                format!("none of the pods in selector.pods exists: {}", shortened(&named))
            }
            Part::Labels => format!("selector.labelSelectors ({}) left none of {of}", map(&self.labels)),
            Part::Expressions => {
                let all: Vec<String> = self.expressions.iter().map(Expression::to_string).collect();
                format!("selector.expressionSelectors ({}) left none of {of}", all.join("; "))
            }
            Part::Annotations => {
                format!("selector.annotationSelectors ({}) left none of {of}", map(&self.annotations))
            }
            Part::Fields => {
                let all: Vec<String> =
                    self.fields.iter().map(|(field, value)| format!("{}={value}", field.path())).collect();
                format!("selector.fieldSelectors ({}) left none of {of}", all.join(", "))
            }
            Part::Nodes => {
                let mut asked: Vec<String> = self.nodes.iter().cloned().collect();
                if !self.node_labels.is_empty() {
                    asked.push(map(&self.node_labels));
                }
                format!("selector.nodes and nodeSelectors ({}) left none of {of}", shortened(&asked))
            }
            Part::Phases => {
                format!("selector.podPhaseSelectors ({}) left none of {of}", list(&self.phases))
            }
            Part::Only => match &self.only {
                Some(Only::Workload(workload)) => format!("none of {of} belongs to {workload}"),
                Some(Only::Pod(uid)) => format!("none of {of} has the UID {uid}"),
                Some(Only::Nothing) => {
                    format!(
                        "none of {of} is hit: the annotated object that this was made for owns it no longer"
                    )
                }
                None => String::new(),
            },
        }
    }
}

impl From<bool> for AtBirth {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Part {
    /// The fields of the selector that belong to it.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Namespaces => &["namespaces"],
            Self::Pods => &["pods"],
            Self::Labels => &["labelSelectors"],
            Self::Expressions => &["expressionSelectors"],
            Self::Annotations => &["annotationSelectors"],
            Self::Fields => &["fieldSelectors"],
            Self::Nodes => &["nodes", "nodeSelectors"],
            Self::Phases => &["podPhaseSelectors"],
            Self::Only => &[],
        }
    }
}

impl Field {
    const ALL: [Self; 8] = [
        Self::Name,
        Self::Namespace,
        Self::NodeName,
        Self::RestartPolicy,
        Self::SchedulerName,
        Self::ServiceAccountName,
        Self::Phase,
        Self::PodIp,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Name => "metadata.name",
            Self::Namespace => "metadata.namespace",
            Self::NodeName => "spec.nodeName",
            Self::RestartPolicy => "spec.restartPolicy",
            Self::SchedulerName => "spec.schedulerName",
            Self::ServiceAccountName => "spec.serviceAccountName",
            Self::Phase => "status.phase",
            Self::PodIp => "status.podIP",
        }
    }

    /// Its value; what isn't there is empty, as for the API server.
    fn of(self, pod: &PodView) -> &str {
        match self {
            Self::Name => &pod.name,
            Self::Namespace => &pod.namespace,
            Self::NodeName => pod.node.as_deref().unwrap_or_default(),
            Self::RestartPolicy | Self::SchedulerName | Self::ServiceAccountName | Self::PodIp => {
                pod.fields.get(self.path()).map(String::as_str).unwrap_or_default()
            }
            Self::Phase => &pod.phase,
        }
    }

    /// Whether the object has it at birth, and keeps it.
    fn is_of_the_object(self) -> bool {
        match self {
            Self::Name
            | Self::Namespace
            | Self::RestartPolicy
            | Self::SchedulerName
            | Self::ServiceAccountName => true,
            Self::NodeName | Self::Phase | Self::PodIp => false,
        }
    }
}

impl Expression {
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // As in Kubernetes, a pod without the label is not in the set either.
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl std::fmt::Display for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
        match self {
            Self::In(key, values) => write!(f, "{key} In [{}]", list(values)),
            Self::NotIn(key, values) => write!(f, "{key} NotIn [{}]", list(values)),
            Self::Exists(key) => write!(f, "{key} Exists"),
            Self::DoesNotExist(key) => write!(f, "{key} DoesNotExist"),
        }
    }
}

fn contains(all: &BTreeMap<String, String>, some: &BTreeMap<String, String>) -> bool {
    some.iter().all(|(key, value)| all.get(key) == Some(value))
}

fn counted(pods: usize) -> String {
    if pods == 1 { "1 pod".to_owned() } else { format!("{pods} pods") }
}

/// The first of a list that may be long.
fn shortened(list: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = list[..list.len().min(SHOWN)].join(", ");
    if list.len() > SHOWN { format!("{shown} and {} more", list.len() - SHOWN) } else { shown }
}
