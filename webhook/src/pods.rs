//! Reviews of pods: typed pods in, the model's verdict out as a patch.
//!
//! In doubt the pod passes unchanged with a warning. It makes no call.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use squall_api::names;
use squall_model::admission::{Actor, Denial, Guard, Setting, Verdict, newborn, pod_create, pod_update};
use squall_model::pod::PodView;
use squall_model::policy::{Rule, Who};
use squall_model::substitute::FaultImages;

use crate::lean::LeanPod;
use crate::review::{Answer, Denied, Request, UserInfo};
use crate::world::World;

/// How pods are admitted.
#[derive(Clone, Debug)]
pub struct Pods {
    /// The images that stand in.
    pub images: FaultImages,
    /// How long a fault by hand lasts if it doesn't say; zero means for ever.
    pub manual_limit: Duration,
}

/// Why a pod passes unchanged.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("the {0} can't be read: {1}")]
    Unreadable(&'static str, serde_json::Error),
    #[error("the {0} is missing")]
    Missing(&'static str),
}

impl Pods {
    /// The answer to `request`.
    pub fn review(&self, request: &Request<'_>, world: &World, now: Timestamp) -> Answer {
        if !request.kind.is("", "v1", "Pod") {
            return pass(format!("squall: {} passes unchanged: this path is for v1 Pod", request.kind));
        }
        if request.sub_resource.as_deref().is_some_and(|sub| !sub.is_empty()) {
            return Answer::default();
        }
        let answer = match request.operation.as_str() {
            "CREATE" => self.create(request, world, now),
            "UPDATE" => self.update(request, world, now),
            _ => Ok(Answer::default()),
        };
        answer.unwrap_or_else(|doubt| pass(format!("squall: the pod passes unchanged: {doubt}")))
    }

    fn create(&self, request: &Request<'_>, world: &World, now: Timestamp) -> Result<Answer, Doubt> {
        let pod: Pod = read("object", request.object)?;
        let namespace = world.namespace(&request.namespace);
        let (policies, system) = (world.policies(), world.namespace(names::NAMESPACE));
        let who = who(&request.user_info);
        let guard = Guard { policies: &policies, system: system.as_ref(), who: &who };
        let mut view = newborn(&pod, &request.namespace);
        view.shielded = world.is_shielded(&view);
        let births = match &namespace {
            Some(namespace) => world.births(&view, namespace, now),
            None => Vec::new(),
        };
        let setting = Setting {
            images: &self.images,
            now,
            manual_limit: self.manual_limit,
            namespace: namespace.as_ref(),
            shielded: view.shielded,
            guard,
        };
        Ok(answer(&pod, pod_create(&pod, &births, &setting)))
    }

    fn update(&self, request: &Request<'_>, world: &World, now: Timestamp) -> Result<Answer, Doubt> {
        let pod: Pod = read("object", request.object)?;
        let old: Pod = read("oldObject", request.old_object)?;
        let namespace = world.namespace(&request.namespace);
        let (policies, system) = (world.policies(), world.namespace(names::NAMESPACE));
        let who = who(&request.user_info);
        let guard = Guard { policies: &policies, system: system.as_ref(), who: &who };
        let setting = Setting {
            images: &self.images,
            now,
            manual_limit: self.manual_limit,
            namespace: namespace.as_ref(),
            shielded: world.is_shielded(&PodView::of(&pod)),
            guard,
        };
        Ok(answer(&pod, pod_update(&old, &pod, Actor::of(&request.user_info.username), &setting)))
    }
}

/// Who asks, as policies see him.
pub fn who(user: &UserInfo) -> Who {
    Who { user: user.username.clone(), groups: user.groups.clone() }
}

fn answer(before: &Pod, verdict: Verdict) -> Answer {
    let Verdict { pod, warnings, deny } = verdict;
    if let Some(why) = deny {
        let denied = match why {
            Denial::Field(error) => Denied::invalid(vec![error]),
            Denial::Refusal(refusal) => Denied::forbidden(refusal.to_string()),
            Denial::Ineligible(_) => Denied::forbidden(why.to_string()),
            Denial::Stopped(ref stop) => {
                let rule = stop.rule.map_or(names::HALT, Rule::path);
                Denied::by_policy(stop.policy().unwrap_or_default(), rule, why.to_string())
            }
            Denial::Policy(ref refusal) => {
                Denied::by_policy(&refusal.policy, refusal.rule.path(), why.to_string())
            }
        };
        return Answer { patch: None, warnings, denied: Some(denied) };
    }
    let patch = pod.map(|after| json_patch::diff(&skeleton(before), &skeleton(&after)));
    Answer { patch, warnings, denied: None }
}

/// What of a pod an answer may change: labels, annotations, images. Of the rest of a pod not all was
/// [read](crate::lean), and nothing can get lost.
fn skeleton(pod: &Pod) -> Value {
    let map = |entries: &Option<BTreeMap<String, String>>| entries.as_ref().map(|entries| json!(entries));
    let images = |containers: &[Container]| {
        let image = |container: &Container| container.image.as_ref().map(|image| ("image", json!(image)));
        containers.iter().map(|container| object(image(container))).collect::<Value>()
    };
    let spec = pod.spec.as_ref();
    object([
        (
            "metadata",
            object(
                [("labels", map(&pod.metadata.labels)), ("annotations", map(&pod.metadata.annotations))]
                    .into_iter()
                    .filter_map(|(key, value)| Some((key, value?))),
            ),
        ),
        (
            "spec",
            object(
                [
                    ("containers", spec.map(|spec| images(&spec.containers))),
                    ("initContainers", spec.and_then(|spec| spec.init_containers.as_deref().map(images))),
                ]
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?))),
            ),
        ),
    ])
}

fn object(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn read(what: &'static str, raw: Option<&RawValue>) -> Result<Pod, Doubt> {
    let raw = raw.ok_or(Doubt::Missing(what))?;
    let read = serde_json::from_str::<LeanPod>(raw.get());
    read.map(Pod::from).map_err(|error| Doubt::Unreadable(what, error))
}

fn pass(warning: String) -> Answer {
    Answer { warnings: vec![warning], ..Answer::default() }
}
