//! What Squall does on a real cluster, a file a surface. They run beside each other: what can't is in `e2e_alone`.

mod admission;
mod annotations;
mod container_kill;
mod freeze;
mod label;
mod pod_failure;
mod pod_kill;
mod policy;
mod policy_clock;
mod probes;
mod schedule;
mod trigger;
