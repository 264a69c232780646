//! Squall's node daemon: faults on containers of one node, carried out as ordered and undone when their time is over.
//!
//! It knows containers, cgroups, processes and signals; it knows nothing of experiments and has no access to the
//! Kubernetes API. `main.rs` wires; the kernel tests use the same rooms.

pub mod cgroup;
pub mod clock;
pub mod container;
pub mod ebpf;
pub mod enrol;
pub mod freeze;
pub mod health;
pub mod inside;
pub mod journal;
pub mod kill;
pub mod lasting;
pub mod metrics;
pub mod node;
pub mod order;
pub mod privileges;
pub mod process;
pub mod readiness;
pub mod report;
pub mod runtime;
pub mod server;
pub mod setting;
pub mod stress;
mod text;
pub mod tls;
pub mod usage;

/// What the eBPF programs call themselves in the log: the name of their crate.
pub const EBPF_LOG_TARGET: &str = "squall_bpf";
