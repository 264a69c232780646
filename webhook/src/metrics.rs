//! What the webhook counts. Labels are words of ours, so their number is bounded.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    path: &'static str,
    outcome: &'static str,
}

/// The policies' number is bounded by those who write them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    policy: String,
    rule: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reviews: Family<Review, Histogram>,
    refusals: Family<Refusal, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let reviews = Family::<Review, Histogram>::new_with_constructor(|| {
            Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0])
        });
        let mut registry = Registry::with_prefix("squall_webhook");
        registry.register_with_unit(
            "review",
            "How long a review takes, from the last byte of the question to the answer",
            Unit::Seconds,
            reviews.clone(),
        );
        let refusals = Family::<Refusal, Counter>::default();
        registry.register("refusals", "What policies and halts refused", refusals.clone());
        Self { registry, reviews, refusals }
    }
}

impl Metrics {
    /// A review of `path` came to `outcome`.
    pub fn reviewed(&self, path: &'static str, outcome: &'static str, took: Duration) {
        self.reviews.get_or_create(&Review { path, outcome }).observe(took.as_secs_f64());
    }

    /// `policy` refused something by `rule`.
    pub fn refused(&self, policy: &str, rule: &'static str) {
        self.refusals.get_or_create(&Refusal { policy: policy.to_owned(), rule }).inc();
    }

    /// As Prometheus reads it.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
