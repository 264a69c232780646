//! Squall's decisions: pure and synchronous.
//!
//! Nothing here reads a clock, draws a random number, opens a file or talks to anyone: time and seed are
//! arguments, the world is a view handed in, and what shall happen is a value handed back. That is what makes
//! the laws in the tests provable.
//!
//! - [`error`]: errors that name the field, what was found and what is allowed.
//! - [`experiment`]: what the kinds of experiments have in common.
//! - [`spec`], [`stress`]: a spec parsed once; afterwards there are no numeric strings and no "never None".
//! - [`validate`]: spec → [`spec::Spec`], defaults, and what may change while an experiment runs.
//! - [`pod`]: the view of a pod that decisions are made on.
//! - [`select`]: which pods, which of their containers, and why the rest are not.
//! - [`substitute`]: pod-failure on one pod: images, record, holders.
//! - [`admission`]: what becomes of a pod that is created or changed.
//! - [`annotation`]: small faults by `kubectl annotate`: what is asked for, by whom, and what becomes of it.
//! - [`plan`]: the next step of an experiment.
//! - [`policy`]: what may be hit, how much, when and by whom; [`probe`]: what has to hold meanwhile.
//! - [`schedule`]: when an experiment runs again, and what becomes of the runs.
//! - [`zone`]: time zones by name.

pub mod admission;
pub mod annotation;
pub mod error;
pub mod experiment;
pub mod kill;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod probe;
pub mod schedule;
pub mod select;
mod selector;
mod signal;
pub mod spec;
pub mod stress;
pub mod substitute;
mod syntax;
pub mod time;
pub mod validate;
pub mod zone;
