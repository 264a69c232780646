//! Experiments: how tests make them, and what they ask of them.

use jiff::Timestamp;
use kube::core::object::HasStatus;
use squall_api::podchaos::{
    Action, ExperimentStatus, Mode, Phase, PodChaos, PodChaosSpec, Target, TargetPhase,
};

/// A PodChaos that selects all pods of its own namespace; `change` says the rest.
pub fn experiment(
    name: &str,
    action: Action,
    mode: Mode,
    change: impl FnOnce(&mut PodChaosSpec),
) -> PodChaos {
    let mut spec = PodChaosSpec { action, mode, ..PodChaosSpec::default() };
    change(&mut spec);
    PodChaos::new(name, spec)
}

/// The target that is the pod `pod`.
pub fn target_of<'a>(chaos: &'a PodChaos, pod: &str) -> Option<&'a Target> {
    chaos.status.as_ref()?.targets.iter().find(|target| target.pod == pod)
}

/// Questions to an experiment.
pub trait ExperimentExt {
    /// Its status, an empty one if it has none.
    fn told(&self) -> ExperimentStatus;
    /// Its phase.
    fn phase(&self) -> Phase;
    /// A condition is True.
    fn is(&self, condition: &str) -> bool;
    /// A condition's reason.
    fn reason(&self, condition: &str) -> String;
    /// Its targets in `phase`.
    fn in_phase(&self, phase: TargetPhase) -> Vec<Target>;
    /// When it was over.
    fn completed_at(&self) -> Option<Timestamp>;
    /// Everything that its status says.
    fn shown(&self) -> String;
}

impl<K: HasStatus<Status = ExperimentStatus>> ExperimentExt for K {
    fn told(&self) -> ExperimentStatus {
        self.status().cloned().unwrap_or_default()
    }

    fn phase(&self) -> Phase {
        self.told().phase.unwrap_or_default()
    }

    fn is(&self, condition: &str) -> bool {
        let conditions = self.told().conditions;
        conditions.iter().any(|one| one.type_ == condition && one.status == "True")
    }

    fn reason(&self, condition: &str) -> String {
        let conditions = self.told().conditions;
        conditions.into_iter().find(|one| one.type_ == condition).map(|one| one.reason).unwrap_or_default()
    }

    fn in_phase(&self, phase: TargetPhase) -> Vec<Target> {
        self.told().targets.into_iter().filter(|target| target.phase == phase).collect()
    }

    fn completed_at(&self) -> Option<Timestamp> {
        self.told().completed_at.map(|at| at.0)
    }

    fn shown(&self) -> String {
        serde_json::to_string_pretty(&self.status()).unwrap_or_default()
    }
}
