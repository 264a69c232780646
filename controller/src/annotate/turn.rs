//! One annotated object's turn: read it live, ask the model, and do what is due, in that order. A step that is done
//! twice is done once: names of experiments say what they were made for, and patches test what they replace.

use jiff::Timestamp;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, RemoveOperation, TestOperation};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use squall_api::{PodChaos, StressChaos, names};
use squall_model::annotation::{Experiment, Fault, Kind, New, Parent, Subject, Turn, name_of, turn};
use squall_model::plan::{Effect, Note, NoteKind, PodRef};
use squall_model::substitute::MANUAL;

use super::{Annotations, Key};
use crate::apply::ApplyError;
use crate::client::{is_gone, is_there};

/// Why a turn ended early; it is taken again.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The API server said no, or nothing.
    #[error("{operation} {kind} {namespace}/{name}: {source}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// The object's kind.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The object isn't what it should be.
    #[error("{kind} {namespace}/{name} can't be read: {source}")]
    Unreadable {
        /// The object's kind.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Something else is due at once.
    #[error("{kind} {namespace}/{name} is looked at again")]
    Overtaken {
        /// The object's kind.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// The hand's hold of a pod could not be ended.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Key {
    fn failed(&self, operation: &'static str) -> impl FnOnce(kube::Error) -> TurnError {
        let Key { kind, namespace, name } = self.clone();
        move |source| TurnError::Api {
            operation,
            kind: kind.word(),
            namespace,
            name,
            source: Box::new(source),
        }
    }
}

fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    let (group, version, name, plural) = kind.names();
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: kind.api_version(),
        kind: name.to_owned(),
        plural: plural.to_owned(),
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

impl Annotations {
    pub(super) async fn turn(&self, key: &Key) -> Result<(), TurnError> {
        let objects = api(&self.client, key.kind, &key.namespace);
        let Some(object) = objects.get_opt(&key.name).await.map_err(key.failed("get"))? else {
            return Ok(());
        };
        let unreadable = |source| TurnError::Unreadable {
            kind: key.kind.word(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            source,
        };
        let json = serde_json::to_string(&object).map_err(unreadable)?;
        let subject = Subject::read(key.kind, &json).map_err(unreadable)?;
        let parent = match subject.copied_from() {
            Some(owner) => match self.parent(key, owner).await? {
                Some(parent) => Some(parent),
                // It goes with its Deployment.
                None => return Ok(()),
            },
            None => None,
        };
        let (opted_in, leaving) = {
            let index = self.observer.read();
            let namespace = index.namespace(&key.namespace);
            (namespace.is_some_and(|namespace| namespace.opted_in), index.is_leaving())
        };
        if leaving {
            return Ok(());
        }
        let mut known = self.known(&key.namespace);
        known.retain(|known| known.name == name_of(&subject, &known.made));
        let due = turn(&subject, parent.as_ref(), &known, opted_in, Timestamp::now());
        if due != Turn::default() {
            self.carry_out(key, &subject, due).await?;
        }
        Ok(())
    }

    /// The keys on the Deployment that `owner` names; none if it is no more.
    async fn parent(&self, key: &Key, owner: &OwnerReference) -> Result<Option<Parent>, TurnError> {
        let deployments = api(&self.client, Kind::Deployment, &key.namespace);
        let found =
            deployments.get_metadata_opt(&owner.name).await.map_err(key.failed("get the owner of"))?;
        Ok(found.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid)).map(|found| {
            let annotations = found.metadata.annotations.unwrap_or_default();
            Parent(Fault::ALL.into_iter().filter(|fault| annotations.contains_key(fault.key())).collect())
        }))
    }

    async fn carry_out(&self, key: &Key, subject: &Subject, due: Turn) -> Result<(), TurnError> {
        let Turn { make, delete, let_go, annotations, complaint } = due;
        for new in make {
            if let Err(why) = self.make(key, subject, &new).await? {
                let Turn { let_go, annotations, complaint, .. } =
                    Turn::give_up(subject, new.made.fault, &why);
                self.let_go(subject, let_go).await?;
                self.annotate(key, subject, annotations).await?;
                self.complain(subject, complaint);
                // What else is due is due again.
                return Err(TurnError::Overtaken {
                    kind: key.kind.word(),
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                });
            }
        }
        for (fault, name) in delete {
            match self.delete(key, fault, &name).await {
                Ok(_) => {
                    tracing::info!(
                        kind = key.kind.word(),
                        namespace = key.namespace,
                        name = key.name,
                        experiment = name,
                        "ended, with its annotation"
                    );
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(key.failed("end an experiment of")(error)),
            }
        }
        self.let_go(subject, let_go).await?;
        self.annotate(key, subject, annotations).await?;
        self.complain(subject, complaint);
        Ok(())
    }

    async fn delete(&self, key: &Key, fault: Fault, name: &str) -> kube::Result<()> {
        let (client, params) = (self.client.clone(), DeleteParams::default());
        match fault {
            Fault::PodFailure | Fault::PodKill | Fault::ContainerKill => {
                Api::<PodChaos>::namespaced(client, &key.namespace).delete(name, &params).await.map(drop)
            }
            Fault::StressCpu | Fault::StressMemory => {
                Api::<StressChaos>::namespaced(client, &key.namespace).delete(name, &params).await.map(drop)
            }
        }
    }

    /// Make the experiment; why that is refused for good, if it is.
    async fn make(&self, key: &Key, subject: &Subject, new: &New) -> Result<Result<(), String>, TurnError> {
        let New { name, made, spec, requested_by } = new;
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(key.namespace.clone()),
            annotations: Some(
                [(names::REQUESTED_BY, requested_by.clone()), (names::MADE_FOR, made.written())]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into(),
            ),
            owner_references: Some(vec![OwnerReference {
                api_version: subject.kind.api_version(),
                kind: subject.kind.word().to_owned(),
                name: subject.name.clone(),
                uid: subject.uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        };
        let params = PostParams::default();
        let created = match spec {
            Experiment::Pod(spec) => {
                let chaos = PodChaos { metadata, spec: (**spec).clone(), status: None };
                let experiments: Api<PodChaos> = Api::namespaced(self.client.clone(), &key.namespace);
                experiments.create(&params, &chaos).await.map(drop)
            }
            Experiment::Stress(spec) => {
                let chaos = StressChaos { metadata, spec: (**spec).clone(), status: None };
                let experiments: Api<StressChaos> = Api::namespaced(self.client.clone(), &key.namespace);
                experiments.create(&params, &chaos).await.map(drop)
            }
        };
        match created {
            Ok(_) => {
                tracing::info!(
                    kind = key.kind.word(),
                    namespace = key.namespace,
                    name = key.name,
                    annotation = made.fault.key(),
                    requested_by,
                    experiment = name,
                    "asked for by annotation"
                );
                self.tell(
                    subject,
                    NoteKind::Normal,
                    "Requested",
                    format!("{} became {} {name}", made.fault.key(), made.fault.becomes()),
                );
                Ok(Ok(()))
            }
            // Made before, and what came after was cut short.
            Err(error) if is_there(&error) => Ok(Ok(())),
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 404 | 422) => {
                Ok(Err(status.message.clone()))
            }
            Err(error) => Err(key.failed("make an experiment for")(error)),
        }
    }

    /// The hand lets the pod go, which its annotation had it hold.
    async fn let_go(&self, subject: &Subject, due: bool) -> Result<(), TurnError> {
        if due {
            let pod = PodRef {
                namespace: subject.namespace.clone(),
                name: subject.name.clone(),
                uid: subject.uid.clone(),
            };
            self.applier.apply(&Effect::Release { pod, holder: MANUAL.to_owned() }, None).await?;
        }
        Ok(())
    }

    /// Change annotations, if they are still as they were read.
    async fn annotate(
        &self,
        key: &Key,
        subject: &Subject,
        changes: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<(), TurnError> {
        let path = |key: &str| PointerBuf::from_tokens(["metadata", "annotations", key]);
        let mut patch = vec![PatchOperation::Test(TestOperation {
            path: PointerBuf::from_tokens(["metadata", "uid"]),
            value: subject.uid.clone().into(),
        })];
        for (annotation, value) in changes {
            if let Some(before) = subject.annotations.get(&annotation) {
                patch.push(PatchOperation::Test(TestOperation {
                    path: path(&annotation),
                    value: before.clone().into(),
                }));
            }
            patch.push(match value {
                Some(value) => {
                    PatchOperation::Add(AddOperation { path: path(&annotation), value: value.into() })
                }
                None => PatchOperation::Remove(RemoveOperation { path: path(&annotation) }),
            });
        }
        if patch.len() == 1 {
            return Ok(());
        }
        let objects = api(&self.client, key.kind, &key.namespace);
        let patch = Patch::<DynamicObject>::Json(JsonPatch(patch));
        match objects.patch_metadata(&key.name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            // 409 and 422 too: changed meanwhile or not to be changed, what was said tells which.
            Err(error) => Err(key.failed("annotate")(error)),
        }
    }

    fn complain(&self, subject: &Subject, complaint: Option<String>) {
        if let Some(complaint) = complaint {
            tracing::info!(
                kind = subject.kind.word(),
                namespace = subject.namespace,
                name = subject.name,
                complaint,
                "an annotation is not obeyed"
            );
            self.tell(subject, NoteKind::Warning, "NotDone", complaint);
        }
    }

    fn tell(&self, subject: &Subject, kind: NoteKind, reason: &str, message: String) {
        let regarding = ObjectReference {
            api_version: Some(subject.kind.api_version()),
            kind: Some(subject.kind.word().to_owned()),
            namespace: Some(subject.namespace.clone()),
            name: Some(subject.name.clone()),
            uid: Some(subject.uid.clone()),
            ..ObjectReference::default()
        };
        self.teller.tell_object(Note::experiment(kind, reason, message), regarding);
    }
}

#[cfg(test)]
mod tests {
    use kube_runtime::reflector::store;
    use serde_json::json;
    use squall_model::annotation::Made;
    use squall_model::substitute::FaultImages;
    use tokio::sync::mpsc;

    use super::*;
    use crate::apply::Applier;
    use crate::chaos::Experiments;
    use crate::observe::Observer;
    use crate::scripted;
    use crate::tell::Teller;

    /// What becomes of an annotation whose experiment the API server refuses with a 409 for this reason.
    async fn refused(reason: &str) -> Result<Result<(), String>, TurnError> {
        let ((client, api), (silent, _unheard)) = (scripted::client(), scripted::client());
        let annotations = Annotations::new(
            client.clone(),
            Observer::start(&silent, mpsc::unbounded_channel().0),
            Applier::new(client, FaultImages { pause: String::new(), crash: String::new() }),
            Experiments { pods: store().0, stress: store().0 },
            Teller::start(silent, String::new(), None),
        );
        let key = Key { kind: Kind::Pod, namespace: "shop".to_owned(), name: "web-1".to_owned() };
        let object = json!({ "metadata": { "namespace": "shop", "name": "web-1", "uid": "u" } });
        let subject = Subject::read(Kind::Pod, &object.to_string()).unwrap();
        let new = New {
            name: "web-1-pod-kill".to_owned(),
            made: Made { fault: Fault::PodKill, id: "r".to_owned() },
            spec: Experiment::Pod(Box::default()),
            requested_by: "{}".to_owned(),
        };
        let answers = vec![scripted::refusal(409, reason)];
        let (made, asked) =
            futures::join!(annotations.make(&key, &subject, &new), scripted::server(api, answers));
        assert!(asked[0].0.starts_with("POST "), "{asked:?}");
        made
    }

    #[tokio::test]
    async fn an_annotation_is_done_if_its_experiment_is_there_and_not_if_a_quota_was_busy() {
        assert_eq!(refused("AlreadyExists").await.unwrap(), Ok(()));
        assert!(matches!(refused("Conflict").await, Err(TurnError::Api { .. })));
    }
}
