//! The daemon's gRPC port: `Apply`, `Watch` and health, over mutual TLS, for the controller alone.
//!
//! It translates and hands over. No reflection, no debug endpoint, nothing that acts without a whole desired state.

use std::{io, pin::Pin, sync::Arc, task, time::Duration};

use futures::{Stream, StreamExt, stream};
use squall_api::grpc::{
    self, ApplyReply, NodeReport, NodeState, Snapshot, WatchRequest,
    daemon_server::{Daemon, DaemonServer},
    node_report::Report,
};
use squall_health::limit::Limit;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::Connected},
};

use crate::{
    node::{ApplyError, Node},
    order::Desired,
    readiness::Readiness,
    tls::ServerTls,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at the same time, in all and from one address: whoever shakes hands is not known yet.
const HANDSHAKES: (usize, usize) = (64, 4);
/// Connections of those who are known at the same time; there are two controllers at most.
const CONNECTIONS: usize = 32;
/// A state with 4,000 faults has less than half of it.
const MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// A controller that died without a word is noticed after this long.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves `node` on `listener` until `end` is done.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    bundle_changed: Arc<Notify>,
    node: Arc<Node>,
    readiness: Arc<Readiness>,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (sender, accepted) = mpsc::channel(1);
    let accepting = tokio::spawn(accept(listener, tls, bundle_changed, sender));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<DaemonServer<Service>>().await;
    let service = DaemonServer::new(Service { node, readiness }).max_decoding_message_size(MESSAGE_BYTES);
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), end)
        .await;
    accepting.abort();
    served
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    bundle_changed: Arc<Notify>,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    // Apart from each other: a stranger who holds all handshakes takes nothing from those who are connected.
    let (handshakes, connections) =
        (Limit::new(HANDSHAKES.0, HANDSHAKES.1), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to be closed.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = handshakes.place(peer.ip()) else {
            tracing::debug!(%peer, "refused a connection: too many handshakes");
            continue;
        };
        let config = match tls.config() {
            Ok((config, changed)) => {
                if changed {
                    bundle_changed.notify_one();
                }
                config
            }
            Err(error) => {
                tracing::warn!(%error, %peer, "refused a connection");
                continue;
            }
        };
        let (sender, connections) = (sender.clone(), Arc::clone(&connections));
        // Each in a task of its own: a slow handshake holds up nobody.
        tokio::spawn(async move {
            // Small messages, and each of them urgent.
            let _ = stream.set_nodelay(true);
            let shaken = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
            drop(place);
            match shaken {
                Ok(Ok(stream)) => match connections.try_acquire_owned() {
                    Ok(permit) => {
                        // Nobody takes it any more when the server has ended.
                        let _ = sender.send(Ok(Connection { stream, _permit: permit })).await;
                    }
                    Err(_) => tracing::warn!(%peer, "refused a connection: {CONNECTIONS} are open"),
                },
                Ok(Err(error)) => tracing::warn!(%error, %peer, "refused a connection"),
                Err(_) => tracing::warn!(%peer, "a handshake took longer than {HANDSHAKE:?}"),
            }
        });
    }
}

struct Service {
    node: Arc<Node>,
    readiness: Arc<Readiness>,
}

#[tonic::async_trait]
impl Daemon for Service {
    async fn apply(&self, request: Request<NodeState>) -> Result<Response<ApplyReply>, Status> {
        let desired = Desired::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let generation = self.node.apply(desired).map_err(|error| match &error {
            ApplyError::Stale { .. } => Status::failed_precondition(error.to_string()),
            ApplyError::OtherNode { .. } => Status::invalid_argument(error.to_string()),
            ApplyError::Journal(_) => Status::internal(error.to_string()),
        })?;
        Ok(Response::new(ApplyReply { generation: Some(generation.into()) }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<NodeReport, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let readiness = self.readiness.report().await;
        let (generation, faults, told) = self.node.watch();
        let snapshot = Snapshot {
            node: self.node.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: Some(generation.into()),
            readiness: Some(readiness),
            faults: faults.iter().map(grpc::FaultReport::from).collect(),
        };
        let first = stream::once(async { Ok(NodeReport { report: Some(Report::Snapshot(snapshot)) }) });
        let rest = BroadcastStream::new(told).map(|told| match told {
            Ok(report) => Ok(NodeReport { report: Some(Report::Fault((&report).into())) }),
            Err(lagged) => Err(Status::data_loss(format!("{lagged}: watch again for a new snapshot"))),
        });
        Ok(Response::new(Box::pin(first.chain(rest))))
    }
}

/// A TLS connection for tonic.
struct Connection {
    stream: TlsStream<TcpStream>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
