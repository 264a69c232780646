//! An order, parsed once: after this there are no unspecified enums, no missing parts and no numbers out of range.
//!
//! Refuses by naming the field. An order that makes no sense is handed on as such, and an unknown *action* as an order
//! that is reported as unsupported: neither stops the others of the same state, of which some may be to be put back.

pub mod kill;
pub mod stress;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use squall_api::grpc::{self, MAX_TTL};

use crate::report::Generation;
pub use kill::{Comm, Kill, On, Processes, Scope, Trigger, Whom};
pub use stress::Stress;

/// A field of an order that makes no sense.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct OrderError {
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The whole desired state of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// How new it is.
    pub generation: Generation,
    /// The node that it is for.
    pub node: String,
    /// Every fault that the node shall have.
    pub faults: Vec<Order>,
    /// The faults whose orders make no sense, and why.
    pub senseless: BTreeMap<String, OrderError>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Names it for good.
    pub id: String,
    /// For the log.
    pub experiment: String,
    /// What is to be hit.
    pub container: ContainerRef,
    /// How far to go.
    pub stage: Stage,
    /// How long it stands without being renewed.
    pub ttl: Duration,
    /// What to do; `None`: this daemon does not know it.
    pub action: Option<Action>,
}

/// What to do with a container.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Once: a signal.
    Kill(Kill),
    /// Lasting: none of its processes runs.
    Freeze,
    /// Lasting: hungry processes and lower limits.
    Stress(Box<Stress>),
}

/// What an order says of its container; all of it must be true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The container's name in the pod.
    pub name: String,
    /// Which runtime's it is: what stands before `://`.
    pub scheme: String,
    /// Its ID at that runtime.
    pub id: String,
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Prepare, without any effect.
    Arm,
    /// Carry out. A lasting fault stands from then on.
    Fire,
    /// Put back what a lasting fault changed.
    Recover,
}

/// A fault that is not renewed ends after this long, if the order does not say.
pub const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// More faults than this on one node are a mistake: each is a task, and a container has one or two.
pub const MAX_FAULTS: usize = 10_000;

/// What every runtime of a kubelet calls a container by is so many hexadecimal digits. Part of one is refused: runtimes
/// take it for whatever it is part of.
pub const ID_DIGITS: usize = 64;

impl TryFrom<grpc::NodeState> for Desired {
    type Error = OrderError;

    fn try_from(state: grpc::NodeState) -> Result<Self, OrderError> {
        let grpc::NodeState { generation, node, faults } = state;
        let grpc::Generation { term, counter } =
            generation.ok_or_else(|| wrong("generation", "is missing"))?;
        if faults.len() > MAX_FAULTS {
            return Err(wrong("faults", &format!("are {}, more than {MAX_FAULTS}", faults.len())));
        }
        let (mut ids, mut orders, mut senseless) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        for (index, fault) in faults.into_iter().enumerate() {
            let id = fault.id.clone();
            if id.is_empty() {
                return Err(wrong(&format!("faults[{index}].id"), "is empty"));
            }
            match order(fault) {
                Ok(order) => orders.push(order),
                Err(error) => {
                    senseless.insert(id.clone(), error);
                }
            }
            if let Some(id) = ids.replace(id) {
                return Err(wrong("faults", &format!("{id} is there twice")));
            }
        }
        Ok(Self { generation: Generation { term, counter }, node, faults: orders, senseless })
    }
}

fn order(fault: grpc::Fault) -> Result<Order, OrderError> {
    let grpc::Fault { id, experiment, container, stage, ttl, action } = fault;
    let field = str::to_owned;
    let stage = match grpc::Stage::try_from(stage) {
        Ok(grpc::Stage::Arm) => Some(Stage::Arm),
        Ok(grpc::Stage::Fire) => Some(Stage::Fire),
        Ok(grpc::Stage::Recover) => Some(Stage::Recover),
        Ok(grpc::Stage::Unspecified) => return Err(wrong(&field("stage"), "is missing")),
        // A later controller's: like an action that is not known.
        Err(_) => None,
    };
    let ttl = match ttl {
        None => DEFAULT_TTL,
        Some(ttl) => Duration::try_from(ttl)
            .ok()
            .filter(|ttl| *ttl <= MAX_TTL)
            .ok_or_else(|| wrong(&field("ttl"), "is negative or longer than 31 days"))?,
    };
    let container = container.ok_or_else(|| wrong(&field("container"), "is missing"))?;
    let grpc::Container { namespace, pod, pod_uid, name, id: container_id } = container;
    for (part, value) in [
        ("namespace", &namespace),
        ("pod", &pod),
        ("pod_uid", &pod_uid),
        ("name", &name),
        ("id", &container_id),
    ] {
        if value.is_empty() {
            return Err(wrong(&field(&format!("container.{part}")), "is empty"));
        }
    }
    let (scheme, runtime_id) = container_id
        .split_once("://")
        .filter(|(scheme, id)| {
            !scheme.is_empty()
                && id.len() == ID_DIGITS
                && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        })
        .ok_or_else(|| {
            let problem =
                format!("is not of the form RUNTIME://ID, with an ID of {ID_DIGITS} hexadecimal digits");
            wrong(&field("container.id"), &problem)
        })?;
    let container =
        ContainerRef { namespace, pod, pod_uid, name, scheme: scheme.to_owned(), id: runtime_id.to_owned() };
    let action = match action {
        None => None,
        Some(grpc::fault::Action::Freeze(grpc::Freeze {})) => Some(Action::Freeze),
        Some(grpc::fault::Action::Stress(order)) => {
            stress::parse(&field, order)?.map(|stress| Action::Stress(Box::new(stress)))
        }
        Some(grpc::fault::Action::Kill(order)) => Kill::parse(&field, order)?.map(Action::Kill),
    };
    let (stage, action) = match stage {
        Some(stage) => (stage, action),
        None => (Stage::Arm, None),
    };
    Ok(Order { id, experiment, container, stage, ttl, action })
}

fn wrong(field: &str, problem: &str) -> OrderError {
    OrderError { field: field.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn valid() -> grpc::NodeState {
        grpc::NodeState {
            generation: Some(grpc::Generation { term: 1, counter: 2 }),
            node: "n".into(),
            faults: vec![grpc::Fault {
                id: "a/b/c".into(),
                experiment: "ns/x".into(),
                container: Some(grpc::Container {
                    namespace: "ns".into(),
                    pod: "p".into(),
                    pod_uid: "u".into(),
                    name: "c".into(),
                    id: format!("containerd://{ID}"),
                }),
                stage: grpc::Stage::Fire.into(),
                ttl: None,
                action: Some(grpc::fault::Action::Kill(grpc::Kill {
                    signal: 9,
                    scope: grpc::Scope::Init.into(),
                    ..grpc::Kill::default()
                })),
            }],
        }
    }

    fn refused(change: impl FnOnce(&mut grpc::Fault)) -> String {
        let mut state = valid();
        change(&mut state.faults[0]);
        let Desired { faults, senseless, .. } = Desired::try_from(state).unwrap();
        assert_eq!((faults, senseless.len()), (vec![], 1));
        senseless["a/b/c"].field.clone()
    }

    #[test]
    fn a_whole_order_is_taken() {
        let desired = Desired::try_from(valid()).unwrap();
        assert_eq!(desired.faults[0].ttl, DEFAULT_TTL);
        assert_eq!(
            (desired.faults[0].container.scheme.as_str(), desired.faults[0].container.id.as_str()),
            ("containerd", ID)
        );
    }

    fn ttl(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }

    #[test]
    fn the_longest_time_to_live_is_taken() {
        let mut state = valid();
        state.faults[0].ttl = Some(ttl(i64::try_from(MAX_TTL.as_secs()).unwrap()));
        assert_eq!(Desired::try_from(state).unwrap().faults[0].ttl, MAX_TTL);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let container = |fault: &mut grpc::Fault, id: &str| {
            if let Some(container) = &mut fault.container {
                container.id = id.into();
            }
        };
        assert_eq!(refused(|fault| fault.stage = 0), "stage");
        assert_eq!(refused(|fault| fault.container = None), "container");
        let wrong =
            ["ID", "://ID", "containerd://", "containerd://../x", "x://b", "x://ID0", "x://kubepods-ID"];
        for id in wrong.map(|id| id.replace("ID", ID)) {
            assert_eq!(refused(|fault| container(fault, &id)), "container.id", "{id}");
        }
        for id in [&ID[1..], &ID.to_uppercase(), &ID.replace('0', "g"), &ID.replace('0', "-")] {
            let id = format!("containerd://{id}");
            assert_eq!(refused(|fault| container(fault, &id)), "container.id", "{id}");
        }
        for seconds in [-1, i64::try_from(MAX_TTL.as_secs()).unwrap() + 1, 315_576_000_000, i64::MAX] {
            assert_eq!(refused(|fault| fault.ttl = Some(ttl(seconds))), "ttl");
        }
        let kill = |signal, scope| {
            Some(grpc::fault::Action::Kill(grpc::Kill { signal, scope, ..grpc::Kill::default() }))
        };
        assert_eq!(refused(|fault| fault.action = kill(0, 1)), "kill.signal");
        assert_eq!(refused(|fault| fault.action = kill(65, 1)), "kill.signal");
        assert_eq!(refused(|fault| fault.action = kill(9, 0)), "kill.scope");
        let mut twice = valid();
        twice.faults.push(twice.faults[0].clone());
        assert_eq!(Desired::try_from(twice).unwrap_err().field, "faults");
        let fault = valid().faults.remove(0);
        let numbered = |id: usize| grpc::Fault { id: id.to_string(), ..fault.clone() };
        let many = |count| grpc::NodeState { faults: (0..count).map(numbered).collect(), ..valid() };
        assert_eq!(Desired::try_from(many(MAX_FAULTS)).unwrap().faults.len(), MAX_FAULTS);
        assert_eq!(Desired::try_from(many(MAX_FAULTS + 1)).unwrap_err().field, "faults");
        let missing = grpc::NodeState { generation: None, ..valid() };
        assert_eq!(Desired::try_from(missing).unwrap_err().field, "generation");
    }

    #[test]
    fn one_order_that_makes_no_sense_stops_no_other() {
        let fault = valid().faults.remove(0);
        let faults = ["a", "b", "c"].map(|id| {
            let stage = if id == "b" { 0 } else { fault.stage };
            grpc::Fault { id: id.into(), stage, ..fault.clone() }
        });
        let state = grpc::NodeState { faults: faults.to_vec(), ..valid() };
        let desired = Desired::try_from(state).unwrap();
        assert_eq!(desired.faults.iter().map(|fault| fault.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(desired.senseless["b"].to_string(), "stage: is missing");
        // Whose it is has to be known.
        let nameless = grpc::Fault { id: String::new(), ..fault.clone() };
        let state = grpc::NodeState { faults: vec![fault.clone(), nameless], ..valid() };
        assert_eq!(Desired::try_from(state).unwrap_err().field, "faults[1].id");
        let other = grpc::Fault { stage: 0, ..fault.clone() };
        let state = grpc::NodeState { faults: vec![other, fault], ..valid() };
        assert_eq!(Desired::try_from(state).unwrap_err().field, "faults");
    }

    /// A field of a message by its number: what `bytes` are is for whoever knows the number.
    fn with_field(mut message: Vec<u8>, number: u8, bytes: &[u8]) -> Vec<u8> {
        prost::encoding::encode_key(number.into(), prost::encoding::WireType::LengthDelimited, &mut message);
        prost::encoding::encode_varint(bytes.len() as u64, &mut message);
        message.extend_from_slice(bytes);
        message
    }

    #[test]
    fn a_later_controller_is_understood_as_far_as_it_is_known() {
        let fault = |change: &dyn Fn(&mut grpc::Fault)| {
            let mut fault = valid().faults.remove(0);
            change(&mut fault);
            fault.id = format!("{:?}{}", fault.action, fault.stage);
            fault
        };
        let kill = |scope| {
            let kill = grpc::Kill { signal: 9, scope, ..grpc::Kill::default() };
            Some(grpc::fault::Action::Kill(kill))
        };
        // An action, a stage and a scope that there may be one day.
        let action = with_field(fault(&|fault| fault.action = None).encode_to_vec(), 99, b"what it is");
        let stage = fault(&|fault| fault.stage = 77).encode_to_vec();
        let scope = fault(&|fault| fault.action = kill(77)).encode_to_vec();
        let mut state = grpc::NodeState { faults: Vec::new(), ..valid() }.encode_to_vec();
        for fault in [valid().faults[0].encode_to_vec(), action, stage, scope] {
            state = with_field(state, 3, &fault);
        }
        let state = with_field(state, 98, b"whatever");
        let desired = Desired::try_from(grpc::NodeState::decode(state.as_slice()).unwrap()).unwrap();
        let known: Vec<bool> = desired.faults.iter().map(|fault| fault.action.is_some()).collect();
        assert_eq!(known, [true, false, false, false], "one that is not known must not stop the others");
    }

    /// As the controller of the first version wrote it, which knew kills only.
    #[test]
    fn an_earlier_controller_is_understood() {
        let text = b"\x0a\x04\x08\x01\x10\x02\x12\x01n\x1a\x73\x0a\x05a/b/c\x12\x04ns/x\
            \x1a\x5c\x0a\x02ns\x12\x01p\x1a\x01u\x22\x01c\x2a\x4dcontainerd://0123456789abcdef0123456789abcdef\
            0123456789abcdef0123456789abcdef\x20\x02\x52\x04\x08\x09\x10\x01";
        let state = grpc::NodeState::decode(&text[..]).unwrap();
        assert_eq!(Desired::try_from(state).unwrap(), Desired::try_from(valid()).unwrap());
    }
}
