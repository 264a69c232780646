//! What only the API server can tell of an experiment: whether the requester may do it himself, and whether the
//! namespaces take part. Asked live, for experiments only.
//!
//! In doubt the answer is no. Rights come first: whoever has none in a namespace learns nothing about it.

use std::net::IpAddr;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::{Api, Client};
use squall_api::names;
use squall_model::pod::NamespaceView;

use crate::experiments::Ask;
use crate::review::{Denied, UserInfo};
use crate::shares::Shares;

/// kube-apiserver waits 5 s for us.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions that should be under way at a time, of all reviews together.
pub const TOGETHER: usize = 16;

/// Ask everything for `peer`, each question with one of its `turns`.
pub async fn allowed(client: &Client, turns: &Shares, peer: IpAddr, ask: &Ask) -> Result<(), Denied> {
    let all = async {
        let mut questions = Vec::new();
        if let Some(user) = &ask.user {
            for namespace in &ask.namespaces {
                questions.push(in_turn(turns, peer, may(client, user, ask, namespace)));
            }
        }
        each(questions).await?;
        let mut questions = Vec::new();
        for namespace in &ask.opted_in {
            questions.push(in_turn(turns, peer, takes_part(client, namespace)));
        }
        each(questions).await
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(Denied::unavailable("the API server did not say in time whether this is allowed; try again"))
        }
    }
}

/// Some at a time; the first no, in the order of the names, is the answer.
async fn each<F: Future<Output = Result<(), Denied>>>(questions: Vec<F>) -> Result<(), Denied> {
    stream::iter(questions).buffered(TOGETHER).try_collect::<Vec<()>>().await.map(drop)
}

async fn in_turn(
    turns: &Shares,
    peer: IpAddr,
    question: impl Future<Output = Result<(), Denied>>,
) -> Result<(), Denied> {
    // Never closed, so a turn always comes.
    let _turn = turns.take(peer, 1).await;
    question.await
}

async fn may(client: &Client, user: &UserInfo, ask: &Ask, namespace: &str) -> Result<(), Denied> {
    let UserInfo { username, uid, groups, extra } = user;
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let question = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: text(username),
            uid: text(uid),
            groups: Some(groups.clone()),
            extra: Some(extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: text(ask.verb),
                resource: text("pods"),
                subresource: text(ask.subresource),
                namespace: text(namespace),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let what =
        if ask.subresource.is_empty() { "pods".to_owned() } else { format!("pods/{}", ask.subresource) };
    let answer = api.create(&PostParams::default(), &question).await.map_err(|error| {
        tracing::warn!(%error, "can't create a SubjectAccessReview");
        Denied::unavailable(format!(
            "whether {username} may {} {what} in namespace {namespace} could not be asked: {error}; try again",
            ask.verb
        ))
    })?;
    match answer.status {
        Some(status) if status.allowed && status.denied != Some(true) => Ok(()),
        Some(_) | None => Err(Denied::forbidden(format!(
            "{username} may not {verb} {what} in namespace {namespace}, so no experiment may do it for them; \
             ask an administrator of {namespace} for the right to {verb} {what}",
            verb = ask.verb
        ))),
    }
}

async fn takes_part(client: &Client, name: &str) -> Result<(), Denied> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = match api.get_opt(name).await {
        Ok(Some(namespace)) => NamespaceView::of(&namespace),
        Ok(None) => {
            return Err(Denied::forbidden(format!(
                "namespace {name} does not exist: create it, or correct spec.selector"
            )));
        }
        Err(error) => {
            tracing::warn!(%error, "can't read a namespace");
            return Err(Denied::unavailable(format!(
                "namespace {name} could not be read: {error}; try again"
            )));
        }
    };
    if !namespace.opted_in {
        Err(Denied::forbidden(format!(
            "namespace {name} does not take part; an administrator can change that: \
             kubectl label namespace {name} {}={}",
            names::INJECT,
            names::INJECT_ENABLED
        )))
    } else if namespace.protect {
        Err(Denied::forbidden(format!(
            "namespace {name} is protected by {}: remove that from it, or choose another",
            names::PROTECT
        )))
    } else {
        Ok(())
    }
}
