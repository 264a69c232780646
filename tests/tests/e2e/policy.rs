//! Policies and the opt-in on a real cluster: what they refuse, and what is said. How soon they end what is hit:
//! `e2e_alone::promises`.
//!
//! A policy is for all namespaces that it selects, so each test's selects the test's own alone, and goes with the test.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use squall_api::chaospolicy::PolicyState;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, PodChaosSpec};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PAUSE, PodExt as _, Policy, deployment, events_of, experiment, hit,
    kubectl, kubectl_stdin, nothing_is_hit, pod, refusal, says, switch, unschedulable, until, with_ns,
};

fn failure(name: &str, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::All, change)
}

fn fixed(name: &str, count: usize) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::Fixed, |spec| spec.value = Some(count.to_string()))
}

#[test]
fn more_targets_than_the_policy_allows_are_refused_with_all_four() {
    with_ns("policy-targets", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 4, true)).await?;
        ns.pods_until("web", "there are four", |pods| pods.len() == 4).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxTargets": 2 } })).await?;
        let why = refusal(ns, &fixed("three", 3)).await?;
        says(&why, &[&policy.name, "limits.maxTargets", "found 3", "allowed: 2"])?;
        // How many these are is known only when the pods are counted: that is the leader's to refuse.
        ns.create(&failure("all", |_| ())).await?;
        let all = ns.completed("all").await?;
        assert_eq!(
            (all.phase(), all.reason("Failed").as_str()),
            (Phase::Failed, "PolicyRefused"),
            "{}",
            all.shown()
        );
        says(
            &all.told().message.unwrap_or_default(),
            &[&policy.name, "limits.maxTargets", "found 4", "allowed: 2"],
        )?;
        nothing_is_hit(ns, "web").await?;
        until("an Event tells it", async || {
            let told = events_of(ns, "all").await?;
            let said = told.iter().any(|text| text.contains("limits.maxTargets"));
            Ok(if said { Ok(()) } else { Err(format!("{told:?}")) })
        })
        .await?;
        // What fits is not kept from happening, and is counted.
        ns.create(&fixed("two", 2)).await?;
        ns.phase("two", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 2);
        until("the policy's status counts them", async || {
            let usage = policy.now(ns).await?.status.and_then(|status| status.usage).unwrap_or_default();
            let fits = usage.targets == 2 && usage.experiments == 1 && usage.summary == "2/2";
            Ok(if fits { Ok(()) } else { Err(format!("{usage:?}")) })
        })
        .await?;
        says(&kubectl(&["get", "chaospolicy", &policy.name])?.ok()?, &["Open", "2/2"])
    });
}

#[test]
fn a_policy_says_how_it_stands_and_that_it_is_for_nobody() {
    with_ns("policy-nobody", OptIn::No, async |ns| {
        let policy = Policy::make(ns, json!({ "limits": { "maxTargets": 1 } })).await?;
        let status = policy.now(ns).await?.status.unwrap_or_default();
        says(&status.message.unwrap_or_default(), &["no namespace that takes part"])?;
        let held = |kind: &str| {
            let of = status.conditions.iter().find(|condition| condition.type_ == kind);
            of.map(|condition| (condition.status.as_str(), condition.reason.as_str()))
        };
        assert_eq!(held("Valid"), Some(("True", "Valid")));
        assert_eq!(held("Open"), Some(("True", "Open")));
        assert_eq!(held("Halted"), Some(("False", "NotHalted")));
        kubectl(&["label", "namespace", &ns.name, "squall.dev/inject=enabled"])?.ok()?;
        until("it is for one now", async || {
            let status = policy.now(ns).await?.status.unwrap_or_default();
            let message = status.message.unwrap_or_default();
            Ok(if message.contains("may be hit now") { Ok(()) } else { Err(message) })
        })
        .await
    });
}

#[test]
fn a_workload_keeps_its_percentage_and_rounding_is_told() {
    with_ns("policy-percent", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 5, true)).await?;
        ns.pods_until("web", "there are five", |pods| pods.len() == 5).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxPercentPerWorkload": 10 } })).await?;
        let why = refusal(ns, &fixed("one", 1)).await?;
        says(
            &why,
            &[
                &policy.name,
                "limits.maxPercentPerWorkload",
                "found 1 of the 5 pods",
                "allowed: 0 (10 % of 5 is 0)",
            ],
        )?;
        nothing_is_hit(ns, "web").await?;
        policy.patch(r#"{"spec": {"limits": {"maxPercentPerWorkload": 50}}}"#)?;
        policy.state(ns, PolicyState::Open).await?;
        let why = refusal(ns, &fixed("three", 3)).await?;
        says(&why, &[&policy.name, "limits.maxPercentPerWorkload", "50 % of 5 is 2"])?;
        ns.create(&fixed("two", 2)).await?;
        ns.phase("two", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 2);
        Ok(())
    });
}

#[test]
fn each_rule_that_asks_no_clock_refuses_in_its_own_words() {
    with_ns("policy-rules", OptIn::Yes, async |ns| {
        // None of its pods is ever Ready.
        ns.create(&deployment("web", 2, true)).await?;
        ns.pods_until("web", "there are two", |pods| pods.len() == 2).await?;
        let cases: [(&str, Value, PolicyState, &[&str]); 6] = [
            (
                "duration",
                json!({ "limits": { "maxDuration": "1m" } }),
                PolicyState::Open,
                &["limits.maxDuration", "found 5m", "allowed: at most 1m"],
            ),
            (
                "available",
                json!({ "limits": { "minAvailablePerWorkload": 1 } }),
                PolicyState::Open,
                &["limits.minAvailablePerWorkload", "found 0 pods of Deployment/web", "allowed: at least 1"],
            ),
            (
                "action",
                json!({ "allow": { "actions": ["pod-kill", "stress"] } }),
                PolicyState::Open,
                &["allow.actions", "found pod-failure", "allowed: pod-kill, stress"],
            ),
            (
                "user",
                json!({ "allow": { "users": ["dora"] } }),
                PolicyState::Open,
                &["allow.users", "found", "allowed: ", "dora"],
            ),
            ("window", json!({ "windows": [] }), PolicyState::Closed, &["windows", "no window ever opens"]),
            (
                "halt",
                json!({ "halt": { "active": true, "reason": "incident 4714" } }),
                PolicyState::Halted,
                &["spec.halt", "incident 4714"],
            ),
        ];
        for (name, rules, state, parts) in cases {
            let policy = Policy::make_that_is(ns, rules, state).await?;
            let chaos = experiment(name, Action::PodFailure, Mode::One, |spec| {
                spec.duration = Some("5m".to_owned());
            });
            let why = refusal(ns, &chaos).await.with_context(|| name.to_owned())?;
            says(&why, &[&policy.name]).and_then(|()| says(&why, parts)).with_context(|| name.to_owned())?;
            nothing_is_hit(ns, "web").await?;
        }
        Ok(())
    });
}

/// The most that `count` ever was until `work` was done.
async fn most<T>(
    work: impl Future<Output = Result<T>>,
    count: impl AsyncFn() -> Result<usize>,
) -> Result<(T, usize)> {
    let mut work = std::pin::pin!(work);
    let mut most = 0;
    loop {
        most = most.max(count().await?);
        match tokio::time::timeout(PAUSE, &mut work).await {
            Ok(done) => return Ok((done?, most)),
            Err(_) => continue,
        }
    }
}

/// Creates so many experiments at once, and waits until each is either active or over.
async fn fifty(ns: &Ns) -> Result<Vec<PodChaos>> {
    let all: Vec<PodChaos> = (0..50).map(|number| fixed(&format!("one-{number}"), 1)).collect();
    let api = ns.api::<PodChaos>();
    let params = PostParams::default();
    for made in join_all(all.iter().map(|chaos| api.create(&params, chaos))).await {
        match made {
            Ok(_) => {}
            // Admission may see that the policy is full already.
            Err(kube::Error::Api(status)) if status.message.contains("ChaosPolicy") => {}
            Err(error) => return Err(error.into()),
        }
    }
    until("each is injected or refused", async || {
        let items = api.list(&ListParams::default()).await?.items;
        let open = items.iter().find(|chaos| {
            chaos.completed_at().is_none() && (chaos.phase() != Phase::Injected || !chaos.is("Injected"))
        });
        Ok(match open {
            None => Ok(items),
            Some(chaos) => Err(format!("{:?} {}", chaos.metadata.name, chaos.shown())),
        })
    })
    .await
}

#[test]
fn fifty_experiments_at_once_never_hit_more_pods_than_allowed() {
    with_ns("policy-fifty", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 12, true)).await?;
        ns.pods_until("web", "there are twelve", |pods| pods.len() == 12).await?;
        let _policy = Policy::make(ns, json!({ "limits": { "maxTargets": 5 } })).await?;
        let (all, most) = most(fifty(ns), async || Ok(hit(ns, "web").await?.len())).await?;
        ensure!(most <= 5, "{most} pods were hit at once");
        // A pod that is hit already may be another's target too.
        let targets: BTreeSet<String> = all
            .iter()
            .filter(|chaos| chaos.completed_at().is_none())
            .flat_map(|chaos| chaos.told().targets)
            .map(|target| target.pod)
            .collect();
        assert_eq!(targets.len(), 5, "{targets:?}");
        assert_eq!(hit(ns, "web").await?, targets);
        Ok(())
    });
}

#[test]
fn fifty_experiments_at_once_are_never_more_than_allowed() {
    with_ns("policy-many", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 12, true)).await?;
        ns.pods_until("web", "there are twelve", |pods| pods.len() == 12).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxConcurrentExperiments": 7 } })).await?;
        let active = async || -> Result<usize> {
            let items = ns.api::<PodChaos>().list(&ListParams::default()).await?.items;
            let chosen =
                |chaos: &PodChaos| chaos.completed_at().is_none() && !chaos.told().targets.is_empty();
            Ok(items.iter().filter(|chaos| chosen(chaos)).count())
        };
        let (all, most) = most(fifty(ns), active).await?;
        ensure!(most <= 7, "{most} experiments were active at once");
        assert_eq!(active().await?, 7);
        let Some(refused) = all.iter().find(|chaos| chaos.completed_at().is_some()) else {
            bail!("none was refused by the leader");
        };
        says(
            &refused.told().message.unwrap_or_default(),
            &[&policy.name, "limits.maxConcurrentExperiments", "found 8 with this one", "allowed: 7"],
        )?;
        let holders: BTreeSet<String> = ns.pods("web").await?.iter().flat_map(|pod| pod.holders()).collect();
        assert_eq!(holders.len(), 7, "{holders:?}");
        Ok(())
    });
}

#[test]
fn the_switch_outside_of_the_opt_in_is_warned_of_and_does_nothing() {
    with_ns("policy-warning", OptIn::No, async |ns| {
        ns.keeps(names::FAULT);
        ns.ready_pod(&pod("web")).await?;
        let said = switch(ns, "web", &[])?.ok()?;
        says(
            &said,
            &[
                "Warning:",
                "the label squall.dev/fault does nothing here",
                &format!("kubectl label namespace {} squall.dev/inject=enabled", ns.name),
            ],
        )?;
        let now = ns.pod("web").await?;
        assert_eq!(now.label(names::FAULT), Some(names::POD_FAILURE));
        assert_eq!(now.substituted(), Vec::<String>::new());
        // Nothing is added by other changes of the pod, and nothing is said.
        let said = kubectl(&["-n", &ns.name, "label", "pod", "web", "example.org/a=b"])?.ok()?;
        ensure!(!said.contains("Warning"), "{said}");
        Ok(())
    });
}

#[test]
fn where_the_switch_works_nothing_is_warned_of_and_protected_namespaces_say_that_no_label_opens_them() {
    with_ns("policy-warnings", OptIn::Yes, async |ns| {
        const NOTHING: &str = "does nothing";
        // Born with it, where it works, where it doesn't, and where it never will.
        let born = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "born", "labels": { names::FAULT: names::POD_FAILURE } },
            "spec": pod("born").spec,
        });
        let create = |namespace: &str| {
            kubectl_stdin(&["-n", namespace, "create", "--dry-run=server", "-f", "-"], &born.to_string())
        };
        let said = create(&ns.name)?.ok()?;
        ensure!(!said.contains(NOTHING), "{said}");
        let other = ns.another("policy-out", OptIn::No).await?;
        let opens = format!("kubectl label namespace {} squall.dev/inject=enabled", other.name);
        says(&create(&other.name)?.ok()?, &["Warning:", NOTHING, &opens])?;
        for namespace in ["kube-system", "kube-public", names::NAMESPACE] {
            let said = create(namespace)?.ok()?;
            says(&said, &["Warning:", NOTHING, namespace, "it is protected, no label opens it"])?;
        }
        // Added to a live pod, changed, taken away.
        ns.create(&unschedulable("web", "web")).await?;
        let said = switch(ns, "web", &[])?.ok()?;
        ensure!(!said.contains(NOTHING), "{said}");
        kubectl(&["-n", &ns.name, "label", "pod", "web", "squall.dev/fault-"])?.ok()?;
        ns.whole("web").await?;
        other.create(&unschedulable("web", "web")).await?;
        says(&switch(&other, "web", &[])?.ok()?, &["Warning:", NOTHING])?;
        for what in ["squall.dev/fault=other", "squall.dev/fault-"] {
            let said = kubectl(&["-n", &other.name, "label", "pod", "web", "--overwrite", what])?.ok()?;
            ensure!(!said.contains("Warning"), "{what}: {said}");
        }
        Ok(())
    });
}

#[test]
fn policies_that_contradict_each_other_leave_nothing_and_the_one_that_refuses_is_named() {
    with_ns("policy-contradict", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let _kills = Policy::make(ns, json!({ "allow": { "actions": ["pod-kill"] } })).await?;
        let other = ns.another("policy-contradict", OptIn::No).await?;
        // Of the same namespace, under another name.
        let stress = json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": { "name": other.name },
            "spec": {
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": ns.name } },
                "allow": { "actions": ["stress"] },
            },
        });
        kubectl_stdin(&["create", "-f", "-"], &stress.to_string())?.ok()?;
        let second = Policy { name: other.name.clone() };
        second.state(ns, PolicyState::Open).await?;
        let kill = experiment("kill", Action::PodKill, Mode::One, |_| ());
        says(
            &refusal(ns, &kill).await?,
            &[&second.name, "allow.actions", "found pod-kill", "allowed: stress"],
        )?;
        let why = refusal(ns, &failure("fail", |_| ())).await?;
        says(&why, &["allow.actions", "found pod-failure"])?;
        nothing_is_hit(ns, "web").await
    });
}
