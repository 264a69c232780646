//! Asks what probes ask, for as long as there are any. What is to be thought of an answer is decided in
//! `squall-model`; where an answer goes is the [book](crate::guard) for experiments, the status for policies.
//!
//! Nothing is followed that redirects, no forbidden address is connected to, whatever name leads there, and of an
//! answer at most 64 KiB are read. Nothing of it is ever shown but a status code or a number.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use squall_api::chaospolicy::{ChaosPolicy, ProbeStatus};
use squall_model::probe::{
    Address, Health, Judge, Kind, Place, Probe, Seen, availability, is_forbidden, nodes, number, status_code,
    unanswered,
};
use tokio::task::JoinHandle;
use tower::Service;

use crate::guard::Guard;
use crate::observe::Observer;

/// How often what is watched anyway is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What is read of an answer.
const MOST: usize = 64 << 10;

/// Why there is no answer; never what was answered.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the address makes no request")]
    Request,
    #[error("no answer in time")]
    Timeout,
    #[error("no connection")]
    Connection,
    #[error("the answer was broken off, or longer than 64 KiB")]
    Body,
    #[error("status {0} instead of a result")]
    Status(u16),
    #[error("the answer holds no single number")]
    Number,
}

/// Resolves names to addresses that may be asked.
#[derive(Clone)]
struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| !is_forbidden(address.ip())).collect();
            if allowed.is_empty() {
                return Err(std::io::Error::other("its addresses may not be asked"));
            }
            Ok(allowed.into_iter())
        })
    }
}

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
    client: Client<HttpConnector<Resolver>, Empty<Bytes>>,
    wake: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Probes {
    /// None yet. `wake` is called with the UID of an experiment whose probes have something new to say.
    pub fn new(observer: Observer, guard: Guard, wake: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let mut connector = HttpConnector::new_with_resolver(Resolver);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { table: Table::default(), observer, guard, client, wake: Arc::new(wake) }
    }

    /// The probes that policies have from now on.
    pub fn of_policies<'a>(&self, policies: impl Iterator<Item = &'a ChaosPolicy>) {
        let mut wanted: HashMap<Owner, Vec<Probe>> = HashMap::new();
        for policy in policies.filter(|policy| !policy.spec.halt_when.is_empty()) {
            let parsed = policy.spec.halt_when.iter().enumerate().filter_map(|(index, written)| {
                Probe::parse(&format!("spec.haltWhen[{index}]"), written, Place::Policy).ok()
            });
            wanted.insert(Owner::Policy(policy.metadata.name.clone().unwrap_or_default()), parsed.collect());
        }
        let gone: Vec<Owner> = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let policies = table.keys().filter(|owner| matches!(owner, Owner::Policy(_)));
            policies.filter(|owner| !wanted.contains_key(owner)).cloned().collect()
        };
        for owner in gone {
            self.ask_all(owner, &[]);
        }
        for (owner, probes) in wanted {
            self.ask_all(owner, &probes);
        }
    }

    /// The probes that the experiment `uid` has from now on.
    pub fn of_experiment(&self, uid: &str, probes: &[Probe]) {
        self.ask_all(Owner::Experiment(uid.to_owned()), probes);
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

    fn ask_all(&self, owner: Owner, probes: &[Probe]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if probes.is_empty() {
            table.remove(&owner);
            drop(table);
            if let Owner::Experiment(uid) = &owner {
                self.guard.read().steady.remove(uid);
            }
            return;
        }
        let asked = table.entry(owner.clone()).or_default();
        asked.retain(|index, _| *index < probes.len());
        for (index, probe) in probes.iter().enumerate() {
            if asked.get(&index).is_some_and(|asked| asked.probe == *probe) {
                continue;
            }
            let task = tokio::spawn(self.clone().keep_asking(owner.clone(), index, probe.clone()));
            let now = Timestamp::now();
            asked.insert(index, Asked { probe: probe.clone(), health: Health::Unknown, since: now, task });
        }
    }

    async fn keep_asking(self, owner: Owner, index: usize, probe: Probe) {
        let mut judge = Judge::default();
        loop {
            let begun = tokio::time::Instant::now();
            let seen = self.look(&owner, &probe).await;
            if let Some(seen) = seen {
                judge.see(&probe, seen, Timestamp::now());
                self.record(&owner, index, judge.health.clone());
            }
            tokio::time::sleep_until(begun + probe.asking().map_or(LOOK, |asking| asking.every)).await;
        }
    }

    /// Write down what is thought of a probe, and tell whom it concerns where that is news.
    fn record(&self, owner: &Owner, index: usize, health: Health) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(all) = table.get_mut(owner) else { return };
        let Some(asked) = all.get_mut(&index) else { return };
        let same = std::mem::discriminant(&asked.health) == std::mem::discriminant(&health);
        if same {
            return;
        }
        asked.health = health;
        asked.since = Timestamp::now();
        match owner {
            Owner::Policy(_) => {
                drop(table);
                self.guard.notify();
            }
            Owner::Experiment(uid) => {
                let sum = sum(all.values());
                drop(table);
                self.guard.read().steady.insert(uid.clone(), sum);
                (self.wake)(uid);
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
            Kind::Http { address, expect, asking } => {
                let answer = tokio::time::timeout(asking.timeout, self.get(address)).await;
                let now = Timestamp::now();
                Some(match answer.unwrap_or(Err(AskError::Timeout)) {
                    Ok(response) => status_code(expect, response.status().as_u16(), now),
                    Err(error) => unanswered(&error.to_string(), now),
                })
            }
            Kind::Prometheus { address, query, threshold, asking } => {
                let answer = tokio::time::timeout(asking.timeout, self.query(address, query)).await;
                let now = Timestamp::now();
                Some(match answer.unwrap_or(Err(AskError::Timeout)) {
                    Ok(value) => number(*threshold, value, now),
                    Err(error) => unanswered(&error.to_string(), now),
                })
            }
        }
    }

    async fn get(&self, address: &Address) -> Result<http::Response<hyper::body::Incoming>, AskError> {
        let Address { host, port, path } = address;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let request = http::Request::get(format!("http://{host}:{port}{path}"))
            .header(HOST, format!("{host}:{port}"))
            .header(USER_AGENT, "squall-probe")
            .header(ACCEPT, "*/*")
            .body(Empty::new())
            .map_err(|_| AskError::Request)?;
        self.client.request(request).await.map_err(|error| {
            tracing::debug!(%error, host, port, "a probe has no answer");
            AskError::Connection
        })
    }

    async fn query(&self, address: &Address, query: &str) -> Result<f64, AskError> {
        let path = format!("{}/api/v1/query?query={}", address.path.trim_end_matches('/'), encoded(query));
        let response = self.get(&Address { path, ..address.clone() }).await?;
        if !response.status().is_success() {
            return Err(AskError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|_| AskError::Body)?;
        single(&body.to_bytes()).ok_or(AskError::Number)
    }
}

/// What is to be thought of probes together: one that is not well is enough.
fn sum<'a>(all: impl Iterator<Item = &'a Asked>) -> Health {
    let mut sum = Health::Healthy(String::new());
    for asked in all {
        match &asked.health {
            Health::Unhealthy(evidence) => {
                return Health::Unhealthy(format!("{}: {evidence}", asked.probe.name));
            }
            Health::Unknown => sum = Health::Unknown,
            Health::Healthy(_) => {}
        }
    }
    sum
}

/// The one number in Prometheus's answer.
fn single(body: &[u8]) -> Option<f64> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    if answer["status"] != "success" {
        return None;
    }
    let result = &answer["data"]["result"];
    let sample = match answer["data"]["resultType"].as_str()? {
        "scalar" => result,
        "vector" => match result.as_array()?.as_slice() {
            [one] => &one["value"],
            _ => return None,
        },
        _ => return None,
    };
    sample.get(1)?.as_str()?.parse().ok()
}

/// `text` for a query string.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            all.push(char::from(byte));
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_is_read_from_prometheus_and_nothing_else() {
        let vector = |result: &str| {
            format!(r#"{{"status":"success","data":{{"resultType":"vector","result":{result}}}}}"#)
        };
        assert_eq!(single(vector(r#"[{"metric":{},"value":[1,"0.25"]}]"#).as_bytes()), Some(0.25));
        assert_eq!(
            single(br#"{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}"#),
            Some(7.0)
        );
        assert_eq!(single(vector("[]").as_bytes()), None);
        assert_eq!(single(vector(r#"[{"value":[1,"1"]},{"value":[1,"2"]}]"#).as_bytes()), None);
        assert_eq!(single(br#"{"status":"error"}"#), None);
        assert_eq!(single(b"<html>"), None);
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded(r#"up{job="a b"}"#), "up%7Bjob%3D%22a%20b%22%7D");
    }

    #[tokio::test]
    async fn a_name_that_leads_to_ourselves_is_not_resolved() {
        let name: Name = "localhost".parse().unwrap();
        assert!(Resolver.call(name).await.is_err());
    }
}
