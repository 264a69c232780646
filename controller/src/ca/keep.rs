//! Keeps the CA: watches what the plan depends on, and wakes at its next date. No polling.
//!
//! Every replica watches the CA's Secret and makes its own identity of it; the leader watches the rest as well
//! and carries out the plan.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt, future, stream::BoxStream};
use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client};
use kube_runtime::{WatchStreamExt, watcher};
use squall_api::names;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    Authority, Hook, Observed, Settings, Stored, plan,
    write::{WriteError, Writer, mutating_hooks, validating_hooks},
};
use crate::{certs::Identity, lease::Leadership};

/// The longest sleep: clocks may be set, and a sleep of months would not notice.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Start keeping the CA. The receiver holds what this replica is, as soon as there is a CA.
pub fn start(
    client: Client,
    leadership: watch::Receiver<Leadership>,
    settings: Settings,
) -> watch::Receiver<Option<Identity>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(identify(client.clone(), sender));
    tokio::spawn(keep(client, leadership, settings));
    receiver
}

/// Make this replica's identity of the CA, again and again.
async fn identify(client: Client, sender: watch::Sender<Option<Identity>>) {
    let secrets: Api<Secret> = Api::namespaced(client, names::NAMESPACE);
    let mut changes = watch_one(secrets, names::CA_SECRET);
    let mut stored: Option<Stored> = None;
    loop {
        let renew_at = sender.borrow().as_ref().map(|identity| identity.renew_at);
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(secret)) => {
                    let new: Option<Stored> = secret.map(Stored::from);
                    // Only what the identity is made of counts, or every label would open new connections.
                    if new.as_ref().map(|s| &s.data) == stored.as_ref().map(|s| &s.data) {
                        continue;
                    }
                    stored = new;
                }
                Some(Err(error)) => {
                    warn!(%error, "can't watch the Secret squall-ca; trying again");
                    continue;
                }
                None => return,
            },
            () = sleep_till(renew_at) => {
                if renew_at.is_some_and(|at| at > Timestamp::now()) {
                    continue;
                }
            }
        }
        match stored.as_ref().map(identity) {
            Some(Ok(identity)) => {
                info!(renew_at = %identity.renew_at, "this replica has its certificates");
                sender.send_replace(Some(identity));
            }
            // The certificates that we have stay good for their time; the leader makes a new CA.
            Some(Err(error)) => warn!(%error, "can't use the Secret squall-ca"),
            None => {
                sender.send_replace(None);
            }
        }
    }
}

fn identity(stored: &Stored) -> Result<Identity, crate::certs::CertError> {
    let now = Timestamp::now();
    let authority = Authority::read(stored)?;
    let trusted = authority.trusted(now);
    Identity::make(Arc::new(authority.ca), &trusted, now)
}

/// Carry out the plan while this replica leads.
async fn keep(client: Client, mut leadership: watch::Receiver<Leadership>, settings: Settings) {
    loop {
        if leadership.wait_for(|now| matches!(now, Leadership::Leader { .. })).await.is_err() {
            return;
        }
        let lost = async {
            let mut leadership = leadership.clone();
            let _ = leadership.wait_for(|now| matches!(now, Leadership::Follower)).await;
        };
        tokio::select! {
            () = lost => {}
            () = lead(&client, settings) => {}
        }
    }
}

enum Change {
    Ca(Option<Stored>),
    Webhook(Option<Stored>),
    Bundle(Option<Stored>),
    Mutating(Vec<Hook>),
    Validating(Vec<Hook>),
}

async fn lead(client: &Client, settings: Settings) {
    let mut changes = observe(client);
    let writer = Writer::new(client.clone(), settings);
    let mut seen = Observed::default();
    let mut known = [false; 5];
    let mut wake: Option<Timestamp> = None;
    let mut failures: u32 = 0;
    loop {
        tokio::select! {
            change = changes.next() => {
                let Some(change) = change else { return };
                known[note(&mut seen, change)] = true;
            }
            () = sleep_till(wake) => {}
        }
        if known != [true; 5] {
            continue;
        }
        match settle(&writer, &settings, &mut seen).await {
            Ok(due) => (wake, failures) = (due, 0),
            Err(error) => {
                // A lost race is told by a watch event, too; the timer is for everything else.
                failures = failures.saturating_add(1);
                let pause = Duration::from_secs(1 << failures.min(6)).min(Duration::from_secs(60));
                match error {
                    WriteError::Raced(_) => info!(%error, "planning again"),
                    WriteError::Make { .. } | WriteError::Api { .. } => {
                        error!(%error, retry = ?pause, "the certificates are not as they should be")
                    }
                }
                wake = Some(Timestamp::now() + pause);
            }
        }
    }
}

/// Plan and carry out until nothing is left to do. Answers when the next thing is due.
async fn settle(
    writer: &Writer,
    settings: &Settings,
    seen: &mut Observed,
) -> Result<Option<Timestamp>, WriteError> {
    // From nothing to everything takes four rounds. One that never ends would be a bug: it goes on after a pause.
    for _ in 0..10 {
        let now = Timestamp::now();
        let plan = plan(seen, settings, now);
        if plan.steps.is_empty() {
            return Ok(plan.due);
        }
        for step in plan.steps {
            writer.carry_out(step, seen, now).await?;
        }
    }
    Ok(Some(Timestamp::now() + Duration::from_secs(60)))
}

fn note(seen: &mut Observed, change: Change) -> usize {
    match change {
        Change::Ca(stored) => {
            seen.ca = stored;
            0
        }
        Change::Webhook(stored) => {
            seen.webhook = stored;
            1
        }
        Change::Bundle(stored) => {
            seen.bundle = stored;
            2
        }
        Change::Mutating(hooks) => {
            seen.mutating = hooks;
            3
        }
        Change::Validating(hooks) => {
            seen.validating = hooks;
            4
        }
    }
}

fn observe(client: &Client) -> BoxStream<'static, Change> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), names::NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), names::NAMESPACE);
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let stored = |secret: Option<Secret>| secret.map(Stored::from);
    futures::stream::select_all([
        good(watch_one(secrets.clone(), names::CA_SECRET)).map(move |s| Change::Ca(stored(s))).boxed(),
        good(watch_one(secrets, names::WEBHOOK_TLS_SECRET)).map(move |s| Change::Webhook(stored(s))).boxed(),
        good(watch_one(maps, names::CA_BUNDLE)).map(|m| Change::Bundle(m.map(Stored::from))).boxed(),
        good(watch_one(mutating, names::MUTATING_WEBHOOKS))
            .map(|c| Change::Mutating(c.as_ref().map(mutating_hooks).unwrap_or_default()))
            .boxed(),
        good(watch_one(validating, names::VALIDATING_WEBHOOKS))
            .map(|c| Change::Validating(c.as_ref().map(validating_hooks).unwrap_or_default()))
            .boxed(),
    ])
    .boxed()
}

fn watch_one<K>(api: Api<K>, name: &str) -> BoxStream<'static, watcher::Result<Option<K>>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher::watch_object(api, name).backoff(crate::retry::retry()).boxed()
}

/// Only what was seen; what could not be is said and tried again.
fn good<T>(changes: impl Stream<Item = watcher::Result<T>>) -> impl Stream<Item = T> {
    changes.filter_map(|change| {
        future::ready(match change {
            Ok(seen) => Some(seen),
            Err(error) => {
                warn!(%error, "can't watch what the certificates depend on; trying again");
                None
            }
        })
    })
}

/// Sleep until then by the wall clock, at most an hour; without a date for ever.
async fn sleep_till(at: Option<Timestamp>) {
    let Some(at) = at else { return future::pending().await };
    let left = SystemTime::from(at).duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
}
