//! What the controller needs of a kind of experiment. Whatever it does for one kind it does for all of them by the
//! same code; what differs is said by the spec ([`ExperimentSpec`]).

use std::fmt::Debug;

use kube::api::ObjectMeta;
use kube::core::NamespaceResourceScope;
use kube::core::object::{HasSpec, HasStatus};
use kube::{Resource, ResourceExt};
use kube_runtime::reflector::{ObjectRef, Store};
use serde::{Serialize, de::DeserializeOwned};
use squall_api::{ExperimentStatus, PodChaos, StressChaos};
use squall_model::experiment::{ExperimentSpec, Kind};

/// A kind of experiment.
pub trait Chaos:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasSpec<Spec: ExperimentSpec>
    + HasStatus<Status = ExperimentStatus>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which.
    const KIND: Kind = <Self::Spec as ExperimentSpec>::KIND;
}

impl<K> Chaos for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + HasSpec<Spec: ExperimentSpec>
        + HasStatus<Status = ExperimentStatus>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// An experiment by kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Named {
    /// The name of `chaos`.
    pub fn of<K: Chaos>(chaos: &K) -> Self {
        Self { kind: K::KIND, namespace: chaos.namespace().unwrap_or_default(), name: chaos.name_any() }
    }

    /// As kube-runtime has it. The kind is the caller's to know.
    pub fn reference<K: Chaos>(&self) -> ObjectRef<K> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

/// `PodChaos NAMESPACE/NAME`.
impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The experiments that there are, of every kind.
#[derive(Clone)]
pub struct Experiments {
    /// PodChaos.
    pub pods: Store<PodChaos>,
    /// StressChaos.
    pub stress: Store<StressChaos>,
}

impl Experiments {
    /// What `of` makes of each, by its metadata, what it does, and its status.
    pub fn filter_map<T>(
        &self,
        of: impl Fn(&ObjectMeta, &'static str, Option<&ExperimentStatus>) -> Option<T>,
    ) -> Vec<T> {
        fn each<K: Chaos, T>(
            store: &Store<K>,
            of: &impl Fn(&ObjectMeta, &'static str, Option<&ExperimentStatus>) -> Option<T>,
        ) -> Vec<T> {
            let all = store.state();
            all.iter()
                .filter_map(|chaos| of(chaos.meta(), chaos.spec().action_word(), chaos.status()))
                .collect()
        }
        let Self { pods, stress } = self;
        let mut all = each(pods, &of);
        all.extend(each(stress, &of));
        all
    }

    /// The resource version of one, as the watch has it.
    pub fn version(&self, named: &Named) -> Option<String> {
        self.one(named, |meta| meta.resource_version.clone())
    }

    /// Whether it is there, that very one.
    pub fn has(&self, named: &Named, uid: &str) -> bool {
        self.one(named, |meta| meta.uid.clone()).as_deref() == Some(uid)
    }

    fn one<T>(&self, named: &Named, of: impl Fn(&ObjectMeta) -> Option<T>) -> Option<T> {
        let Self { pods, stress } = self;
        match named.kind {
            Kind::PodChaos => of(pods.get(&named.reference())?.meta()),
            Kind::StressChaos => of(stress.get(&named.reference())?.meta()),
        }
    }

    /// Every one, by name.
    pub fn named(&self) -> Vec<Named> {
        let Self { pods, stress } = self;
        let pods = pods.state().into_iter().map(|chaos| Named::of(&*chaos));
        pods.chain(stress.state().into_iter().map(|chaos| Named::of(&*chaos))).collect()
    }

    /// Wait until each kind has been listed once; false when the term ends before.
    pub async fn listed(&self) -> bool {
        let Self { pods, stress } = self;
        pods.wait_until_ready().await.is_ok() && stress.wait_until_ready().await.is_ok()
    }
}
