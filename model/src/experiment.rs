//! What the kinds of experiments have in common for whoever decides about them: which kind it is, and how its
//! spec is read. What a spec means is in [`crate::spec`], once for all kinds.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use squall_api::names;
use squall_api::podchaos::Mode;

use crate::annotation::Kind as Annotated;
use crate::error::FieldError;
use crate::selector::Only;
use crate::spec::Spec;

/// A kind of experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// [`squall_api::PodChaos`].
    PodChaos,
    /// [`squall_api::StressChaos`].
    StressChaos,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::PodChaos, Self::StressChaos];

    /// As in `kind:` of a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::PodChaos => "PodChaos",
            Self::StressChaos => "StressChaos",
        }
    }

    /// As in `kubectl get`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::PodChaos => "podchaos",
            Self::StressChaos => "stresschaos",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The spec of an experiment, as it is written.
pub trait ExperimentSpec: Clone + PartialEq + Serialize {
    /// Of which kind of experiment.
    const KIND: Kind;

    /// Parse it for an experiment in `namespace`; every error at once.
    fn parse(&self, namespace: &str) -> Result<Spec, Vec<FieldError>>;

    /// Fill in what is unset and has one default. Done at admission, so that `kubectl get -o yaml` shows it.
    fn fill_in(&mut self);

    /// What is done, in one word of ours.
    fn action_word(&self) -> &'static str;

    /// How many are hit, as written: `mode` and `value`.
    fn mode(&self) -> (Mode, Option<&str>);

    /// Whether nothing differs from `old` but what may change whenever one likes.
    fn differs_freely(&self, old: &Self) -> bool;

    /// What is accepted and means nothing, in words.
    fn ignored(&self) -> Vec<String>;
}

/// An experiment, whatever its kind, as [`crate::plan`] looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Experiment<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its metadata.
    pub metadata: &'a ObjectMeta,
    /// Its spec, parsed for its namespace.
    pub spec: Result<&'a Spec, &'a [FieldError]>,
}

impl<'a> Experiment<'a> {
    /// The experiment of kind `S::KIND` with this metadata and this spec, which was [parsed](parsed).
    pub fn new<S: ExperimentSpec>(
        metadata: &'a ObjectMeta,
        parsed: &'a Result<Spec, Vec<FieldError>>,
    ) -> Self {
        Self { kind: S::KIND, metadata, spec: parsed.as_ref().map_err(Vec::as_slice) }
    }
}

/// Parse `spec` for the experiment with this metadata.
pub fn parsed<S: ExperimentSpec>(metadata: &ObjectMeta, spec: &S) -> Result<Spec, Vec<FieldError>> {
    let mut spec = spec.parse(metadata.namespace.as_deref().unwrap_or_default())?;
    if let Some(only) = made_for(metadata) {
        spec.selector.narrow_to(only);
    }
    Ok(spec)
}

/// Of the annotated object that an experiment was made for, its pods. A workload's labels select perhaps those of a canary,
/// a Job or a hook too, that nobody has annotated; a pod's name, its successor.
/// Where that owns it no longer (somebody has orphaned it), nothing.
fn made_for(metadata: &ObjectMeta) -> Option<Only> {
    metadata.annotations.as_ref()?.get(names::MADE_FOR)?;
    let only = metadata.owner_references.iter().flatten().find_map(|owner| {
        match Annotated::ALL.into_iter().find(|kind| kind.is_that_of(owner))? {
            Annotated::Pod => Some(Only::Pod(owner.uid.clone())),
            // As `PodView::workload` names it.
            Annotated::Deployment | Annotated::StatefulSet | Annotated::DaemonSet | Annotated::ReplicaSet => {
                Some(Only::Workload(format!("{}/{}", owner.kind, owner.name)))
            }
        }
    });
    Some(only.unwrap_or(Only::Nothing))
}
