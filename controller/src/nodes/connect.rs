//! One connection to one daemon: TCP, TLS 1.3 with both certificates, HTTP/2.
//!
//! The channel never connects again by itself: after each connect the daemon's generation has to be read first.

use std::{io, net::SocketAddr, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use squall_api::names;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::certs::Identity;

/// For everything until the channel is there.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A node that dies without a word is noticed after this and [`KEEP_ALIVE_TIMEOUT`].
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers in time.
    #[error("no connection to {address} within {TIMEOUT:?}")]
    Timeout {
        /// Where.
        address: SocketAddr,
    },
    /// TCP failed.
    #[error("can't connect to {address}: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS failed; a certificate that isn't this node's daemon's is the usual reason.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The node's name makes no server name.
    #[error("{0} is no server name")]
    Name(String),
    /// HTTP/2 failed.
    #[error("no HTTP/2 with {address}: {source}")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Connect to the daemon of `node`, and to no other.
pub async fn connect(node: &str, address: SocketAddr, identity: &Identity) -> Result<Channel, ConnectError> {
    let deadline = Instant::now() + TIMEOUT;
    let late = |_| ConnectError::Timeout { address };
    let name = names::daemon_server_name(node);
    let name = ServerName::try_from(name.clone()).map_err(|_| ConnectError::Name(name))?;
    let tcp = timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(late)?
        .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
        .map_err(|source| ConnectError::Tcp { address, source })?;
    let tls = TlsConnector::from(identity.client.clone());
    let tls = timeout_at(deadline, tls.connect(name, tcp))
        .await
        .map_err(late)?
        .map_err(|source| ConnectError::Tls { address, source })?;
    let mut once = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_| {
        let io = once.take().ok_or_else(|| io::Error::other("the connection has ended"));
        async move { io }
    });
    // The name is for logs: TLS has been done, and the address is not looked up.
    let endpoint = Endpoint::from_static("http://squall-daemon")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    timeout_at(deadline, endpoint.connect_with_connector(connector))
        .await
        .map_err(late)?
        .map_err(|source| ConnectError::Http { address, source })
}
