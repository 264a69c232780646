//! Reviews of policies, and what small faults ask of them.
//!
//! A policy that makes no sense is refused with every error by its field; one that halts never is.

use serde::Deserialize;
use squall_api::chaospolicy::{ChaosPolicySpec, PolicyAction};
use squall_api::names;
use squall_model::annotation::{Fault, Wish};
use squall_model::policy::{Ask, Policy};
use squall_model::spec::{Mode, Signal};

use crate::review::{Answer, Denied, Request};

#[derive(Deserialize)]
struct Object {
    spec: ChaosPolicySpec,
}

/// The answer to `request`.
pub fn review(request: &Request<'_>) -> Answer {
    let whole = request.sub_resource.as_deref().is_none_or(str::is_empty);
    if !request.kind.is(names::GROUP, names::VERSION, "ChaosPolicy")
        || !whole
        || !matches!(request.operation.as_str(), "CREATE" | "UPDATE")
    {
        return Answer::default();
    }
    // What can't be read is the schema's to refuse.
    let Some(object) = request.object.and_then(|raw| serde_json::from_str::<Object>(raw.get()).ok()) else {
        return Answer::default();
    };
    if object.spec.halt.as_ref().is_some_and(|halt| halt.active) {
        return Answer::default();
    }
    match Policy::parse(&request.name, &object.spec) {
        Ok(_) => Answer { warnings: Policy::warnings(&object.spec), ..Answer::default() },
        Err(errors) => Denied::invalid(errors).into(),
    }
}

/// What a small fault asks of policies.
pub fn ask_of(wish: &Wish) -> Ask {
    let action = match wish.fault {
        Fault::PodFailure => PolicyAction::PodFailure,
        Fault::PodKill => PolicyAction::PodKill,
        Fault::ContainerKill => PolicyAction::ContainerKill,
        Fault::StressCpu | Fault::StressMemory => PolicyAction::Stress,
    };
    Ask {
        action,
        signal: (wish.fault == Fault::ContainerKill).then(|| wish.signal.unwrap_or(Signal::KILL).number()),
        duration: if wish.fault.lasting() { wish.duration } else { Some(std::time::Duration::ZERO) },
        pods: match wish.mode {
            Mode::One => Some(1),
            Mode::Fixed(count) => Some(usize::try_from(count).unwrap_or(usize::MAX)),
            Mode::All | Mode::FixedPercent(_) | Mode::RandomMaxPercent(_) => None,
        },
    }
}
