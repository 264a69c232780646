//! Lasting faults on containers (container-freeze, stress) on one target: its node's daemon has the order for as long
//! as the fault is wanted, and then the order to put it back until it says that it has, or until there is nothing to
//! put back. A container that is started again is followed. When the fault is wanted is said in [`super::lasting`].
//! How one ends is said in [`super::back`].

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::status::{Target, TargetPhase};

use super::kill::{fail, skip};
use super::lasting::{Asked, LEFT_OUT, NARROWED, went_away};
use super::order::{order, order_id};
use super::outcomes::injection_limit;
use super::{Daemon, Input, NodeFault, Report, ReportState, Stage, Step, later, namespace, seconds, view};
use crate::pod::{ContainerView, PodView};
use crate::select::{Ineligible, eligible};
use crate::spec::Spec;

/// A node ends a fault with a `duration` by itself so long after its end: in the ordinary case we do, and hear of it.
pub(super) const GRACE: SignedDuration = SignedDuration::from_secs(2);
/// For how long a node that has no daemon may get one.
pub(super) const NO_DAEMON: SignedDuration = SignedDuration::from_secs(8);
/// What a container is that isn't there, in the words of the daemon.
pub(super) const CONTAINER_GONE: &str = "ContainerGone";
/// What a daemon says of a fault that it ended because nobody renewed it.
pub(super) const EXPIRED: &str = "Expired";
const UNREACHABLE: &str = "its node's daemon can't be reached; if it lives, it ends the fault by itself";

impl Step<'_> {
    /// One target's next step.
    pub(super) fn hold_one(
        &mut self,
        spec: &Spec,
        fault: &NodeFault,
        index: usize,
        target: &mut Target,
        asked: Asked,
    ) {
        let Asked { wanted, expired, narrowed } = asked;
        let Input { now, world, .. } = self.input;
        match target.phase {
            TargetPhase::Recovering => {
                // What is put back already isn't hit again, either. It may take its node long to say that it is.
                if narrowed && target.reason.is_none() && self.leaves_out(spec, target) {
                    target.reason = Some(NARROWED.to_owned());
                    target.message = Some(LEFT_OUT.to_owned());
                }
                self.take_back(fault, target);
                return;
            }
            TargetPhase::Selected | TargetPhase::Injected => {}
            TargetPhase::Recovered if wanted => {
                anew(target);
                target.injected_at = None;
            }
            TargetPhase::Recovered => return self.rests(spec, target, narrowed),
            TargetPhase::Killed
            | TargetPhase::Skipped
            | TargetPhase::Failed
            | TargetPhase::Released
            | TargetPhase::Gone => return,
        }
        let Some(pod) = view(world, target) else {
            went_away(target, now);
            return;
        };
        if narrowed && !pod.terminating && self.narrow(spec, target) {
            return self.end(fault, target, Some(NARROWED));
        }
        if pod.terminating {
            target.message = Some("its pod is being deleted".to_owned());
            return self.end(fault, target, None);
        }
        if expired && target.ordered_at.is_some() && target.injected_at.is_none() {
            fail(target, "NotInjected", "its time was over before it was injected; its order is withdrawn");
            return;
        }
        if !wanted {
            target.message = None;
            return self.end(fault, target, None);
        }
        match eligible(spec, pod, namespace(world, target)) {
            // While its container isn't running it is waited for.
            Ok(_) | Err(Ineligible::NotRunning) => self.hold(fault, index, target, pod),
            Err(Ineligible::Completed) => went_away(target, now),
            Err(Ineligible::Terminating) => self.end(fault, target, None),
            Err(why) => {
                target.message = Some(why.to_string());
                self.end(fault, target, Some(why.reason()));
            }
        }
    }

    /// The fault is wanted on this target: order it, and see what came of it.
    fn hold(&mut self, fault: &NodeFault, index: usize, target: &mut Target, pod: &PodView) {
        let Input { now, world, .. } = self.input;
        if let Some(container) = incarnation(target, pod) {
            follow(target, container);
        }
        let (Some(node), Some(id)) = (target.node.clone(), order_id(self.ident.uid, target)) else {
            fail(target, "NotRunning", "it has no node or no container ID");
            return;
        };
        // Part of the intent: a target without it was never ordered, whoever looks.
        let ordered = target.ordered_at.get_or_insert(MicroTime(now)).0;
        if !self.is_recorded(index, target) {
            // Written down first; meanwhile its daemon may prepare.
            self.plan.orders.extend(order(self.ident.uid, target, fault.clone(), Stage::Arm));
            return;
        }
        // Asked before what it has told: one that is ready has told all.
        let daemon = world.daemon(&node);
        // A container that ran with the fault, ended, and will perhaps be started again.
        let mut waits = false;
        if let Some(report) = &world.report(&node, &id) {
            take_over(target, report);
            match report.state {
                ReportState::Underway => {}
                ReportState::Injected => {
                    if target.phase != TargetPhase::Injected {
                        target.phase = TargetPhase::Injected;
                        target.injected_at = Some(MicroTime(now));
                    }
                    target.message = (!report.message.is_empty()).then(|| report.message.clone());
                }
                ReportState::Refused | ReportState::Failed if report.reason == CONTAINER_GONE => {
                    if target.injected_at.is_none() && later(ordered, injection_limit()) <= now {
                        skip(target, &report.reason, &report.message);
                        return;
                    }
                    waits = target.injected_at.is_some();
                    target.phase = TargetPhase::Selected;
                    target.message =
                        Some("its container has ended; it is followed when it is started again".to_owned());
                }
                ReportState::Failed if report.reason == EXPIRED => return lapsed(target, now),
                ReportState::Recovered | ReportState::Done => return lapsed(target, now),
                ReportState::Refused | ReportState::Failed => {
                    fail(target, &report.reason, &report.message);
                    return;
                }
            }
        }
        if target.phase == TargetPhase::Injected {
            mind(target, &daemon);
        } else if !waits && !self.is_in_time(target, ordered, &daemon, &node) {
            return;
        }
        let until = self.plan.status.ends_at.as_ref().map(|at| later(at.0, GRACE));
        let order = order(self.ident.uid, target, fault.clone(), Stage::Fire);
        self.plan.orders.extend(order.map(|order| super::Order { until, ..order }));
    }

    /// Whether the status that was last written names this very order.
    pub(super) fn is_recorded(&self, index: usize, target: &Target) -> bool {
        self.input.status.targets.get(index).is_some_and(|known| {
            known.uid == target.uid
                && known.container_id == target.container_id
                && known.attempt == target.attempt
                && match known.phase {
                    TargetPhase::Selected => known.ordered_at.is_some(),
                    TargetPhase::Injected => true,
                    TargetPhase::Recovering
                    | TargetPhase::Recovered
                    | TargetPhase::Killed
                    | TargetPhase::Skipped
                    | TargetPhase::Failed
                    | TargetPhase::Released
                    | TargetPhase::Gone => false,
                }
        })
    }

    /// Whether a target that isn't injected yet may still be; if not, it has failed.
    fn is_in_time(&mut self, target: &mut Target, ordered: Timestamp, daemon: &Daemon, node: &str) -> bool {
        let now = self.input.now;
        let (limit, reason, message) = match daemon {
            // The daemon of a target that was hit before is perhaps being replaced.
            Daemon::None => (
                later(ordered, if target.injected_at.is_none() { NO_DAEMON } else { injection_limit() }),
                "NoDaemon",
                format!("node {node} runs no Squall daemon; see `kubectl -n squall-system get pods -o wide`"),
            ),
            // What is known of it, its limit among that, the leader before may have known better.
            Daemon::Unheard => {
                self.wake(now + seconds(1));
                return true;
            }
            Daemon::Unreachable(why) => (
                later(ordered, injection_limit()),
                "NotInjected",
                format!("the daemon on node {node} can't be reached: {why}"),
            ),
            Daemon::Ready => (
                later(ordered, injection_limit()),
                "NotInjected",
                format!("the daemon on node {node} did not report it injected within 60 s; it is put back"),
            ),
        };
        if limit <= now {
            fail(target, reason, &message);
            return false;
        }
        self.wake(limit);
        true
    }
}

/// The container of `target`, if it runs as another incarnation than the one that was ordered.
pub(super) fn incarnation<'a>(target: &Target, pod: &'a PodView) -> Option<&'a ContainerView> {
    pod.containers.iter().find(|container| {
        Some(&container.name) == target.container.as_ref()
            && container.runs()
            && container.id != target.container_id
    })
}

/// The container was started again: another order, by another name.
fn follow(target: &mut Target, container: &ContainerView) {
    target.phase = TargetPhase::Selected;
    target.container_id.clone_from(&container.id);
    target.attempt = None;
    target.ordered_at = None;
    target.message = Some("its container was started again, and is followed".to_owned());
}

/// Another order for the same container.
fn anew(target: &mut Target) {
    target.phase = TargetPhase::Selected;
    target.attempt = Some(target.attempt.unwrap_or(0) + 1);
    target.ordered_at = None;
    target.recovered_at = None;
    target.ready_at = None;
    target.reason = None;
    target.message = None;
}

/// Its node has ended it though it is still wanted: it is ordered anew, once that is written.
fn lapsed(target: &mut Target, now: Timestamp) {
    anew(target);
    target.ordered_at = Some(MicroTime(now));
    target.interruptions = Some(target.interruptions.unwrap_or(0) + 1);
    target.message = Some("its node had ended it by itself; it is injected again".to_owned());
}

/// A target that is hit, and whose daemon may be away.
fn mind(target: &mut Target, daemon: &Daemon) {
    match daemon {
        Daemon::Ready if target.message.as_deref() == Some(UNREACHABLE) => target.message = None,
        Daemon::Ready | Daemon::Unheard => {}
        Daemon::None | Daemon::Unreachable(_) => target.message = Some(UNREACHABLE.to_owned()),
    }
}

/// What its node has told.
pub(super) fn take_over(target: &mut Target, report: &Report) {
    if report.effect.is_some() {
        target.effect.clone_from(&report.effect);
    }
    let interruptions = i32::try_from(report.interruptions).unwrap_or(i32::MAX);
    if interruptions > target.interruptions.unwrap_or(0) {
        target.interruptions = Some(interruptions);
    }
    target.warnings.clone_from(&report.warnings);
}
