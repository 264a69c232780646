//! container-kill: each target is ordered from its node's daemon, which carries it out once; what it reports
//! is the result. Afterwards the container's restart is followed.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::podchaos::{Phase, Target, TargetPhase};

use super::kill::fail;
use super::order::{order, order_id};
use super::{Daemon, Input, NodeFault, Order, ReportState, Stage, Step, later, seconds, view};
use crate::pod::ContainerState;
use crate::select::{Ineligible, eligible};
use crate::spec::Spec;

/// How long the word of a daemon may take that a trigger has not fired.
const TOLD_WITHIN: SignedDuration = SignedDuration::from_secs(10);
/// How long the word of a daemon may take of what has fired: it waits two minutes for those who were signalled.
const ENDED_WITHIN: SignedDuration = SignedDuration::from_secs(130);

/// Whether `fault` waits for something.
fn waits(fault: &NodeFault) -> bool {
    match fault {
        NodeFault::Kill { whom, .. } => whom.waits(),
        NodeFault::Freeze | NodeFault::Stress(_) => false,
    }
}

impl Step<'_> {
    pub(super) fn container_kill(&mut self, spec: &Spec, fault: &NodeFault) {
        let selected = self.plan.status.selected_at.as_ref().map_or(self.input.now, |at| at.0);
        let give_up = later(selected, spec.patience());
        let mut targets = std::mem::take(&mut self.plan.status.targets);
        for target in &mut targets {
            if target.phase == TargetPhase::Selected {
                self.order_one(spec, target, selected, give_up, fault);
            }
        }
        let open = targets.iter().any(|target| target.phase == TargetPhase::Selected);
        self.plan.status.targets = targets;
        if open {
            self.plan.status.phase = Some(if self.is_halted() {
                Phase::Halted
            } else if self.ident.paused {
                Phase::Paused
            } else {
                Phase::Injecting
            });
            self.wake(give_up);
        } else {
            self.complete_by_targets();
        }
        self.follow_restarts();
    }

    fn order_one(
        &mut self,
        spec: &Spec,
        target: &mut Target,
        selected: Timestamp,
        give_up: Timestamp,
        fault: &NodeFault,
    ) {
        let Input { now, world, .. } = self.input;
        let (Some(node), Some(id)) = (target.node.clone(), order_id(self.ident.uid, target)) else {
            fail(target, "NotRunning", "it has no node or no container ID");
            return;
        };
        let report = world.report(&node, &id);
        let waits = waits(fault);
        let mut fired = false;
        let underway = match report {
            None => false,
            Some(report) => {
                fired = report.receipt.is_some();
                target.receipt = report.receipt;
                match report.state {
                    ReportState::Underway | ReportState::Injected | ReportState::Recovered => {
                        // Of a trigger it is worth telling that it is armed, and that it has fired.
                        if waits {
                            target.reason = Some(if fired { "Fired" } else { "Armed" }.to_owned());
                            target.message = (!report.message.is_empty()).then_some(report.message);
                        }
                        true
                    }
                    ReportState::Done => {
                        target.phase = TargetPhase::Killed;
                        target.reason = None;
                        target.exit_code = report.exit_code;
                        target.injected_at = Some(MicroTime(report.exited.unwrap_or(now)));
                        target.message = (!report.message.is_empty()).then_some(report.message);
                        return;
                    }
                    ReportState::Refused if report.reason == "ContainerGone" => {
                        target.phase = TargetPhase::Skipped;
                        target.reason = Some(report.reason);
                        target.message = Some(report.message);
                        return;
                    }
                    ReportState::Refused | ReportState::Failed => {
                        fail(target, &report.reason, &report.message);
                        return;
                    }
                }
            }
        };
        // What was done to it before is known only once its daemon has told.
        let unsure =
            underway || target.ordered_at.is_some() || matches!(world.daemon(&node), Daemon::Unreachable(_));
        match view(world, target) {
            None if unsure && now < give_up => {}
            None => {
                target.phase = TargetPhase::Skipped;
                target.reason = Some("Gone".to_owned());
                target.message = Some("the pod was gone before its container was hit".to_owned());
                return;
            }
            Some(pod) => {
                let namespace = world.namespace(&target.namespace).cloned().unwrap_or_default();
                match eligible(spec, pod, &namespace) {
                    Ok(_) => {}
                    // Perhaps it does not run because it was hit: only the daemon knows whether that was our doing.
                    Err(Ineligible::NotRunning | Ineligible::Completed | Ineligible::Terminating)
                        if unsure => {}
                    Err(_) if underway => {}
                    Err(why) => {
                        target.phase = TargetPhase::Skipped;
                        target.reason = Some(why.reason().to_owned());
                        target.message = Some(why.to_string());
                        return;
                    }
                }
            }
        }
        let ready = matches!(world.daemon(&node), Daemon::Ready);
        let given_up = match (fired, waits && underway) {
            // A process may take its time to end, and that it was signalled stands.
            (true, _) if ready => give_up + ENDED_WITHIN,
            // Whether a trigger has fired its daemon alone can say, and it takes it back at the same time.
            (true | false, true) => give_up + TOLD_WITHIN,
            (true | false, false) => give_up,
        };
        if now >= give_up && now < given_up {
            self.wake(given_up);
        } else if now >= give_up {
            let message = match world.daemon(&node) {
                Daemon::None => format!("node {node} runs no Squall daemon"),
                Daemon::Unreachable(why) => format!("the daemon on node {node} can't be reached: {why}"),
                Daemon::Ready => format!("the daemon on node {node} did not report in time"),
            };
            fail(target, "TimedOut", &message);
            return;
        }
        if !underway && self.is_spared(spec, target) {
            return;
        }
        if matches!(world.daemon(&node), Daemon::None) && !underway {
            let ordered = target.ordered_at.as_ref().map_or(selected, |at| at.0);
            let limit = ordered + seconds(8);
            if limit <= now {
                fail(
                    target,
                    "NoDaemon",
                    &format!(
                        "node {node} runs no Squall daemon; see `kubectl -n squall-system get pods -o wide`"
                    ),
                );
            } else {
                self.wake(limit);
                // It stays listed, or a daemon that is being replaced would forget what it did.
                if !self.ident.paused {
                    self.plan.orders.extend(order(self.ident.uid, target, fault.clone(), Stage::Fire));
                }
            }
            return;
        }
        if self.ident.paused && !underway {
            return;
        }
        if target.ordered_at.is_none() {
            target.ordered_at = Some(MicroTime(now));
        }
        let order = order(self.ident.uid, target, fault.clone(), Stage::Fire);
        // What has fired is waited for until its process has ended.
        let until = (waits && !fired).then_some(give_up);
        self.plan.orders.extend(order.map(|order| Order { until, ..order }));
    }

    /// When the container was started again, and when its pod was Ready. Told for ten minutes after the end.
    pub(super) fn follow_restarts(&mut self) {
        if !self.still_followed() {
            return;
        }
        let Input { now, world, .. } = self.input;
        for target in &mut self.plan.status.targets {
            if target.phase != TargetPhase::Killed || target.ready_at.is_some() {
                continue;
            }
            let Some(pod) = view(world, target) else { continue };
            let Some(container) =
                pod.containers.iter().find(|container| Some(&container.name) == target.container.as_ref())
            else {
                continue;
            };
            if container.id.is_none() || container.id == target.container_id {
                continue;
            }
            if let ContainerState::Running(since) = &container.state {
                if target.restarted_at.is_none() {
                    target.restarted_at = since.map(MicroTime);
                }
                if pod.ready {
                    target.ready_at = Some(MicroTime(now));
                }
            }
        }
    }
}
