//! What Squall may have left on a pod, or on a workload.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use squall_api::names;

use crate::builders::BUSYBOX;
use crate::pods::PodExt as _;

/// Labels, annotations and finalizers of ours on an object, but for `keys`.
pub fn marks(metadata: &ObjectMeta, keys: &BTreeSet<String>) -> Vec<String> {
    let prefix = format!("{}/", names::GROUP);
    let ours = |key: &str| key.starts_with(&prefix) && !keys.contains(key);
    let labels = metadata.labels.iter().flatten();
    let annotations = metadata.annotations.iter().flatten();
    let mut left: Vec<String> = labels
        .chain(annotations)
        .filter(|(key, _)| ours(key))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let finalizers = metadata.finalizers.iter().flatten();
    left.extend(finalizers.filter(|name| ours(name)).map(|name| format!("finalizer {name}")));
    left
}

/// Marks and images on `pod` that are neither the tests' own nor among `keys` and `images`.
pub fn on(pod: &Pod, keys: &BTreeSet<String>, images: &BTreeSet<String>) -> Vec<String> {
    let mut left = marks(&pod.metadata, keys);
    left.extend(
        pod.images()
            .into_iter()
            .filter(|(_, image)| image != BUSYBOX && !images.contains(image))
            .map(|(container, image)| format!("image of {container}: {image}")),
    );
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::pod;

    #[test]
    fn a_plain_pod_has_none_and_a_failed_one_has_all_of_them() {
        let none = BTreeSet::new();
        let mut pod = pod("web");
        assert_eq!(on(&pod, &none, &none), Vec::<String>::new());
        pod.metadata.labels.get_or_insert_default().insert(names::FAULT.into(), names::POD_FAILURE.into());
        pod.metadata.annotations.get_or_insert_default().insert(names::HELD_BY.into(), "[]".into());
        pod.metadata.finalizers = Some(vec![names::FINALIZER.into(), "example.org/other".into()]);
        pod.spec.as_mut().unwrap().containers[0].image = Some("other".into());
        assert_eq!(on(&pod, &none, &none).len(), 4);
    }

    #[test]
    fn what_the_test_wrote_itself_is_not_counted() {
        let mut pod = pod("web");
        pod.metadata.labels.get_or_insert_default().insert(names::PROTECT.into(), "true".into());
        let keys = BTreeSet::from([names::PROTECT.to_owned()]);
        assert_eq!(on(&pod, &keys, &BTreeSet::new()), Vec::<String>::new());
    }
}
