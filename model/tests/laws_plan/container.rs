//! container-kill: ordered once, reported, given up in time.

use squall_api::podchaos::{Action, Mode, Phase};
use squall_model::plan::{Report, ReportState, Stage};

use crate::sim::{Sim, spec};

#[test]
fn a_container_is_ordered_once_and_reported() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 3);
    let first = sim.plan();
    assert!(
        first.orders.iter().all(|order| order.stage == Stage::Arm) && first.orders.len() == 1,
        "{:?}",
        first.orders
    );
    sim.turn(None);
    let orders = sim.plan().orders;
    assert!(orders.len() == 1 && orders[0].stage == Stage::Fire, "{orders:?}");
    sim.reports.insert(
        orders[0].id.clone(),
        Report { state: ReportState::Done, exit_code: Some(137), exited: Some(sim.now), ..Report::default() },
    );
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Completed));
    assert_eq!(sim.status.targets[0].exit_code, Some(137));
    assert!(sim.plan().orders.is_empty());
}

#[test]
fn a_node_without_a_daemon_is_named_within_ten_seconds() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.pods.get_mut(&name).unwrap().spec.as_mut().unwrap().node_name = Some("without".into());
    sim.see();
    sim.turn(None);
    sim.wait(9);
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert!(
        sim.status.message.as_deref().unwrap_or_default().contains("without"),
        "{:?}",
        sim.status.message
    );
}

#[test]
fn a_daemon_that_goes_with_the_order_is_missed_within_ten_seconds_and_the_order_stays_till_then() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    sim.turn(None);
    assert!(sim.status.targets[0].ordered_at.is_some());
    sim.without_daemons = true;
    sim.wait(5);
    sim.turn(None);
    assert_eq!(sim.plan().orders.len(), 1, "a daemon that is being replaced would forget what it did");
    sim.wait(4);
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("NoDaemon"));
}
