//! The harness of the end-to-end tests, which are in `tests/`, one file a surface.
//!
//! They run against a real cluster on which Squall is installed: `cargo xtask test` makes both and says by
//! environment variables where they are. Without them a test fails; none is skipped. Each test has namespaces
//! of its own, waits on what it can read (it never sleeps and hopes), and is followed by the check that Squall
//! left nothing behind.

mod alone;
mod builders;
mod cluster;
pub mod cpu;
mod disrupt;
mod dump;
mod events;
mod experiment;
pub mod figures;
pub mod injector;
mod marks;
mod modes;
mod namespace;
mod pods;
mod policy;
mod residue;
pub mod schedules;
mod system;
mod wait;

pub use alone::{Alone, alone};
pub use builders::{
    BUSYBOX, SLEEPER, STUBBORN, container, deployment, from_json, pod, pod_of, stateful_set, unschedulable,
};
pub use cluster::{
    Ran, client, client_as, containers_processes, kubectl, kubectl_stdin, runtime, spawn_kubectl,
};
pub use disrupt::{disrupt, nowhere, restore};
pub use events::{event_on, events_of};
pub use experiment::{ExperimentExt, experiment, target_of};
pub use marks::{Cgroups, changed};
pub use modes::{OF, in_each_mode};
pub use namespace::{Ns, OptIn, with_ns, with_ns_within};
pub use pods::PodExt;
pub use policy::{Policy, hit, nothing_is_hit, refusal, released, says, switch, switch_off};
pub use system::{
    delete_lease, leader, patch_daemon_set, pods_of_component, restart_now, scale, settled, sigkill,
    silence_the_api_server,
};
pub use wait::{LIMIT, PAUSE, holds_for, until, until_gone, until_within};
