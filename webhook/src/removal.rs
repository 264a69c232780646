//! Squall's own removal: its namespace is let go when nothing is failed any more, or after a while.
//!
//! `kubectl delete -k` deletes one object after another and waits for none, so the controller's identity and rights go
//! a moment after the first of them. This holds up the second, the namespace, while the controller puts back what the
//! first, a CRD, had it end. It never refuses: what is left then is named, and is the break-glass script's.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::{Api, Client, ResourceExt as _};
use squall_api::names;
use tokio::time::Instant;

use crate::review::{Answer, Request};
use crate::shares::Share;

/// How long it is held up. The API server waits some seconds more.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How many are held up at a time, and how many of one peer's: one is deleted by one, who may try again.
pub const TOGETHER: (usize, usize) = (4, 2);
/// How long a look may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(300);

/// Answers when nothing is left to be put back, or the time is over.
pub async fn review(client: &Client, turn: impl FnOnce() -> Option<Share>, request: &Request<'_>) -> Answer {
    let ours = request.operation == "DELETE"
        && request.kind.is("", "v1", "Namespace")
        && request.name == names::NAMESPACE
        && !request.dry_run;
    // Anyone in the cluster can ask; who finds all turns taken is not held up.
    let Some(_turn) = ours.then(turn).flatten() else { return Answer::default() };
    let until = Instant::now() + PATIENCE;
    loop {
        // An API server that does not say is no reason to hold anybody up.
        let left = match tokio::time::timeout(ANSWER, left(client)).await {
            Ok(Ok(Some(left))) => left,
            Ok(Ok(None)) => return Answer::default(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "can't tell whether the removal may go on, so it does");
                return Answer::default();
            }
            Err(_) => {
                tracing::warn!(
                    "the API server did not say in time whether the removal may go on, so it does"
                );
                return Answer::default();
            }
        };
        if Instant::now() >= until {
            let seconds = PATIENCE.as_secs();
            let warning =
                format!("Squall goes although {left} left after {seconds} s; run deploy/break-glass.sh");
            return Answer { warnings: vec![warning], ..Answer::default() };
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is still to be put back, in words. Nothing if no CRD is on its way out: then the controller ends nothing, and
/// waiting would be for nothing.
async fn left(client: &Client) -> Result<Option<String>, kube::Error> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut leaving = false;
    for name in names::CRDS {
        let crd = crds.get_metadata_opt(name).await?;
        leaving |= crd.is_some_and(|crd| crd.metadata.deletion_timestamp.is_some());
    }
    if !leaving {
        return Ok(None);
    }
    let mut held = 0;
    for name in names::CRDS {
        held += held_by_finalizer(client, name).await?;
    }
    let pods: Api<Pod> = Api::all(client.clone());
    let labelled = pods.list_metadata(&ListParams::default().labels(names::FAULT)).await?;
    // The label alone does nothing where the webhook isn't called.
    let record = |pod: &&PartialObjectMeta<Pod>| {
        [names::HELD_BY, names::ORIGINAL_IMAGES].iter().any(|key| has(pod, key))
    };
    let failed = labelled.items.iter().filter(record).count();
    Ok((held + failed > 0).then(|| format!("{held} experiments and {failed} failed pods were")))
}

/// How many objects of the CRD have our finalizer.
async fn held_by_finalizer(client: &Client, crd: &str) -> Result<usize, kube::Error> {
    let plural = crd.split('.').next().unwrap_or_default();
    let resource = ApiResource {
        group: names::GROUP.to_owned(),
        version: names::VERSION.to_owned(),
        api_version: format!("{}/{}", names::GROUP, names::VERSION),
        // Of no account for a list of metadata.
        kind: plural.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => {
            let ours = |name: &String| name == names::FINALIZER;
            Ok(list.items.iter().filter(|object| object.finalizers().iter().any(ours)).count())
        }
        // The CRD is gone, and with it all of its objects.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(0),
        Err(error) => Err(error),
    }
}

fn has(pod: &PartialObjectMeta<Pod>, annotation: &str) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(annotation))
}
