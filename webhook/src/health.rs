//! `/healthz`, `/readyz` and `/metrics`, plain HTTP. Nothing else is served here, and nothing can be changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use jiff::Timestamp;

use crate::metrics::Metrics;
use crate::tls::Certificates;
use crate::world::World;

/// What readiness depends on.
#[derive(Debug)]
pub struct Health {
    /// Filled by watches.
    pub world: Arc<World>,
    /// Without one nobody can reach us.
    pub certificates: Arc<Certificates>,
    /// Being shut down.
    pub leaving: AtomicBool,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
}

impl Health {
    /// What is missing for being Ready at `now`, by name.
    pub fn missing(&self, now: Timestamp) -> Option<&'static str> {
        if self.leaving.load(Ordering::Relaxed) {
            return Some("being shut down");
        }
        match self.certificates.ends() {
            None => Some("no certificate yet: the controller writes it to the Secret squall-webhook-tls"),
            Some(ends) if ends <= now => {
                Some("the certificate is over: the controller renews it in the Secret squall-webhook-tls")
            }
            Some(_) => self.world.missing(),
        }
    }
}

/// The three paths.
pub fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async |State(health): State<Arc<Health>>| match health.missing(Timestamp::now()) {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
            }),
        )
        .route("/metrics", get(async |State(health): State<Arc<Health>>| write(&health.metrics)))
        .with_state(health)
}

fn write(metrics: &Metrics) -> impl IntoResponse + use<> {
    match metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(CONTENT_TYPE, kind)], text)
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, "text/plain")],
            format!("can't write the metrics: {error}\n"),
        ),
    }
}
