//! Squall's contracts: what crosses a process boundary, and nothing else.
//!
//! - [`podchaos`], [`stresschaos`]: the kinds of experiments, as users write them.
//! - [`selection`], [`status`]: what the kinds have alike.
//! - [`chaospolicy`]: what may be hit, how much, when and by whom; [`probe`]: what has to hold meanwhile.
//! - [`schedule`]: an experiment again and again.
//! - [`names`]: every label, annotation, finalizer, port, path and identity that more than one part uses.
//! - [`grpc`] (feature `grpc`): what controller and daemon say to each other.
//!
//! There is no decision here: what a value *means* is decided in `squall-model`.

pub mod chaospolicy;
pub mod names;
pub mod podchaos;
pub mod probe;
pub mod schedule;
pub mod selection;
pub mod status;
pub mod stresschaos;

#[cfg(feature = "grpc")]
pub mod grpc;

pub use chaospolicy::{ChaosPolicy, ChaosPolicySpec, ChaosPolicyStatus};
pub use podchaos::{PodChaos, PodChaosSpec};
pub use schedule::{Schedule, ScheduleSpec, ScheduleStatus};
pub use status::ExperimentStatus;
pub use stresschaos::{StressChaos, StressChaosSpec};
