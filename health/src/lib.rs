//! HTTP without TLS for the kubelet's probes and for scrapes, served to whoever comes.
//!
//! Anybody in the cluster may ask, so nobody may stay, nobody gets more than a few connections, and nobody is refused for
//! those whom others hold: a kubelet that gets no answer restarts the pod. What is answered is the caller's router.
//! [`limit`] is for ports that refuse instead.

pub mod limit;

use std::{cmp::Reverse, convert::Infallible, net::IpAddr, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};

/// Connections at the same time, in all and from one address. The kubelet has one for each probe.
const CONNECTIONS: (usize, usize) = (32, 8);
/// How long a connection may last. A probe takes milliseconds.
const LIFETIME: Duration = Duration::from_secs(5);

/// Serves on `listener`, for ever.
pub async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let mut held = Held::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                // Out of descriptors, most likely: wait for some to be closed.
                tracing::warn!(%error, "could not accept a probe");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        held.make_room(peer);
        let task = tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new()).http1_only();
            // Whatever goes wrong is the peer's loss.
            let _ = timeout(LIFETIME, server.serve_connection(TokioIo::new(stream), service)).await;
        });
        held.0.push((peer, task.abort_handle()));
    }
}

/// The connections that there are, the oldest first.
#[derive(Default)]
struct Held(Vec<(IpAddr, AbortHandle)>);

impl Held {
    /// Closes one where a further one of `peer` would be too many: the peer's oldest, or that of whoever has most. The
    /// kubelet must get in, however many pods hold what they can get.
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

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
        task::JoinHandle,
    };

    use super::*;

    /// A connection from 127.0.0.`peer`.
    async fn connect(port: u16, peer: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, peer), 0).into()).unwrap();
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap()
    }

    async fn is_answered(mut stream: TcpStream) -> bool {
        let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let asked = stream.write_all(request.as_bytes()).await.is_ok();
        asked && stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// Whether it is closed, without a word, within `limit`.
    async fn is_closed(stream: &mut TcpStream, limit: Duration) -> bool {
        let read = timeout(limit, stream.read(&mut [0; 8])).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    async fn served() -> (u16, JoinHandle<Infallible>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/healthz", get(async || "ok\n"));
        (port, tokio::spawn(serve(listener, router)))
    }

    #[tokio::test]
    async fn one_too_many_takes_the_place_of_its_peers_oldest() {
        let (port, server) = served().await;
        let mut first = connect(port, 1).await;
        let mut others = Vec::new();
        for _ in 1..CONNECTIONS.1 {
            others.push(connect(port, 1).await);
        }
        assert!(is_answered(connect(port, 1).await).await);
        assert!(is_closed(&mut first, LIFETIME / 2).await);
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
        assert!(is_closed(&mut held[0], LIFETIME / 2).await);
        // Also when everybody else comes again before it has asked.
        let _again = all().await;
        assert!(is_closed(&mut held[CONNECTIONS.0 - 1], LIFETIME / 2).await);
        assert!(is_answered(kubelet).await);
        server.abort();
    }

    #[tokio::test]
    async fn nobody_stays() {
        let (port, server) = served().await;
        let mut silent = connect(port, 1).await;
        assert!(is_closed(&mut silent, LIFETIME * 2).await);
        server.abort();
    }
}
