//! An outlet for those who collect: what is told as Events goes to one HTTP address too, as CloudEvents 1.0 (one a
//! request, structured JSON).
//!
//! It is never in the way: who tells waits for nobody, and what can't be sent in time is counted and dropped. Only the
//! leader tells, so nothing comes twice, but for an answer that got lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use serde::Serialize;
use squall_api::names;
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// How many may wait; each is about a kilobyte.
const ROOM: usize = 2_000;
/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often one is tried before it is dropped: half a minute in all.
const TRIES: u32 = 9;

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Uri);

/// Why an address is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "found {found:?}; write an address such as http://collector.monitoring.svc:8080/squall (https is not spoken)"
)]
pub struct AddressError {
    found: String,
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { found: text.to_owned() };
        let uri: Uri = text.parse().map_err(|_| error())?;
        let plain = uri.scheme_str() == Some("http");
        let host = uri.host().is_some_and(|host| !host.is_empty());
        let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if plain && host && !user { Ok(Self(uri)) } else { Err(error()) }
    }
}

/// What is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// A stable word.
    pub reason: String,
    /// In words.
    pub message: String,
    /// What it is about: an experiment, a schedule, a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// What was hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Object>,
    /// The user who asked for the experiment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
}

/// An object in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Object {
    fn path(&self) -> String {
        format!("{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    time: Timestamp,
    datacontenttype: &'static str,
    data: &'a Told,
}

/// The outlet.
#[derive(Clone)]
pub struct Sink {
    queue: mpsc::Sender<(Timestamp, Told)>,
    metrics: Arc<Metrics>,
}

impl Sink {
    /// Send to `address`; `instance` is this replica's name.
    pub fn start(address: Address, instance: &str, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(ROOM);
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        let sender = Sender {
            address: address.0,
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector),
            life: format!("{instance}-{}", Timestamp::now().as_millisecond()),
            metrics: metrics.clone(),
        };
        tokio::spawn(sender.run(waiting));
        Self { queue, metrics }
    }

    /// Have it sent, if there is room for it.
    pub fn tell(&self, told: Told) {
        if self.queue.try_send((Timestamp::now(), told)).is_err() {
            self.metrics.sent("dropped");
        }
    }
}

/// Sends one after the other.
struct Sender {
    address: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Of this process.
    life: String,
    metrics: Arc<Metrics>,
}

/// Why one was not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection")]
    Connection,
    #[error("status {0}")]
    Status(StatusCode),
    #[error("it makes no request")]
    Request,
}

impl SendError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Timeout | Self::Connection => true,
            Self::Status(code) => code.is_server_error() || *code == StatusCode::TOO_MANY_REQUESTS,
            Self::Request => false,
        }
    }
}

impl Sender {
    async fn run(self, mut waiting: mpsc::Receiver<(Timestamp, Told)>) {
        let mut number = 0u64;
        while let Some((time, told)) = waiting.recv().await {
            number += 1;
            let Ok(body) = serde_json::to_vec(&event(format!("{}-{number}", self.life), time, &told)) else {
                self.metrics.sent("failed");
                continue;
            };
            let outcome = match self.deliver(&Bytes::from(body)).await {
                Ok(()) => "sent",
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, reason = told.reason, "an event could not be sent and is dropped");
                    "failed"
                }
            };
            self.metrics.sent(outcome);
        }
    }

    async fn deliver(&self, body: &Bytes) -> Result<(), SendError> {
        let mut tries = 1;
        loop {
            match tokio::time::timeout(TIMEOUT, self.send(body)).await.unwrap_or(Err(SendError::Timeout)) {
                Ok(()) => return Ok(()),
                Err(error) if tries < TRIES && error.may_pass() => {
                    tokio::time::sleep(Duration::from_millis(100 << tries.min(6))).await;
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(&self, body: &Bytes) -> Result<(), SendError> {
        let request = http::Request::post(&self.address)
            .header(CONTENT_TYPE, "application/cloudevents+json")
            .header(USER_AGENT, names::CONTROLLER)
            .body(Full::new(body.clone()))
            .map_err(|_| SendError::Request)?;
        let response = self.client.request(request).await.map_err(|_| SendError::Connection)?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(SendError::Status(status)) }
    }
}

fn event(id: String, time: Timestamp, told: &Told) -> CloudEvent<'_> {
    let about = told.object.as_ref().or(told.pod.as_ref());
    CloudEvent {
        specversion: "1.0",
        id,
        source: format!("/{}/{}", names::GROUP, about.map(Object::path).unwrap_or_default()),
        r#type: format!("dev.squall.{}", told.reason),
        subject: told.pod.as_ref().map(Object::path),
        time,
        datacontenttype: "application/json",
        data: told,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::post;
    use serde_json::Value;

    use super::*;

    /// A receiver that answers what it is told to, then 204; and what it took.
    async fn receiver(answers: &[u16]) -> (Address, Arc<Mutex<Vec<(HeaderMap, Value)>>>) {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let answers: Vec<u16> = answers.iter().rev().copied().collect();
        let (answers, kept) = (Arc::new(Mutex::new(answers)), taken.clone());
        let app = Router::new().route(
            "/in",
            post(move |headers: HeaderMap, body: Bytes| {
                let code = answers.lock().unwrap().pop().unwrap_or(204);
                if code == 204 {
                    kept.lock().unwrap().push((headers, serde_json::from_slice(&body).unwrap()));
                }
                std::future::ready(StatusCode::from_u16(code).unwrap())
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/in", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (address, taken)
    }

    fn told(reason: &str) -> Told {
        let object = |kind: &str, name: &str| Object {
            kind: kind.into(),
            namespace: "shop".into(),
            name: name.into(),
            uid: "u".into(),
        };
        Told {
            kind: "Warning",
            reason: reason.into(),
            message: "failed by PodChaos shop/x".into(),
            object: Some(object("PodChaos", "x")),
            pod: Some(object("Pod", "web-1")),
            requested_by: Some("ann".into()),
        }
    }

    async fn until(metrics: &Metrics, line: &str) {
        let text = tokio::time::timeout(Duration::from_secs(20), async {
            while !metrics.encode().unwrap().contains(line) {
                tokio::task::yield_now().await;
            }
        });
        assert!(text.await.is_ok(), "{line} is missing in {}", metrics.encode().unwrap());
    }

    #[tokio::test]
    async fn each_is_sent_once_in_order_also_where_the_receiver_stumbles() {
        let (address, taken) = receiver(&[503, 429]).await;
        let metrics = Arc::new(Metrics::new());
        let sink = Sink::start(address, "squall-controller-0", metrics.clone());
        sink.tell(told("Injected"));
        sink.tell(told("Recovered"));
        until(&metrics, r#"squall_sink_events_total{outcome="sent"} 2"#).await;
        let taken = taken.lock().unwrap();
        let (headers, first) = &taken[0];
        assert_eq!(headers["content-type"], "application/cloudevents+json");
        let (id, time) = (first["id"].as_str().unwrap(), first["time"].as_str().unwrap());
        assert!(id.starts_with("squall-controller-0-") && time.parse::<Timestamp>().is_ok());
        for (key, value) in [
            ("specversion", "1.0"),
            ("source", "/squall.dev/PodChaos/shop/x"),
            ("type", "dev.squall.Injected"),
            ("subject", "Pod/shop/web-1"),
            ("datacontenttype", "application/json"),
        ] {
            assert_eq!(first[key], value, "{key}");
        }
        assert_eq!(first["data"]["requestedBy"], "ann");
        assert_eq!(first["data"]["pod"]["uid"], "u");
        assert_eq!(taken[1].1["type"], "dev.squall.Recovered");
        let ids: BTreeSet<&str> = taken.iter().map(|(_, event)| event["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 2);
    }

    #[tokio::test]
    async fn what_is_refused_is_dropped_and_the_next_goes_on() {
        let (address, taken) = receiver(&[400]).await;
        let metrics = Arc::new(Metrics::new());
        let sink = Sink::start(address, "c", metrics.clone());
        sink.tell(told("Injected"));
        sink.tell(told("Recovered"));
        until(&metrics, r#"squall_sink_events_total{outcome="sent"} 1"#).await;
        assert!(metrics.encode().unwrap().contains(r#"squall_sink_events_total{outcome="failed"} 1"#));
        assert_eq!(taken.lock().unwrap()[0].1["type"], "dev.squall.Recovered");
    }

    #[tokio::test]
    async fn where_nobody_listens_nobody_waits() {
        let metrics = Arc::new(Metrics::new());
        let sink = Sink::start("http://127.0.0.1:1/in".parse().unwrap(), "c", metrics.clone());
        for _ in 0..ROOM + 10 {
            sink.tell(told("Injected"));
        }
        until(&metrics, r#"squall_sink_events_total{outcome="dropped"} "#).await;
    }

    #[test]
    fn an_address_is_plain_http_with_a_host() {
        for good in ["http://collector:8080", "http://127.0.0.1:1/in?x=1", "http://[fd00::1]/"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        for bad in
            ["https://collector", "collector:80", "/in", "", "http://", "http://u:p@collector/", "http://a b"]
        {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("http://collector.monitoring.svc"), "{error}");
        }
    }
}
