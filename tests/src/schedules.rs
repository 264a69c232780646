//! Schedules of the tests, which all choose pods labelled `app: web`.

use std::time::Duration;

use anyhow::Result;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use squall_api::{PodChaos, Schedule};

use crate::builders::from_json;
use crate::namespace::Ns;
use crate::wait::{until, until_within};

/// A run every second, each of which fails the pods for 30 s, changed by these fields of the spec; null takes one away.
pub fn schedule(name: &str, change: Value) -> Schedule {
    let mut spec = json!({
        "schedule": "* * * * * *",
        "type": "PodChaos",
        "podChaos": {"action": "pod-failure", "mode": "all", "selector": {"labelSelectors": {"app": "web"}}, "duration": "30s"},
    });
    for (key, value) in change.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    spec.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    from_json(json!({"metadata": {"name": name}, "spec": spec}))
}

/// The experiments of the namespace.
pub async fn children(ns: &Ns) -> Result<Vec<PodChaos>> {
    Ok(ns.api::<PodChaos>().list(&ListParams::default()).await?.items)
}

/// The Schedule as soon as it is as `wanted`.
pub async fn schedule_until(
    ns: &Ns,
    name: &str,
    what: &str,
    wanted: impl Fn(&Schedule) -> bool,
) -> Result<Schedule> {
    until(what, async || {
        let found = ns.api::<Schedule>().get(name).await?;
        Ok(if wanted(&found) { Ok(found) } else { Err(format!("{:?}", found.status)) })
    })
    .await
}

/// Deletes it, and waits until its experiments are gone.
pub async fn end(ns: &Ns, name: &str) -> Result<()> {
    ns.api::<Schedule>().delete(name, &DeleteParams::default()).await?;
    until_within(Duration::from_secs(60), "its experiments are gone", async || {
        let left = children(ns).await?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} left", left.len())) })
    })
    .await
}

/// How many runs it has begun.
pub fn runs(schedule: &Schedule) -> i64 {
    schedule.status.as_ref().and_then(|status| status.runs).unwrap_or_default()
}
