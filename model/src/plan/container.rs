//! container-kill: each target is ordered from its node's daemon, which carries it out once; what it reports
//! is the result. Afterwards the container's restart is followed.
//!
//! What may have been ordered stays listed until its daemon has told what came of it, or it would forget what it did.
//! Where it shall not be hit any more (a halt, a pause, an opt-in withdrawn, a narrower selector) it is listed as armed
//! only: a daemon never goes back from what it was ordered, so what has fired stays fired, and nothing else fires. What is
//! armed it takes back.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::podchaos::{Phase, Target, TargetPhase};

use super::back::Left;
use super::kill::{fail, skip};
use super::lasting::{LEFT_OUT, NARROWED};
use super::node::{EXPIRED, NO_DAEMON};
use super::order::{order, order_id};
use super::{
    Daemon, Input, NodeFault, Order, Report, ReportState, Stage, Step, later, namespace, seconds, view,
};
use crate::pod::ContainerState;
use crate::select::{Ineligible, eligible};
use crate::spec::Spec;

/// How long the word of a daemon may take that a trigger has not fired.
const TOLD_WITHIN: SignedDuration = SignedDuration::from_secs(10);
/// How long the word of a daemon may take of what has fired: it waits two minutes for those who were signalled.
const ENDED_WITHIN: SignedDuration = SignedDuration::from_secs(130);

/// What a daemon says of a trigger that it took back before it fired.
const NOT_TRIGGERED: &str = "NotTriggered";

/// Whether `fault` waits for something.
pub(super) fn waits(fault: &NodeFault) -> bool {
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
        for (index, target) in targets.iter_mut().enumerate() {
            if target.phase == TargetPhase::Selected {
                self.order_one(spec, index, target, selected, give_up, fault);
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
        index: usize,
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
        // Kept as its reason until it is taken back: that the selector was changed is seen only once.
        let left_out =
            target.reason.as_deref() == Some(NARROWED) || self.is_changed() && self.leaves_out(spec, target);
        // Asked before what it has told: one that is ready has told all.
        let daemon = world.daemon(&node);
        let unheard = daemon == Daemon::Unheard;
        let report = world.report(&node, &id);
        let waits = waits(fault);
        // Once that is written it stands, whether or not its daemon was heard of in this term.
        let mut fired = target.receipt.is_some();
        let underway = match report {
            None => false,
            Some(report) => {
                fired = report.receipt.is_some();
                target.receipt.clone_from(&report.receipt);
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
                        skip(target, &report.reason, &report.message);
                        return;
                    }
                    // Before its time it was taken back only because we said so.
                    ReportState::Refused | ReportState::Failed if now < give_up && is_unfired(&report) => {
                        anew(target);
                        fired = false;
                        false
                    }
                    ReportState::Refused | ReportState::Failed => {
                        fail(target, &report.reason, &report.message);
                        return;
                    }
                }
            }
        };
        // What was done to it before is known only once its daemon has told.
        let unsure = target.ordered_at.is_some();
        let mut stopped = self.ident.paused || self.is_halted() || left_out;
        if left_out && !unsure {
            skip(target, NARROWED, LEFT_OUT);
            return;
        }
        if left_out && !fired {
            target.reason = Some(NARROWED.to_owned());
            target.message = Some(LEFT_OUT.to_owned());
        }
        match view(world, target) {
            None if unsure && (now < give_up || unheard) => {}
            None => {
                skip(target, "Gone", "the pod was gone before its container was hit");
                return;
            }
            Some(pod) => match eligible(spec, pod, namespace(world, target)) {
                Ok(_) => {}
                // Perhaps it does not run because it was hit.
                Err(Ineligible::NotRunning | Ineligible::Completed) if unsure => {}
                Err(_) if unsure => stopped = true,
                Err(why) => {
                    skip(target, why.reason(), &why.to_string());
                    return;
                }
            },
        }
        let ready = daemon == Daemon::Ready;
        let given_up = match (fired, waits && underway) {
            // A process may take its time to end, and that it was signalled stands.
            (true, _) if ready => later(give_up, ENDED_WITHIN),
            // Whether a trigger has fired its daemon alone can say, and it takes it back at the same time.
            (true | false, true) => later(give_up, TOLD_WITHIN),
            (true | false, false) => give_up,
        };
        if now >= give_up && unheard && unsure {
            // Perhaps it was carried out in time. If not, it is not begun any more.
            stopped = true;
            self.wake(now + seconds(1));
        } else if now >= give_up && now < given_up {
            self.wake(given_up);
        } else if now >= give_up {
            let message = match daemon {
                Daemon::None => format!("node {node} runs no Squall daemon"),
                Daemon::Unreachable(why) => format!("the daemon on node {node} can't be reached: {why}"),
                Daemon::Ready if unsure => format!("the daemon on node {node} did not report in time"),
                Daemon::Ready | Daemon::Unheard => "its time was over before it could be ordered".to_owned(),
            };
            fail(target, "TimedOut", &message);
            return;
        }
        if !unsure && (self.is_spared(spec, target) || self.ident.paused) {
            return;
        }
        let ordered = target.ordered_at.get_or_insert(MicroTime(now)).0;
        if daemon == Daemon::None && !underway {
            // It stays listed, or a daemon that is being replaced would forget what it did.
            let limit = later(ordered, seconds(8));
            if limit <= now {
                fail(
                    target,
                    "NoDaemon",
                    &format!(
                        "node {node} runs no Squall daemon; see `kubectl -n squall-system get pods -o wide`"
                    ),
                );
                return;
            }
            self.wake(limit);
        }
        // What only the status knows to have fired its daemon has perhaps forgotten.
        stopped &= !(fired && underway);
        let fires = !stopped && self.is_recorded(index, target);
        let stage = if fires { Stage::Fire } else { Stage::Arm };
        let until = if stopped && underway {
            // A time that is over: its daemon takes it back at once, and says whether it had fired before.
            Some(selected)
        } else {
            // What has fired is waited for until its process has ended.
            (waits && !fired).then_some(give_up)
        };
        let order = order(self.ident.uid, target, fault.clone(), stage);
        self.plan.orders.extend(order.map(|order| Order { until, ..order }));
    }

    /// The object goes: which triggers may still be armed on a node that is silent. One that is heard of takes back at once
    /// what isn't listed any more.
    pub(super) fn take_triggers_back(&mut self, fault: &NodeFault) -> Left {
        let Input { now, world, .. } = self.input;
        let mut left = Left::default();
        // A removal of all of Squall has no such time, and holds nobody up.
        let limit = self.ident.deleted.map_or(now, |at| later(at, NO_DAEMON));
        let selected = self.plan.status.selected_at.as_ref().map(|at| at.0);
        for target in &self.plan.status.targets {
            let (Some(node), Some(id)) = (&target.node, order_id(self.ident.uid, target)) else { continue };
            let armed = target.phase == TargetPhase::Selected && target.ordered_at.is_some();
            let daemon = world.daemon(node);
            let told = world.report(node, &id).is_some_and(|report| report.state != ReportState::Underway);
            if !armed || told || self.is_signalled(target) || view(world, target).is_none() {
                continue;
            }
            let container = target.container.as_deref().unwrap_or_default();
            let name = format!("{}/{} {container}", target.namespace, target.pod);
            match daemon {
                Daemon::Ready => continue,
                Daemon::None | Daemon::Unreachable(_) if limit <= now => {
                    left.unseen.push(format!("{name} on node {node}"));
                }
                Daemon::None | Daemon::Unreachable(_) | Daemon::Unheard => left.waited_for.push(name),
            }
            // A time that is over: is its daemon heard of meanwhile, it takes it back at once.
            let order = order(self.ident.uid, target, fault.clone(), Stage::Arm);
            self.plan.orders.extend(order.map(|order| Order { until: selected, ..order }));
        }
        if !left.waited_for.is_empty() {
            self.wake(limit.max(now + seconds(1)));
        }
        left
    }

    /// Whether it is known that the container of `target` was signalled.
    pub(super) fn is_signalled(&self, target: &Target) -> bool {
        let report = || self.input.world.report(target.node.as_deref()?, &order_id(self.ident.uid, target)?);
        target.receipt.is_some()
            || report().is_some_and(|report| {
                report.state == ReportState::Done || report.receipt.is_some() && !is_unfired(&report)
            })
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

/// Whether a daemon has told that it signalled nobody, and never will by this order.
fn is_unfired(report: &Report) -> bool {
    report.reason == NOT_TRIGGERED || report.reason == EXPIRED && report.receipt.is_none()
}

/// It was not hit, and is not ordered any more. Should it be ordered again, then by another name.
fn anew(target: &mut Target) {
    target.attempt = Some(target.attempt.unwrap_or(0) + 1);
    target.ordered_at = None;
    target.receipt = None;
    target.reason = None;
    target.message = None;
}
