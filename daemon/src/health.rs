//! `/healthz` and `/readyz` for the kubelet, plain HTTP. Nothing else is served here, and nothing can be changed.
//!
//! `/healthz` says that the process answers; `/readyz` says what is missing until nothing is.

use std::sync::Arc;

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use crate::tls::Current;

/// Serves on `listener`, for ever.
pub async fn serve(listener: TcpListener, current: Arc<Current>) -> std::io::Result<()> {
    let ready = move || async move {
        if current.is_set() {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "certificate: the controller has not signed one yet\n")
        }
    };
    let router = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready));
    axum::serve(listener, router).await
}
