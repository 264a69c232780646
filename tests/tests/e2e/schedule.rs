//! Schedules: runs that begin, are skipped, replaced, collected and recovered; and what is refused at admission.

use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use squall_api::schedule::Schedule;
use squall_api::{StressChaos, names};
use squall_tests::schedules::{children, end, runs, schedule, schedule_until};
use squall_tests::{
    ExperimentExt as _, OptIn, PodExt as _, Policy, holds_for, kubectl, kubectl_stdin, pod, says,
    unschedulable, until, with_ns,
};

#[test]
fn a_run_is_an_experiment_of_its_own_and_deleting_the_schedule_recovers_it() {
    with_ns("sched-runs", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&schedule("storm", json!({}))).await?;
        ns.pod_until("web", "it is failed", |pod| pod.is_failed()).await?;
        let all = children(ns).await?;
        assert_eq!(all.len(), 1, "Forbid is what unset means");
        let owner = &all[0].owner_references()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Schedule", "storm"));
        assert!(all[0].annotations()[names::REQUESTED_BY].contains("username"));
        let now = schedule_until(ns, "storm", "others were forbidden", |schedule| {
            schedule.status.as_ref().is_some_and(|status| status.forbidden > Some(1))
        })
        .await?;
        assert_eq!(runs(&now), 1);
        // Last, next and active are columns.
        let shown = kubectl(&["-n", &ns.name, "get", "schedules.squall.dev"])?.ok()?;
        let year = jiff::Timestamp::now().strftime("%Y-").to_string();
        assert_eq!(shown.matches(&year).count(), 2, "{shown}");
        assert!(shown.contains("LAST") && shown.contains("NEXT"), "{shown}");
        end(ns, "storm").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn replace_ends_the_one_before_and_history_is_short() {
    with_ns("sched-replace", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let change = json!({"concurrencyPolicy": "Replace", "schedule": "*/2 * * * * *", "historyLimit": 2});
        ns.create(&schedule("storm", change)).await?;
        schedule_until(ns, "storm", "there were three", |schedule| runs(schedule) >= 3).await?;
        holds_for(Duration::from_secs(5), "one is active, and few are kept", async || {
            let all = children(ns).await?;
            let active = all.iter().filter(|chaos| {
                chaos.metadata.deletion_timestamp.is_none() && chaos.completed_at().is_none()
            });
            let (active, all) = (active.count(), all.len());
            Ok(if active <= 1 && all <= 5 { Ok(()) } else { Err(format!("{active} active of {all}")) })
        })
        .await?;
        end(ns, "storm").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn one_shots_go_on_and_on_and_only_the_last_are_kept() {
    with_ns("sched-history", OptIn::Yes, async |ns| {
        let kill = json!({"action": "pod-kill", "mode": "one", "selector": {"labelSelectors": {"app": "none"}}, "dryRun": true});
        let change = json!({"podChaos": kill, "historyLimit": 2, "concurrencyPolicy": "Allow"});
        ns.create(&schedule("dry", change)).await?;
        schedule_until(ns, "dry", "there were six", |schedule| runs(schedule) >= 6).await?;
        until("two that are over are kept", async || {
            let over = children(ns).await?.iter().filter(|chaos| chaos.completed_at().is_some()).count();
            Ok(if over <= 3 && over > 0 { Ok(()) } else { Err(over) })
        })
        .await?;
        end(ns, "dry").await
    });
}

#[test]
fn suspended_nothing_begins() {
    with_ns("sched-suspend", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&schedule("storm", json!({"suspend": true}))).await?;
        schedule_until(ns, "storm", "it says so", |schedule| {
            schedule.status.as_ref().is_some_and(|status| {
                status.message.as_deref().is_some_and(|text| text.contains("spec.suspend"))
            })
        })
        .await?;
        holds_for(Duration::from_secs(3), "nothing begins", async || {
            Ok(if children(ns).await?.is_empty() { Ok(()) } else { Err("one began".to_owned()) })
        })
        .await?;
        // The annotation means the same.
        ns.annotate::<Schedule>("storm", names::PAUSE, Some("true")).await?;
        ns.merge::<Schedule>("storm", json!({"spec": {"suspend": false}})).await?;
        holds_for(Duration::from_secs(3), "nothing begins", async || {
            Ok(if children(ns).await?.is_empty() { Ok(()) } else { Err("one began".to_owned()) })
        })
        .await?;
        ns.annotate::<Schedule>("storm", names::PAUSE, None).await?;
        let now = schedule_until(ns, "storm", "one began", |schedule| runs(schedule) == 1).await?;
        assert_eq!(now.status.and_then(|status| status.missed), None);
        end(ns, "storm").await
    });
}

#[test]
fn at_random_it_comes_too() {
    with_ns("sched-mtbf", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let change = json!({"schedule": null, "mtbf": "2s", "seed": 7, "concurrencyPolicy": "Allow"});
        ns.create(&schedule("storm", change)).await?;
        schedule_until(ns, "storm", "there were two", |schedule| runs(schedule) >= 2).await?;
        end(ns, "storm").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn what_makes_no_sense_is_refused_with_its_field() {
    with_ns("sched-bad", OptIn::Yes, async |ns| {
        let cases = [
            (json!({"schedule": "0 0 30 2 *"}), "never runs"),
            (json!({"schedule": "often"}), "spec.schedule"),
            (json!({"timeZone": "Mars/Olympus"}), "spec.timeZone"),
            (json!({"schedule": "@every 5m", "jitter": "5m"}), "spec.jitter"),
            (json!({"mtbf": "4h"}), "either schedule or mtbf"),
            (json!({"podChaos": null}), "podChaos"),
            (
                json!({"podChaos": {"action": "pod-failure", "mode": "one", "duration": "soon"}}),
                "spec.podChaos.duration",
            ),
            (json!({"podChaos": {"action": "pod-kill", "mode": "fixed"}}), "value is required"),
            (
                json!({"podChaos": {"action": "pod-kill", "mode": "one", "selector": {"namespaces": ["kube-system"]}}}),
                "kube-system",
            ),
        ];
        for (change, says) in cases {
            let refused =
                ns.api::<Schedule>().create(&PostParams::default(), &schedule("bad", change.clone())).await;
            match refused {
                Err(kube::Error::Api(status)) => {
                    assert!(status.message.contains(says), "{change}: {}", status.message)
                }
                other => panic!("{change} was not refused: {other:?}"),
            }
        }
        // What may change, changes, the action too: each run is another experiment.
        ns.create(&schedule("good", json!({"schedule": "@daily"}))).await?;
        let kill = json!({"spec": {"podChaos": {"action": "pod-kill", "mode": "one", "duration": null}}});
        ns.merge::<Schedule>("good", kill).await?;
        end(ns, "good").await
    });
}

#[test]
fn outside_of_opted_in_namespaces_it_is_refused() {
    with_ns("sched-out", OptIn::No, async |ns| {
        let refused =
            ns.api::<Schedule>().create(&PostParams::default(), &schedule("storm", json!({}))).await;
        let Err(kube::Error::Api(status)) = refused else { panic!("it was not refused: {refused:?}") };
        assert!(status.message.contains("kubectl label namespace"), "{}", status.message);
        Ok(())
    });
}

#[test]
fn chaos_meshs_schedules_work() {
    with_ns("sched-mesh", OptIn::Yes, async |ns| {
        let mesh = "apiVersion: squall.dev/v1alpha1\nkind: Schedule\nmetadata: {name: mesh}\nspec:\n  schedule: '@every 2s'\n  \
                    startingDeadlineSeconds: 20\n  concurrencyPolicy: Allow\n  historyLimit: 2\n  type: PodChaos\n  podChaos:\n    \
                    action: pod-kill\n    mode: one\n    gracePeriod: 0\n    duration: 10s\n    selector:\n      labelSelectors: {app: web}\n";
        ns.create(&unschedulable("web", "web")).await?;
        kubectl_stdin(&["-n", &ns.name, "apply", "-f", "-"], mesh)?.ok()?;
        until("the pod is gone", async || {
            let left = ns.pods("web").await?;
            Ok(if left.is_empty() { Ok(()) } else { Err("it is there") })
        })
        .await?;
        end(ns, "mesh").await
    });
}

#[test]
fn stress_comes_by_schedule_too_and_goes_with_it() {
    with_ns("sched-stress", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        let stress = json!({
            "mode": "one", "duration": "5m", "selector": {"labelSelectors": {"app": "web"}},
            "stressors": {"cpu": {"workers": 1, "load": 10}},
        });
        let change = json!({"type": "StressChaos", "stressChaos": stress, "podChaos": null});
        ns.create(&schedule("storm", change)).await?;
        let all = async || {
            Ok::<_, anyhow::Error>(ns.api::<StressChaos>().list(&ListParams::default()).await?.items)
        };
        let child = until("the first is injected, and no other begins", async || {
            let all = all().await?;
            Ok(match all.as_slice() {
                [one] if one.is("Injected") => Ok(one.clone()),
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        assert_eq!(child.owner_references()[0].name, "storm");
        assert!(child.annotations()[names::REQUESTED_BY].contains("username"));
        ns.api::<Schedule>().delete("storm", &DeleteParams::default()).await?;
        until("its experiment is gone", async || {
            let left = all().await?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })
        .await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn what_a_policy_forbids_is_refused_when_it_is_scheduled() {
    with_ns("sched-policy", OptIn::Yes, async |ns| {
        let rules = json!({"allow": {"actions": ["pod-kill"]}});
        let policy = Policy::make(ns, rules).await?;
        let refused =
            ns.api::<Schedule>().create(&PostParams::default(), &schedule("storm", json!({}))).await;
        let Err(kube::Error::Api(status)) = refused else { panic!("it was not refused: {refused:?}") };
        says(&status.message, &[&policy.name, "allow.actions", "found pod-failure", "allowed: pod-kill"])
    });
}
