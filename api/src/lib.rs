//! Squall's contracts: what crosses a process boundary, and nothing else.
//!
//! - [`podchaos`]: the custom resource, spec and status.
//! - [`names`]: every label, annotation, finalizer, port, path and identity that more than one part uses.
//! - [`grpc`] (feature `grpc`): what controller and daemon say to each other.
//!
//! There is no decision here: what a value *means* is decided in `squall-model`.

pub mod names;
pub mod podchaos;

#[cfg(feature = "grpc")]
pub mod grpc;

pub use podchaos::{PodChaos, PodChaosSpec, PodChaosStatus};
