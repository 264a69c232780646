//! Which pods, which of their containers, and why the rest are not.

use std::fmt;

use sha2::{Digest, Sha256};
use squall_api::names;

use crate::pod::{ComesBack, ContainerKind, ContainerView, NamespaceView, PodView};
use crate::policy::Refusal;
pub use crate::selector::{AtBirth, Nodes, Selector};
use crate::signal::Signal;
use crate::spec::{Action, Mode, Spec};

/// Why a selected pod, or container, is not hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// The namespace is not opted in.
    NotOptedIn,
    /// The namespace can't be opted in.
    ProtectedNamespace,
    /// `squall.dev/protect` on the pod or its namespace; says which.
    Protected(&'static str),
    /// A static pod's mirror.
    MirrorPod,
    /// It has a deletion mark.
    Terminating,
    /// Succeeded or Failed.
    Completed,
    /// Faults on containers: none of those asked for runs.
    NotRunning,
    /// The fault could end it for good.
    WouldNotRecover,
    /// It has none of the containers asked for.
    NoSuchContainer(Vec<String>),
    /// A policy spares it.
    Policy(Box<Refusal>),
}

impl Ineligible {
    /// The stable word for `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotOptedIn => "NotOptedIn",
            Self::ProtectedNamespace => "ProtectedNamespace",
            Self::Protected(_) => "Protected",
            Self::MirrorPod => "MirrorPod",
            Self::Terminating => "Terminating",
            Self::Completed => "Completed",
            Self::NotRunning => "NotRunning",
            Self::WouldNotRecover => "WouldNotRecover",
            Self::NoSuchContainer(_) => "NoSuchContainer",
            Self::Policy(_) => "PolicyRefused",
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOptedIn => write!(
                f,
                "its namespace does not take part: an administrator can label it {}={}",
                names::INJECT,
                names::INJECT_ENABLED
            ),
            Self::ProtectedNamespace => f.write_str("its namespace is protected, no label can open it: choose another"),
            Self::Protected(which) => {
                write!(f, "the {which} is protected: remove {} from it to let it be hit", names::PROTECT)
            }
            Self::MirrorPod => f.write_str("it is the mirror of a static pod, which only its node controls: choose another"),
            Self::Terminating => f.write_str("it is being deleted already: choose another"),
            Self::Completed => f.write_str("it has run to its end: choose pods that run"),
            Self::NotRunning => f.write_str("none of the containers asked for runs: wait until one does, or name others"),
            Self::WouldNotRecover => f.write_str(
                "it would not come back (restartPolicy Never, OnFailure where the signal may end it well, or owned by a Job): \
                 use pod-kill, SIGKILL with OnFailure, or container-kill with allowTerminal",
            ),
            Self::NoSuchContainer(missing) => {
                write!(f, "it has no container {}: correct spec.containerNames", missing.join(", "))
            }
            Self::Policy(refusal) => refusal.fmt(f),
        }
    }
}

/// Whether a selected pod may be hit by `spec`, and which of its containers: for pod-failure those whose
/// images are substituted, for faults on containers those of them that run, for pod-kill none.
pub fn eligible<'a>(
    spec: &Spec,
    pod: &'a PodView,
    namespace: &NamespaceView,
) -> Result<Vec<&'a ContainerView>, Ineligible> {
    // The most fundamental reason first: it is the one that the user has to deal with first.
    if names::is_protected_namespace(&pod.namespace) || names::is_protected_namespace(&namespace.name) {
        return Err(Ineligible::ProtectedNamespace);
    }
    if !namespace.opted_in {
        return Err(Ineligible::NotOptedIn);
    }
    if pod.is_protected() {
        return Err(Ineligible::Protected("pod"));
    }
    if pod.shielded {
        return Err(Ineligible::Protected("pod's workload"));
    }
    if namespace.protect {
        return Err(Ineligible::Protected("namespace"));
    }
    if pod.mirror {
        return Err(Ineligible::MirrorPod);
    }
    if pod.terminating || namespace.terminating {
        return Err(Ineligible::Terminating);
    }
    if pod.phase == "Succeeded" || pod.phase == "Failed" {
        return Err(Ineligible::Completed);
    }
    match &spec.action {
        Action::PodKill { .. } => Ok(Vec::new()),
        Action::PodFailure { .. } => {
            if ends_for_good(pod) {
                return Err(Ineligible::WouldNotRecover);
            }
            let asked = asked_for(&spec.containers, pod)?;
            Ok(asked.unwrap_or_else(|| pod.containers.iter().collect()))
        }
        Action::ContainerKill { signal, allow_terminal, .. } => {
            if ends_for_good(pod) && !allow_terminal {
                return Err(Ineligible::WouldNotRecover);
            }
            let hit = running(spec, pod)?;
            let stays_away = |container: &&ContainerView| match container.comes_back {
                ComesBack::Always => false,
                // Of SIGKILL nothing ends well.
                ComesBack::OnFailure => *signal != Signal::KILL,
                ComesBack::Never => true,
            };
            if hit.iter().any(stays_away) && !allow_terminal {
                return Err(Ineligible::WouldNotRecover);
            }
            Ok(hit)
        }
        Action::ContainerFreeze | Action::Stress(_) => {
            // Nothing ends by these, unless memory runs out. That there is enough when it begins is the daemon's to
            // see, but the container may want more later, and where `memory.oom.group` is set the kernel ends it together
            // with the stressor. A task takes some 40 KiB. Files that IO stress writes are hardly ever in memory, and
            // only the daemon knows.
            let deadly = match &spec.action {
                Action::Stress(stress) => {
                    stress.memory.is_some() || stress.pids.is_some() || stress.squeeze.memory.is_some()
                }
                Action::PodKill { .. }
                | Action::PodFailure { .. }
                | Action::ContainerKill { .. }
                | Action::ContainerFreeze => false,
            };
            if deadly && ends_for_good(pod) {
                return Err(Ineligible::WouldNotRecover);
            }
            let hit = running(spec, pod)?;
            if deadly && hit.iter().any(|container| container.comes_back == ComesBack::Never) {
                return Err(Ineligible::WouldNotRecover);
            }
            Ok(hit)
        }
    }
}

/// How many of `found` pods `mode` asks for.
pub fn count(mode: Mode, found: usize, seed: u64) -> usize {
    let percent = |percent: usize| (found * percent).div_ceil(100);
    match mode {
        Mode::One => found.min(1),
        Mode::All => found,
        Mode::Fixed(n) => usize::try_from(n).unwrap_or(usize::MAX).min(found),
        Mode::FixedPercent(share) => percent(usize::from(share).min(100)),
        Mode::RandomMaxPercent(most) => {
            // From 1: Chaos Mesh draws from 0, so that an experiment may hit nothing and still be a success.
            let drawn = rank(seed, "random-max-percent") % u64::from(most.clamp(1, 100)) + 1;
            percent(usize::try_from(drawn).unwrap_or(100))
        }
    }
}

/// Draw `n` of `uids`: which ones depends on the seed and on the set, not on the order. Sorted by the draw's
/// own rank, so that drawing more keeps those drawn before (a prefix).
pub fn draw<'a>(uids: impl Iterator<Item = &'a str>, n: usize, seed: u64) -> Vec<&'a str> {
    let mut ranked: Vec<([u8; 32], &str)> = uids.map(|uid| (digest(seed, uid), uid)).collect();
    ranked.sort_unstable();
    // A set: the same UID given twice is one pod.
    ranked.dedup();
    ranked.into_iter().take(n).map(|(_, uid)| uid).collect()
}

/// Whether nothing that ends in this pod is started again.
fn ends_for_good(pod: &PodView) -> bool {
    pod.never_restarts || pod.owner.as_ref().is_some_and(|owner| owner.kind == "Job")
}

/// Those of the containers asked for that run: unset means the first.
fn running<'a>(spec: &Spec, pod: &'a PodView) -> Result<Vec<&'a ContainerView>, Ineligible> {
    let first = || pod.containers.iter().find(|container| container.kind == ContainerKind::Main);
    let mut hit = asked_for(&spec.containers, pod)?.unwrap_or_else(|| first().into_iter().collect());
    hit.retain(|container| container.runs());
    if hit.is_empty() { Err(Ineligible::NotRunning) } else { Ok(hit) }
}

/// The containers named, in the order of the pod; `None` if none is named.
fn asked_for<'a>(names: &[String], pod: &'a PodView) -> Result<Option<Vec<&'a ContainerView>>, Ineligible> {
    if names.is_empty() {
        return Ok(None);
    }
    let is_there = |name: &String| pod.containers.iter().any(|container| container.name == *name);
    let missing: Vec<String> = names.iter().filter(|name| !is_there(name)).cloned().collect();
    if !missing.is_empty() {
        return Err(Ineligible::NoSuchContainer(missing));
    }
    Ok(Some(pod.containers.iter().filter(|container| names.contains(&container.name)).collect()))
}

fn digest(seed: u64, text: &str) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_be_bytes()).chain_update(text.as_bytes()).finalize().into()
}

fn rank(seed: u64, text: &str) -> u64 {
    let digest = digest(seed, text);
    digest[..8].iter().fold(0, |rank, byte| rank << 8 | u64::from(*byte))
}
