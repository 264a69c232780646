//! Policies and faults by hand on a real cluster: what admission can't count is released within two seconds, newest
//! first, and told; and what a halt ends in a container.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};
use squall_api::chaospolicy::PolicyState;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase};
use squall_tests::cpu::{frozen, runs_within};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, Policy, alone, deployment, experiment, from_json, hit,
    holds_for, kubectl, refusal, released, says, switch, switch_off, unschedulable, until, until_within,
    with_ns,
};

/// What the order gives the release of what is too much, and a halt.
const WITHIN: Duration = Duration::from_secs(2);

/// Labels all of them in the same moment; those that admission let through.
async fn at_once(ns: &Ns, pods: &[String]) -> BTreeSet<String> {
    let label = pods.iter().map(|pod| ns.label::<Pod>(pod, names::FAULT, Some(names::POD_FAILURE)));
    let answers = join_all(label).await;
    let through = pods.iter().zip(answers).filter(|(_, answer)| answer.is_ok());
    through.map(|(pod, _)| pod.clone()).collect()
}

/// Within the time given only `most` pods are hit; which.
async fn only(ns: &Ns, most: usize) -> Result<BTreeSet<String>> {
    let began = Instant::now();
    let left = until_within(WITHIN, &format!("no more than {most} are hit"), async || {
        let hit = hit(ns, "web").await?;
        Ok(if hit.len() <= most { Ok(hit) } else { Err(format!("{hit:?}")) })
    })
    .await?;
    println!("what was too much was released in {:?} (at most {WITHIN:?})", began.elapsed());
    Ok(left)
}

async fn counted(ns: &Ns, policy: &Policy, targets: i32) -> Result<()> {
    until("the policy's status counts them", async || {
        let usage = policy.now(ns).await?.status.and_then(|status| status.usage).unwrap_or_default();
        Ok(if usage.targets == targets && usage.by_hand == targets {
            Ok(())
        } else {
            Err(format!("{usage:?}"))
        })
    })
    .await
}

#[test]
fn of_three_labels_at_once_under_a_limit_of_one_one_stays() {
    let _alone = alone();
    with_ns("hand-at-once", OptIn::Yes, async |ns| {
        let pods: Vec<String> = (0..3).map(|number| format!("web-{number}")).collect();
        for pod in &pods {
            ns.create(&unschedulable(pod, "web")).await?;
        }
        let policy = Policy::make(ns, json!({ "limits": { "maxTargets": 1 } })).await?;
        let through = at_once(ns, &pods).await;
        ensure!(through.len() > 1, "admission saw one before the other: {through:?}");
        let left = only(ns, 1).await?;
        assert_eq!(left.len(), 1);
        for pod in through.difference(&left) {
            released(ns, pod, &[&policy.name, "limits.maxTargets", "allowed: 1"]).await?;
            ns.whole(pod).await?;
        }
        counted(ns, &policy, 1).await?;
        holds_for(Duration::from_secs(1), "the one stays", async || {
            let now = hit(ns, "web").await?;
            Ok(if now == left { Ok(()) } else { Err(format!("{now:?}")) })
        })
        .await?;
        // Admission knows it by now; what it has may be shortened, and makes room when it goes.
        let one = left.first().context("none")?;
        let other = pods.iter().find(|pod| *pod != one).context("no other")?;
        until("the next is refused", async || {
            let ran = switch(ns, other, &[])?;
            if ran.success {
                switch_off(ns, other)?;
            }
            Ok(if ran.success { Err(ran.text) } else { Ok(says(&ran.text, &["limits.maxTargets"])?) })
        })
        .await?;
        let args = ["-n", &ns.name, "annotate", "pod", one.as_str(), "squall.dev/until=5m", "--overwrite"];
        says(&kubectl(&args)?.ok()?, &["(5m)"])?;
        switch_off(ns, one)?;
        until("there is room again", async || {
            let ran = switch(ns, other, &[])?;
            Ok(if ran.success { Ok(()) } else { Err(ran.text) })
        })
        .await?;
        switch_off(ns, other)?;
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_limit_that_is_lowered_during_a_fault_lets_the_newest_go() {
    let _alone = alone();
    with_ns("hand-lowered", OptIn::Yes, async |ns| {
        let policy = Policy::make(ns, json!({ "limits": { "maxTargets": 2 } })).await?;
        for (number, pod) in ["web-b", "web-a"].iter().enumerate() {
            ns.create(&unschedulable(pod, "web")).await?;
            until("the switch goes on", async || {
                let ran = switch(ns, pod, &[])?;
                Ok(if ran.success { Ok(()) } else { Err(ran.text) })
            })
            .await?;
            counted(ns, &policy, i32::try_from(number)? + 1).await?;
        }
        policy.patch(r#"{"spec": {"limits": {"maxTargets": 1}}}"#)?;
        let left = only(ns, 1).await?;
        assert_eq!(left, BTreeSet::from(["web-b".to_owned()]));
        released(ns, "web-a", &[&policy.name, "limits.maxTargets", "found 2", "allowed: 1"]).await?;
        ns.whole("web-a").await?;
        switch_off(ns, "web-b")?;
        ns.whole("web-b").await?;
        Ok(())
    });
}

#[test]
fn the_hand_leaves_as_many_ready_as_workload_and_budget_want() {
    let _alone = alone();
    with_ns("hand-available", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 3, false)).await?;
        ns.create(&from_json::<PodDisruptionBudget>(json!({
            "metadata": { "name": "web" },
            "spec": { "minAvailable": 2, "selector": { "matchLabels": { "app": "web" } } },
        })))
        .await?;
        let available = json!({ "minAvailablePerWorkload": 2 });
        let budgets = json!({ "minAvailablePerWorkload": null, "respectDisruptionBudgets": true });
        let cases: [(Value, &str, &[&str]); 2] = [
            (available, "limits.minAvailablePerWorkload", &["that would stay Ready", "allowed: at least 2"]),
            (budgets, "limits.respectDisruptionBudgets", &["PodDisruptionBudget web", "0 disruptions left"]),
        ];
        let policy = Policy::make(ns, json!({})).await?;
        for (limits, rule, words) in cases {
            let pods = ns.ready_pods("web", 3).await?;
            policy.patch(&json!({ "spec": { "limits": limits } }).to_string())?;
            policy.state(ns, PolicyState::Open).await?;
            let names: Vec<String> = pods.iter().take(2).map(|pod| pod.name()).collect();
            // Admission knows no pods: both are let through, in this order.
            for name in &names {
                switch(ns, name, &[])?.ok()?;
            }
            let left = only(ns, 1).await?;
            assert_eq!(left, BTreeSet::from([names[0].clone()]), "{rule}");
            released(ns, &names[1], &[&policy.name, rule]).await?;
            released(ns, &names[1], words).await?;
            // The one that was let go isn't Ready yet, and is no reason to let the other go.
            holds_for(Duration::from_secs(2), "the first stays", async || {
                let now = hit(ns, "web").await?;
                Ok(if now == left { Ok(()) } else { Err(format!("{now:?}")) })
            })
            .await?;
            switch_off(ns, &names[0])?;
            ns.all_whole("web").await?;
        }
        // Experiments: one of three may be away; what the budget has nothing left for is skipped.
        ns.ready_pods("web", 3).await?;
        until("the budget has one left", async || {
            let budget = ns.api::<PodDisruptionBudget>().get("web").await?;
            let left = budget.status.map(|status| status.disruptions_allowed).unwrap_or_default();
            Ok(if left == 1 { Ok(()) } else { Err(left.to_string()) })
        })
        .await?;
        ns.create(&experiment("all", Action::PodFailure, Mode::All, |_| ())).await?;
        let chaos = ns.phase("all", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 1, "{}", chaos.shown());
        ns.end_chaos("all").await?;
        ns.ready_pods("web", 3).await?;
        policy.patch(
            r#"{"spec": {"limits": {"respectDisruptionBudgets": null, "minAvailablePerWorkload": 2}}}"#,
        )?;
        policy.state(ns, PolicyState::Open).await?;
        let two =
            experiment("two", Action::PodFailure, Mode::Fixed, |spec| spec.value = Some("2".to_owned()));
        says(
            &refusal(ns, &two).await?,
            &[&policy.name, "limits.minAvailablePerWorkload", "allowed: at least 2"],
        )
    });
}

#[test]
fn a_halt_thaws_what_a_daemon_holds() {
    let _alone = alone();
    with_ns("halt-freeze", OptIn::Yes, async |ns| {
        let id = frozen(ns, "web").await?;
        let halt = ["annotate", "namespace", &ns.name, "squall.dev/halt=incident 4715"];
        kubectl(&halt)?.ok()?;
        let began = Instant::now();
        runs_within(WITHIN, &id).await?;
        println!("thawed by a halt: {:?} (at most {WITHIN:?})", began.elapsed());
        let ended = ns.completed("freeze").await?;
        assert_eq!(ended.phase(), Phase::Halted, "{}", ended.shown());
        says(&ended.told().message.unwrap_or_default(), &["incident 4715"])?;
        assert_eq!(ns.pod("web").await?.restarts("app"), 0);
        Ok(())
    });
}
