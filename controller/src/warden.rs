//! What only the leader does about policies: says in their status how they stand and what is hit under them, finds
//! what is hit beyond them, and has it let go.
//!
//! It is woken by what changes, and by the clock only where a window opens or closes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use squall_api::chaospolicy::{ChaosPolicy, ChaosPolicyStatus, PolicyState, ProbeStatus, Usage};
use squall_model::policy::used::{Used, usage};
use squall_model::policy::{Policy, choice};
use squall_model::substitute::MANUAL;

use crate::client::is_gone;
use crate::guard::Guard;
use crate::leader::Router;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::observe::{Index, Observer};
use crate::probes::Probes;
use crate::world::Cluster;

/// What changes within this time is looked at once.
const TOGETHER: Duration = Duration::from_millis(100);
/// What is used is written so often at most: while many experiments begin and end, each would have it written for every
/// policy over them.
const USAGE: jiff::SignedDuration = jiff::SignedDuration::from_secs(1);
/// After an error, so long.
const AGAIN: Duration = Duration::from_secs(2);
/// No longer than this is a time of day waited for without looking: clocks are stepped.
const LONGEST: Duration = Duration::from_secs(60);

/// What the warden works with.
pub struct Warden {
    /// The API server.
    pub client: Client,
    /// What is known.
    pub observer: Observer,
    /// The daemons.
    pub nodes: Nodes,
    /// What is hit.
    pub guard: Guard,
    /// Wakes whom it concerns.
    pub router: Router,
    /// How the probes of policies stand.
    pub probes: Probes,
    /// Figures.
    pub metrics: Arc<Metrics>,
}

impl Warden {
    /// For ever.
    pub async fn run(self) {
        self.guard.filled().await;
        let mut told = HashMap::new();
        loop {
            let next = self.round(&mut told).await;
            let wait = async {
                match next {
                    Some(at) => {
                        let wait =
                            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                        tokio::time::sleep(wait.min(LONGEST)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.guard.changed() => tokio::time::sleep(TOGETHER).await,
                () = wait => {}
            }
        }
    }

    /// Look at everything once; when to look again if nothing changes. `told` has when each policy's status was written.
    async fn round(&self, told: &mut HashMap<String, Timestamp>) -> Option<Timestamp> {
        let now = Timestamp::now();
        let (written, too_much, mut next) = self.look(now);
        if too_much {
            self.router.everyone();
        }
        told.retain(|_, at| *at + USAGE > now);
        let api: Api<ChaosPolicy> = Api::all(self.client.clone());
        for Written { name, status, usage_only } in written {
            if let Some(at) = told.get(&name).filter(|_| usage_only) {
                let due = *at + USAGE;
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            told.insert(name.clone(), now);
            // Merged, so that what is no more is said to be no more.
            let patch = match serde_json::to_value(&status) {
                Ok(status) => json!({ "status": with_nulls(status) }),
                Err(error) => {
                    tracing::error!(%error, policy = name, "a status does not serialise");
                    continue;
                }
            };
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, policy = name, "its status could not be written; will be tried again");
                    let again = now + jiff::SignedDuration::try_from(AGAIN).unwrap_or_default();
                    next = Some(next.map_or(again, |next| next.min(again)));
                }
            }
        }
        next
    }

    /// The statuses that differ from what is written, whether something new is too much, and when to look again.
    fn look(&self, now: Timestamp) -> (Vec<Written>, bool, Option<Timestamp>) {
        let index = self.observer.read();
        let mut book = self.guard.read();
        let world = Cluster { index: &index, nodes: &self.nodes, book: &book };
        let excess = choice::excess(&world, &book.settled, now);
        let by_hand = index.held_by(MANUAL).map(|pod| pod.uid.clone());
        let settled = by_hand.filter(|uid| !excess.contains_key(uid)).collect();
        let mut too_much = false;
        for (_, refusal) in excess.iter().filter(|(uid, _)| !book.excess.contains_key(*uid)) {
            too_much = true;
            self.metrics.refused(&refusal.policy, refusal.rule.path());
        }
        book.excess = excess;
        book.settled = settled;
        let world = Cluster { index: &index, nodes: &self.nodes, book: &book };
        let used = usage(&world, now);
        let mut next: Option<Timestamp> = None;
        let mut written = Vec::new();
        for policy in index.policies() {
            let name = policy.metadata.name.clone().unwrap_or_default();
            let Some(rules) = index.rules().iter().find(|rules| rules.name == name) else { continue };
            let turns = rules.turns(now);
            next = [next, turns].into_iter().flatten().min();
            let used = used.get(name.as_str()).copied().unwrap_or_default();
            let status = status(policy, rules, &index, used, self.probes.of_policy(&name), turns, now);
            if policy.status.as_ref() != Some(&status) {
                let known = policy.status.clone().unwrap_or_default();
                let usage_only = ChaosPolicyStatus { usage: status.usage.clone(), ..known } == status;
                written.push(Written { name, status, usage_only });
            }
        }
        (written, too_much, next)
    }
}

/// A status to be written.
struct Written {
    name: String,
    status: ChaosPolicyStatus,
    /// It differs from what is written in the usage alone.
    usage_only: bool,
}

/// How `policy` stands.
fn status(
    policy: &ChaosPolicy,
    rules: &Policy,
    index: &Index,
    used: Used,
    probes: Vec<ProbeStatus>,
    turns: Option<Timestamp>,
    now: Timestamp,
) -> ChaosPolicyStatus {
    let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let Used { pods: targets, by_hand, experiments } = used;
    let namespaces =
        index.namespaces().filter(|namespace| namespace.opted_in && rules.is_for(namespace)).count();
    let usage = Usage {
        namespaces: number(namespaces),
        targets: number(targets),
        by_hand: number(by_hand),
        experiments: number(experiments),
        summary: match rules.limits.targets {
            Some(most) => format!("{targets}/{most}"),
            None => targets.to_string(),
        },
    };
    let stop = rules.stop(now);
    let (state, message) = match (rules.invalid(), &stop) {
        (_, Some(stop)) if stop.reason == "Halted" => (PolicyState::Halted, stop.message.clone()),
        (Some(why), _) => (PolicyState::Invalid, format!("nothing may be hit until it is corrected: {why}")),
        (None, Some(stop)) => (PolicyState::Closed, stop.message.clone()),
        (None, None) if namespaces == 0 => {
            (PolicyState::Open, "it is for no namespace that takes part".to_owned())
        }
        (None, None) => (PolicyState::Open, "what it allows may be hit now".to_owned()),
    };
    let old = policy.status.clone().unwrap_or_default();
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let value = if holds { "True" } else { "False" };
        let before = old.conditions.iter().find(|condition| condition.type_ == kind);
        Condition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: match before {
                Some(before) if before.status == value => before.last_transition_time.clone(),
                // Whole seconds, as they come back: otherwise it would look changed for ever.
                Some(_) | None => Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            },
            observed_generation: policy.metadata.generation,
        }
    };
    let invalid = rules.invalid();
    ChaosPolicyStatus {
        state: Some(state),
        conditions: vec![
            condition(
                "Valid",
                invalid.is_none(),
                if invalid.is_none() { "Valid" } else { "Invalid" },
                invalid.unwrap_or_default(),
            ),
            condition(
                "Open",
                state == PolicyState::Open,
                &format!("{state:?}"),
                &open_message(state, &message),
            ),
            condition(
                "Halted",
                state == PolicyState::Halted,
                if state == PolicyState::Halted { "Halted" } else { "NotHalted" },
                if state == PolicyState::Halted { &message } else { "" },
            ),
        ],
        message: Some(open_message(state, &message)),
        observed_generation: policy.metadata.generation,
        usage: Some(usage),
        next_change: turns.map(Time),
        probes,
    }
}

/// The moment at which it was looked belongs to a refusal; in a status it would change for ever.
fn open_message(state: PolicyState, message: &str) -> String {
    match state {
        PolicyState::Closed => "outside its windows; see nextChange".to_owned(),
        PolicyState::Open | PolicyState::Halted | PolicyState::Invalid => message.to_owned(),
    }
}

/// Optional fields that are not set, as nulls: a merge takes them away.
fn with_nulls(mut status: serde_json::Value) -> serde_json::Value {
    if let Some(map) = status.as_object_mut() {
        for field in ["nextChange", "probes", "message", "observedGeneration"] {
            map.entry(field).or_insert(serde_json::Value::Null);
        }
    }
    status
}
