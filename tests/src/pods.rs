//! What the tests ask of a pod.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use squall_api::names;

use crate::builders::BUSYBOX;

/// Questions to a pod.
pub trait PodExt {
    /// Its name.
    fn name(&self) -> String;
    /// Its UID.
    fn uid(&self) -> String;
    /// A label's value.
    fn label(&self, key: &str) -> Option<&str>;
    /// An annotation's value.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// It is Ready and not being deleted.
    fn is_ready(&self) -> bool;
    /// It is being deleted.
    fn is_terminating(&self) -> bool;
    /// The images of its containers, init containers first, by name.
    fn images(&self) -> Vec<(String, String)>;
    /// The image of a container or init container.
    fn image(&self, container: &str) -> String;
    /// A container's, or init container's, status.
    fn container(&self, name: &str) -> Option<ContainerStatus>;
    /// How often a container was restarted.
    fn restarts(&self, container: &str) -> i32;
    /// The containers and init containers whose image is not the tests' own.
    fn substituted(&self) -> Vec<String>;
    /// The switch is on and an image substituted.
    fn is_failed(&self) -> bool;
    /// The UIDs of those who hold it.
    fn holders(&self) -> Vec<String>;
}

impl PodExt for Pod {
    fn name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }

    fn uid(&self) -> String {
        self.metadata.uid.clone().unwrap_or_default()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn is_ready(&self) -> bool {
        let conditions = self.status.as_ref().and_then(|status| status.conditions.as_ref());
        !self.is_terminating()
            && conditions
                .is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    }

    fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn images(&self) -> Vec<(String, String)> {
        let Some(spec) = &self.spec else { return Vec::new() };
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .map(|container| (container.name.clone(), container.image.clone().unwrap_or_default()))
            .collect()
    }

    fn image(&self, container: &str) -> String {
        self.images()
            .into_iter()
            .find(|(name, _)| name == container)
            .map(|(_, image)| image)
            .unwrap_or_default()
    }

    fn container(&self, name: &str) -> Option<ContainerStatus> {
        let status = self.status.as_ref()?;
        let all =
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        all.into_iter().find(|one| one.name == name).cloned()
    }

    fn restarts(&self, container: &str) -> i32 {
        self.container(container).map(|status| status.restart_count).unwrap_or_default()
    }

    fn substituted(&self) -> Vec<String> {
        self.images().into_iter().filter(|(_, image)| image != BUSYBOX).map(|(name, _)| name).collect()
    }

    fn is_failed(&self) -> bool {
        self.label(names::FAULT) == Some(names::POD_FAILURE) && !self.substituted().is_empty()
    }

    fn holders(&self) -> Vec<String> {
        let text = self.annotation(names::HELD_BY).unwrap_or("[]");
        let list: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
        list.iter().filter_map(|holder| holder["uid"].as_str().map(str::to_owned)).collect()
    }
}
