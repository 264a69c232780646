//! The controller's parts; `main.rs` wires them.
//!
//! - [`lease`]: which replica leads.
//! - [`ca`]: the CA, the webhook's pair, the published bundle and the webhooks' `caBundle`: planned and written.
//! - [`certs`]: keys and certificates, in memory only.
//! - [`enrol`]: signs the daemons' server certificates.
//! - [`chaos`]: what the kinds of experiments have in common.
//! - [`nodes`]: the channels to the daemons.
//! - [`guard`]: what is hit now; [`warden`], [`probes`]: what policies are looked after by.
//! - [`tell`], [`sink`], [`figures`]: what is told and counted of it.
//! - [`health`], [`metrics`]: what an operator may ask.

pub mod annotate;
pub mod apply;
pub mod ca;
pub mod certs;
pub mod chaos;
pub mod client;
pub mod enrol;
pub mod figures;
pub mod guard;
pub mod health;
pub mod interest;
pub mod janitor;
pub mod leader;
pub mod lease;
pub mod metrics;
pub mod nodes;
pub mod observe;
pub mod orders;
pub mod probes;
pub mod reconcile;
pub mod retry;
pub mod schedule;
#[cfg(test)]
mod scripted;
pub mod sink;
pub mod tell;
pub mod warden;
pub mod world;
