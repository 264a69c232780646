//! Squall's admission webhook: AdmissionReview in, the model's verdict out.
//!
//! - [`review`]: what the API server says and is told.
//! - [`app`]: reads a review, asks who decides, answers; never panics, never hangs.
//! - [`pods`]: pods. No call is made while one is admitted: all it needs is in [`world`].
//!   [`lean`] is what is read of one.
//! - [`annotations`]: small faults by annotation, on pods and workloads.
//! - [`experiments`]: experiments, as far as that takes nobody else; [`access`] asks the API server the rest.
//! - [`removal`]: Squall's own, which is held up until nothing is failed.
//! - [`schedules`]: schedules, and the experiment in each.
//! - [`watch`] keeps [`world`] and the certificate of [`tls`] as the cluster has them; [`serve`] does the wire.
//!
//! Nothing here decides what a fault is or whom it may hit: that is `squall-model`'s.

pub mod access;
pub mod annotations;
pub mod app;
pub mod config;
pub mod experiments;
pub mod health;
pub mod lean;
pub mod metrics;
pub mod pods;
pub mod policies;
pub mod removal;
pub mod review;
pub mod schedules;
pub mod serve;
pub mod shares;
pub mod tls;
pub mod watch;
pub mod world;
