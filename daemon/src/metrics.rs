//! What the daemon counts, as Prometheus reads it. Labels are words of ours, so their number is bounded: no namespace,
//! pod, container or experiment is ever one.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    order::Action,
    report::{FaultReport, Receipt, State},
};

/// What sort of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A signal.
    Kill,
    /// The freezer.
    Freeze,
    /// Load, or lowered limits.
    Stress,
    /// One that this daemon does not know.
    Unknown,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Kill, Self::Freeze, Self::Stress, Self::Unknown];

    /// What an order's action is.
    pub fn of(action: Option<&Action>) -> Self {
        match action {
            Some(Action::Kill(_)) => Self::Kill,
            Some(Action::Freeze) => Self::Freeze,
            Some(Action::Stress(_)) => Self::Stress,
            None => Self::Unknown,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Stress => "stress",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    faults: Family<Outcome, Counter<u64, AtomicU64>>,
    active: Family<OfKind, Gauge<i64, AtomicI64>>,
    fired: Histogram,
    lost: Counter<u64, AtomicU64>,
    loaded: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("squall_daemon"),
            faults: Family::default(),
            active: Family::default(),
            fired: Histogram::new([0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
            lost: Counter::default(),
            loaded: Gauge::default(),
        };
        let Self { mut registry, faults, active, fired, lost, loaded } = metrics;
        registry.register("faults", "Faults that have come to an end, by kind and outcome", faults.clone());
        registry.register("active_faults", "Faults that are prepared or under way, by kind", active.clone());
        registry.register_with_unit(
            "order_to_fired",
            "From the arrival of the order to fire to the first signal",
            Unit::Seconds,
            fired.clone(),
        );
        registry.register("lost_records", "Records of the kernel's events that were lost", lost.clone());
        registry.register("ebpf_loaded", "1 while programs of ours are in the kernel", loaded.clone());
        Self { registry, faults, active, fired, lost, loaded }
    }
}

impl Metrics {
    /// A fault was reported.
    pub fn told(&self, kind: Kind, report: &FaultReport) {
        let FaultReport { id: _, state, message: _, receipt, lasting: _ } = report;
        let outcome = match state {
            State::Armed | State::Injected => return,
            State::Fired => {
                let took = receipt.as_ref().and_then(fired_after);
                return took.into_iter().for_each(|seconds| self.fired.observe(seconds));
            }
            State::Done => "done",
            State::Recovered => "recovered",
            State::Refused(_) => "refused",
            State::Failed(_) => "failed",
        };
        self.faults.get_or_create(&Outcome { kind: kind.word(), outcome }).inc();
        if let Some(receipt) = receipt {
            self.lost.inc_by(receipt.lost);
        }
    }

    /// As Prometheus reads it; what is there now is told by whoever knows.
    pub fn encode(&self, active: &BTreeMap<Kind, i64>, loaded: bool) -> Result<String, std::fmt::Error> {
        for kind in Kind::ALL {
            let count = active.get(&kind).copied().unwrap_or(0);
            self.active.get_or_create(&OfKind { kind: kind.word() }).set(count);
        }
        self.loaded.set(i64::from(loaded));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn fired_after(receipt: &Receipt) -> Option<f64> {
    // A trigger waits for as long as the container takes.
    if receipt.fired_at_count > 0 {
        return None;
    }
    // The wall clock may have been set back in between: then nothing is known.
    Some(receipt.fired?.duration_since(receipt.ordered).ok()?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::report::{Evidence, Reason};

    fn report(state: State, lost: u64) -> FaultReport {
        let ordered = SystemTime::UNIX_EPOCH;
        let receipt = Receipt {
            evidence: Evidence::Ebpf,
            evidence_error: String::new(),
            signal: 9,
            ordered,
            fired: Some(ordered + Duration::from_millis(2)),
            processes: vec![],
            total: 0,
            lost,
            oom_kills: 0,
            fired_at_count: 0,
        };
        FaultReport { receipt: Some(receipt), ..FaultReport::new("secret-pod-name", state, "x".into()) }
    }

    #[test]
    fn each_end_is_counted_once_and_no_name_of_a_user_is_a_label() {
        let metrics = Metrics::default();
        for state in [State::Armed, State::Fired, State::Done] {
            metrics.told(Kind::Kill, &report(state, 3));
        }
        metrics.told(Kind::Stress, &report(State::Failed(Reason::Internal), 0));
        let text = metrics.encode(&BTreeMap::from([(Kind::Freeze, 2)]), true).unwrap();
        for line in [
            r#"squall_daemon_faults_total{kind="kill",outcome="done"} 1"#,
            r#"squall_daemon_faults_total{kind="stress",outcome="failed"} 1"#,
            r#"squall_daemon_active_faults{kind="freeze"} 2"#,
            r#"squall_daemon_active_faults{kind="kill"} 0"#,
            "squall_daemon_lost_records_total 3",
            "squall_daemon_ebpf_loaded 1",
            "squall_daemon_order_to_fired_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
}
