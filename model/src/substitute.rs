//! pod-failure on one pod: which images go in, which are kept, who holds it, and how it is made whole.
//!
//! Works on the typed pod; callers diff before and after. On a live pod only
//! `spec.containers[*].image` and `spec.initContainers[*].image` may change, and nothing else is touched but
//! our own label and annotations.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};
use squall_api::names;
use squall_api::podchaos::FaultStyle;

pub(crate) mod record;

use record::{KeptMap, Record, StandIns};

use crate::annotation;
use crate::pod::{ContainerKind, PodView};
use crate::spec::{Action, Spec};

/// Someone who holds a pod failed: an entry of [`squall_api::names::HELD_BY`].
///
/// What it asks for is kept in the entry, so that overlapping holders of different containers add up, and each
/// lets go alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// `PodChaos`, or `Manual` for the hand.
    pub kind: String,
    /// The experiment's namespace; empty for the hand.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The experiment's name; empty for the hand.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The experiment's UID; `manual` for the hand. This is what identifies the holder.
    pub uid: String,
    /// The containers that it asks for; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// The style that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<FaultStyle>,
    /// The hand: when it began. The newest is let go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The hand: when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// The UID of the holder that stands for the hand.
pub const MANUAL: &str = "manual";

/// The names of the images that stand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultImages {
    /// Sleeps.
    pub pause: String,
    /// Exits with 1 at once.
    pub crash: String,
}

/// Why a pod can't be failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Failing it could end it for good.
    #[error(
        "WouldNotRecover: {0}; failing this pod could end it for good. Use container-kill with allowTerminal, or pod-kill, instead"
    )]
    WouldNotRecover(&'static str),
    /// A container that it was asked for isn't there.
    #[error("the pod has no container {found:?}; it has {there}")]
    NoSuchContainer {
        /// The name asked for.
        found: String,
        /// The names there are.
        there: String,
    },
    /// The record on the pod can't be read.
    #[error("the annotation {annotation} can't be read: {error}")]
    BadRecord {
        /// Which annotation.
        annotation: &'static str,
        /// Why.
        error: String,
    },
}

/// The kind of a [`Holder`] that is an experiment.
pub const PODCHAOS: &str = "PodChaos";

/// Every key on a pod that is ours, the switch apart.
pub(crate) const ANNOTATIONS: [&str; 6] = [
    names::ORIGINAL_IMAGES,
    names::HELD_BY,
    names::UNTIL,
    names::CONTAINERS,
    names::FAULT_STYLE,
    names::LAST_ERROR,
];

impl Holder {
    /// The entry of the experiment `namespace`/`name` on `pod`: of the containers that it names, those that
    /// the pod has.
    pub fn experiment(namespace: &str, name: &str, uid: &str, spec: &Spec, pod: &PodView) -> Self {
        let style = match spec.action {
            Action::PodFailure { style, .. } => style,
            Action::PodKill { .. }
            | Action::ContainerKill { .. }
            | Action::ContainerFreeze
            | Action::Stress(_) => None,
        };
        let there = |name: &&String| pod.containers.iter().any(|container| container.name == **name);
        Self {
            kind: PODCHAOS.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            containers: spec.containers.iter().filter(there).cloned().collect(),
            style,
            since: None,
            until: None,
        }
    }

    fn covers(&self, container: &str) -> bool {
        self.containers.is_empty() || self.containers.iter().any(|name| name == container)
    }
}

/// Add `holder` (or renew its entry), set the switch and substitute. Idempotent.
pub fn inject(pod: &mut Pod, holder: &Holder, images: &FaultImages) -> Result<(), Refusal> {
    let record = Record::read(pod)?.unwrap_or_else(|| Record::begin(pod));
    inject_into(pod, record, holder, images)
}

/// [`inject`] on top of a record that was read already.
pub(crate) fn inject_into(
    pod: &mut Pod,
    mut record: Record,
    holder: &Holder,
    images: &FaultImages,
) -> Result<(), Refusal> {
    would_recover(pod)?;
    let there = container_names(pod);
    if let Some(found) = holder.containers.first()
        && !holder.containers.iter().any(|name| there.contains(&name.as_str()))
    {
        return Err(Refusal::NoSuchContainer { found: found.clone(), there: there.join(", ") });
    }
    record.upsert(holder);
    settle(pod, record, images);
    Ok(())
}

/// Let the holder `uid` go. With the last holder the originals return and no key of ours is left.
///
/// A record that can't be read names no holder to keep, and would never be read later: the pod is made whole.
pub fn release(pod: &mut Pod, uid: &str, images: &FaultImages) -> Result<(), Refusal> {
    let mut record = match Record::read(pod) {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(()),
        Err(_) => {
            restore(pod);
            return Ok(());
        }
    };
    record.holders.retain(|holder| holder.uid != uid);
    settle(pod, record, images);
    Ok(())
}

/// Put everything back, whoever holds it. Never fails: what can't be read is removed.
pub fn restore(pod: &mut Pod) {
    let record = Record::read_what_there_is(pod).unwrap_or_default();
    clean(pod, record, &StandIns::default());
}

/// Whether the spec carries the fault images everywhere where its holders ask for them.
pub fn is_substituted(pod: &Pod, images: &FaultImages) -> bool {
    let Ok(Some(record)) = Record::read(pod) else { return false };
    let mut known = record.extra.stand_ins.clone();
    known.merge(&StandIns::of(images));
    is_switched_on(pod)
        && !record.holders.is_empty()
        && containers(pod).all(|(container, kind)| match wanted(&record.holders, container, kind) {
            Some(style) => {
                record.originals.contains_key(&container.name)
                    && known.fits(container.image.as_deref().unwrap_or_default(), style)
            }
            None => true,
        })
}

/// The switch is on.
pub(crate) fn is_switched_on(pod: &Pod) -> bool {
    switch(pod) == Some(names::POD_FAILURE)
}

/// The value of the switch.
pub(crate) fn switch(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(names::FAULT).map(String::as_str)
}

/// Refuse a pod that could end for good by being failed.
pub(crate) fn would_recover(pod: &Pod) -> Result<(), Refusal> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    if owners.iter().any(|owner| owner.controller == Some(true) && owner.kind == "Job") {
        return Err(Refusal::WouldNotRecover("it belongs to a Job"));
    }
    let Some(spec) = &pod.spec else { return Ok(()) };
    if spec.restart_policy.as_deref() == Some("Never") {
        return Err(Refusal::WouldNotRecover("its restartPolicy is Never"));
    }
    if spec.containers.iter().any(|container| container.restart_policy.as_deref() == Some("Never")) {
        return Err(Refusal::WouldNotRecover("the restartPolicy of one of its containers is Never"));
    }
    Ok(())
}

/// The names of the containers that can be failed, init containers first.
pub(crate) fn container_names(pod: &Pod) -> Vec<&str> {
    containers(pod).map(|(container, _)| container.name.as_str()).collect()
}

/// What was written into the containers of the record since becomes the saved original.
///
/// `stored` is the pod as the API server has it: what it carries there was not written now.
pub(crate) fn take_over(pod: &Pod, stored: Option<&Pod>, record: &mut Record, images: &FaultImages) -> bool {
    let mut known = record.extra.stand_ins.clone();
    known.merge(&StandIns::of(images));
    let mut taken = false;
    for (container, _) in containers(pod) {
        let Some(saved) = record.originals.get_mut(&container.name) else { continue };
        let image = container.image.as_deref().unwrap_or_default();
        let before = stored.and_then(|stored| containers(stored).find(|(old, _)| old.name == container.name));
        let written = match before {
            Some((old, _)) => old.image != container.image && !known.contains(image),
            None => !record.assume_ours && !known.contains(image),
        };
        if written && saved != image {
            image.clone_into(saved);
            taken = true;
        }
    }
    taken
}

/// Make the pod what its holders ask for, and write the record.
pub(crate) fn settle(pod: &mut Pod, mut record: Record, images: &FaultImages) {
    let ours = StandIns::of(images);
    if record.holders.is_empty() {
        clean(pod, record, &ours);
        return;
    }
    let Record { originals, holders, extra, assume_ours } = &mut record;
    let mut known = extra.stand_ins.clone();
    known.merge(&ours);
    let mut there = BTreeMap::new();
    for (container, kind) in containers_mut(pod) {
        let image = container.image.clone().unwrap_or_default();
        let saved = originals.remove(&container.name);
        let is_ours = *assume_ours || known.contains(&image);
        match (wanted(holders, container, kind), saved) {
            (Some(style), saved) => {
                // What fits already stays, were it put in by an older version or rewritten by someone's
                // webhook: another image would only restart the container.
                if saved.is_none() || !known.fits(&image, style) {
                    let stand_in = images.of(style);
                    container.image = Some(stand_in.to_owned());
                    extra.stand_ins.add(stand_in, style);
                } else if !extra.stand_ins.fits(&image, style) {
                    // Put in by an answer that was given a moment ago, and of which this record knows nothing.
                    extra.stand_ins.add(&image, style);
                }
                let original = match saved {
                    Some(saved) if is_ours => saved,
                    Some(_) | None => image,
                };
                there.insert(container.name.clone(), original);
            }
            (None, Some(saved)) => {
                if is_ours {
                    put_back(container, saved);
                }
            }
            (None, None) => {}
        }
    }
    *originals = there;
    record.write(pod);
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(names::FAULT.to_owned(), names::POD_FAILURE.to_owned());
}

/// Put the originals back and remove every key of ours. `ours` are stand-ins beside those of the record.
pub(crate) fn clean(pod: &mut Pod, record: Record, ours: &StandIns) {
    let kept = record.extra.kept.clone();
    restore_images(pod, record, ours);
    if is_switched_on(pod) {
        remove(&mut pod.metadata.labels, &[names::FAULT], kept.contains(&KeptMap::Labels));
    }
    // Asked for by annotation, it is over with the label.
    annotation::forget(&mut pod.metadata.annotations, annotation::Fault::PodFailure);
    remove(&mut pod.metadata.annotations, &ANNOTATIONS, kept.contains(&KeptMap::Annotations));
}

/// Put the originals back, and nothing else.
pub(crate) fn restore_images(pod: &mut Pod, record: Record, ours: &StandIns) {
    let Record { mut originals, holders: _, extra, assume_ours } = record;
    let mut known = extra.stand_ins;
    known.merge(ours);
    for (container, _) in containers_mut(pod) {
        if let Some(saved) = originals.remove(&container.name)
            && (assume_ours || known.contains(container.image.as_deref().unwrap_or_default()))
        {
            put_back(container, saved);
        }
    }
}

/// Remove `keys`, and a map that is empty thereby.
pub(crate) fn remove(map: &mut Option<BTreeMap<String, String>>, keys: &[&str], keep: bool) {
    let Some(entries) = map else { return };
    let before = entries.len();
    for key in keys {
        entries.remove(*key);
    }
    if entries.is_empty() && entries.len() < before && !keep {
        *map = None;
    }
}

impl FaultImages {
    fn of(&self, style: FaultStyle) -> &str {
        match style {
            FaultStyle::Pause => &self.pause,
            FaultStyle::Crash => &self.crash,
        }
    }
}

/// What the holders want of a container; `None` if none of them asks for it.
fn wanted(holders: &[Holder], container: &Container, kind: ContainerKind) -> Option<FaultStyle> {
    let mut covered = false;
    let mut asked = None;
    for holder in holders.iter().filter(|holder| holder.covers(&container.name)) {
        covered = true;
        asked = match (asked, holder.style) {
            (_, Some(FaultStyle::Crash)) | (Some(FaultStyle::Crash), _) => Some(FaultStyle::Crash),
            (_, Some(FaultStyle::Pause)) => Some(FaultStyle::Pause),
            (asked, None) => asked,
        };
    }
    match (covered, kind) {
        (false, _) => None,
        // The kubelet doesn't restart a running one when its image changes: asleep, it would hold up the pod
        // after its recovery for ever.
        (true, ContainerKind::Init) => Some(FaultStyle::Crash),
        (true, ContainerKind::Sidecar | ContainerKind::Main) => Some(asked.unwrap_or_else(|| {
            // With neither of these it would sleep and count as Ready.
            let alone =
                container.command.as_ref().is_none_or(Vec::is_empty) && container.readiness_probe.is_none();
            if alone { FaultStyle::Crash } else { FaultStyle::Pause }
        })),
    }
}

fn put_back(container: &mut Container, saved: String) {
    container.image = Some(saved).filter(|image| !image.is_empty());
}

fn kind_of_init(container: &Container) -> ContainerKind {
    if container.restart_policy.as_deref() == Some("Always") {
        ContainerKind::Sidecar
    } else {
        ContainerKind::Init
    }
}

/// Init containers and containers; ephemeral ones can't be changed.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = (&Container, ContainerKind)> {
    pod.spec.iter().flat_map(|spec| {
        let init =
            spec.init_containers.iter().flatten().map(|container| (container, kind_of_init(container)));
        init.chain(spec.containers.iter().map(|container| (container, ContainerKind::Main)))
    })
}

fn containers_mut(pod: &mut Pod) -> impl Iterator<Item = (&mut Container, ContainerKind)> {
    pod.spec.iter_mut().flat_map(|spec| {
        let init = spec.init_containers.iter_mut().flatten().map(|container| {
            let kind = kind_of_init(container);
            (container, kind)
        });
        init.chain(spec.containers.iter_mut().map(|container| (container, ContainerKind::Main)))
    })
}
