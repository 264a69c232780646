//! How a probe asks over HTTP.
//!
//! Nothing is followed that redirects, no forbidden address is connected to, whatever name leads there, and of an
//! answer at most 64 KiB are read. Nothing of it is ever handed on but a status code or a number.

use std::net::{IpAddr, SocketAddr};
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
use k8s_openapi::api::core::v1::Service as KubeService;
use kube::Api;
use squall_model::probe::{Address, Peer, is_forbidden};
use tower::Service;

/// What is read of an answer.
const MOST: usize = 64 << 10;

/// Why there is no answer; never what was answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
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
    #[error("there is no Service {0}")]
    NoService(String),
    #[error("Service {0} has no IP address of its own")]
    NoAddress(String),
    #[error("Service {0} could not be read")]
    Unread(String),
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

/// Asks.
#[derive(Clone)]
pub(super) struct Asker {
    http: Client<HttpConnector<Resolver>, Empty<Bytes>>,
    api: kube::Client,
}

impl Asker {
    pub(super) fn new(api: kube::Client) -> Self {
        let mut connector = HttpConnector::new_with_resolver(Resolver);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        Self { http: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector), api }
    }

    /// The status code of the answer; its body is not read.
    pub(super) async fn status(&self, peer: &Peer) -> Result<u16, AskError> {
        let response = match peer {
            Peer::Url(address) => self.get(address, &shown(&address.host)).await?,
            Peer::Service { namespace, name, port, path } => {
                let host = self.address(namespace, name).await?.to_string();
                let address = Address { host, port: *port, path: path.clone() };
                self.get(&address, &format!("{name}.{namespace}.svc")).await?
            }
        };
        Ok(response.status().as_u16())
    }

    /// The Service's own address. One that is but a name for something else, or that leads to endpoints without one of
    /// its own, is not asked.
    async fn address(&self, namespace: &str, name: &str) -> Result<IpAddr, AskError> {
        let shown = || format!("{namespace}/{name}");
        let services: Api<KubeService> = Api::namespaced(self.api.clone(), namespace);
        let found = services.get_opt(name).await.map_err(|error| {
            tracing::debug!(%error, namespace, name, "a Service could not be read");
            AskError::Unread(shown())
        })?;
        let spec = found.ok_or_else(|| AskError::NoService(shown()))?.spec.unwrap_or_default();
        let address = spec.cluster_ip.and_then(|address| address.parse::<IpAddr>().ok());
        address
            .filter(|address| spec.type_.as_deref() != Some("ExternalName") && !is_forbidden(*address))
            .ok_or_else(|| AskError::NoAddress(shown()))
    }

    async fn get(
        &self,
        address: &Address,
        name: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, AskError> {
        let Address { host, port, path } = address;
        let host = shown(host);
        let request = http::Request::get(format!("http://{host}:{port}{path}"))
            .header(HOST, format!("{name}:{port}"))
            .header(USER_AGENT, "squall-probe")
            .header(ACCEPT, "*/*")
            .body(Empty::new())
            .map_err(|_| AskError::Request)?;
        self.http.request(request).await.map_err(|error| {
            tracing::debug!(%error, host, port, "a probe has no answer");
            AskError::Connection
        })
    }

    /// The one number that Prometheus answers `query` with.
    pub(super) async fn query(&self, address: &Address, query: &str) -> Result<f64, AskError> {
        let path = format!("{}/api/v1/query?query={}", address.path.trim_end_matches('/'), encoded(query));
        let address = Address { path, ..address.clone() };
        let response = self.get(&address, &shown(&address.host)).await?;
        if !response.status().is_success() {
            return Err(AskError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|_| AskError::Body)?;
        single(&body.to_bytes()).ok_or(AskError::Number)
    }
}

/// As it stands in an address.
fn shown(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
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
    use axum::Router;
    use axum::http::StatusCode;
    use axum::http::header::LOCATION;
    use axum::routing::get;

    use super::*;
    use crate::scripted::{self, ApiServer};

    /// A real server. It listens where no probe may ask by name or number; only a parsed address keeps it from that.
    async fn server() -> Address {
        let vector = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}"#;
        let answer = |most: usize| format!("{vector}{}", " ".repeat(most - vector.len()));
        let (fits, too_long) = (answer(MOST), answer(MOST + 1));
        let app = Router::new()
            .route("/well", get(|| async { "secret" }))
            .route("/ill", get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "secret") }))
            .route("/moved", get(|| async { (StatusCode::FOUND, [(LOCATION, "/well")], "secret") }))
            .route("/silent", get(std::future::pending::<()>))
            .route("/fits/api/v1/query", get(move || std::future::ready(fits.clone())))
            .route("/long/api/v1/query", get(move || std::future::ready(too_long.clone())))
            .route(
                "/moved/api/v1/query",
                get(|| async { (StatusCode::FOUND, [(LOCATION, "/fits/api/v1/query")]) }),
            )
            .route("/page/api/v1/query", get(|| async { "<html>secret" }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Address { host: "127.0.0.1".into(), port, path: String::new() }
    }

    fn asker() -> (Asker, ApiServer) {
        let (client, api) = scripted::client();
        (Asker::new(client), api)
    }

    #[tokio::test]
    async fn only_a_service_with_an_address_of_its_own_is_asked() {
        let cases = [
            (r#"{"type":"ExternalName","externalName":"metadata.internal"}"#, "has no IP address of its own"),
            (
                r#"{"type":"ExternalName","externalName":"x","clusterIP":"10.0.0.1"}"#,
                "has no IP address of its own",
            ),
            (r#"{"clusterIP":"None"}"#, "has no IP address of its own"),
            (r#"{"clusterIP":"169.254.169.254"}"#, "has no IP address of its own"),
            ("", "there is no Service shop/web"),
        ];
        let peer = Peer::Service { namespace: "shop".into(), name: "web".into(), port: 80, path: "/".into() };
        for (spec, words) in cases {
            let (asker, mut api) = asker();
            let answer = async {
                let (request, send) = api.next_request().await.unwrap();
                assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/services/web");
                let (code, body) = match spec {
                    "" => (404, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#.to_owned()),
                    spec => (200, format!(r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"web"}},"spec":{spec}}}"#)),
                };
                let body = kube::client::Body::from(body.into_bytes());
                send.send_response(http::Response::builder().status(code).body(body).unwrap());
            };
            let (told, ()) = futures::join!(asker.status(&peer), answer);
            let told = told.unwrap_err().to_string();
            assert!(told.contains(words), "{spec}: {told}");
        }
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_is_not_followed() {
        let (asker, server) = (asker().0, server().await);
        for (path, code) in [("/well", 200), ("/ill", 503), ("/moved", 302), ("/nowhere", 404)] {
            let address = Address { path: path.into(), ..server.clone() };
            assert_eq!(asker.status(&Peer::Url(address)).await.unwrap(), code, "{path}");
        }
        let moved = Address { path: "/moved".into(), ..server };
        assert_eq!(
            asker.query(&moved, "up").await.unwrap_err().to_string(),
            "status 302 instead of a result"
        );
    }

    #[tokio::test]
    async fn at_most_64_kib_are_read_and_nothing_of_it_is_told() {
        let (asker, server) = (asker().0, server().await);
        let at = |path: &str| Address { path: path.into(), ..server.clone() };
        assert_eq!(asker.query(&at("/fits"), "up").await.unwrap(), 7.0);
        let told = asker.query(&at("/long/"), "up").await.unwrap_err().to_string();
        assert_eq!(told, "the answer was broken off, or longer than 64 KiB");
        let told = asker.query(&at("/page"), "up").await.unwrap_err().to_string();
        assert_eq!(told, "the answer holds no single number");
    }

    #[tokio::test]
    async fn what_does_not_answer_is_no_connection_or_waited_for_in_vain() {
        let (asker, server) = (asker().0, server().await);
        let silent = Address { path: "/silent".into(), ..server };
        assert!(
            tokio::time::timeout(Duration::from_millis(200), asker.status(&Peer::Url(silent))).await.is_err()
        );
        let nobody = Address { host: "127.0.0.1".into(), port: 1, path: "/".into() };
        assert_eq!(asker.status(&Peer::Url(nobody)).await.unwrap_err().to_string(), "no connection");
    }

    #[tokio::test]
    async fn no_name_or_number_leads_to_ourselves() {
        let (asker, server) = (asker().0, server().await);
        for host in ["localhost", "127.1", "2130706433", "0x7f.1"] {
            let address = Address { host: host.into(), path: "/well".into(), ..server.clone() };
            let told = asker.status(&Peer::Url(address)).await.unwrap_err().to_string();
            assert_eq!(told, "no connection", "{host}");
        }
    }

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
