//! What the controller counts. Labels are words of ours (`&'static str`), so their number is bounded: no
//! namespace, pod or node is ever one.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    action: &'static str,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Counter<u64, AtomicU64>,
    seconds: Histogram,
    errors: Family<Kind, Counter<u64, AtomicU64>>,
    targets: Family<Outcome, Counter<u64, AtomicU64>>,
    experiments: Family<Phase, Gauge<i64, AtomicI64>>,
    leader: Gauge<i64, AtomicI64>,
    daemons: Family<State, Gauge<i64, AtomicI64>>,
    census: Census,
}

/// Counts what there is, when someone asks.
type Hook = Box<dyn Fn(&Metrics) + Send + Sync>;

/// The hook of the present term, if there is one.
#[derive(Default)]
struct Census(Mutex<Option<Hook>>);

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Census")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("squall"),
            reconciles: Counter::default(),
            seconds: Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
            errors: Family::default(),
            targets: Family::default(),
            experiments: Family::default(),
            leader: Gauge::default(),
            daemons: Family::default(),
            census: Census::default(),
        };
        let Metrics {
            registry,
            reconciles,
            seconds,
            errors,
            targets,
            experiments,
            leader,
            daemons,
            census: _,
        } = &mut metrics;
        registry.register("reconciles", "Reconciliations of experiments", reconciles.clone());
        registry.register("reconcile_seconds", "How long a reconciliation takes", seconds.clone());
        registry.register("errors", "Errors by kind", errors.clone());
        registry.register("targets", "Targets by action and outcome", targets.clone());
        registry.register("experiments", "Experiments by action and phase", experiments.clone());
        registry.register("leader", "1 while this replica leads", leader.clone());
        registry.register("daemons", "Nodes by the state of their daemon", daemons.clone());
        metrics
    }

    /// An experiment was reconciled.
    pub fn reconciled(&self, took: Duration) {
        self.reconciles.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Something failed; `kind` is a word of ours.
    pub fn error(&self, kind: &'static str) {
        self.errors.get_or_create(&Kind { kind }).inc();
    }

    /// A target has come to an outcome.
    pub fn target(&self, action: &'static str, outcome: &'static str) {
        self.targets.get_or_create(&Outcome { action, outcome }).inc();
    }

    /// How many experiments there are now, by action and phase; those not listed are none.
    pub fn experiments(&self, all: impl IntoIterator<Item = (&'static str, &'static str, i64)>) {
        self.experiments.clear();
        for (action, phase, count) in all {
            self.experiments.get_or_create(&Phase { action, phase }).set(count);
        }
    }

    /// Whether this replica leads.
    pub fn leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// How many nodes have a daemon that is connected, and one that isn't (yet).
    pub fn daemons(&self, ready: usize, connecting: usize) {
        for (state, count) in [("ready", ready), ("connecting", connecting)] {
            self.daemons.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Count by `hook` whenever the figures are asked for; `None` when a term ends.
    pub fn on_scrape(&self, hook: Option<Hook>) {
        if hook.is_none() {
            self.experiments([]);
            self.daemons(0, 0);
        }
        *self.census.0.lock().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// As OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        if let Some(count) = &*self.census.0.lock().unwrap_or_else(PoisonError::into_inner) {
            count(self);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
