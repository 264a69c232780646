//! The wire: connections are taken, shaken hands with, served over HTTP/1.1 or HTTP/2, and drained at the end.
//!
//! It knows nothing of reviews.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Someone who connects and says nothing is hung up on.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The same for the head of a request.
const HEADERS: Duration = Duration::from_secs(10);
/// How long requests that are under way have when we leave; the API server waits 5 s at most.
const DRAIN: Duration = Duration::from_secs(6);
/// API servers keep a few connections each.
const CONNECTIONS: usize = 256;

/// Serve `app` on `listener` until `stop`, then drain.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    app: Router,
    stop: impl Future<Output = ()>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let (leave, leaving) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            // Never closed, so a permit always comes.
            let permit = connections.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            (permit, stream) = accepted => (permit, stream),
            () = &mut stop => break,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or the peer is gone already. Neither gets better by trying harder.
                tracing::warn!(%error, "can't take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, app) = (acceptor.clone(), app.clone());
        let (watcher, mut leaving) = (graceful.watcher(), leaving.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Whoever hasn't shaken hands when we leave has not asked anything yet.
            let stream = tokio::select! {
                stream = handshake(stream, acceptor) => stream,
                _ = leaving.changed() => None,
            };
            if let Some(stream) = stream {
                connection(stream, app, watcher).await;
            }
        });
    }
    drop(listener);
    drop(leave);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still busy when we left");
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

async fn connection(stream: TlsStream<TcpStream>, app: Router, watcher: Watcher) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(128);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).into_owned();
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(%error, "a connection broke");
    }
}
