//! `/healthz`, `/readyz` and `/metrics`, plain HTTP. Nothing else is served here, and nothing can be changed.
//!
//! `/healthz` says that the process answers. `/readyz` says what is missing, by name, until nothing is.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// A named condition for readiness: `Ok`, or what is missing.
pub type Check = (&'static str, Box<dyn Fn() -> Result<(), String> + Send + Sync>);

/// What `/readyz` asks.
#[derive(Default)]
pub struct Checks(Vec<Check>);

impl Checks {
    /// No condition yet.
    pub fn new() -> Checks {
        Checks::default()
    }

    /// One more condition.
    pub fn add(
        mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Checks {
        self.0.push((name, Box::new(check)));
        self
    }

    fn report(&self) -> (StatusCode, String) {
        let mut status = StatusCode::OK;
        let mut text = String::new();
        for (name, check) in &self.0 {
            match check() {
                Ok(()) => text.push_str(&format!("{name}: ok\n")),
                Err(missing) => {
                    status = StatusCode::SERVICE_UNAVAILABLE;
                    text.push_str(&format!("{name}: {missing}\n"));
                }
            }
        }
        (status, text)
    }
}

/// Why it can't be served.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The port is taken.
    #[error("can't listen on {address} for health and metrics: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Serve for ever.
pub async fn serve(
    address: SocketAddr,
    checks: Checks,
    metrics: Arc<Metrics>,
) -> Result<Infallible, HealthError> {
    let listener =
        TcpListener::bind(address).await.map_err(|source| HealthError::Listen { address, source })?;
    Ok(squall_health::serve(listener, router(checks, metrics)).await)
}

fn router(checks: Checks, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(async |State(checks): State<Arc<Checks>>| checks.report()))
        .with_state(Arc::new(checks))
        .route(
            "/metrics",
            get(async |State(metrics): State<Arc<Metrics>>| write(&metrics)).with_state(metrics),
        )
}

fn write(metrics: &Metrics) -> impl IntoResponse + use<> {
    match metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(CONTENT_TYPE, kind)], text)
        }
        Err(error) => {
            let text = format!("can't write the metrics: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], text)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let there = Arc::new(AtomicBool::new(false));
        let seen = there.clone();
        let checks = Checks::new().add("cache", || Ok(())).add("certificates", move || {
            if seen.load(Ordering::Relaxed) { Ok(()) } else { Err("no CA yet".into()) }
        });
        let router = router(checks, Arc::new(Metrics::new()));
        let (status, text) = ask(&router, "/readyz").await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "cache: ok\ncertificates: no CA yet\n")
        );
        there.store(true, Ordering::Relaxed);
        assert_eq!(ask(&router, "/readyz").await.0, StatusCode::OK);
        assert_eq!(ask(&router, "/healthz").await.0, StatusCode::OK);
        assert_eq!(ask(&router, "/debug").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let metrics = Arc::new(Metrics::new());
        metrics.target("pod-kill", "killed");
        let (status, text) = ask(&router(Checks::new(), metrics), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("squall_targets_total{action=\"pod-kill\",outcome=\"killed\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
