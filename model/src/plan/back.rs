//! A lasting fault on a container that isn't wanted any more: its node's daemon is to put it back, and to say so.
//!
//! A node reverts by itself what is not renewed: nothing here has to reach a node for a fault to end. But a daemon that
//! was killed and never comes back reverts nothing, and from here that looks the same: so only what was seen is called
//! recovered, and what wasn't stays `Recovering` with the node's name, until it or the pod is heard of.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::status::{Target, TargetPhase};

use super::container::waits;
use super::kill::{fail, skip};
use super::lasting::{release, went_away};
use super::node::{CONTAINER_GONE, EXPIRED, GRACE, NO_DAEMON, incarnation, take_over};
use super::order::{order, order_id};
use super::{Daemon, INVALID_SPEC, Input, NodeFault, ReportState, Stage, Step, later, seconds, view};
use crate::pod::{ContainerState, PodView};

/// A node ends a fault without a `duration` by itself when it hasn't heard of it for so long: a minute, and what a message
/// takes.
const LEASE: SignedDuration = SignedDuration::from_secs(65);
/// What is said of a target whose node is silent begins so.
const UNSEEN: &str = "not seen to be put back: ";

impl Step<'_> {
    /// The fault isn't wanted on this target any more. With a `reason` it is not hit again.
    pub(super) fn end(&mut self, fault: &NodeFault, target: &mut Target, reason: Option<&str>) {
        let now = self.input.now;
        target.reason = reason.map(ToOwned::to_owned);
        target.recovered_at = Some(MicroTime(now));
        // Of an injected one the time may have been left out, for want of room.
        if target.ordered_at.is_none() && target.phase != TargetPhase::Injected {
            target.phase = if reason.is_some() { TargetPhase::Skipped } else { TargetPhase::Recovered };
            target.recovered_at = None;
            if view(self.input.world, target).is_none_or(|pod| pod.terminating) {
                went_away(target, now);
            }
            return;
        }
        target.phase = TargetPhase::Recovering;
        self.take_back(fault, target);
    }

    /// Have it put back, until it is, or until there is nothing to put back. Whether its node has been silent for as
    /// long as an object that goes waits for it. Nothing is called put back that nobody has seen.
    pub(super) fn take_back(&mut self, fault: &NodeFault, target: &mut Target) -> bool {
        let Input { now, world, .. } = self.input;
        let since = target.recovered_at.get_or_insert(MicroTime(now)).0;
        let Some(pod) = view(world, target) else {
            went_away(target, now);
            return false;
        };
        // Asked before what it has told: one that is ready has told all.
        let node = target.node.clone().unwrap_or_default();
        let daemon = world.daemon(&node);
        let report = match (&target.node, order_id(self.ident.uid, target)) {
            (Some(node), Some(id)) => world.report(node, &id),
            (Some(_) | None, _) => None,
        };
        let ended = if incarnation(target, pod).is_some() {
            Some("its container was started again, without the fault")
        } else if has_ended(target, pod) {
            Some("its container has ended, and the fault with it")
        } else {
            None
        };
        if let Some(message) = ended {
            over(target, pod, now, message);
            return false;
        }
        if let Some(report) = &report {
            take_over(target, report);
            let message = match report.state {
                ReportState::Underway | ReportState::Injected => None,
                ReportState::Recovered | ReportState::Done => Some(&report.message),
                // Nothing was done, or nothing is left of it.
                ReportState::Refused => Some(&report.message),
                ReportState::Failed if [CONTAINER_GONE, EXPIRED].contains(&report.reason.as_str()) => {
                    Some(&report.message)
                }
                ReportState::Failed => {
                    fail(target, &report.reason, &report.message);
                    return false;
                }
            };
            if let Some(message) = message {
                over(target, pod, now, message);
                return false;
            }
        }
        let ends = self.plan.status.ends_at.as_ref().map(|at| later(at.0, GRACE));
        let (limit, silent) = match daemon {
            Daemon::None => (later(since, NO_DAEMON), Some(format!("node {node} runs no Squall daemon"))),
            // It may have told the leader before.
            Daemon::Unheard => {
                self.wake(now + seconds(1));
                self.plan.orders.extend(order(self.ident.uid, target, fault.clone(), Stage::Recover));
                return false;
            }
            // If it lives, it ends the fault by itself, then.
            Daemon::Unreachable(_) => (
                ends.unwrap_or(later(since, LEASE)).max(later(since, NO_DAEMON)),
                Some(format!("the daemon on node {node} can't be reached")),
            ),
            Daemon::Ready => (later(since, LEASE), None),
        };
        doubt(target, silent.as_deref());
        let late = limit <= now;
        if late && silent.is_none() {
            let message = format!("the daemon on node {node} did not report it put back; see its log");
            fail(target, "NotRecovered", &message);
            return false;
        }
        if !late {
            self.wake(limit);
        }
        // Listed for as long as it takes: a daemon that comes back says what it has put back.
        self.plan.orders.extend(order(self.ident.uid, target, fault.clone(), Stage::Recover));
        late
    }

    /// Nobody knows any more what was asked for: nothing is ordered, so nodes put back what they hold, and nobody will hear
    /// of it.
    pub(super) fn let_all_go(&mut self) {
        let Input { now, world, outcomes, .. } = self.input;
        for target in &mut self.plan.status.targets {
            match target.phase {
                TargetPhase::Selected | TargetPhase::Injected | TargetPhase::Recovering => {}
                TargetPhase::Recovered
                | TargetPhase::Killed
                | TargetPhase::Skipped
                | TargetPhase::Failed
                | TargetPhase::Released
                | TargetPhase::Gone => continue,
            }
            let Some(pod) = view(world, target).filter(|pod| !pod.terminating) else {
                went_away(target, now);
                continue;
            };
            let untouched = target.phase == TargetPhase::Selected
                && target.ordered_at.is_none()
                && !outcomes.holds(pod, self.ident.uid);
            if untouched {
                skip(target, INVALID_SPEC, "the spec was not valid any more before it was hit");
            } else if target.container.is_some() {
                fail(
                    target,
                    INVALID_SPEC,
                    "its order is withdrawn, for the spec is not valid any more; what its node holds it puts back by \
                     itself, and says so in its daemon's log only",
                );
            } else {
                release(target, now, INVALID_SPEC, "the spec is not valid any more");
            }
        }
    }

    /// The object goes: have everything put back. What isn't yet, by name.
    pub(super) fn take_all_back(&mut self) -> Left {
        let mut left = Left::default();
        let Ok(spec) = self.input.experiment.spec else { return left };
        let Some(fault) = NodeFault::of(spec) else { return left };
        if waits(&fault) {
            return self.take_triggers_back(&fault);
        }
        if !spec.lasting() {
            return left;
        }
        let mut targets = std::mem::take(&mut self.plan.status.targets);
        for target in &mut targets {
            let late = match target.phase {
                TargetPhase::Selected | TargetPhase::Injected => {
                    self.end(&fault, target, None);
                    false
                }
                TargetPhase::Recovering => self.take_back(&fault, target),
                TargetPhase::Recovered
                | TargetPhase::Killed
                | TargetPhase::Skipped
                | TargetPhase::Failed
                | TargetPhase::Released
                | TargetPhase::Gone => false,
            };
            if target.phase == TargetPhase::Recovering {
                let container = target.container.as_deref().unwrap_or_default();
                let node = target.node.as_deref().unwrap_or_default();
                let name = format!("{}/{} {container}", target.namespace, target.pod);
                if late {
                    left.unseen.push(format!("{name} on node {node}"));
                } else {
                    left.waited_for.push(name);
                }
            }
        }
        self.plan.status.targets = targets;
        left
    }
}

/// What is not seen to be put back, of an object that goes.
#[derive(Default)]
pub(super) struct Left {
    pub waited_for: Vec<String>,
    /// Their nodes have been silent for too long.
    pub unseen: Vec<String>,
}

/// Whether the kubelet says that the container, as it was ordered, has ended. With it went its cgroup.
fn has_ended(target: &Target, pod: &PodView) -> bool {
    pod.containers.iter().any(|container| {
        Some(&container.name) == target.container.as_ref()
            && container.id == target.container_id
            && matches!(container.state, ContainerState::Terminated(..))
    })
}

/// Say that nobody has seen the fault put back, since its node is `silent`; or that it is heard again.
fn doubt(target: &mut Target, silent: Option<&str>) {
    let before = target.message.take().unwrap_or_default();
    let before = before.split_once(UNSEEN).map_or(before.as_str(), |(before, _)| before);
    let before = before.trim_end_matches("; ");
    let message = match silent {
        None => before.to_owned(),
        Some(silent) => {
            let before = if before.is_empty() { String::new() } else { format!("{before}; ") };
            format!(
                "{before}{UNSEEN}{silent}. That daemon puts it back when it starts; deleting the pod ends it, too"
            )
        }
    };
    target.message = Some(message).filter(|message| !message.is_empty());
}

/// Whether nobody has seen the fault put back, and why.
pub(super) fn unseen(target: &Target) -> Option<&str> {
    let (_, why) = target.message.as_deref()?.split_once(UNSEEN)?;
    Some(why).filter(|_| target.phase == TargetPhase::Recovering)
}

/// It is put back.
fn over(target: &mut Target, pod: &PodView, now: Timestamp, message: &str) {
    doubt(target, None);
    let message = Some(message.to_owned()).filter(|message| !message.is_empty());
    if pod.terminating {
        went_away(target, now);
    } else if let Some(reason) = target.reason.clone() {
        let why = target.message.clone().unwrap_or_default();
        release(target, now, &reason, &why);
    } else {
        target.phase = TargetPhase::Recovered;
        target.recovered_at = Some(MicroTime(now));
        target.message = message;
    }
}
