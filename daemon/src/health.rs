//! `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus, plain HTTP. Nothing else is served here, and
//! nothing can be changed.
//!
//! `/healthz` says that the process answers; `/readyz` says what is missing until nothing is. Anybody may ask, so nobody
//! may stay, nobody gets more than a few connections, nobody is refused for those whom others hold, and figures name
//! nobody.

use std::{
    cmp::Reverse,
    net::IpAddr,
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
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};

use crate::{
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
    let mut held = Held::default();
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
        let service = TowerToHyperService::new(router.clone());
        held.make_room(peer.ip().to_canonical());
        let task = tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new()).http1_only();
            // Whatever goes wrong is the peer's loss.
            let _ = timeout(LIFETIME, server.serve_connection(TokioIo::new(stream), service)).await;
        });
        held.0.push((peer.ip().to_canonical(), task.abort_handle()));
    }
}

/// The connections that there are, the oldest first.
#[derive(Default)]
struct Held(Vec<(IpAddr, AbortHandle)>);

impl Held {
    /// Closes one where a further one of `peer` would be too many: the peer's oldest, or that of whoever has most. The
    /// kubelet restarts a daemon that does not answer it, and no number of pods shall keep it out.
    fn make_room(&mut self, peer: IpAddr) {
        self.0.retain(|(_, task)| !task.is_finished());
        let count = |peer: IpAddr| self.0.iter().filter(|(one, _)| *one == peer).count();
        let closed = if count(peer) >= CONNECTIONS.1 {
            self.0.iter().position(|(one, _)| *one == peer)
        } else if self.0.len() >= CONNECTIONS.0 {
            // Of equals the first.
            (0..self.0.len()).min_by_key(|index| Reverse(count(self.0[*index].0)))
        } else {
            None
        };
        if let Some(closed) = closed {
            self.0.remove(closed).1.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
        task::JoinHandle,
    };

    use super::*;
    use crate::{cgroup::CgroupRoot, ebpf::Engine, journal::Journal, kill::Tools, runtime::Runtimes};

    /// A connection from 127.0.0.`peer`.
    async fn connect(port: u16, peer: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, peer), 0).into()).unwrap();
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap()
    }

    async fn ask_on(mut stream: TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask(port: u16, path: &str) -> String {
        ask_on(connect(port, 1).await, path).await
    }

    /// Whether the daemon closes it, without a word, long before it has lived its time.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let read = timeout(Duration::from_secs(2), stream.read(&mut [0; 8])).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    async fn served() -> (u16, JoinHandle<std::io::Result<()>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools {
            engine: Arc::new(Engine::new(false)),
            cgroups: CgroupRoot::discover("/sys/fs/cgroup".as_ref(), "/proc".as_ref()).unwrap(),
            runtimes: Runtimes::default(),
        };
        let node = Node::new("n".into(), tools, Journal::open(dir.path()).unwrap());
        (port, tokio::spawn(serve(listener, Arc::new(Current::default()), node)))
    }

    #[tokio::test]
    async fn probes_are_answered_and_nobody_gets_all_connections() {
        let (port, server) = served().await;
        assert!(ask(port, "/healthz").await.starts_with("HTTP/1.1 200"));
        let metrics = ask(port, "/metrics").await;
        assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
        assert!(metrics.contains("\nsquall_daemon_ebpf_loaded 0\n"), "{metrics}");
        let missing = ask(port, "/readyz").await;
        assert!(
            missing.starts_with("HTTP/1.1 503") && missing.contains("has not signed one yet"),
            "{missing}"
        );
        let mut first = connect(port, 1).await;
        let mut others = Vec::new();
        for _ in 1..CONNECTIONS.1 {
            others.push(connect(port, 1).await);
        }
        // One too many takes the place of its peer's oldest.
        assert!(ask(port, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(is_closed(&mut first).await);
        server.abort();
    }

    #[tokio::test]
    async fn the_kubelet_is_answered_whoever_holds_all_connections() {
        let (port, server) = served().await;
        let peers = (CONNECTIONS.0 / CONNECTIONS.1) as u8;
        let all = async || {
            let mut all = Vec::new();
            for number in 0..CONNECTIONS.0 as u8 {
                all.push(connect(port, 2 + number % peers).await);
            }
            all
        };
        let mut held = all().await;
        let kubelet = connect(port, 1).await;
        assert!(is_closed(&mut held[0]).await);
        // Also when everybody else comes again before it has asked.
        let _again = all().await;
        assert!(is_closed(&mut held[CONNECTIONS.0 - 1]).await);
        assert!(ask_on(kubelet, "/healthz").await.starts_with("HTTP/1.1 200"));
        server.abort();
    }
}
