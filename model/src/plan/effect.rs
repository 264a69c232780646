//! What lasting faults on containers did, in short: the column of `kubectl get`.

use squall_api::status::{ExperimentStatus, Usage};

use crate::stress::{Stress, bytes};

/// What was measured during the fault, of what was asked for: `cpu 990m, memory 251.3Mi`; of several targets the
/// range. `None` where nothing was measured.
pub(super) fn summary(status: &ExperimentStatus, stress: &Stress) -> Option<String> {
    let during = || status.targets.iter().filter_map(|target| target.effect.as_ref()?.during.as_ref());
    let range = |of: fn(&Usage) -> Option<i64>, write: fn(u64) -> String| {
        let all = || during().filter_map(of).map(|value| u64::try_from(value).unwrap_or(0));
        let (least, most) = (write(all().min()?), write(all().max()?));
        Some(if least == most { least } else { format!("{least} to {most}") })
    };
    let Stress { cpu, memory, io, pids, squeeze, allow_oom: _, on_oom: _ } = stress;
    let millis = |millis: u64| format!("{millis}m");
    let rate = |rate: u64| format!("{}/s", bytes(rate));
    let parts = [
        ("cpu", cpu.is_some() || squeeze.cpu_millis.is_some(), range(|usage| usage.cpu_millis, millis)),
        ("memory", memory.is_some() || squeeze.memory.is_some(), range(|usage| usage.memory_bytes, bytes)),
        ("io", io.is_some() || squeeze.io.is_some(), range(|usage| usage.io_bps, rate)),
        (
            "pids",
            pids.is_some() || squeeze.pids.is_some(),
            range(|usage| usage.pids, |pids| pids.to_string()),
        ),
    ];
    let told: Vec<String> = parts
        .into_iter()
        .filter(|(_, asked, _)| *asked)
        .filter_map(|(name, _, range)| range.map(|range| format!("{name} {range}")))
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

#[cfg(test)]
mod tests {
    use squall_api::status::{Effect, Target};

    use super::*;
    use crate::stress::Cpu;

    #[test]
    fn what_was_asked_for_is_told_as_a_range() {
        let target = |cpu_millis| Target {
            effect: Some(Effect {
                during: Some(Usage {
                    cpu_millis: Some(cpu_millis),
                    memory_bytes: Some(1),
                    ..Usage::default()
                }),
                ..Effect::default()
            }),
            ..Target::default()
        };
        let stress = Stress { cpu: Some(Cpu { workers: 1, load: 100 }), ..Stress::default() };
        let mut status = ExperimentStatus::default();
        assert_eq!(summary(&status, &stress), None);
        status.targets = vec![target(990)];
        assert_eq!(summary(&status, &stress).as_deref(), Some("cpu 990m"));
        status.targets.push(target(480));
        assert_eq!(summary(&status, &stress).as_deref(), Some("cpu 480m to 990m"));
    }
}
