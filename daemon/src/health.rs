//! `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus, plain HTTP. Nothing else is served here, and
//! nothing can be changed.
//!
//! `/healthz` says that the process answers; `/readyz` says what is missing until nothing is. Figures name nobody.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    node::Node,
    tls::{Current, Validity},
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves on `listener`, for ever.
pub async fn serve(listener: TcpListener, current: Arc<Current>, node: Arc<Node>) -> Infallible {
    let ready = move || async move {
        match current.validity(SystemTime::now()) {
            Validity::Valid => (StatusCode::OK, "ok\n"),
            Validity::Missing => {
                (StatusCode::SERVICE_UNAVAILABLE, "certificate: the controller has not signed one yet\n")
            }
            Validity::Expired => (
                StatusCode::SERVICE_UNAVAILABLE,
                "certificate: it has expired, and there is no new one yet\n",
            ),
        }
    };
    let metrics = move || async move {
        match node.metrics() {
            Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, OPEN_METRICS)], text),
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string())
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    squall_health::serve(listener, router).await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{cgroup::CgroupRoot, ebpf::Engine, journal::Journal, kill::Tools, runtime::Runtimes};

    async fn ask(port: u16, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_are_answered() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools {
            engine: Arc::new(Engine::new(false)),
            cgroups: CgroupRoot::discover("/sys/fs/cgroup".as_ref(), "/proc".as_ref()).unwrap(),
            runtimes: Runtimes::default(),
        };
        let node = Node::new("n".into(), tools, Journal::open(dir.path()).unwrap());
        let server = tokio::spawn(serve(listener, Arc::new(Current::default()), node));
        assert!(ask(port, "/healthz").await.starts_with("HTTP/1.1 200"));
        let metrics = ask(port, "/metrics").await;
        assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
        assert!(metrics.contains("\nsquall_daemon_ebpf_loaded 0\n"), "{metrics}");
        let missing = ask(port, "/readyz").await;
        assert!(
            missing.starts_with("HTTP/1.1 503") && missing.contains("has not signed one yet"),
            "{missing}"
        );
        server.abort();
    }
}
