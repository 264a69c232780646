//! Asks what probes ask, for as long as there are any. What is to be thought of an answer is decided in
//! `squall-model`; where an answer goes is the [book](crate::guard) for experiments, the status for policies.
//!
//! How it is asked, and what is never asked, is [`ask`]'s.

mod ask;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use squall_api::chaospolicy::{ChaosPolicy, ProbeStatus};
use squall_model::probe::{
    Health, Judge, Kind, Place, Probe, Seen, Steady, availability, nodes, number, status_code, unanswered,
};
use tokio::task::JoinHandle;

use self::ask::{AskError, Asker};
use crate::guard::Guard;
use crate::observe::Observer;

/// How often what is watched anyway is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Whose a probe is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Owner {
    /// A policy's, by its name.
    Policy(String),
    /// An experiment's, by its UID.
    Experiment(String),
}

/// A probe that is being asked.
struct Asked {
    probe: Probe,
    health: Health,
    /// When it was last looked at with a result that counts.
    settled: Option<Timestamp>,
    since: Timestamp,
    task: JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Table = Arc<Mutex<HashMap<Owner, BTreeMap<usize, Asked>>>>;

/// All probes of a term; they end with it.
#[derive(Clone)]
pub struct Probes {
    table: Table,
    observer: Observer,
    guard: Guard,
    asker: Asker,
    wake: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Probes {
    /// None yet. `wake` is called with the UID of an experiment whose probes have something new to say.
    pub fn new(
        client: Client,
        observer: Observer,
        guard: Guard,
        wake: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self { table: Table::default(), observer, guard, asker: Asker::new(client), wake: Arc::new(wake) }
    }

    /// The probes that policies have from now on.
    pub fn of_policies<'a>(&self, policies: impl Iterator<Item = &'a ChaosPolicy>) {
        let mut wanted: HashMap<Owner, (Vec<Probe>, Vec<ProbeStatus>)> = HashMap::new();
        for policy in policies.filter(|policy| !policy.spec.halt_when.is_empty()) {
            let parsed = policy.spec.halt_when.iter().enumerate().filter_map(|(index, written)| {
                Probe::parse(&format!("spec.haltWhen[{index}]"), written, Place::Policy).ok()
            });
            let known = policy.status.as_ref().map(|status| status.probes.clone()).unwrap_or_default();
            let name = policy.metadata.name.clone().unwrap_or_default();
            wanted.insert(Owner::Policy(name), (parsed.collect(), known));
        }
        let gone: Vec<Owner> = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let policies = table.keys().filter(|owner| matches!(owner, Owner::Policy(_)));
            policies.filter(|owner| !wanted.contains_key(owner)).cloned().collect()
        };
        for owner in gone {
            self.ask_all(owner, &[], &[]);
        }
        for (owner, (probes, known)) in wanted {
            self.ask_all(owner, &probes, &known);
        }
    }

    /// The probes that the experiment `uid` has from now on.
    pub fn of_experiment(&self, uid: &str, probes: &[Probe]) {
        self.ask_all(Owner::Experiment(uid.to_owned()), probes, &[]);
    }

    /// Nobody asks any more.
    pub fn end(&self) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How the probes of the policy `name` stand.
    pub fn of_policy(&self, name: &str) -> Vec<ProbeStatus> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let probes = table.get(&Owner::Policy(name.to_owned())).into_iter().flat_map(BTreeMap::values);
        probes
            .map(|asked| {
                let (healthy, message) = match &asked.health {
                    Health::Unknown => ("Unknown", None),
                    // What is well changes with every look; a status that did would be written for ever.
                    Health::Healthy(_) => ("True", None),
                    Health::Unhealthy(evidence) => ("False", Some(evidence.clone())),
                };
                ProbeStatus {
                    name: asked.probe.name.clone(),
                    healthy: healthy.to_owned(),
                    message,
                    since: Some(Time(Timestamp::from_second(asked.since.as_second()).unwrap_or(asked.since))),
                }
            })
            .collect()
    }

    /// `known` is what was thought of them before: what was unhealthy stays so until it is seen to be well, so that
    /// neither a new leader nor a changed probe lifts a halt.
    fn ask_all(&self, owner: Owner, probes: &[Probe], known: &[ProbeStatus]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if probes.is_empty() {
            table.remove(&owner);
            drop(table);
            let mut book = self.guard.read();
            match &owner {
                Owner::Experiment(uid) => book.steady.remove(uid),
                Owner::Policy(name) => book.watched.remove(name),
            };
            return;
        }
        let asked = table.entry(owner.clone()).or_default();
        asked.retain(|index, _| *index < probes.len());
        for (index, probe) in probes.iter().enumerate() {
            if asked.get(&index).is_some_and(|asked| asked.probe == *probe) {
                continue;
            }
            let before = known.iter().find(|before| before.name == probe.name && before.healthy == "False");
            let health = match before {
                Some(before) => Health::Unhealthy(before.message.clone().unwrap_or_default()),
                None => Health::Unknown,
            };
            let since =
                before.and_then(|before| before.since.as_ref()).map_or_else(Timestamp::now, |at| at.0);
            let judge = Judge::of(health.clone());
            let task = tokio::spawn(self.clone().keep_asking(owner.clone(), index, probe.clone(), judge));
            asked.insert(index, Asked { probe: probe.clone(), health, settled: None, since, task });
        }
        if let Owner::Policy(name) = owner {
            let sum = sum(asked.values());
            drop(table);
            self.guard.read().watched.insert(name, sum);
        }
    }

    async fn keep_asking(self, owner: Owner, index: usize, probe: Probe, mut judge: Judge) {
        loop {
            let (begun, at) = (tokio::time::Instant::now(), Timestamp::now());
            let mut pause = probe.asking().map_or(LOOK, |asking| asking.every);
            if let Some(seen) = self.look(&owner, &probe).await {
                if let Some(due) = judge.see(&probe, seen, at) {
                    // What lasts for less than the pause counts when it is due.
                    pause = pause.min(Duration::try_from(due.duration_since(at)).unwrap_or(pause));
                }
                self.record(&owner, index, &judge);
            }
            tokio::time::sleep_until(begun + pause).await;
        }
    }

    /// Write down what is thought of a probe, and tell whom it concerns where that is news.
    fn record(&self, owner: &Owner, index: usize, judge: &Judge) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(all) = table.get_mut(owner) else { return };
        let Some(asked) = all.get_mut(&index) else { return };
        let news = std::mem::discriminant(&asked.health) != std::mem::discriminant(&judge.health);
        asked.settled = judge.settled;
        if news {
            asked.health = judge.health.clone();
            asked.since = Timestamp::now();
        }
        match owner {
            Owner::Policy(name) => {
                let sum = sum(all.values());
                drop(table);
                self.guard.read().watched.insert(name.clone(), sum);
                if news {
                    self.guard.notify();
                }
            }
            Owner::Experiment(uid) => {
                let sum = sum(all.values());
                drop(table);
                self.guard.read().steady.insert(uid.clone(), sum);
                if news {
                    (self.wake)(uid);
                }
            }
        }
    }

    /// Look once; `None` where there is nothing to look at.
    async fn look(&self, owner: &Owner, probe: &Probe) -> Option<Seen> {
        match &probe.kind {
            Kind::Availability { namespace, pods, least, lasting: _ } => {
                let now = Timestamp::now();
                let index = self.observer.read();
                if let Some(name) = namespace {
                    let none = || unanswered(&format!("no pod is selected in namespace {name}"), now);
                    return Some(availability(pods, *least, index.pods_in(name), now).unwrap_or_else(none));
                }
                let Owner::Policy(policy) = owner else { return None };
                let rules = index.rules().iter().find(|rules| rules.name == *policy)?;
                let concerned =
                    index.namespaces().filter(|namespace| namespace.opted_in && rules.is_for(namespace));
                let mut seen = None;
                for namespace in concerned {
                    match availability(pods, *least, index.pods_in(&namespace.name), now) {
                        Some(Seen::Unwell(why)) => {
                            return Some(Seen::Unwell(format!("namespace {}: {why}", namespace.name)));
                        }
                        Some(well) => seen = Some(well),
                        None => {}
                    }
                }
                // Where nothing is selected nothing can be missing.
                Some(seen.unwrap_or_else(|| Seen::Well("no pod is selected".to_owned())))
            }
            Kind::Nodes { selector, conditions, at_most, lasting: _ } => {
                let now = Timestamp::now();
                let index = self.observer.read();
                Some(nodes(selector, conditions, *at_most, index.node_healths(), now))
            }
            Kind::Http { of, expect, asking } => {
                let answer = tokio::time::timeout(asking.timeout, self.asker.status(of)).await;
                let now = Timestamp::now();
                Some(match answer.unwrap_or(Err(AskError::Timeout)) {
                    Ok(code) => status_code(expect, code, now),
                    Err(error) => unanswered(&error.to_string(), now),
                })
            }
            Kind::Prometheus { address, query, threshold, asking } => {
                let answer = tokio::time::timeout(asking.timeout, self.asker.query(address, query)).await;
                let now = Timestamp::now();
                Some(match answer.unwrap_or(Err(AskError::Timeout)) {
                    Ok(value) => number(*threshold, value, now),
                    Err(error) => unanswered(&error.to_string(), now),
                })
            }
        }
    }
}

/// What is to be thought of probes together: one that is not well is enough.
fn sum<'a>(all: impl Iterator<Item = &'a Asked>) -> Steady {
    let mut sum = Steady { health: Health::Healthy(String::new()), settled: Some(Timestamp::MAX) };
    for asked in all {
        match (&asked.health, &sum.health) {
            (_, Health::Unhealthy(_)) | (Health::Healthy(_), _) => {}
            (Health::Unhealthy(evidence), _) => {
                sum.health = Health::Unhealthy(format!("{}: {evidence}", asked.probe.name));
            }
            (Health::Unknown, _) => sum.health = Health::Unknown,
        }
        sum.settled = sum.settled.zip(asked.settled).map(|(sum, one)| sum.min(one));
    }
    sum
}
