//! pod-failure on one pod: which images go in, which are kept, who holds it, and how it is made whole.
//!
//! Works on the typed pod; callers diff before and after. On a live pod only
//! `spec.containers[*].image` and `spec.initContainers[*].image` may change, and nothing else is touched but
//! our own label and annotations.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use squall_api::podchaos::FaultStyle;

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

/// Add `holder` (or renew its entry), set the switch and substitute. Idempotent.
pub fn inject(pod: &mut Pod, holder: &Holder, images: &FaultImages) -> Result<(), Refusal> {
    let _ = (pod, holder, images);
    todo!("helper: substitution and webhook")
}

/// Let the holder `uid` go. With the last holder the originals return and no key of ours is left.
pub fn release(pod: &mut Pod, uid: &str, images: &FaultImages) -> Result<(), Refusal> {
    let _ = (pod, uid, images);
    todo!("helper: substitution and webhook")
}

/// Put everything back, whoever holds it. Never fails: what can't be read is removed.
pub fn restore(pod: &mut Pod) {
    let _ = pod;
    todo!("helper: substitution and webhook")
}

/// Whether the spec carries the fault images everywhere where its holders ask for them.
pub fn is_substituted(pod: &Pod, images: &FaultImages) -> bool {
    let _ = (pod, images);
    todo!("helper: substitution and webhook")
}
