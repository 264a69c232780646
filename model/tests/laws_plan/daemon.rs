//! A node's daemon, as it keeps its promises.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use squall_api::podchaos::Receipt;
use squall_model::plan::{NodeFault, Order, Report, ReportState, Stage};

/// The node's daemon, as it keeps its promises: what is listed it holds, what isn't it puts back, and what nobody renews
/// it ends by itself.
#[derive(Default)]
pub struct Node {
    /// It can't be reached.
    pub away: bool,
    /// Its daemon was killed: it ends nothing by itself.
    pub killed: bool,
    /// What stands: the container, and when it ends if it is not renewed.
    pub standing: BTreeMap<String, (String, Timestamp)>,
    /// What it has to say of each fault that it was told of.
    pub told: BTreeMap<String, Report>,
    /// How far kills are: the container, and how far.
    pub kills: BTreeMap<String, (String, Kill)>,
    /// The containers that got a signal, one after the other.
    pub signalled: Vec<String>,
}

/// How far a kill is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kill {
    /// Prepared, until then.
    Armed(Timestamp),
    /// The trigger waits, until then.
    Waiting(Timestamp),
    /// The signal is sent, and the process has not ended.
    Signalled,
    /// It has an outcome.
    Over,
}

fn say(state: ReportState, reason: &str) -> Report {
    Report { state, reason: reason.to_owned(), ..Report::default() }
}

impl Node {
    /// The whole desired state has come.
    pub fn apply(
        &mut self,
        desired: &BTreeMap<String, Order>,
        containers: &BTreeSet<String>,
        now: Timestamp,
    ) {
        self.standing.retain(|id, _| desired.contains_key(id));
        self.told.retain(|id, _| desired.contains_key(id));
        self.kills.retain(|id, _| desired.contains_key(id));
        for (id, order) in desired {
            if let NodeFault::Kill { whom, .. } = &order.fault {
                self.kill(id, order, whom.waits(), containers, now);
                continue;
            }
            let told = self.told.get(id).map(|report| (report.state, report.reason.clone()));
            let over = told.is_some_and(|(state, _)| {
                matches!(state, ReportState::Recovered | ReportState::Refused | ReportState::Failed)
            });
            match order.stage {
                _ if over => {}
                Stage::Arm => {
                    self.told.insert(id.clone(), say(ReportState::Underway, ""));
                }
                Stage::Recover => {
                    self.standing.remove(id);
                    self.told.insert(id.clone(), say(ReportState::Recovered, ""));
                }
                Stage::Fire if containers.contains(&order.container_id) => {
                    let lease = now + SignedDuration::from_secs(60);
                    let until = order.until.unwrap_or(lease);
                    self.standing.insert(id.clone(), (order.container_id.clone(), until));
                    self.told.insert(id.clone(), say(ReportState::Injected, ""));
                }
                Stage::Fire => {
                    self.told.insert(id.clone(), say(ReportState::Refused, "ContainerGone"));
                }
            }
        }
    }

    /// A kill is listed. What was signalled, or has an outcome, stays so; nothing goes back from firing to arming.
    fn kill(&mut self, id: &str, order: &Order, waits: bool, containers: &BTreeSet<String>, now: Timestamp) {
        let until = order.until.unwrap_or(now + SignedDuration::from_secs(60));
        let next = match (self.kills.get(id).map(|(_, kill)| *kill), order.stage) {
            (Some(Kill::Signalled | Kill::Over), _) => return,
            (None | Some(Kill::Armed(_)), _) if !containers.contains(&order.container_id) => {
                self.told.insert(id.to_owned(), say(ReportState::Refused, "ContainerGone"));
                Kill::Over
            }
            (None | Some(Kill::Armed(_)), Stage::Fire) if waits => Kill::Waiting(until),
            (None | Some(Kill::Armed(_)), Stage::Fire) => Kill::Signalled,
            (None | Some(Kill::Armed(_)), Stage::Arm | Stage::Recover) => Kill::Armed(until),
            (Some(Kill::Waiting(_)), _) => Kill::Waiting(until),
        };
        self.kills.insert(id.to_owned(), (order.container_id.clone(), next));
        match next {
            Kill::Armed(_) | Kill::Waiting(_) => {
                self.told.insert(id.to_owned(), say(ReportState::Underway, ""));
            }
            Kill::Signalled => self.signal(id),
            Kill::Over => {}
        }
    }

    fn signal(&mut self, id: &str) {
        let Some((container, kill)) = self.kills.get_mut(id) else { return };
        *kill = Kill::Signalled;
        self.signalled.push(container.clone());
        let receipt = Some(Receipt { total: 1, ..Receipt::default() });
        self.told.insert(id.to_owned(), Report { receipt, ..Report::default() });
    }

    /// In every container a process does what triggers wait for.
    pub fn trip(&mut self) {
        let waiting = self.kills.iter().filter(|(_, (_, kill))| matches!(kill, Kill::Waiting(_)));
        for id in waiting.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.signal(&id);
        }
    }

    /// It is heard of again. A daemon that starts puts back what its journal lists, before it obeys.
    pub fn back(&mut self) {
        self.away = false;
        if std::mem::take(&mut self.killed) {
            for id in std::mem::take(&mut self.standing).into_keys() {
                self.told.remove(&id);
            }
            let Self { kills, told, .. } = self;
            kills.retain(|id, (_, kill)| match kill {
                Kill::Armed(_) => told.remove(id).is_none(),
                Kill::Waiting(_) => {
                    // Nobody knows whether it has fired.
                    *kill = Kill::Over;
                    told.insert(id.clone(), say(ReportState::Failed, "Internal"));
                    true
                }
                Kill::Signalled | Kill::Over => true,
            });
        }
    }

    /// Time has passed, or containers have ended.
    pub fn look(&mut self, containers: &BTreeSet<String>, now: Timestamp) {
        let Self { standing, told, away: _, killed, kills, signalled: _ } = self;
        standing.retain(|id, (container, until)| {
            let state = if !containers.contains(container) {
                (ReportState::Failed, "ContainerGone")
            } else if *until <= now && !*killed {
                (ReportState::Recovered, "")
            } else {
                return true;
            };
            told.insert(id.clone(), say(state.0, state.1));
            false
        });
        if *killed {
            return;
        }
        for (id, (container, kill)) in kills {
            let report = match kill {
                Kill::Armed(until) if *until <= now => say(ReportState::Failed, "Expired"),
                Kill::Waiting(until) if *until <= now => say(ReportState::Failed, "NotTriggered"),
                Kill::Waiting(_) if !containers.contains(container) => {
                    say(ReportState::Refused, "ContainerGone")
                }
                Kill::Signalled if !containers.contains(container) => {
                    let receipt = told.get(id).and_then(|report| report.receipt.clone());
                    Report { state: ReportState::Done, receipt, ..Report::default() }
                }
                Kill::Armed(_) | Kill::Waiting(_) | Kill::Signalled | Kill::Over => continue,
            };
            *kill = Kill::Over;
            told.insert(id.clone(), report);
        }
    }
}
