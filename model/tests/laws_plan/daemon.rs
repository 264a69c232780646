//! A node's daemon, as it keeps its promises.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use squall_model::plan::{Order, Report, ReportState, Stage};

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
        for (id, order) in desired {
            let told = self.told.get(id).map(|report| (report.state, report.reason.clone()));
            let over = told.is_some_and(|(state, _)| {
                matches!(state, ReportState::Recovered | ReportState::Refused | ReportState::Failed)
            });
            let say = |state, reason: &str| Report { state, reason: reason.to_owned(), ..Report::default() };
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

    /// It is heard of again. A daemon that starts puts back what its journal lists, before it obeys.
    pub fn back(&mut self) {
        self.away = false;
        if std::mem::take(&mut self.killed) {
            for id in std::mem::take(&mut self.standing).into_keys() {
                self.told.remove(&id);
            }
        }
    }

    /// Time has passed, or containers have ended.
    pub fn look(&mut self, containers: &BTreeSet<String>, now: Timestamp) {
        let Self { standing, told, away: _, killed } = self;
        standing.retain(|id, (container, until)| {
            let state = if !containers.contains(container) {
                (ReportState::Failed, "ContainerGone")
            } else if *until <= now && !*killed {
                (ReportState::Recovered, "")
            } else {
                return true;
            };
            let report = Report { state: state.0, reason: state.1.to_owned(), ..Report::default() };
            told.insert(id.clone(), report);
            false
        });
    }
}
