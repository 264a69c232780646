//! What the controller counts. Labels are words of ours (`&'static str`), so their number is bounded: no
//! namespace, pod or node is ever one. Only refusals carry a name, that of the policy: there are as many as someone wrote.

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

use crate::nodes::Counts;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Active {
    action: &'static str,
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    policy: String,
    rule: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Halt {
    by: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sent {
    outcome: &'static str,
}

/// A time that is measured of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// From the order until the fault was there.
    Inject,
    /// From the end that was asked for until it was taken back.
    Recover,
    /// From then, or from the kill, until the pod or what replaced it was Ready.
    Ready,
}

/// By action.
type Seconds = Family<Action, Histogram>;

fn seconds() -> Seconds {
    Seconds::new_with_constructor(|| Histogram::new([0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]))
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Counter<u64, AtomicU64>,
    seconds: Histogram,
    choose: Histogram,
    errors: Family<Kind, Counter<u64, AtomicU64>>,
    targets: Family<Outcome, Counter<u64, AtomicU64>>,
    experiments: Family<Phase, Gauge<i64, AtomicI64>>,
    leader: Gauge<i64, AtomicI64>,
    daemons: Family<State, Gauge<i64, AtomicI64>>,
    active: Family<Active, Gauge<i64, AtomicI64>>,
    refusals: Family<Refused, Counter<u64, AtomicU64>>,
    halts: Family<Halt, Counter<u64, AtomicU64>>,
    inject: Seconds,
    recover: Seconds,
    ready: Seconds,
    sink: Family<Sent, Counter<u64, AtomicU64>>,
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
            choose: Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]),
            errors: Family::default(),
            targets: Family::default(),
            experiments: Family::default(),
            leader: Gauge::default(),
            daemons: Family::default(),
            active: Family::default(),
            refusals: Family::default(),
            halts: Family::default(),
            inject: seconds(),
            recover: seconds(),
            ready: seconds(),
            sink: Family::default(),
            census: Census::default(),
        };
        let Metrics {
            registry,
            reconciles,
            seconds,
            choose,
            errors,
            targets,
            experiments,
            leader,
            daemons,
            active,
            refusals,
            halts,
            inject,
            recover,
            ready,
            sink,
            census: _,
        } = &mut metrics;
        registry.register("reconciles", "Reconciliations of experiments", reconciles.clone());
        registry.register("reconcile_seconds", "How long a reconciliation takes", seconds.clone());
        registry.register(
            "choose_seconds",
            "How long choosing an experiment's targets takes, before they are written",
            choose.clone(),
        );
        registry.register("errors", "Errors by kind", errors.clone());
        registry.register("targets", "Targets by action and outcome", targets.clone());
        registry.register("experiments", "Experiments by action and phase", experiments.clone());
        registry.register("leader", "1 while this replica leads", leader.clone());
        registry.register(
            "daemons",
            "Nodes by the state of their daemon; of those ready, some refuse their orders or have no eBPF",
            daemons.clone(),
        );
        registry.register(
            "active_faults",
            "Targets that are hit now, by action, and by experiment or by hand",
            active.clone(),
        );
        registry.register("refusals", "What policies refused when targets were chosen", refusals.clone());
        registry.register("halts", "Experiments that were halted, by what said so", halts.clone());
        registry.register("inject_seconds", "From the order until the fault was there", inject.clone());
        registry.register(
            "recover_seconds",
            "From the end that was asked for until the fault was taken back",
            recover.clone(),
        );
        registry.register(
            "ready_seconds",
            "From the recovery, or the kill, until the pod or what replaced it was Ready",
            ready.clone(),
        );
        registry.register("sink_events", "Events for the CloudEvents sink by outcome", sink.clone());
        metrics
    }

    /// An experiment was reconciled.
    pub fn reconciled(&self, took: Duration) {
        self.reconciles.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// The targets of an experiment were chosen.
    pub fn chosen(&self, took: Duration) {
        self.choose.observe(took.as_secs_f64());
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

    /// How many targets are hit now, by action, and by `experiment` or by `hand`; those not listed are none.
    pub fn active(&self, all: impl IntoIterator<Item = (&'static str, &'static str, i64)>) {
        self.active.clear();
        for (action, by, count) in all {
            self.active.get_or_create(&Active { action, by }).set(count);
        }
    }

    /// `policy` refused something by `rule` when targets were chosen, or let go what was too much.
    pub fn refused(&self, policy: &str, rule: &'static str) {
        self.refusals.get_or_create(&Refused { policy: policy.to_owned(), rule }).inc();
    }

    /// An experiment was halted: by the kind of thing that said so.
    pub fn halted(&self, by: &'static str, reason: &str) {
        let known = ["Halted", "WindowClosed", "Unsteady"].into_iter().find(|known| *known == reason);
        self.halts.get_or_create(&Halt { by, reason: known.unwrap_or("Other") }).inc();
    }

    /// How long something took of a target.
    pub fn took(&self, span: Span, action: &'static str, took: Duration) {
        let family = match span {
            Span::Inject => &self.inject,
            Span::Recover => &self.recover,
            Span::Ready => &self.ready,
        };
        family.get_or_create(&Action { action }).observe(took.as_secs_f64());
    }

    /// What came of an event for the sink; a word of ours.
    pub fn sent(&self, outcome: &'static str) {
        self.sink.get_or_create(&Sent { outcome }).inc();
    }

    /// Whether this replica leads.
    pub fn leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// How many nodes have a daemon, by how it stands with it.
    pub fn daemons(&self, counts: Counts) {
        let Counts { ready, connecting, refusing, without_ebpf } = counts;
        for (state, count) in [
            ("ready", ready),
            ("connecting", connecting),
            ("refusing", refusing),
            ("without-ebpf", without_ebpf),
        ] {
            self.daemons.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Count by `hook` whenever the figures are asked for; `None` when a term ends.
    pub fn on_scrape(&self, hook: Option<Hook>) {
        if hook.is_none() {
            self.experiments([]);
            self.active([]);
            self.daemons(Counts::default());
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
