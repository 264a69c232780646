//! What can have nothing beside it on the cluster: parts of Squall are taken away, a CPU is used up, and seconds that are
//! promised are measured. They take turns, see [`squall_tests::alone`].

mod disruptive;
mod disruptive_gone;
mod disruptive_schedule;
mod disruptive_stress;
mod policy_hand;
mod promises;
mod sink;
mod stress;
mod stress_effect;
