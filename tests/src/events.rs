//! What was told as Events.

use anyhow::Result;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;

use crate::namespace::Ns;
use crate::wait::until;

/// Waits for the Event `reason` on `KIND/NAME`, and gives back its message.
pub async fn event_on(ns: &Ns, kind: &str, name: &str, reason: &str) -> Result<String> {
    until(&format!("{kind} {name} has the Event {reason}"), async || {
        let all = ns.api::<Event>().list(&ListParams::default()).await?.items;
        let on = |event: &Event| {
            let object = &event.involved_object;
            (object.kind.as_deref(), object.name.as_deref()) == (Some(kind), Some(name))
        };
        let mut on = all.into_iter().filter(on).collect::<Vec<_>>();
        let found = on.iter().position(|event| event.reason.as_deref() == Some(reason));
        Ok(match found {
            Some(index) => Ok(on.swap_remove(index).message.unwrap_or_default()),
            None => Err(format!("{:?}", on.into_iter().map(|event| event.reason).collect::<Vec<_>>())),
        })
    })
    .await
}
