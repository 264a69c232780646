//! Keeps world and certificate as the cluster has them. Watches never end: what breaks is tried again.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::PartialObjectMeta;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use kube_runtime::watcher::{self, Config, Event, ExponentialBackoff};
use kube_runtime::{WatchStreamExt, watcher as watch};
use serde::de::DeserializeOwned;
use squall_api::{ChaosPolicy, PodChaos, names};
use squall_model::pod::NamespaceView;

use crate::tls::Certificates;
use crate::world::World;

/// How many objects a page of a list has: an experiment may be 1.5 MiB, and several times that in memory.
const PAGE: u32 = 4;

/// How soon a broken watch is tried again: 200 ms, doubled up to 3 s, as the controller does it. kube's own waits up to
/// 30 s, for the sake of big fleets; we are two, and a halt shall be known soon after the API server has come back.
fn retry() -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(Duration::from_millis(200));
    builder.with_max_delay(Duration::from_secs(3)).without_max_times().into()
}

/// Follow experiments, namespaces, policies and workloads, for ever.
pub async fn world(client: Client, world: Arc<World>) {
    let experiments = async {
        let api: Api<PodChaos> = Api::all(client.clone());
        let events = watch(api, Config::default().page_size(PAGE)).backoff(retry());
        each("experiments", events, |event| world.experiment(event)).await;
    };
    let namespaces = async {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let events = watch(api, Config::default().page_size(500)).backoff(retry());
        each("namespaces", events, |event| world.namespace_event(seen(event, view))).await;
    };
    let policies = async {
        let api: Api<ChaosPolicy> = Api::all(client.clone());
        let events = watch(api, Config::default().page_size(100)).backoff(retry());
        each("policies", events, |event| world.policy_event(event)).await;
    };
    futures::join!(
        experiments,
        namespaces,
        policies,
        workloads::<Deployment>("Deployment", &client, &world),
        workloads::<StatefulSet>("StatefulSet", &client, &world),
        workloads::<DaemonSet>("DaemonSet", &client, &world),
        workloads::<ReplicaSet>("ReplicaSet", &client, &world),
        workloads::<Job>("Job", &client, &world),
    );
}

/// Follow the workloads of one kind, for ever: whether they are protected.
async fn workloads<K>(kind: &'static str, client: &Client, world: &World)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(client.clone());
    let events = watch(api, Config::default().page_size(500)).backoff(retry());
    each("workloads", events, |event| world.workload_event(kind, seen(event, |object| object.metadata)))
        .await;
}

/// Follow the Secret with our pair in `namespace`, for ever. If it goes, the pair that we have still serves.
pub async fn certificate(client: Client, namespace: &str, certificates: Arc<Certificates>) {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let by_name = Config::default().fields(&format!("metadata.name={}", names::WEBHOOK_TLS_SECRET));
    let events = watch(api, by_name).backoff(retry()).applied_objects();
    each("the certificate", events, |secret| load(&secret, &certificates)).await;
}

fn load(secret: &Secret, certificates: &Certificates) {
    let part =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let (Some(certificate), Some(key)) = (part("tls.crt"), part("tls.key")) else {
        tracing::warn!("the Secret {} has no tls.crt and tls.key", names::WEBHOOK_TLS_SECRET);
        return;
    };
    match certificates.load(certificate, key) {
        Ok(true) => tracing::info!("another certificate is served now"),
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "the Secret {} is of no use", names::WEBHOOK_TLS_SECRET),
    }
}

fn view(namespace: PartialObjectMeta<Namespace>) -> NamespaceView {
    NamespaceView::of(&Namespace { metadata: namespace.metadata, ..Namespace::default() })
}

fn seen<A, B>(event: Event<A>, with: impl Fn(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(with(object)),
        Event::Delete(object) => Event::Delete(with(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(with(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// Hands on everything that is seen, for ever; what breaks is told.
async fn each<T>(what: &str, events: impl Stream<Item = Result<T, watcher::Error>>, mut take: impl FnMut(T)) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => take(event),
            Err(error) => tracing::warn!(%error, "can't follow {what}; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_watch_is_never_given_up_and_soon_tried_again() {
        assert!(retry().take(1000).all(|pause| pause <= Duration::from_secs(3)));
        assert_eq!((retry().next(), retry().take(1000).count()), (Some(Duration::from_millis(200)), 1000));
    }
}
