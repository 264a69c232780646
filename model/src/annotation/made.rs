//! The experiment that an annotation becomes.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};
use squall_api::podchaos::{Action, PodChaosSpec};
use squall_api::selection::{Mode as ApiMode, PodSelector};
use squall_api::stresschaos::{CpuStressor, MemoryStressor, StressChaosSpec, Stressors};

use super::{Fault, Kind, Subject, Wish};
use crate::spec::Mode;
use crate::time::format_duration;

/// The annotation that an experiment was made for: which, and which time ([`squall_api::names::MADE_FOR`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Which.
    pub fault: Fault,
    /// The ticket's id.
    pub id: String,
}

impl Made {
    /// As written on the experiment.
    pub fn written(&self) -> String {
        format!("{}/{}", self.fault.word(), self.id)
    }

    /// As read from it.
    pub fn read(text: &str) -> Option<Self> {
        let (word, id) = text.split_once('/')?;
        let fault = Fault::ALL.into_iter().find(|fault| fault.word() == word)?;
        Some(Self { fault, id: id.to_owned() })
    }
}

/// The name of the experiment: the same for the same object, annotation and request, and for no other.
pub fn name_of(subject: &Subject, made: &Made) -> String {
    const LONGEST: usize = 253;
    let Subject { kind, name, uid, .. } = subject;
    let digest = Sha256::digest(format!("{}\0{uid}\0{}", kind.word(), made.written()).as_bytes());
    let digest: String = digest[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    let end = format!("{}-{digest}", made.fault.word());
    // Names of objects are ASCII; the cut may be at a dot or a dash, after which no name may go on with a dash.
    let room = LONGEST - end.len() - 1;
    let stem: String = name.chars().take(room).collect();
    format!("{}-{end}", stem.trim_end_matches(['.', '-']))
}

/// An experiment, of whichever kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Experiment {
    /// A PodChaos.
    Pod(Box<PodChaosSpec>),
    /// A StressChaos.
    Stress(Box<StressChaosSpec>),
}

/// What `wish` means for `subject`.
pub fn experiment(subject: &Subject, wish: &Wish) -> Experiment {
    let Wish { fault, mode, duration, grace, container, signal, size } = wish;
    let (mode, value) = match mode {
        Mode::One => (ApiMode::One, None),
        Mode::All => (ApiMode::All, None),
        Mode::Fixed(number) => (ApiMode::Fixed, Some(number.to_string())),
        Mode::FixedPercent(share) => (ApiMode::FixedPercent, Some(share.to_string())),
        Mode::RandomMaxPercent(share) => (ApiMode::RandomMaxPercent, Some(share.to_string())),
    };
    let duration = duration.map(format_duration);
    let pod = |action, value| {
        Experiment::Pod(Box::new(PodChaosSpec {
            action,
            mode,
            value,
            selector: selector(subject),
            container_names: container.iter().cloned().collect(),
            grace_period: grace.map(i64::from),
            duration: duration.clone(),
            signal: signal.map(|signal| IntOrString::String(signal.to_string())),
            ..PodChaosSpec::default()
        }))
    };
    let stress = |stressors, value| {
        Experiment::Stress(Box::new(StressChaosSpec {
            mode,
            value,
            selector: selector(subject),
            duration: duration.clone(),
            stressors: Some(stressors),
            ..StressChaosSpec::default()
        }))
    };
    match fault {
        Fault::PodFailure => pod(Action::PodFailure, value),
        Fault::PodKill => pod(Action::PodKill, value),
        Fault::ContainerKill => pod(Action::ContainerKill, value),
        Fault::StressCpu => {
            let cpu = CpuStressor { workers: 1, ..CpuStressor::default() };
            stress(Stressors { cpu: Some(cpu), ..Stressors::default() }, value)
        }
        Fault::StressMemory => {
            let size = size.clone().unwrap_or_default();
            let memory = MemoryStressor { workers: 1, size, ..MemoryStressor::default() };
            stress(Stressors { memory: Some(memory), ..Stressors::default() }, value)
        }
    }
}

fn selector(subject: &Subject) -> PodSelector {
    let namespace = subject.namespace.clone();
    match subject.kind {
        Kind::Pod => {
            PodSelector { pods: [(namespace, vec![subject.name.clone()])].into(), ..PodSelector::default() }
        }
        Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicaSet => {
            let selector = subject.selector.clone().unwrap_or_default();
            PodSelector {
                namespaces: vec![namespace],
                label_selectors: selector.match_labels.unwrap_or_default(),
                expression_selectors: selector.match_expressions.unwrap_or_default(),
                ..PodSelector::default()
            }
        }
    }
}
