//! Reviews of experiments, as far as they take nobody else: defaults, finalizer and requester; then fields and
//! allowed changes. What remains to be asked of the API server is handed back as [`Ask`].
//!
//! In doubt the experiment is refused.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use squall_api::status::{ExperimentStatus, Phase};
use squall_api::{PodChaosSpec, StressChaosSpec, names};
use squall_model::error::FieldError;
use squall_model::experiment::{ExperimentSpec, Kind};
use squall_model::policy;
use squall_model::spec::{Action, Spec};
use squall_model::validate::{defaults, validate, validate_update, warnings};

use crate::pods;
use crate::review::{Answer, Denied, Request, UserInfo};

/// How many namespaces one experiment may name: each takes two questions to the API server.
const NAMESPACES: usize = 100;

/// What the API server has to be asked before an experiment is accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Who must be allowed to do it himself; `None` if he was asked before.
    pub user: Option<UserInfo>,
    /// The verb on pods.
    pub verb: &'static str,
    /// The subresource of pods; empty for pods themselves.
    pub subresource: &'static str,
    /// In which namespaces.
    pub namespaces: BTreeSet<String>,
    /// Which of them must take part.
    pub opted_in: BTreeSet<String>,
    /// What policies are asked; `None` where nothing more is asked for than before.
    pub wanted: Option<Wanted>,
}

/// What policies are asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What.
    pub ask: policy::Ask,
    /// By whom.
    pub who: policy::Who,
    /// It begins with this; otherwise it is going on, and halts and windows are no reason to refuse a change of it.
    pub begins: bool,
}

/// The outcome of the part that takes nobody else.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing more is to be asked.
    Answered(Answer),
    /// Accepted with these warnings, if the API server says yes.
    Ask(Ask, Vec<String>),
}

/// The annotation that pauses an experiment of Chaos Mesh's. Whose manifest is taken over with it expects nothing to
/// happen.
const THEIR_PAUSE: &str = "experiment.chaos-mesh.org/pause";

/// An experiment as far as it is read here. Anything that the schema refuses later may still be in it.
#[derive(Deserialize)]
struct Experiment<S> {
    #[serde(default)]
    metadata: Metadata,
    spec: S,
    #[serde(default)]
    status: Option<ExperimentStatus>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl<S: ExperimentSpec + DeserializeOwned> Experiment<S> {
    fn read(what: &str, raw: Option<&RawValue>) -> Result<Self, Denied> {
        let raw = raw.ok_or_else(|| bad_request(format!("the review has no {what}")))?;
        serde_json::from_str(raw.get()).map_err(|error| {
            let help = format!("see `kubectl explain {}.spec`", S::KIND.plural());
            Denied::invalid(vec![FieldError::new("spec", error, help)])
        })
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn requested_by(&self) -> Option<&str> {
        self.annotation(names::REQUESTED_BY)
    }
}

/// What is asked about; `None`: nothing that matters here.
fn concerns(request: &Request<'_>) -> Result<Option<Kind>, Denied> {
    let kind = Kind::ALL.into_iter().find(|kind| request.kind.is(names::GROUP, names::VERSION, kind.name()));
    let Some(kind) = kind else {
        let what = format!(
            "found {}; this path is for {}/{} {}: correct the rules of the webhook configuration",
            request.kind,
            names::GROUP,
            names::VERSION,
            Kind::ALL.map(Kind::name).join(" and "),
        );
        return Err(bad_request(what));
    };
    let whole = request.sub_resource.as_deref().is_none_or(str::is_empty);
    let asked = whole && matches!(request.operation.as_str(), "CREATE" | "UPDATE");
    Ok(asked.then_some(kind))
}

/// Defaults, finalizer, requester.
pub fn mutate(request: &Request<'_>) -> Answer {
    let answer = concerns(request).and_then(|kind| match kind {
        None => Ok(Answer::default()),
        Some(Kind::PodChaos) => complete::<PodChaosSpec>(request),
        Some(Kind::StressChaos) => complete::<StressChaosSpec>(request),
    });
    answer.unwrap_or_else(Into::into)
}

fn complete<S: ExperimentSpec + DeserializeOwned>(request: &Request<'_>) -> Result<Answer, Denied> {
    let before = value("object", request.object)?;
    let mut after = before.clone();
    let Some(object) = after.as_object_mut() else {
        return Err(bad_request("the object is no object".into()));
    };
    // A spec that can't be read is refused by the schema or by the validating path, with a better reason.
    let mut spec = None;
    if let Some(raw) = object.get_mut("spec")
        && let Ok(mut typed) = serde_json::from_value::<S>(raw.clone())
    {
        let written = serde_json::to_value(&typed);
        defaults(&mut typed);
        if let (Ok(written), Ok(filled)) = (written, serde_json::to_value(&typed)) {
            fill_in(raw, &written, filled);
        }
        spec = Some(typed);
    }
    let metadata = entry(object, "metadata")?;
    if request.operation == "CREATE" {
        let by_us = request.user_info.username == names::CONTROLLER_USER;
        // What our controller creates for somebody says for whom.
        if !(by_us && entry(metadata, "annotations")?.contains_key(names::REQUESTED_BY)) {
            sign(request, metadata)?;
        }
        let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if finalizers.is_null() {
            *finalizers = json!([]);
        }
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|finalizer| finalizer == names::FINALIZER)
        {
            list.push(json!(names::FINALIZER));
        }
    } else {
        let stored = value("oldObject", request.old_object)?;
        keep(names::MADE_FOR, &stored, metadata)?;
        let old = Experiment::<S>::read("oldObject", request.old_object).ok();
        if old.zip(spec).is_some_and(|(old, spec)| asks_anew(&old, &spec)) {
            sign(request, metadata)?;
        } else {
            keep(names::REQUESTED_BY, &stored, metadata)?;
        }
    }
    Ok(Answer { patch: Some(json_patch::diff(&before, &after)), ..Answer::default() })
}

/// Who sends the request asks for the object.
pub(crate) fn sign(request: &Request<'_>, metadata: &mut Map<String, Value>) -> Result<(), Denied> {
    let requester = requester(&request.user_info)?;
    entry(metadata, "annotations")?.insert(names::REQUESTED_BY.to_owned(), requester);
    Ok(())
}

/// `kubectl replace` leaves out what it doesn't know of. Another value is refused by the validating path.
pub(crate) fn keep(annotation: &str, old: &Value, metadata: &mut Map<String, Value>) -> Result<(), Denied> {
    let kept = old.pointer("/metadata/annotations").and_then(|all| all.get(annotation));
    if let Some(kept) = kept
        && metadata.get("annotations").and_then(|all| all.get(annotation)).is_none()
    {
        entry(metadata, "annotations")?.insert(annotation.to_owned(), kept.clone());
    }
    Ok(())
}

/// Bring into `spec` what `filled` has beyond `written`, and leave everything else as the user wrote it.
fn fill_in(spec: &mut Value, written: &Value, filled: Value) {
    match (spec, filled) {
        (Value::Object(spec), Value::Object(filled)) => {
            for (key, value) in filled {
                let before = written.get(&key);
                if before == Some(&value) {
                    continue;
                }
                match spec.get_mut(&key) {
                    Some(there) => fill_in(there, before.unwrap_or(&Value::Null), value),
                    None => {
                        spec.insert(key, value);
                    }
                }
            }
        }
        (spec, filled) => *spec = filled,
    }
}

/// Fields, allowed changes, and what is still to be asked.
pub fn check(request: &Request<'_>) -> Verdict {
    let verdict = concerns(request).and_then(|kind| match kind {
        None => Ok(Verdict::Answered(Answer::default())),
        Some(Kind::PodChaos) => judge::<PodChaosSpec>(request),
        Some(Kind::StressChaos) => judge::<StressChaosSpec>(request),
    });
    verdict.unwrap_or_else(|denied| Verdict::Answered(denied.into()))
}

fn judge<S: ExperimentSpec + DeserializeOwned>(request: &Request<'_>) -> Result<Verdict, Denied> {
    let new = Experiment::<S>::read("object", request.object)?;
    if request.operation == "CREATE"
        && let Some(value) = new.metadata.annotations.as_ref().and_then(|all| all.get(THEIR_PAUSE))
        && value == "true"
    {
        let field = format!("metadata.annotations[{THEIR_PAUSE}]");
        let help = format!("it would not be paused here: the annotation is {}", names::PAUSE);
        return Err(Denied::invalid(vec![FieldError::new(field, value, help)]));
    }
    let spec = validate(&new.spec, &request.namespace).map_err(Denied::invalid)?;
    let namespaces = spec.selector.namespaces.clone();
    let mut opted_in = namespaces.clone();
    let mut wants_more = true;
    if request.operation == "UPDATE" {
        let old = Experiment::<S>::read("oldObject", request.old_object)?;
        let asks = asks_anew(&old, &new.spec);
        is_signed(request, asks, old.requested_by(), new.requested_by(), "experiment")?;
        // What was made for an annotation hits its object's pods and no others, in the name of whoever set it.
        let [before, now] = [&old, &new].map(|one| one.annotation(names::MADE_FOR));
        stays(names::MADE_FOR, before, now, "which annotation asked for", "experiment")?;
        if old.spec == new.spec {
            return Ok(Verdict::Answered(Answer::default()));
        }
        validate_update(&old.spec, &new.spec, &request.namespace, is_active(old.status.as_ref()))
            .map_err(Denied::invalid)?;
        // A namespace that no longer takes part must not keep an experiment there from being shortened.
        if let Ok(before) = validate(&old.spec, &request.namespace) {
            opted_in.retain(|name| !before.selector.namespaces.contains(name));
            // A policy must not keep an experiment that runs from being shortened or narrowed.
            wants_more = match (before.duration, spec.duration) {
                (Some(before), Some(now)) => now > before,
                (Some(_), None) => true,
                (None, Some(_) | None) => false,
            } || !opted_in.is_empty()
                || asks;
        }
    }
    within_reach(&namespaces, "spec.selector", "experiments")?;
    let (verb, subresource) = right(&spec);
    let by_us = request.user_info.username == names::CONTROLLER_USER;
    let user = (!by_us).then(|| request.user_info.clone());
    // What we make for someone is judged when its targets are chosen, by who asked for it.
    let wanted = (wants_more && !by_us).then(|| Wanted {
        ask: policy::Ask::of(&spec),
        who: pods::who(&request.user_info),
        begins: request.operation == "CREATE",
    });
    let said = new.spec.ignored().into_iter().chain(warnings(&spec));
    let said = said.map(|warning| format!("squall: {warning}")).collect();
    Ok(Verdict::Ask(Ask { user, verb, subresource, namespaces, opted_in, wanted }, said))
}

/// The right that one needs to do by hand what `spec` does.
pub(crate) fn right(spec: &Spec) -> (&'static str, &'static str) {
    match spec.action {
        Action::PodKill { evict: false, .. } => ("delete", ""),
        Action::PodKill { evict: true, .. } => ("create", "eviction"),
        Action::PodFailure { .. }
        | Action::ContainerKill { .. }
        | Action::ContainerFreeze
        | Action::Stress(_) => ("patch", ""),
    }
}

/// Whether `spec` is another's to answer for. As long as nothing is chosen, who changes what an experiment does is who
/// asks for it: with the name of its maker anybody who may edit it could hit pods that only he may hit.
fn asks_anew<S: ExperimentSpec>(old: &Experiment<S>, spec: &S) -> bool {
    !is_active(old.status.as_ref()) && old.spec != *spec
}

/// Targets have been chosen, or it is over.
fn is_active(status: Option<&ExperimentStatus>) -> bool {
    let Some(status) = status else { return false };
    let begun = match status.phase {
        None | Some(Phase::Pending) => false,
        Some(
            Phase::Injecting
            | Phase::Injected
            | Phase::Paused
            | Phase::Recovering
            | Phase::Completed
            | Phase::Failed
            | Phase::Halted,
        ) => true,
    };
    begun || status.selected_at.is_some() || !status.targets.is_empty() || status.completed_at.is_some()
}

/// Who asked for a `thing` stays who did, unless whoever sends the request `asks` anew.
pub(crate) fn is_signed(
    request: &Request<'_>,
    asks: bool,
    old: Option<&str>,
    new: Option<&str>,
    thing: &str,
) -> Result<(), Denied> {
    let signed = requester(&request.user_info)?;
    let ought = if asks { signed.as_str() } else { old };
    stays(names::REQUESTED_BY, ought, new, "who asked for", thing)
}

/// The annotation, which says `what` of a `thing`, is as it ought to be.
fn stays(
    annotation: &str,
    ought: Option<&str>,
    found: Option<&str>,
    what: &str,
    thing: &str,
) -> Result<(), Denied> {
    if found == ought {
        return Ok(());
    }
    Err(Denied::invalid(vec![FieldError::new(
        format!("metadata.annotations[{annotation}]"),
        found.unwrap_or("nothing"),
        format!("it says {what} the {thing} and can't be changed: make another {thing} instead"),
    )]))
}

/// Not more namespaces than are asked about in time, and none that is never hit; of `things` there may be several.
pub(crate) fn within_reach(namespaces: &BTreeSet<String>, field: &str, things: &str) -> Result<(), Denied> {
    if namespaces.len() > NAMESPACES {
        return Err(Denied::invalid(vec![FieldError::new(
            field,
            format!("{} namespaces", namespaces.len()),
            format!("allowed are up to {NAMESPACES}: make several {things} instead"),
        )]));
    }
    if let Some(name) = namespaces.iter().find(|name| names::is_protected_namespace(name)) {
        return Err(Denied::forbidden(format!(
            "{field}: pods of namespace {name} are never hit, no label can open it; choose others"
        )));
    }
    Ok(())
}

fn requester(user: &UserInfo) -> Result<Value, Denied> {
    let text = serde_json::to_string(user)
        .map_err(|error| Denied::unavailable(format!("the requester can't be written down: {error}")))?;
    Ok(Value::String(text))
}

pub(crate) fn value(what: &str, raw: Option<&RawValue>) -> Result<Value, Denied> {
    let raw = raw.ok_or_else(|| bad_request(format!("the review has no {what}")))?;
    serde_json::from_str(raw.get()).map_err(|error| bad_request(format!("the {what} can't be read: {error}")))
}

/// The object under `key`, made if it isn't there.
pub(crate) fn entry<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
) -> Result<&'a mut Map<String, Value>, Denied> {
    let value = object.entry(key).or_insert_with(|| json!({}));
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| bad_request(format!("{key} is no object")))
}

fn bad_request(message: String) -> Denied {
    Denied { code: 400, reason: "BadRequest", message, causes: Vec::new(), refused: None }
}
