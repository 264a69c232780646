//! Whose experiments a bench makes: Squall's, or those of Chaos Mesh where the cluster has it too.

use std::time::Instant;

use anyhow::{Context as _, Result};
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, discovery};
use serde_json::{Value, json};

use crate::namespace::Ns;
use crate::wait::{until, until_gone};

/// Who injects the fault. Both take the same PodChaos.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injector {
    /// The tree that is measured.
    Squall,
    /// The field's leader.
    ChaosMesh,
}

impl Injector {
    /// Those that are installed: Squall, and whoever else serves a PodChaos.
    pub async fn installed(client: &Client) -> Result<Vec<Self>> {
        let kind = Self::ChaosMesh.kind();
        let gvk = GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind);
        Ok(match discovery::pinned_kind(client, &gvk).await {
            Ok(_) => vec![Self::Squall, Self::ChaosMesh],
            Err(kube::Error::Api(status)) if status.code == 404 => vec![Self::Squall],
            Err(error) => return Err(error).context("asking whether there is a Chaos Mesh"),
        })
    }

    fn kind(self) -> ApiResource {
        let group = match self {
            Self::Squall => squall_api::names::GROUP,
            Self::ChaosMesh => "chaos-mesh.org",
        };
        let kind = GroupVersionKind::gvk(group, "v1alpha1", "PodChaos");
        ApiResource::from_gvk_with_plural(&kind, "podchaos")
    }

    fn api(self, ns: &Ns) -> Api<DynamicObject> {
        Api::namespaced_with(ns.client.clone(), &ns.name, &self.kind())
    }

    /// Creates a PodChaos for the pods of the namespace; its name, and when the answer was there.
    pub async fn create(self, ns: &Ns, action: &str, mode: &str) -> Result<(String, Instant)> {
        let mut spec = json!({"action": action, "mode": mode, "selector": {"namespaces": [ns.name]}});
        match action {
            // Chaos Mesh has no default for it.
            "container-kill" => spec["containerNames"] = json!(["app"]),
            // Its own would be 0, and the tests' pods have this one.
            "pod-kill" => spec["gracePeriod"] = json!(1),
            _ => {}
        }
        let mut chaos = DynamicObject::new("", &self.kind()).data(json!({ "spec": spec }));
        chaos.metadata.name = None;
        chaos.metadata.generate_name = Some("bench-".to_owned());
        let made = self.api(ns).create(&PostParams::default(), &chaos).await?;
        Ok((made.metadata.name.context("an object without a name")?, Instant::now()))
    }

    /// Waits until it says that it has hit all its targets, and with a kill that it is over.
    pub async fn injected(self, ns: &Ns, action: &str, name: &str) -> Result<()> {
        let condition = match self {
            Self::Squall if action == "pod-failure" => "Injected",
            Self::Squall => "Completed",
            Self::ChaosMesh => "AllInjected",
        };
        until(&format!("the PodChaos {name} is {condition}"), async || {
            let chaos = self.api(ns).get(name).await?;
            let status = &chaos.data["status"];
            let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            let is_so = |one: &Value| one["type"] == condition && one["status"] == "True";
            Ok(if conditions.iter().any(is_so) { Ok(()) } else { Err(status.to_string()) })
        })
        .await
    }

    /// Deletes it; when the answer was there.
    pub async fn delete(self, ns: &Ns, name: &str) -> Result<Instant> {
        self.api(ns).delete(name, &DeleteParams::default()).await?;
        Ok(Instant::now())
    }

    /// Waits until it is gone.
    pub async fn gone(self, ns: &Ns, name: &str) -> Result<()> {
        until_gone(&self.api(ns), name).await
    }
}
