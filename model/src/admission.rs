//! What becomes of a pod that is created or changed, as the webhook answers it.
//!
//! - A CREATE is never refused: in doubt the pod is born whole, with a warning and the reason on it.
//! - An UPDATE is refused only if it asks in this very request for a fault that can't be.
//! - The record belongs to Squall: what anyone else writes there is put back, quietly but with a warning.
//! - The API server may ask twice about one request (reinvocation): the second answer changes nothing.
//!
//! It makes no calls and reads no clock; what it has to know comes with the [`Setting`].

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use squall_api::names;

use crate::error::FieldError;
use crate::pod::{NamespaceView, PodView};
use crate::policy::{Policies, Stop, Who};
use crate::select::Ineligible;
use crate::substitute::record::{KeptMap, Record, StandIns, annotation};
use crate::substitute::{
    FaultImages, Holder, MANUAL, PODCHAOS, Refusal, clean, containers, is_switched_on, remove,
    restore_images, settle, switch, take_over, would_recover,
};

mod births;
mod hand;

pub use births::{Candidate, births_for};
use hand::{End, INPUTS, Name};

/// What a verdict depends on beside the pod.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The images that stand in.
    pub images: &'a FaultImages,
    /// Now.
    pub now: Timestamp,
    /// How long a fault by hand lasts if it doesn't say; zero means for ever.
    pub manual_limit: Duration,
    /// The pod's namespace, if it is known.
    pub namespace: Option<&'a NamespaceView>,
    /// Its workload says that its pods are to be left alone.
    pub shielded: bool,
    /// What halts and policies say.
    pub guard: Guard<'a>,
}

/// What halts and policies say of a fault by hand.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// All policies.
    pub policies: &'a Policies,
    /// Squall's own namespace, whose halt means the whole cluster.
    pub system: Option<&'a NamespaceView>,
    /// Who asks.
    pub who: &'a Who,
}

impl Guard<'_> {
    /// No halt, no policy.
    pub const OPEN: Guard<'static> = Guard { policies: &Policies::NONE, system: None, who: &Who::NOBODY };
}

/// Who changes a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Squall's controller: it alone may change the record.
    Controller,
    /// Anyone else.
    Someone,
}

impl Actor {
    /// The actor that `user` is.
    pub fn of(user: &str) -> Self {
        if user == names::CONTROLLER_USER { Self::Controller } else { Self::Someone }
    }
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What the pod becomes, if that is not what was asked for.
    pub pod: Option<Pod>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Why the request is refused; on an UPDATE only.
    pub deny: Option<Denial>,
}

/// Why a pod can't be failed by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// What was written makes no sense.
    Field(FieldError),
    /// The fault could not be taken back, or can't be laid on.
    Refusal(Refusal),
    /// The pod may not be hit.
    Ineligible(Ineligible),
    /// Nothing may be hit there now.
    Stopped(Box<Stop>),
    /// A policy says no.
    Policy(Box<crate::policy::Refusal>),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(error) => error.fmt(f),
            Self::Refusal(refusal) => refusal.fmt(f),
            Self::Ineligible(why) => write!(f, "{}: {why}", why.reason()),
            Self::Stopped(stop) => write!(f, "{}: {stop}", stop.reason),
            Self::Policy(refusal) => refusal.fmt(f),
        }
    }
}

/// What the API server takes of annotations, keys and values together.
const ANNOTATIONS_LIMIT: usize = 256 << 10;
/// How much of a reason is written on a pod; it quotes what the user wrote.
const REASON_LIMIT: usize = 1 << 10;
/// How many experiments hold a newborn at most; the controller adds the others later.
const BIRTHS_LIMIT: usize = 64;

/// A pod is created, and `births` (see [`births_for`]) hold it from the start.
pub fn pod_create(pod: &Pod, births: &[Holder], setting: &Setting<'_>) -> Verdict {
    let mut new = pod.clone();
    let mut warnings = Vec::new();
    let mut trouble = None;

    // A record at birth was copied (a template, a backup), or is our own of a moment ago, when the API server
    // asks twice. Either way its images are known, and its holders are found anew.
    let mut record = fresh(&new, None);
    let mut births = births;
    if !is_the_hands(&new) {
        remove(&mut new.metadata.labels, &[names::FAULT], record.extra.kept.contains(&KeptMap::Labels));
    }
    match switch(&new) {
        None => {}
        Some(names::POD_FAILURE) => match hand::holder(&new, End::Asked, None, setting) {
            Ok(holder) => {
                warnings.push(hand::says(&new, &holder, setting));
                record.upsert(&holder);
            }
            Err(why) => trouble = Some(why),
        },
        Some(other) => {
            trouble = Some(Denial::Field(bad_switch(other)));
            // The label can't say two things, and the owner's word stays.
            births = &[];
        }
    }
    if would_recover(&new).is_ok() {
        births.iter().take(BIRTHS_LIMIT).for_each(|holder| record.upsert(holder));
    }
    if let Some(why) = &trouble {
        warnings.push(format!("squall: pod {} is created whole: {why}", Name(&new)));
    }
    if record.holders.is_empty() {
        restore_images(&mut new, record, &StandIns::of(setting.images));
        remove(&mut new.metadata.annotations, &[names::HELD_BY, names::ORIGINAL_IMAGES], false);
    } else {
        settle(&mut new, record, setting.images);
    }
    remove(&mut new.metadata.annotations, &[names::LAST_ERROR], false);
    if let Some(why) = trouble {
        let annotations = new.metadata.annotations.get_or_insert_default();
        let mut why = why.to_string();
        let end = (0..=why.len().min(REASON_LIMIT)).rev().find(|&at| why.is_char_boundary(at));
        why.truncate(end.unwrap_or_default());
        annotations.insert(names::LAST_ERROR.to_owned(), why);
    }
    let annotations = new.metadata.annotations.iter().flatten();
    if annotations.map(|(key, value)| key.len() + value.len()).sum::<usize>() > ANNOTATIONS_LIMIT {
        // With what we would add the API server would refuse it.
        let why = "its annotations leave no room for Squall's";
        let warnings = vec![format!("squall: pod {} passes unchanged: {why}", Name(pod))];
        return Verdict { warnings, ..Verdict::default() };
    }
    Verdict { pod: changed(pod, new), warnings, deny: None }
}

/// `old` is changed to `pod` by `actor`.
pub fn pod_update(old: &Pod, pod: &Pod, actor: Actor, setting: &Setting<'_>) -> Verdict {
    if let Some(value) = switch(pod)
        && value != names::POD_FAILURE
        && switch(old) != Some(value)
    {
        return refused(Denial::Field(bad_switch(value)));
    }
    match actor {
        Actor::Controller => by_controller(old, pod, setting),
        Actor::Someone => by_someone(old, pod, setting),
    }
}

/// The controller says who holds the pod; the images follow.
fn by_controller(old: &Pod, pod: &Pod, setting: &Setting<'_>) -> Verdict {
    let mut new = pod.clone();
    let stored = Record::read_what_there_is(old);
    let had_one = stored.is_some();
    let record = match (Record::read_what_there_is(&new), stored) {
        (Some(record), Some(stored)) => record.on_top_of(stored),
        (Some(record), None) => record,
        (None, Some(stored)) => Record { holders: Vec::new(), ..stored },
        (None, None) => {
            // Nothing of Squall's is concerned, unless a label came without its holder: a hand's, then.
            return if is_switched_on(&new) { by_someone(old, pod, setting) } else { Verdict::default() };
        }
    };
    if !is_switched_on(&new) || record.holders.is_empty() || (!had_one && would_recover(&new).is_err()) {
        clean(&mut new, record, &StandIns::of(setting.images));
    } else {
        settle(&mut new, record, setting.images);
    }
    Verdict { pod: changed(pod, new), ..Verdict::default() }
}

fn by_someone(old: &Pod, pod: &Pod, setting: &Setting<'_>) -> Verdict {
    let mut stored = Record::read_what_there_is(old);
    if let Some(stored) = &mut stored {
        seen_again(old, pod, stored, setting.images);
    }
    match (stored, is_switched_on(pod)) {
        (Some(record), false) => let_go(old, pod, record, setting),
        (None, false) if is_switched_on(old) => {
            let mut new = pod.clone();
            clean(&mut new, fresh(pod, None), &StandIns::of(setting.images));
            Verdict { pod: changed(pod, new), ..Verdict::default() }
        }
        (None, false) => {
            let mut new = pod.clone();
            Verdict { warnings: unforge(&mut new), pod: changed(pod, new), deny: None }
        }
        (Some(record), true) if is_switched_on(old) && !record.holders.is_empty() => {
            stay(old, pod, record, setting)
        }
        (stored, true) => switch_on(old, pod, stored, setting),
    }
}

/// Asked a second time about the same request, we find on the pod what we wrote the first time: images that were
/// saved just then are nowhere else. They are all that is believed, since anyone can write such a record: who does
/// gets no more than by writing the image itself. Who holds the pod is said by the stored record alone.
fn seen_again(old: &Pod, pod: &Pod, stored: &mut Record, images: &FaultImages) {
    let Some(asked) = Record::read_what_there_is(pod) else { return };
    let again = asked.extra.taken_from.is_some() && asked.extra.taken_from == old.metadata.resource_version;
    let mut known = stored.extra.stand_ins.clone();
    known.merge(&StandIns::of(images));
    for (container, _) in containers(pod) {
        let Some(seen) = asked.originals.get(&container.name) else { continue };
        if !known.contains(container.image.as_deref().unwrap_or_default()) {
            continue;
        }
        match stored.originals.get_mut(&container.name) {
            Some(saved) if again && !known.contains(seen) => saved.clone_from(seen),
            Some(_) => {}
            None => {
                let before = containers(old).find(|(before, _)| before.name == container.name);
                if before.is_some_and(|(before, _)| before.image != container.image) {
                    stored.originals.insert(container.name.clone(), seen.clone());
                }
            }
        }
    }
    if again {
        stored.extra.taken_from = asked.extra.taken_from;
    }
}

/// The label is gone, and that always wins: everything back, whoever holds the pod.
fn let_go(old: &Pod, pod: &Pod, mut record: Record, setting: &Setting<'_>) -> Verdict {
    let mut new = pod.clone();
    take_over(&new, Some(old), &mut record, setting.images);
    let warnings = experiments(&record)
        .map(|held| format!("squall: {held} held pod {}: it lets go, and will not fail it again", Name(pod)))
        .collect();
    clean(&mut new, record, &StandIns::of(setting.images));
    Verdict { pod: changed(pod, new), warnings, deny: None }
}

/// The fault is on and stays on, whatever else is changed.
fn stay(old: &Pod, pod: &Pod, mut record: Record, setting: &Setting<'_>) -> Verdict {
    let mut new = pod.clone();
    if let Some(why @ Ineligible::Protected(_)) = hand::forbidden(pod, setting) {
        let warnings = vec![format!("squall: pod {} is put back: {why}", Name(pod))];
        take_over(&new, Some(old), &mut record, setting.images);
        clean(&mut new, record, &StandIns::of(setting.images));
        return Verdict { pod: changed(pod, new), warnings, deny: None };
    }
    let mut warnings = Vec::new();
    let again = record.extra.taken_from.is_some() && record.extra.taken_from == old.metadata.resource_version;
    if take_over(&new, Some(old), &mut record, setting.images) {
        record.extra.taken_from.clone_from(&old.metadata.resource_version);
        warnings.push(format!(
            "squall: pod {} is failed: the new image is kept, and runs when the fault is over",
            Name(pod)
        ));
    } else if !again {
        record.extra.taken_from = None;
    }
    let inputs_changed = INPUTS.iter().any(|key| annotation(old, key) != annotation(pod, key));
    if inputs_changed {
        match record.holders.iter().find(|holder| holder.uid == MANUAL) {
            Some(held) => {
                let same_end = annotation(old, names::UNTIL) == annotation(pod, names::UNTIL);
                let end = if same_end { End::Kept(held.until) } else { End::Asked };
                match hand::holder(pod, end, Some(held), setting) {
                    Ok(holder) => {
                        warnings.push(hand::says(pod, &holder, setting));
                        record.upsert(&holder);
                    }
                    Err(why) => return refused(why),
                }
            }
            None => warnings.push(format!(
                "squall: {} are for faults by label; this one is held by {} and stays as it is",
                INPUTS.join(", "),
                experiments(&record).collect::<Vec<_>>().join(", ")
            )),
        }
    }
    settle(&mut new, record, setting.images);
    let tampered = [names::HELD_BY, names::ORIGINAL_IMAGES].iter().any(|key| {
        let asked = annotation(pod, key);
        asked != annotation(old, key) && asked != annotation(&new, key)
    });
    if tampered {
        warnings.push(format!(
            "squall: {} and {} are Squall's own and were put back; remove the label {} to end the fault",
            names::HELD_BY,
            names::ORIGINAL_IMAGES,
            names::FAULT
        ));
    }
    Verdict { pod: changed(pod, new), warnings, deny: None }
}

/// The switch goes on by hand; or it is on, and nobody holds the pod yet.
fn switch_on(old: &Pod, pod: &Pod, stored: Option<Record>, setting: &Setting<'_>) -> Verdict {
    let asked_for =
        !is_switched_on(old) || INPUTS.iter().any(|key| annotation(old, key) != annotation(pod, key));
    let freed = hand::forbidden(old, setting).is_some() && hand::forbidden(pod, setting).is_none();
    let mut new = pod.clone();
    if !asked_for && !freed && annotation(pod, names::LAST_ERROR).is_some() && stored.is_none() {
        // Born whole, and why is written on it. Nothing has changed about that.
        return Verdict { warnings: unforge(&mut new), pod: changed(pod, new), deny: None };
    }
    match hand::holder(pod, End::Asked, None, setting) {
        Ok(holder) => {
            let mut record = fresh(&new, stored);
            record.upsert(&holder);
            remove(&mut new.metadata.annotations, &[names::LAST_ERROR], true);
            settle(&mut new, record, setting.images);
            let warnings = vec![hand::says(pod, &holder, setting)];
            Verdict { pod: changed(pod, new), warnings, deny: None }
        }
        Err(why) if asked_for => refused(why),
        Err(why) => {
            // Someone changes something else, and must not be held up by our affairs.
            let mut warnings = unforge(&mut new);
            warnings.push(format!("squall: pod {} is not failed: {why}", Name(pod)));
            Verdict { pod: changed(pod, new), warnings, deny: None }
        }
    }
}

/// Whether the switch, if it is on at birth, was set by the owner: beside a record that doesn't name the hand it
/// came with that record. (The hand isn't named either where what it asked for made no sense: that is noted.)
fn is_the_hands(pod: &Pod) -> bool {
    let holders = Record::read_what_there_is(pod).map(|record| record.holders).unwrap_or_default();
    !is_switched_on(pod)
        || holders.is_empty()
        || annotation(pod, names::LAST_ERROR).is_some()
        || holders.iter().any(|holder| holder.uid == MANUAL)
}

/// A record without holders to begin with: from what is stored, else from what the pod carries.
fn fresh(pod: &Pod, stored: Option<Record>) -> Record {
    let carried = stored.or_else(|| {
        // Of unknown origin: only images that are known for ours are put back from it.
        Record::read_what_there_is(pod).map(|record| Record { assume_ours: false, ..record })
    });
    let mut record = carried.unwrap_or_else(|| Record::begin(pod));
    record.holders.clear();
    record.extra.taken_from = None;
    record
}

/// Nobody but Squall writes a record where there is none.
fn unforge(pod: &mut Pod) -> Vec<String> {
    let forged: Vec<&str> = [names::HELD_BY, names::ORIGINAL_IMAGES]
        .into_iter()
        .filter(|key| annotation(pod, key).is_some())
        .collect();
    if forged.is_empty() {
        return Vec::new();
    }
    remove(&mut pod.metadata.annotations, &forged, false);
    vec![format!(
        "squall: {} can be set by Squall only and was removed; label the pod {}={} to fail it",
        forged.join(" and "),
        names::FAULT,
        names::POD_FAILURE
    )]
}

fn experiments(record: &Record) -> impl Iterator<Item = String> {
    let held = record.holders.iter().filter(|holder| holder.kind == PODCHAOS);
    held.map(|holder| format!("{} {}/{}", holder.kind, holder.namespace, holder.name))
}

fn bad_switch(value: &str) -> FieldError {
    FieldError::new(
        format!("metadata.labels[{}]", names::FAULT),
        value,
        format!("allowed is: {}", names::POD_FAILURE),
    )
}

fn changed(before: &Pod, after: Pod) -> Option<Pod> {
    (*before != after).then_some(after)
}

fn refused(why: Denial) -> Verdict {
    Verdict { deny: Some(why), ..Verdict::default() }
}

/// The view of a pod that is being created in `namespace`: its metadata may not tell yet.
pub fn newborn(pod: &Pod, namespace: &str) -> PodView {
    let mut view = PodView::of(pod);
    if view.namespace.is_empty() {
        namespace.clone_into(&mut view.namespace);
    }
    view
}
