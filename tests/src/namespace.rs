//! A namespace of its own for each test, and what is asked of the objects in it.
//!
//! [`with_ns`] makes it, runs the test, says what everything looked like if it failed, and ends by checking
//! that Squall left nothing behind. It never touches a namespace that it did not make.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use futures::FutureExt as _;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::core::object::HasStatus;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use squall_api::status::{ExperimentStatus, Phase};
use squall_api::{PodChaos, StressChaos, names};

use crate::cluster::{client, runtime};
use crate::experiment::ExperimentExt as _;
use crate::pods::PodExt as _;
use crate::wait::{LIMIT, until, until_gone, until_within};
use crate::{dump, residue};

/// The longest that a test may take.
const TEST_LIMIT: Duration = Duration::from_secs(180);

/// Whether a namespace takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptIn {
    /// It carries `squall.dev/inject=enabled`.
    Yes,
    /// It carries nothing of ours.
    No,
}

/// A test's namespace.
pub struct Ns {
    /// Its name.
    pub name: String,
    /// A client with an administrator's rights.
    pub client: Client,
    others: RefCell<Vec<String>>,
    own_keys: RefCell<BTreeSet<String>>,
    own_images: RefCell<BTreeSet<String>>,
}

/// Runs `test` in a namespace of its own, whose name begins with `stem`.
pub fn with_ns(stem: &str, opted_in: OptIn, test: impl AsyncFnOnce(&Ns) -> Result<()>) {
    with_ns_within(TEST_LIMIT, stem, opted_in, test);
}

/// [`with_ns`], with another limit.
pub fn with_ns_within(
    limit: Duration,
    stem: &str,
    opted_in: OptIn,
    test: impl AsyncFnOnce(&Ns) -> Result<()>,
) {
    let outcome = runtime().block_on(async {
        let ns = Ns::make(stem, opted_in).await?;
        let ran = AssertUnwindSafe(tokio::time::timeout(limit, test(&ns))).catch_unwind().await;
        let result = match ran {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(anyhow!("the test took more than {limit:?}")),
            // The panic's own message has been printed where it was raised.
            Err(_) => Err(anyhow!("an assertion failed, see above")),
        };
        let result = match result {
            Ok(()) => ns.check_nothing_is_left().await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            dump::everything(&ns.all());
            ns.let_go_by_force().await;
        }
        let gone = ns.delete().await;
        result.and(gone)
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

impl Ns {
    async fn make(stem: &str, opted_in: OptIn) -> Result<Self> {
        let client = client().await?;
        let ns = Self {
            name: unique(stem),
            client,
            others: RefCell::default(),
            own_keys: RefCell::default(),
            own_images: RefCell::default(),
        };
        ns.make_namespace(&ns.name, opted_in).await?;
        Ok(ns)
    }

    async fn make_namespace(&self, name: &str, opted_in: OptIn) -> Result<()> {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        if opted_in == OptIn::Yes {
            let label = (names::INJECT.to_owned(), names::INJECT_ENABLED.to_owned());
            namespace.metadata.labels = Some([label].into());
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("can't make the namespace {name}"))?;
        Ok(())
    }

    /// Another namespace of the same test.
    pub async fn another(&self, stem: &str, opted_in: OptIn) -> Result<Self> {
        let name = unique(stem);
        self.make_namespace(&name, opted_in).await?;
        self.others.borrow_mut().push(name.clone());
        Ok(Self {
            name,
            client: self.client.clone(),
            others: RefCell::default(),
            own_keys: RefCell::default(),
            own_images: RefCell::default(),
        })
    }

    /// The test itself wrote this label or annotation of ours on pods or workloads, so it may be there at the end.
    pub fn keeps(&self, key: &str) {
        self.own_keys.borrow_mut().insert(key.to_owned());
    }

    /// The test's pods have this image of their own.
    pub fn runs_image(&self, image: &str) {
        self.own_images.borrow_mut().insert(image.to_owned());
    }

    /// The API for a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates `object` here.
    pub async fn create<K>(&self, object: &K) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
        K::DynamicType: Default,
    {
        self.api().create(&PostParams::default(), object).await.context("can't create an object")
    }

    /// Creates a pod and waits until it is Ready.
    pub async fn ready_pod(&self, pod: &Pod) -> Result<Pod> {
        let name = self.create(pod).await?.name();
        self.pod_until(&name, "the pod is Ready", |pod| pod.is_ready()).await
    }

    /// A pod as it is now.
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        self.api::<Pod>().get(name).await.with_context(|| format!("can't get the pod {name}"))
    }

    /// The pods labelled `app: APP` that are not being deleted.
    pub async fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let list = self.api::<Pod>().list(&ListParams::default().labels(&format!("app={app}"))).await?;
        Ok(list.items.into_iter().filter(|pod| !pod.is_terminating()).collect())
    }

    /// Waits until a pod is as `wanted`.
    pub async fn pod_until(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<Pod> {
        until(&format!("{what} ({name})"), async || {
            Ok(match self.api::<Pod>().get_opt(name).await? {
                Some(pod) if wanted(&pod) => Ok(pod),
                Some(pod) => Err(shown(&pod)),
                None => Err("there is no such pod".to_owned()),
            })
        })
        .await
    }

    /// Waits until the pods labelled `app: APP` are as `wanted`.
    pub async fn pods_until(
        &self,
        app: &str,
        what: &str,
        wanted: impl Fn(&[Pod]) -> bool,
    ) -> Result<Vec<Pod>> {
        until(&format!("{what} (app={app})"), async || {
            let pods = self.pods(app).await?;
            Ok(if wanted(&pods) { Ok(pods) } else { Err(pods.iter().map(shown).collect::<String>()) })
        })
        .await
    }

    /// Waits until `count` pods labelled `app: APP` are Ready, and no more there.
    pub async fn ready_pods(&self, app: &str, count: usize) -> Result<Vec<Pod>> {
        let what = format!("{count} pods are Ready");
        self.pods_until(app, &what, |pods| pods.len() == count && pods.iter().all(|pod| pod.is_ready())).await
    }

    /// Waits until a pod runs its own images and nothing of ours is on it; what the test keeps is not counted.
    pub async fn whole(&self, name: &str) -> Result<Pod> {
        let (keys, images) = (self.own_keys.borrow().clone(), self.own_images.borrow().clone());
        self.pod_until(name, "the pod is whole again", |pod| residue::on(pod, &keys, &images).is_empty())
            .await
    }

    /// Waits until every pod labelled `app: APP` is whole.
    pub async fn all_whole(&self, app: &str) -> Result<Vec<Pod>> {
        let (keys, images) = (self.own_keys.borrow().clone(), self.own_images.borrow().clone());
        self.pods_until(app, "every pod is whole again", |pods| {
            pods.iter().all(|pod| residue::on(pod, &keys, &images).is_empty())
        })
        .await
    }

    /// An experiment as it is now.
    pub async fn chaos(&self, name: &str) -> Result<PodChaos> {
        self.api::<PodChaos>().get(name).await.with_context(|| format!("can't get the PodChaos {name}"))
    }

    /// Waits until an experiment is as `wanted`.
    pub async fn chaos_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&PodChaos) -> bool,
    ) -> Result<PodChaos> {
        until(&format!("{what} (PodChaos {name})"), async || {
            let chaos = self.chaos(name).await?;
            Ok(if wanted(&chaos) { Ok(chaos) } else { Err(chaos.shown()) })
        })
        .await
    }

    /// Waits until an experiment of any kind is as `wanted`.
    pub async fn experiment_until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: HasStatus<Status = ExperimentStatus> + Clone + Debug + DeserializeOwned,
    {
        until(&format!("{what} ({} {name})", K::kind(&())), async || {
            let chaos: K = self.api::<K>().get(name).await?;
            Ok(if wanted(&chaos) { Ok(chaos) } else { Err(chaos.shown()) })
        })
        .await
    }

    /// Waits until an experiment is in `phase`.
    pub async fn phase(&self, name: &str, phase: Phase) -> Result<PodChaos> {
        self.chaos_until(name, &format!("its phase is {phase:?}"), |chaos| chaos.phase() == phase).await
    }

    /// Waits until an experiment's condition is True.
    pub async fn condition(&self, name: &str, condition: &str) -> Result<PodChaos> {
        self.chaos_until(name, &format!("it is {condition}"), |chaos| chaos.is(condition)).await
    }

    /// Waits until an experiment is over.
    pub async fn completed(&self, name: &str) -> Result<PodChaos> {
        self.condition(name, "Completed").await
    }

    /// Merges `patch` into an object.
    pub async fn merge<K>(&self, name: &str, patch: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        self.api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("can't patch {name} with {patch}"))
    }

    /// Annotates an object; `None` removes the annotation.
    pub async fn annotate<K>(&self, name: &str, key: &str, value: Option<&str>) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        self.merge(name, json!({ "metadata": { "annotations": { key: value } } })).await
    }

    /// Labels an object; `None` removes the label.
    pub async fn label<K>(&self, name: &str, key: &str, value: Option<&str>) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        self.merge(name, json!({ "metadata": { "labels": { key: value } } })).await
    }

    /// Asks for an experiment's deletion.
    pub async fn delete_chaos(&self, name: &str) -> Result<()> {
        self.api::<PodChaos>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Deletes an experiment and waits until it is gone.
    pub async fn end_chaos(&self, name: &str) -> Result<()> {
        self.delete_chaos(name).await?;
        self.chaos_gone(name).await
    }

    /// Waits until an experiment is gone.
    pub async fn chaos_gone(&self, name: &str) -> Result<()> {
        until_gone(&self.api::<PodChaos>(), name).await
    }

    /// All namespaces of the test.
    pub(crate) fn all(&self) -> Vec<String> {
        let mut all = vec![self.name.clone()];
        all.extend(self.others.borrow().iter().cloned());
        all
    }

    /// Ends what experiments there are, and looks for what they left.
    async fn check_nothing_is_left(&self) -> Result<()> {
        let (keys, images) = (self.own_keys.borrow().clone(), self.own_images.borrow().clone());
        for name in self.all() {
            self.end_experiments::<PodChaos>(&name).await?;
            self.end_experiments::<StressChaos>(&name).await?;
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name);
            for pod in pods.list(&ListParams::default()).await?.items {
                let left = residue::on(&pod, &keys, &images);
                anyhow::ensure!(
                    left.is_empty() || pod.is_terminating(),
                    "something was left on {}/{}: {left:?}",
                    name,
                    pod.name()
                );
            }
            self.nothing_on_workloads::<Deployment>(&name, &keys).await?;
            self.nothing_on_workloads::<StatefulSet>(&name, &keys).await?;
            self.nothing_on_workloads::<DaemonSet>(&name, &keys).await?;
            self.nothing_on_workloads::<ReplicaSet>(&name, &keys).await?;
        }
        Ok(())
    }

    /// Waits: a Deployment's copies lose what it has lost a moment later.
    async fn nothing_on_workloads<K>(&self, namespace: &str, keys: &BTreeSet<String>) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let kind = K::kind(&());
        until(&format!("nothing is left on any {kind} in {namespace}"), async || {
            let all = api.list_metadata(&ListParams::default()).await?.items;
            let left: Vec<_> = all
                .iter()
                .map(|one| (one.metadata.name.as_deref(), residue::marks(&one.metadata, keys)))
                .filter(|(_, left)| !left.is_empty())
                .collect();
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })
        .await
    }

    /// Deletes the experiments of one kind, and waits until they are gone.
    async fn end_experiments<K>(&self, namespace: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: HasStatus<Status = ExperimentStatus> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let list = api.list(&ListParams::default()).await?;
        let names: Vec<String> = list.items.iter().filter_map(|chaos| chaos.meta().name.clone()).collect();
        let params = DeleteParams::default();
        for result in join_all(names.iter().map(|chaos| api.delete(chaos, &params))).await {
            match result {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
        }
        until_within(LIMIT, &format!("no {} is left in {namespace}", K::kind(&())), async || {
            let list = api.list(&ListParams::default()).await?;
            Ok(match list.items.first() {
                None => Ok(()),
                Some(chaos) => Err(format!("{:?} {}", chaos.meta(), chaos.shown())),
            })
        })
        .await
    }

    /// After a failed test: what there is must not keep the namespace from going.
    async fn let_go_by_force(&self) {
        for name in self.all() {
            self.force::<PodChaos>(&name).await;
            self.force::<StressChaos>(&name).await;
        }
    }

    async fn force<K>(&self, namespace: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let Ok(list) = api.list(&ListParams::default()).await else { return };
        for chaos in list.items.iter().filter_map(|chaos| chaos.meta().name.as_deref()) {
            let forced = json!({ "metadata": { "annotations": { names::CLEANUP: names::CLEANUP_FORCED } } });
            let _ = api.patch(chaos, &PatchParams::default(), &Patch::Merge(&forced)).await;
            let _ = api.delete(chaos, &DeleteParams::default()).await;
        }
    }

    async fn delete(&self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        for name in self.all() {
            match api.delete(&name, &DeleteParams::background()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("can't delete the namespace {name}"));
                }
            }
        }
        Ok(())
    }
}

/// What matters of a pod, on one line.
fn shown(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let states: Vec<String> = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .map(|one| format!("{}: {}", one.name, serde_json::to_string(&one.state).unwrap_or_default()))
        .collect();
    format!(
        "\n{} uid={} phase={} ready={} terminating={} images={:?} labels={:?} annotations={:?} states={states:?}",
        pod.name(),
        pod.uid(),
        status.and_then(|status| status.phase.as_deref()).unwrap_or_default(),
        pod.is_ready(),
        pod.is_terminating(),
        pod.images(),
        pod.metadata.labels,
        pod.metadata.annotations,
    )
}

/// A name that no other test, and no other run, has.
fn unique(stem: &str) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let stem: String = stem.chars().take(40).collect();
    format!("sqt-{}-{:05x}", stem.trim_end_matches('-'), nanos >> 8 & 0xf_ffff)
}
