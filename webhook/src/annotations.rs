//! Reviews of small faults by annotation, on pods and workloads: what is added is checked, and who asked is written
//! beside it. What remains to be asked of the API server is handed back.
//!
//! In doubt the object passes unchanged with a warning: an annotation that wasn't checked does nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use squall_api::names;
use squall_model::annotation::{Asker, Kind, Reviewed, Subject, Wish, review};

use crate::experiments::Ask;
use crate::review::{Answer, Denied, Request};

/// The outcome of the part that takes nobody else.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing more is to be asked.
    Answered(Answer),
    /// This answer, if the API server says yes to every question.
    Ask {
        /// What is to be asked.
        questions: Vec<Ask>,
        /// What is newly asked for, and of what: for whoever else has a say in it.
        wishes: (Box<Subject>, Vec<Wish>),
        /// The answer then.
        answer: Answer,
    },
}

/// Why an object passes unchanged.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("the {0} can't be read: {1}")]
    Unreadable(&'static str, serde_json::Error),
    #[error("the {0} is missing")]
    Missing(&'static str),
    #[error("who asks can't be written down: {0}")]
    Nobody(serde_json::Error),
    #[error("this path is for pods, Deployments, StatefulSets, DaemonSets and ReplicaSets, not {0}")]
    Other(String),
}

/// The answer to `request`.
pub fn check(request: &Request<'_>, now: Timestamp) -> Verdict {
    let whole = request.sub_resource.as_deref().is_none_or(str::is_empty);
    if !whole || request.operation != "UPDATE" || request.user_info.username == names::CONTROLLER_USER {
        return Verdict::Answered(Answer::default());
    }
    match try_check(request, now) {
        Ok(verdict) => verdict,
        Err(doubt) => {
            let warning = format!("squall: this passes unchanged, and its annotations do nothing: {doubt}");
            Verdict::Answered(Answer { warnings: vec![warning], ..Answer::default() })
        }
    }
}

fn try_check(request: &Request<'_>, now: Timestamp) -> Result<Verdict, Doubt> {
    let names = &request.kind;
    let kind =
        Kind::of(&names.group, &names.version, &names.kind).ok_or_else(|| Doubt::Other(names.to_string()))?;
    let old = read("oldObject", kind, request.old_object)?;
    let mut new = read("object", kind, request.object)?;
    // The path says it even where the object doesn't yet.
    new.namespace.clone_from(&request.namespace);
    let by = serde_json::to_value(&request.user_info).map_err(Doubt::Nobody)?;
    let reviewed = match review(&old, &new, Asker { id: &request.uid, by: &by, now }) {
        Ok(reviewed) => reviewed,
        Err(errors) => return Ok(Verdict::Answered(Denied::invalid(errors).into())),
    };
    let Reviewed { annotations, labels, wishes, warnings } = reviewed;
    let patch = json_patch::diff(
        &skeleton(&new.annotations, &new.labels, (&new.annotations, &new.labels)),
        &skeleton(&annotations, &labels, (&new.annotations, &new.labels)),
    );
    let answer = Answer { patch: Some(patch), warnings, denied: None };
    if wishes.is_empty() {
        return Ok(Verdict::Answered(answer));
    }
    let verbs: BTreeSet<&'static str> = wishes.iter().map(|wish| wish.fault.verb()).collect();
    let here = BTreeSet::from([request.namespace.clone()]);
    let questions = verbs
        .into_iter()
        .map(|verb| Ask {
            user: Some(request.user_info.clone()),
            verb,
            subresource: "",
            namespaces: here.clone(),
            opted_in: here.clone(),
            wanted: None,
        })
        .collect();
    Ok(Verdict::Ask { questions, wishes: (Box::new(new), wishes), answer })
}

fn read(what: &'static str, kind: Kind, raw: Option<&RawValue>) -> Result<Subject, Doubt> {
    let raw = raw.ok_or(Doubt::Missing(what))?;
    Subject::read(kind, raw.get()).map_err(|error| Doubt::Unreadable(what, error))
}

type Entries = BTreeMap<String, String>;

/// What of an object an answer may change. A map that is not there before has no place in a patch until it is filled.
fn skeleton(annotations: &Entries, labels: &Entries, before: (&Entries, &Entries)) -> Value {
    let mut metadata = Map::new();
    for (key, map, before) in [("annotations", annotations, before.0), ("labels", labels, before.1)] {
        if !map.is_empty() || !before.is_empty() {
            metadata.insert(key.to_owned(), json!(map));
        }
    }
    json!({ "metadata": metadata })
}
