//! `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus, plain HTTP. Nothing else is served here, and
//! nothing can be changed.
//!
//! `/healthz` says that the process answers; `/readyz` says what is missing until nothing is. Anybody may ask, so nobody
//! may stay, nobody gets more than a few connections, and figures name nobody.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, time::timeout};

use crate::{
    limit::Limit,
    node::Node,
    tls::{Current, Validity},
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at the same time, in all and from one address. The kubelet has one for each probe.
const CONNECTIONS: (usize, usize) = (32, 8);
/// How long a connection may last. A probe takes milliseconds.
const LIFETIME: Duration = Duration::from_secs(5);

/// Serves on `listener`, for ever.
pub async fn serve(listener: TcpListener, current: Arc<Current>, node: Arc<Node>) -> std::io::Result<()> {
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
    let limit = Limit::new(CONNECTIONS.0, CONNECTIONS.1);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to be closed.
                tracing::warn!(%error, "could not accept a probe");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = limit.place(peer.ip()) else {
            tracing::debug!(%peer, "refused a probe: too many connections");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _place = place;
            let server = Builder::new(TokioExecutor::new()).http1_only();
            // Whatever goes wrong is the peer's loss.
            let _ = timeout(LIFETIME, server.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
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
    async fn probes_are_answered_and_nobody_gets_all_connections() {
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
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS.1 {
            held.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        // One too many is closed without a word.
        let mut refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let read = timeout(Duration::from_secs(2), refused.read(&mut [0; 8])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
        drop(held);
        server.abort();
    }
}
