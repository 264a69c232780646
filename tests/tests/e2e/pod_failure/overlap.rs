//! Two that hold the same pod.

use anyhow::{Context as _, Result};
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::Mode;
use squall_tests::{Ns, OptIn, PodExt as _, SLEEPER, container, pod, pod_of, unschedulable, with_ns};

use super::*;

async fn overlap(ns: &Ns, first_to_end: &str, last_to_end: &str) -> Result<()> {
    let before = ns.ready_pod(&pod("web")).await?;
    for name in ["one", "two"] {
        ns.create(&failure(name, Mode::All, |_| ())).await?;
        ns.condition(name, "Injected").await?;
    }
    assert_eq!(ns.pod("web").await?.holders().len(), 2);
    let last = ns.chaos(last_to_end).await?.metadata.uid.context("it has no UID")?;
    ns.end_chaos(first_to_end).await?;
    let held = ns.pod("web").await?;
    assert!(held.is_failed(), "still held by {last_to_end}: {:?}", held.images());
    assert_eq!(held.holders(), [last]);
    ns.end_chaos(last_to_end).await?;
    let now = ns.whole("web").await?;
    assert_eq!(now.uid(), before.uid());
    ns.pod_until("web", "it is Ready again", |pod| pod.is_ready()).await?;
    Ok(())
}

#[test]
fn of_two_that_overlap_the_older_may_end_first() {
    with_ns("fail-overlap-a", OptIn::Yes, async |ns| overlap(ns, "one", "two").await);
}

#[test]
fn of_two_that_overlap_the_younger_may_end_first() {
    with_ns("fail-overlap-b", OptIn::Yes, async |ns| overlap(ns, "two", "one").await);
}

#[test]
fn an_overlap_of_different_containers_gives_each_back_in_its_time() {
    with_ns("fail-overlap-c", OptIn::Yes, async |ns| {
        let spec = json!({ "containers": [container("a", SLEEPER), container("b", SLEEPER)] });
        ns.ready_pod(&pod_of("web", spec)).await?;
        for name in ["a", "b"] {
            ns.create(&failure(name, Mode::All, |spec| spec.container_names = vec![name.into()])).await?;
            ns.condition(name, "Injected").await?;
        }
        assert_eq!(ns.pod("web").await?.substituted(), ["a", "b"]);
        ns.end_chaos("a").await?;
        assert_eq!(ns.pod("web").await?.substituted(), ["b"]);
        ns.end_chaos("b").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn equal_names_in_two_namespaces_do_not_collide() {
    with_ns("fail-names", OptIn::Yes, async |ns| {
        let other = ns.another("fail-names-b", OptIn::Yes).await?;
        ns.create(&unschedulable("web", "web")).await?;
        for home in [ns, &other] {
            let chaos = failure("same", Mode::All, |spec| spec.selector.namespaces = vec![ns.name.clone()]);
            home.create(&chaos).await?;
            home.condition("same", "Injected").await?;
        }
        assert_eq!(ns.pod("web").await?.holders().len(), 2);
        ns.end_chaos("same").await?;
        let held = ns.pod("web").await?;
        let uid = other.chaos("same").await?.metadata.uid.context("it has no UID")?;
        assert!(held.is_failed(), "the other still holds it");
        assert_eq!(held.holders(), [uid]);
        other.end_chaos("same").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_hand_and_an_experiment_hold_it_together() {
    with_ns("fail-overlap-hand", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.label::<Pod>("web", names::FAULT, Some(names::POD_FAILURE)).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        let chaos = ns.condition("down", "Injected").await?;
        let uid = chaos.metadata.uid.context("it has no UID")?;
        let mut holders = ns.pod("web").await?.holders();
        holders.sort_unstable();
        let mut both = vec!["manual".to_owned(), uid];
        both.sort_unstable();
        assert_eq!(holders, both);
        ns.end_chaos("down").await?;
        let held = ns.pod("web").await?;
        assert!(held.is_failed(), "the hand has not let go: {:?}", held.images());
        assert_eq!(held.holders(), ["manual"]);
        ns.label::<Pod>("web", names::FAULT, None).await?;
        ns.whole("web").await?;
        Ok(())
    });
}
