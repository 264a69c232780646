//! The wire: connections are taken, shaken hands with, served over HTTP/1.1 or HTTP/2, and drained at the end.
//!
//! Anyone in the cluster can reach it, so nobody gets to keep much of it: there are few connections a peer, and who
//! says nothing is hung up on. It knows nothing of reviews.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use squall_health::limit::{Limit, Place};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::util::MapRequest;

/// Someone who connects and says nothing is hung up on.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The same for the first request of a connection.
const FIRST: Duration = Duration::from_secs(10);
/// The same between requests; longer than any takes, and than API servers keep a connection that they don't use.
const IDLE: Duration = Duration::from_secs(120);
/// How long requests that are under way have when we leave; the API server waits 5 s at most.
const DRAIN: Duration = Duration::from_secs(6);
/// An API server speaks HTTP/1.1 with webhooks: each review under way has a connection of its own, and whoever is hung
/// up on is refused an experiment, or gets a pod past us. What bodies take is limited on its own.
/// Fewer than the 1024 files that some runtimes let a process open.
const CONNECTIONS: u32 = 896;
/// Of one peer. An API server has 600 requests under way at most, as it comes (`--max-requests-inflight` and
/// `--max-mutating-requests-inflight`).
pub const PEER: usize = 640;
/// Reviews at a time on one connection, for who speaks HTTP/2.
const STREAMS: u32 = 64;
/// What may come in on a stream, and on a connection, before it is read.
const WINDOWS: (u32, u32) = (256 << 10, 512 << 10);
/// Who asks, as a part of each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Serve `app` on `listener`, with at most `peer` connections to anyone, until `stop`; then drain.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    app: Router,
    peer: usize,
    stop: impl Future<Output = ()>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = Arc::new(Semaphore::new(CONNECTIONS as usize));
    // How many there are in all is the semaphore's: it waits.
    let peers = Limit::new(usize::MAX, peer);
    let (leave, leaving) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let (stream, peer, place) = accept(&listener, &peers).await;
            // Never closed, so a permit always comes.
            (connections.clone().acquire_owned().await.ok(), stream, peer, place)
        };
        let (permit, stream, peer, place) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        let (acceptor, app, mut leaving) = (acceptor.clone(), app.clone(), leaving.clone());
        tokio::spawn(async move {
            let _here = (permit, place);
            // Whoever hasn't shaken hands when we leave has not asked anything yet.
            let stream = tokio::select! {
                stream = handshake(stream, acceptor) => stream,
                _ = leaving.changed() => None,
            };
            if let Some(stream) = stream {
                connection(stream, peer, app, leaving).await;
            }
        });
    }
    drop(listener);
    drop(leave);
    if tokio::time::timeout(DRAIN, connections.acquire_many(CONNECTIONS)).await.is_err() {
        tracing::warn!("connections were still busy when we left");
    }
}

/// The next connection of a peer that hasn't too many.
async fn accept(listener: &TcpListener, peers: &Limit) -> (TcpStream, Peer, Place) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match peers.place(peer.ip()) {
                Some(place) => return (stream, Peer(peer.ip().to_canonical()), place),
                None => tracing::debug!(%peer, "has too many connections"),
            },
            Err(error) => {
                // Out of file descriptors, or the peer is gone already. Neither gets better by trying harder.
                tracing::warn!(%error, "can't take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn handshake(stream: TcpStream, acceptor: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    // Answers are small and somebody waits for them. A failure costs some latency only.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no handshake");
            None
        }
        Err(_) => {
            tracing::debug!("no handshake in time");
            None
        }
    }
}

async fn connection(stream: TlsStream<TcpStream>, peer: Peer, app: Router, mut leaving: watch::Receiver<()>) {
    let builder = auto::Builder::new(TokioExecutor::new());
    // Else the first bytes would be waited for without a limit.
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let mut builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
    // It runs between requests too. An API server that uses a connection just as we hang up has its review fail.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    let begun = Instant::now();
    // Until when it may be silent, in milliseconds since it began.
    let patience = Arc::new(AtomicU64::new(millis(FIRST)));
    let renewed = patience.clone();
    let app = MapRequest::new(app, move |request| {
        renewed.store(millis(begun.elapsed() + IDLE), Ordering::Relaxed);
        by(peer, request)
    });
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut served = std::pin::pin!(served);
    let silent = async {
        loop {
            let end = begun + Duration::from_millis(patience.load(Ordering::Relaxed));
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    };
    let ended = tokio::select! {
        ended = &mut served => Some(ended),
        () = silent => None,
        _ = leaving.changed() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

fn by<B>(peer: Peer, mut request: Request<B>) -> Request<B> {
    request.extensions_mut().insert(peer);
    request
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
