//! Waiting for what can be read, with a deadline; and watching that something stays as it is.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// How long a test waits for one thing, unless it says otherwise.
pub const LIMIT: Duration = Duration::from_secs(40);
/// The time between two looks.
pub const PAUSE: Duration = Duration::from_millis(60);

/// Looks again until `look` finds something, or says at the deadline what it saw last.
pub async fn until<T, S: Display>(what: &str, look: impl AsyncFnMut() -> Result<Result<T, S>>) -> Result<T> {
    until_within(LIMIT, what, look).await
}

/// [`until`], with another deadline.
pub async fn until_within<T, S: Display>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Result<T, S>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match look().await.with_context(|| format!("while waiting until {what}"))? {
            Ok(found) => return Ok(found),
            Err(seen) if began.elapsed() > limit => {
                bail!("it did not become true within {limit:?} that {what}; last seen: {seen}");
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Waits until an object is gone.
pub async fn until_gone<K: Resource + Clone + Debug + DeserializeOwned>(
    api: &Api<K>,
    name: &str,
) -> Result<()> {
    until(&format!("{}/{name} is gone", api.resource_url()), async || {
        Ok(match api.get_opt(name).await? {
            None => Ok(()),
            Some(left) => Err(format!("{left:?}")),
        })
    })
    .await
}

/// Looks again and again for `time`; fails as soon as `look` does not hold.
pub async fn holds_for(
    time: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Result<(), String>>,
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < time {
        if let Err(seen) = look().await.with_context(|| format!("while watching that {what}"))? {
            bail!("after {:?} it was no longer true that {what}; seen: {seen}", began.elapsed());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
