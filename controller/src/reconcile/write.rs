//! Writes what a turn comes to: the status, and that the object may go.

use jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams, TypeMeta};
use kube::core::Request;
use kube::{Api, ResourceExt};
use squall_api::names;
use squall_api::status::ExperimentStatus;
use squall_model::experiment::ExperimentSpec;

use super::{Context, Memory, ReconcileError};
use crate::chaos::Chaos;
use crate::client::is_gone;
use crate::figures;

/// An experiment as its status is written. Nothing is copied: a status may be large.
#[derive(serde::Serialize)]
struct Written<'a, S> {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    spec: &'a S,
    status: &'a ExperimentStatus,
}

/// What is read of the answer, which is as large.
#[derive(serde::Deserialize)]
struct Answer {
    metadata: ObjectMeta,
}

impl Context {
    /// Write the status, on the condition that the object is the one that was looked at.
    pub(super) async fn write<K: Chaos>(
        &self,
        chaos: &K,
        memory: &mut Memory,
        status: ExperimentStatus,
    ) -> Result<(), ReconcileError> {
        let namespace = chaos.namespace().unwrap_or_default();
        let name = chaos.name_any();
        match self.replace_status(chaos, &namespace, &name, memory.version, &status).await {
            Ok(written) => {
                memory.version = written;
                memory.unsure = false;
                memory.written = Some(Timestamp::now());
                if status.phase != memory.status.phase {
                    tracing::info!(
                        experiment = name,
                        namespace,
                        phase = ?status.phase.unwrap_or_default(),
                        "phase"
                    );
                }
                figures::count(
                    &self.metrics,
                    chaos.spec().action_word(),
                    &memory.status,
                    &status,
                    &mut memory.recovering,
                    Timestamp::now(),
                );
                // Kept as planned, not as answered: the server rounds nothing and drops nothing that we compare.
                memory.status = status;
                Ok(())
            }
            Err(source) => {
                // What the server refused wasn't written; what it didn't answer may have been.
                memory.unsure = !matches!(source, kube::Error::Api(_));
                Err(ReconcileError::Status { namespace, name, source: Box::new(source) })
            }
        }
    }

    /// The resource version afterwards.
    async fn replace_status<K: Chaos>(
        &self,
        chaos: &K,
        namespace: &str,
        name: &str,
        version: u64,
        status: &ExperimentStatus,
    ) -> Result<u64, kube::Error> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: chaos.uid(),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        };
        // In one statement: what is borrowed here may not be held while the answer is waited for.
        let types = TypeMeta::resource::<K>();
        let body = serde_json::to_vec(&Written { types, metadata, spec: chaos.spec(), status })
            .map_err(kube::Error::SerdeError)?;
        let request = Request::new(K::url_path(&(), Some(namespace)))
            .replace_subresource("status", name, &PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        let answer: Answer = self.client.request(request).await?;
        Ok(super::version(&answer.metadata))
    }

    pub(super) async fn drop_finalizer<K: Chaos>(&self, chaos: &K) -> Result<(), ReconcileError> {
        let Some(index) = chaos.finalizers().iter().position(|finalizer| finalizer == names::FINALIZER)
        else {
            return Ok(());
        };
        let namespace = chaos.namespace().unwrap_or_default();
        let name = chaos.name_any();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        // Ours only, and only if it is still where it was seen.
        let patch: json_patch::Patch = serde_json::from_value(serde_json::json!([
            { "op": "test", "path": format!("/metadata/finalizers/{index}"), "value": names::FINALIZER },
            { "op": "remove", "path": format!("/metadata/finalizers/{index}") },
        ]))
        .unwrap_or_default();
        match api.patch(&name, &PatchParams::default(), &Patch::<K>::Json(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(source) => Err(ReconcileError::Finalizer { namespace, name, source: Box::new(source) }),
        }
    }
}
