//! What was told as Events.

use anyhow::Result;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;

use crate::namespace::Ns;
use crate::wait::until;

/// All that are about objects of that name.
pub async fn events_about(ns: &Ns, name: &str) -> Result<Vec<Event>> {
    let mut events = ns.api::<Event>().list(&ListParams::default()).await?.items;
    events.retain(|event| event.involved_object.name.as_deref() == Some(name));
    Ok(events)
}

/// What they say.
pub async fn events_of(ns: &Ns, name: &str) -> Result<Vec<String>> {
    Ok(events_about(ns, name).await?.into_iter().filter_map(|event| event.message).collect())
}

/// Waits for the Event `reason` on `KIND/NAME`, and gives back its message.
pub async fn event_on(ns: &Ns, kind: &str, name: &str, reason: &str) -> Result<String> {
    until(&format!("{kind} {name} has the Event {reason}"), async || {
        let mut on = events_about(ns, name).await?;
        on.retain(|event| event.involved_object.kind.as_deref() == Some(kind));
        let found = on.iter().position(|event| event.reason.as_deref() == Some(reason));
        Ok(match found {
            Some(index) => Ok(on.swap_remove(index).message.unwrap_or_default()),
            None => Err(format!("{:?}", on.into_iter().map(|event| event.reason).collect::<Vec<_>>())),
        })
    })
    .await
}
