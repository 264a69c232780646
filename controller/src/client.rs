//! The way to the API server: one HTTP/2 connection for everything.
//!
//! kube's own client speaks HTTP/1.1 and so opens a connection, with a TLS handshake each, for every request that
//! is under way at once: with thirty pods to be hit together that is most of the time it takes.
//!
//! Nothing is tried again here. What fails is told to whoever asked, who tries again; kube would do so behind our
//! back, and wait as long as the server says: an eviction that a budget blocks, 10 s a time, for minutes.

use std::time::Duration;

use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither in a cluster nor with a kubeconfig.
    #[error("can't find the API server: {0}")]
    Config(#[source] kube::config::InferConfigError),
    /// The certificates or credentials can't be used.
    #[error("can't set up the connection to the API server: {0}")]
    Setup(#[source] Box<kube::Error>),
}

/// A client for the cluster that this process is in, or that its kubeconfig names.
pub async fn client() -> Result<Client, ClientError> {
    let config = Config::infer().await.map_err(ClientError::Config)?;
    of(config).map_err(|error| ClientError::Setup(Box::new(error)))
}

fn of(config: Config) -> kube::Result<Client> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(Duration::from_secs(5)));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_only()
        .enable_http2()
        .wrap_connector(http);
    let hyper: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        // A connection that died without a word would otherwise hold up every watch and every effect.
        .http2_keep_alive_interval(Some(Duration::from_secs(10)))
        .http2_keep_alive_timeout(Duration::from_secs(5))
        .build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(hyper);
    Ok(Client::new(service, config.default_namespace))
}

/// The HTTP code of the API server's refusal, if that is what the error is.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The object is no more.
pub fn is_gone(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// Someone else was faster, or the object isn't the one that was meant.
pub fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// What was to be created is there. A 409 alone does not say so: a quota that many ask at once answers it too.
pub fn is_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}
