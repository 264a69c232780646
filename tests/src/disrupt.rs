//! A test that takes a part of Squall away, on a Squall that is whole before and afterwards.

use std::panic::AssertUnwindSafe;

use anyhow::{Result, anyhow};
use futures::FutureExt as _;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::namespace::{Ns, OptIn, with_ns};
use crate::system::{patch_daemon_set, settled};

/// Runs `test` alone, in a namespace of its own.
pub fn disrupt(stem: &str, test: impl AsyncFnOnce(&Ns) -> Result<()>) {
    let _alone = alone();
    with_ns(stem, OptIn::Yes, async |ns| {
        restore(ns).await?;
        let ran = AssertUnwindSafe(test(ns)).catch_unwind().await;
        let restored = restore(ns).await;
        ran.unwrap_or_else(|_| Err(anyhow!("an assertion failed, see above")))?;
        restored
    });
}

/// Gives every node its daemon, and waits until all of Squall is there.
pub async fn restore(ns: &Ns) -> Result<()> {
    patch_daemon_set(&ns.client, nowhere(None)).await?;
    settled(&ns.client).await
}

/// A patch of the DaemonSet that lets no node have a daemon, or takes that back.
pub fn nowhere(value: Option<&str>) -> Value {
    json!({ "spec": { "template": { "spec": { "nodeSelector": { "squall-test/nowhere": value } } } } })
}
