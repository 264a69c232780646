//! The one place that changes pods. An effect says what; this module does it, once, and says what came of it.
//! It makes no choices: which pod, which incarnation and for whom are all in the effect.

use jiff::Timestamp;
use json_patch::jsonptr::PointerBuf;
use json_patch::{Patch as JsonPatch, PatchOperation, TestOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client};
use squall_api::names;
use squall_model::plan::{Effect, Outcome, PodRef};
use squall_model::pod::PodView;
use squall_model::substitute::{self, FaultImages, Holder, Refusal};

use crate::client::{code, is_conflict, is_gone};

/// Why an effect did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server said no, or nothing.
    #[error("{operation} {namespace}/{name}: {source}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Someone else changed the pod again and again meanwhile.
    #[error("{operation} {namespace}/{name}: it was changed by others five times in a row")]
    Contended {
        /// What was tried.
        operation: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// The pod can't be failed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The pod isn't a pod.
    #[error("{namespace}/{name} can't be written as JSON: {source}")]
    Json {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Carries effects out.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    images: FaultImages,
}

/// How often a patch is tried again when someone else was faster.
const TRIES: usize = 5;

impl Applier {
    /// With these fault images.
    pub fn new(client: Client, images: FaultImages) -> Self {
        Self { client, images }
    }

    /// The fault images.
    pub fn images(&self) -> &FaultImages {
        &self.images
    }

    /// Carry `effect` out. `view` is the pod as it is known, if it is.
    ///
    /// `Ok` is what came of it for good; an error is worth another try.
    pub async fn apply(&self, effect: &Effect, view: Option<&PodView>) -> Result<Outcome, ApplyError> {
        match effect {
            Effect::Delete { pod, grace } => self.delete(pod, *grace).await,
            Effect::Evict { pod, grace } => self.evict(pod, *grace).await,
            Effect::Inject { pod, holder } => self.inject(pod, holder, view).await,
            Effect::Release { pod, holder } => {
                // What other holders want can only be told from the whole pod, and a view without this one is older
                // than what is to be taken back.
                let alone = |view: &&PodView| {
                    !view.held_by.is_empty() && view.held_by.iter().all(|held| held.uid == *holder)
                };
                let known = view.filter(|view| view.uid == pod.uid).filter(alone).map(PodView::sketch);
                self.change(pod, "release", known, |pod| substitute::release(pod, holder, &self.images)).await
            }
        }
    }

    /// Put everything back on `pod`, whoever holds it. `view` is the pod as it is known.
    pub async fn restore(&self, pod: &PodRef, view: &PodView) -> Result<Outcome, ApplyError> {
        self.change(pod, "restore", Some(view.sketch()), |pod| {
            substitute::restore(pod);
            Ok(())
        })
        .await
    }

    fn pods(&self, pod: &PodRef) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace)
    }

    async fn delete(&self, pod: &PodRef, grace: Option<u32>) -> Result<Outcome, ApplyError> {
        let params = delete_params(pod, grace);
        match self.pods(pod).delete(&pod.name, &params).await {
            Ok(_) => Ok(done(None)),
            // Gone, or another one has its name: either way this one is no more.
            Err(error) if is_gone(&error) || is_conflict(&error) => Ok(done(None)),
            Err(error) => Err(failed("delete", pod, error)),
        }
    }

    async fn evict(&self, pod: &PodRef, grace: Option<u32>) -> Result<Outcome, ApplyError> {
        // Not kube's own `evict`: it sends `delete_options`, which the API server drops without a word, UID and all.
        let eviction = serde_json::json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "name": pod.name },
            "deleteOptions": delete_params(pod, grace),
        });
        let params = PostParams::default();
        let pods = self.pods(pod);
        match pods.create_subresource::<_, Status>("eviction", &pod.name, &params, &eviction).await {
            Ok(_) => Ok(done(None)),
            // 404 and 409 may be said of the budget too, while the pod runs on: that this pod is no more, the watch says.
            Err(error) => Err(failed("evict", pod, error)),
        }
    }

    /// Set the switch, and look at the answer: where the webhook did not substitute, do it here.
    async fn inject(
        &self,
        pod: &PodRef,
        holder: &Holder,
        view: Option<&PodView>,
    ) -> Result<Outcome, ApplyError> {
        let pods = self.pods(pod);
        let mut known = view
            .filter(|view| view.uid == pod.uid)
            .map(|view| (view.resource_version.clone(), view.annotations.get(names::HELD_BY).cloned()));
        for _ in 0..TRIES {
            let (version, held_by) = match known.take() {
                Some(known) => known,
                None => match pods.get(&pod.name).await {
                    Ok(live) if live.metadata.uid.as_ref() == Some(&pod.uid) => {
                        let held_by = live.metadata.annotations.unwrap_or_default().remove(names::HELD_BY);
                        (live.metadata.resource_version.unwrap_or_default(), held_by)
                    }
                    Ok(_) => return Ok(gone()),
                    Err(error) if is_gone(&error) => return Ok(gone()),
                    Err(error) => return Err(failed("get", pod, error)),
                },
            };
            let held_by = with_holder(held_by.as_deref(), holder)?;
            let switch = serde_json::json!({
                "metadata": {
                    "uid": pod.uid,
                    "resourceVersion": version,
                    "labels": { names::FAULT: names::POD_FAILURE },
                    "annotations": { names::HELD_BY: held_by },
                }
            });
            let answer = match pods.patch(&pod.name, &PatchParams::default(), &Patch::Merge(&switch)).await {
                Ok(answer) => answer,
                Err(error) if is_conflict(&error) => continue,
                Err(error) if is_gone(&error) => return Ok(gone()),
                Err(error) => return Err(failed("label", pod, error)),
            };
            if substitute::is_substituted(&answer, &self.images) {
                return Ok(done(answer.metadata.resource_version.as_deref()));
            }
            tracing::info!(
                namespace = pod.namespace,
                pod = pod.name,
                uid = pod.uid,
                "the webhook did not substitute; patching the images directly"
            );
            return self
                .change(pod, "substitute", None, |pod| substitute::inject(pod, holder, &self.images))
                .await;
        }
        Err(ApplyError::Contended {
            operation: "label",
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        })
    }

    /// Read the pod unless it is `known`, change it, and send the difference, on the condition that nobody else was
    /// faster.
    async fn change(
        &self,
        pod: &PodRef,
        operation: &'static str,
        mut known: Option<Pod>,
        change: impl Fn(&mut Pod) -> Result<(), Refusal>,
    ) -> Result<Outcome, ApplyError> {
        let pods = self.pods(pod);
        let mut refused: Option<(Option<String>, kube::Error)> = None;
        for _ in 0..TRIES {
            let live = match known.take() {
                Some(known) => known,
                None => match pods.get(&pod.name).await {
                    Ok(live) => live,
                    Err(error) if is_gone(&error) => return Ok(gone()),
                    Err(error) => return Err(failed("get", pod, error)),
                },
            };
            if live.metadata.uid.as_ref() != Some(&pod.uid) {
                return Ok(gone());
            }
            let mut wanted = live.clone();
            change(&mut wanted)?;
            if wanted == live {
                return Ok(done(live.metadata.resource_version.as_deref()));
            }
            if let Some((version, error)) = refused.take()
                && version == live.metadata.resource_version
            {
                // Nobody was faster: it is the change itself that is refused.
                return Err(failed(operation, pod, error));
            }
            let patch = difference(pod, &live, &wanted)?;
            match pods.patch(&pod.name, &PatchParams::default(), &Patch::<Pod>::Json(patch)).await {
                Ok(answer) => return Ok(done(answer.metadata.resource_version.as_deref())),
                Err(error) if is_conflict(&error) => {}
                Err(error) if is_failed_test(&error) => {
                    refused = Some((live.metadata.resource_version, error))
                }
                Err(error) if is_gone(&error) => return Ok(gone()),
                Err(error) => return Err(failed(operation, pod, error)),
            }
        }
        Err(ApplyError::Contended { operation, namespace: pod.namespace.clone(), name: pod.name.clone() })
    }
}

/// `held-by` with `holder` in it. What else the entries carry is left as it is.
fn with_holder(held_by: Option<&str>, holder: &Holder) -> Result<String, Refusal> {
    let unreadable = |error: serde_json::Error| Refusal::BadRecord {
        annotation: names::HELD_BY,
        error: error.to_string(),
    };
    let mut entries: Vec<serde_json::Map<String, serde_json::Value>> =
        held_by.map_or(Ok(Vec::new()), serde_json::from_str).map_err(unreadable)?;
    let entry = serde_json::to_value(holder).map_err(unreadable)?;
    let entry = entry.as_object().cloned().unwrap_or_default();
    match entries.iter_mut().find(|old| old.get("uid") == entry.get("uid")) {
        Some(old) => old.extend(entry),
        None => entries.push(entry),
    }
    serde_json::to_string(&entries).map_err(unreadable)
}

fn difference(pod: &PodRef, live: &Pod, wanted: &Pod) -> Result<JsonPatch, ApplyError> {
    let json = |value: &Pod| {
        serde_json::to_value(value).map_err(|source| ApplyError::Json {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            source,
        })
    };
    let before = json(live)?;
    let mut patch = json_patch::diff(&before, &json(wanted)?);
    for field in ["uid", "resourceVersion"] {
        let value = before["metadata"][field].clone();
        let path = PointerBuf::from_tokens(["metadata", field]);
        patch.0.insert(0, PatchOperation::Test(TestOperation { path, value }));
    }
    Ok(patch)
}

fn delete_params(pod: &PodRef, grace: Option<u32>) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    }
}

fn done(version: Option<&str>) -> Outcome {
    Outcome::Done { at: Timestamp::now(), version: version.and_then(|text| text.parse().ok()).unwrap_or(0) }
}

/// The pod is no more: there is nothing to do, and the watch will say so.
fn gone() -> Outcome {
    done(None)
}

fn failed(operation: &'static str, pod: &PodRef, source: kube::Error) -> ApplyError {
    ApplyError::Api {
        operation,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        source: Box::new(source),
    }
}

/// The API server answers a failed `test` of a JSON patch with 422; and an invalid pod, and what a policy denies.
fn is_failed_test(error: &kube::Error) -> bool {
    code(error) == Some(422)
}

#[cfg(test)]
mod tests;
