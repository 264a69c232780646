//! Pods that are born while an experiment fails their like: which of them are failed at birth.
//!
//! In doubt a pod is born whole. The controller is the judge: it adopts what was failed here, or releases it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use squall_api::PodChaos;
use squall_api::names;
use squall_api::podchaos::{Phase, TargetPhase};

use crate::experiment::parsed;
use crate::pod::{NamespaceView, PodView};
use crate::select::{AtBirth, eligible};
use crate::spec::{Action, Mode, Spec};
use crate::substitute::Holder;

/// An experiment that may fail pods at their birth, cut down to what that takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    namespace: String,
    name: String,
    uid: String,
    spec: Spec,
    /// The owners whose pods are replaced by failed ones; `None` means that every pod is failed.
    replaces: Option<BTreeSet<String>>,
    ends_at: Option<Timestamp>,
}

impl Candidate {
    /// `chaos` as a candidate; `None` if it fails no pod at birth as it stands.
    pub fn of(chaos: &PodChaos) -> Option<Self> {
        let meta = &chaos.metadata;
        let status = chaos.status.as_ref()?;
        let annotation =
            |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
        let active = match status.phase? {
            Phase::Injecting | Phase::Injected => true,
            Phase::Pending
            | Phase::Paused
            | Phase::Recovering
            | Phase::Completed
            | Phase::Failed
            | Phase::Halted => false,
        };
        if !active
            || status.completed_at.is_some()
            || status.halted.is_some()
            || meta.deletion_timestamp.is_some()
            || annotation(names::PAUSE) == Some("true")
            || annotation(names::CLEANUP) == Some(names::CLEANUP_FORCED)
        {
            return None;
        }
        let namespace = meta.namespace.clone()?;
        let spec = parsed(meta, &chaos.spec).ok()?;
        if spec.dry_run || !matches!(spec.action, Action::PodFailure { .. }) {
            return None;
        }
        let replaces = match spec.mode {
            Mode::All => None,
            Mode::One | Mode::Fixed(_) | Mode::FixedPercent(_) | Mode::RandomMaxPercent(_) => {
                let of = |phases: &[TargetPhase]| {
                    let phases = phases.to_vec();
                    status.targets.iter().filter(move |target| phases.contains(&target.phase))
                };
                let live = of(&[TargetPhase::Selected, TargetPhase::Injected]).count();
                let drawn = usize::try_from(status.drawn.unwrap_or_default()).unwrap_or_default();
                // Whose place is taken already has nobody born for it.
                let free = of(&[TargetPhase::Gone]).filter(|target| target.replacement.is_none());
                let owners: BTreeSet<String> = free.filter_map(|target| target.owner.clone()).collect();
                if live >= drawn || owners.is_empty() {
                    return None;
                }
                Some(owners)
            }
        };
        Some(Self {
            namespace,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            spec,
            replaces,
            ends_at: status.ends_at.as_ref().map(|time| time.0),
        })
    }
}

/// Who holds `pod` from its birth on.
pub fn births_for<'a>(
    pod: &PodView,
    namespace: &NamespaceView,
    candidates: impl IntoIterator<Item = &'a Candidate>,
    now: Timestamp,
) -> Vec<Holder> {
    candidates
        .into_iter()
        .filter(|candidate| candidate.ends_at.is_none_or(|end| now < end))
        .filter(|candidate| match (&candidate.replaces, &pod.owner) {
            (None, _) => true,
            (Some(owners), Some(owner)) => owners.contains(&owner.uid),
            (Some(_), None) => false,
        })
        .filter(|candidate| match candidate.spec.selector.at_birth(pod) {
            AtBirth::Yes => eligible(&candidate.spec, pod, namespace).is_ok(),
            AtBirth::No | AtBirth::Unknown => false,
        })
        .map(|candidate| {
            let Candidate { namespace, name, uid, spec, replaces: _, ends_at: _ } = candidate;
            Holder::experiment(namespace, name, uid, spec, pod)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use squall_api::podchaos::Target;

    use super::*;

    #[test]
    fn nobody_is_born_for_a_place_that_is_taken() {
        let target = |phase, replacement: Option<&str>| Target {
            phase,
            owner: Some("rs".to_owned()),
            replacement: replacement.map(str::to_owned),
            ..Target::default()
        };
        let replaces = |targets: Vec<Target>| {
            let mut chaos: PodChaos = serde_json::from_value(json!({
                "metadata": { "namespace": "n", "name": "e", "uid": "u" },
                "spec": { "action": "pod-failure", "mode": "fixed", "value": "3", "selector": {} },
                "status": { "phase": "Injected", "drawn": 3 },
            }))
            .unwrap();
            chaos.status.as_mut().unwrap().targets = targets;
            Candidate::of(&chaos).and_then(|candidate| candidate.replaces)
        };
        // One went and is replaced, one was let go by hand, one is left: fewer than were drawn, and no place is free.
        let replaced = target(TargetPhase::Gone, Some("p-2"));
        let let_go = target(TargetPhase::Released, None);
        let left = target(TargetPhase::Injected, None);
        let targets = vec![replaced.clone(), let_go.clone(), left.clone()];
        assert_eq!(replaces(targets), None);
        let went = target(TargetPhase::Gone, None);
        let targets = vec![replaced, let_go, left, went];
        assert_eq!(replaces(targets), Some(BTreeSet::from(["rs".to_owned()])));
    }
}
