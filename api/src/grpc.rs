//! The gRPC contract between controller and daemon, and the enrolment of daemons.
//!
//! The code is generated from `api/proto` by `cargo xtask gen` and checked in, so that a build needs neither
//! `protoc` nor a build script.

#![expect(missing_docs, clippy::all, clippy::allow_attributes, reason = "generated code")]

include!("grpc/squall.v1alpha1.rs");

/// The longest time to live of a fault. Longer ones are refused: nobody who renews needs them, and clocks can't count
/// without end.
pub const MAX_TTL: std::time::Duration = std::time::Duration::from_secs(31 * 24 * 60 * 60);
