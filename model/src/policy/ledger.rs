//! What is hit now, by whom: every target that a status records and that is not whole again, or may be hit again without
//! being chosen anew.
//!
//! It is filled from all statuses before the first choice of a term, and written in the same moment in which targets
//! are chosen. So two experiments that choose at once see each other.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use squall_api::status::{ExperimentStatus, Target, TargetPhase};

use crate::pod::PodView;

/// For how long after the end of a one-shot its targets are waited for until they are Ready again.
const FOLLOWED: i64 = 600;

/// What experiments hold, by their UID.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Ledger(BTreeMap<String, Hold>);

/// What one experiment holds.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Hold {
    /// When its targets were chosen.
    pub since: Option<Timestamp>,
    /// It has not completed.
    pub active: bool,
    /// Namespaces in which it has targets, whatever became of them.
    pub namespaces: BTreeSet<String>,
    /// Its pods, by UID.
    pub pods: BTreeMap<String, Held>,
}

/// One pod that is held.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its workload.
    pub workload: String,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
}

impl Ledger {
    /// Nothing is held.
    pub const EMPTY: Self = Self(BTreeMap::new());

    /// What the experiment `uid` holds from now on.
    pub fn set(&mut self, uid: &str, hold: Hold) {
        if hold == Hold::default() {
            self.0.remove(uid);
        } else {
            self.0.insert(uid.to_owned(), hold);
        }
    }

    /// What it held, and may or may not hold any more, is held beside what it holds now.
    pub fn add(&mut self, uid: &str, hold: Hold) {
        let old = self.0.remove(uid).unwrap_or_default();
        let Hold { since, active, mut namespaces, mut pods } = hold;
        namespaces.extend(old.namespaces);
        for (uid, held) in old.pods {
            pods.entry(uid).or_insert(held);
        }
        self.set(uid, Hold { since: since.or(old.since), active: active || old.active, namespaces, pods });
    }

    /// The experiment is no more.
    pub fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// What the experiment holds.
    pub fn get(&self, uid: &str) -> Option<&Hold> {
        self.0.get(uid)
    }

    /// Every experiment that holds anything.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Hold)> {
        self.0.iter().map(|(uid, hold)| (uid.as_str(), hold))
    }
}

impl Hold {
    /// What an experiment with this status holds at `now`.
    pub fn of(status: &ExperimentStatus, now: Timestamp) -> Self {
        let active = status.completed_at.is_none();
        // What has been put back comes back after a pause or a halt, unless its time is over.
        let returns = active && status.ends_at.as_ref().is_none_or(|at| at.0 > now);
        let followed = status.completed_at.as_ref().and_then(|at| {
            let until = at.0.checked_add(jiff::SignedDuration::from_secs(FOLLOWED)).ok()?;
            (until > now).then_some(until)
        });
        let pods: BTreeMap<String, Held> = status
            .targets
            .iter()
            .filter_map(|target| {
                let until = match held(target) {
                    Keeps::Nothing => return None,
                    Keeps::Itself if active => None,
                    Keeps::Place if returns => None,
                    // A dry run ends with its targets chosen.
                    Keeps::Itself | Keeps::Place => return None,
                    Keeps::UntilReady if active => None,
                    Keeps::UntilReady => Some(followed?),
                };
                Some((target.uid.clone(), Held { until, ..Held::of(target) }))
            })
            .collect();
        let chosen = status.selected_at.is_some() && active;
        if !chosen && pods.is_empty() {
            return Self::default();
        }
        Self {
            since: status.selected_at.as_ref().map(|at| at.0),
            active: chosen,
            namespaces: status
                .targets
                .iter()
                .filter(|target| target.phase != TargetPhase::Skipped)
                .map(|target| target.namespace.clone())
                .collect(),
            pods,
        }
    }
}

impl Held {
    fn of(target: &Target) -> Self {
        Self {
            namespace: target.namespace.clone(),
            name: target.pod.clone(),
            workload: target.workload.clone().unwrap_or_else(|| format!("Pod/{}", target.pod)),
            until: None,
        }
    }

    /// A pod that is held by its label.
    pub fn by_hand(pod: &PodView) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            workload: pod.workload(),
            until: None,
        }
    }
}

/// How a target is held.
enum Keeps {
    Nothing,
    Itself,
    /// It is whole, and whoever goes on with it asks no policy again.
    Place,
    /// Its pod, or what replaces it, is not Ready yet.
    UntilReady,
}

fn held(target: &Target) -> Keeps {
    match target.phase {
        TargetPhase::Selected | TargetPhase::Injected | TargetPhase::Recovering => Keeps::Itself,
        TargetPhase::Recovered => Keeps::Place,
        // A pod that nobody replaces does not come back; a process that only got a signal was never away.
        TargetPhase::Killed
            if target.ready_at.is_none()
                && (target.owner.is_some() || target.container.is_some())
                && (target.container.is_none() || target.exit_code.is_some()) =>
        {
            Keeps::UntilReady
        }
        TargetPhase::Killed
        | TargetPhase::Skipped
        | TargetPhase::Failed
        | TargetPhase::Released
        | TargetPhase::Gone => Keeps::Nothing,
    }
}
