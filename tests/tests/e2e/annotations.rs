//! Small faults without YAML: `kubectl annotate` on pods and workloads, what kubectl says to it, and how it ends.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::json;
use squall_api::podchaos::{Action, PodChaos};
use squall_api::{StressChaos, names};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, Policy, Ran, client_as, containers_processes, deployment,
    holds_for, kubectl, pod, stateful_set, unschedulable, until, with_ns,
};

fn annotate(ns: &Ns, object: &str, what: &str) -> Result<Ran> {
    kubectl(&["-n", &ns.name, "annotate", "--overwrite", object, what])
}

async fn experiments(ns: &Ns) -> Result<Vec<PodChaos>> {
    Ok(ns.api::<PodChaos>().list(&ListParams::default()).await?.items)
}

/// The one experiment there is, as `wanted`.
async fn one(ns: &Ns, what: &str, wanted: impl Fn(&PodChaos) -> bool) -> Result<PodChaos> {
    until(what, async || {
        let all = experiments(ns).await?;
        Ok(match all.as_slice() {
            [chaos] if wanted(chaos) => Ok(chaos.clone()),
            other => Err(format!("{other:?}")),
        })
    })
    .await
}

async fn deployment_annotations(ns: &Ns, name: &str) -> Result<Vec<String>> {
    let found = ns.api::<Deployment>().get(name).await?;
    Ok(found.annotations().keys().filter(|key| key.starts_with("squall.dev/")).cloned().collect())
}

/// Nothing of ours is on the Deployment, nor on any of its ReplicaSets.
async fn bare(ns: &Ns, name: &str) -> Result<()> {
    until(&format!("nothing of ours is on deployment {name} and its copies"), async || {
        let mut left = deployment_annotations(ns, name).await?;
        for copy in ns.api::<ReplicaSet>().list(&ListParams::default()).await? {
            left.extend(copy.annotations().keys().filter(|key| key.starts_with("squall.dev/")).cloned());
        }
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join(", ")) })
    })
    .await
}

#[test]
fn pod_kill_on_a_deployment_takes_one_and_the_annotation_goes() {
    with_ns("annotate-kill", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 3, false)).await?;
        let before = ns.ready_pods("web", 3).await?;
        annotate(ns, "deployment/web", "squall.dev/pod-kill=grace=1s")?.ok()?;
        let chaos = one(ns, "it is over", |chaos| chaos.completed_at().is_some()).await?;
        assert_eq!(chaos.spec.action, Action::PodKill);
        assert_eq!(chaos.spec.grace_period, Some(1));
        assert_eq!(
            chaos.told().targets.iter().filter(|target| target.gone_at.is_some()).count(),
            1,
            "{}",
            chaos.shown()
        );
        let owner = &chaos.owner_references()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Deployment", "web"));
        assert!(chaos.annotations()[names::REQUESTED_BY].contains("username"));
        bare(ns, "web").await?;
        let after = ns.ready_pods("web", 3).await?;
        let uids = |pods: &[Pod]| pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect::<Vec<_>>();
        let (before, after) = (uids(&before), uids(&after));
        let kept = after.iter().filter(|uid| before.contains(uid)).count();
        assert_eq!(kept, 2);
        Ok(())
    });
}

#[test]
fn a_rollback_fires_nothing() {
    with_ns("annotate-undo", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, true)).await?;
        ns.pods_until("web", "there is one", |pods| pods.len() == 1).await?;
        annotate(ns, "deployment/web", "squall.dev/pod-kill=all")?.ok()?;
        one(ns, "it is over", |chaos| chaos.completed_at().is_some()).await?;
        bare(ns, "web").await?;
        // Another revision, and back to the one that had the annotation.
        kubectl(&["-n", &ns.name, "set", "env", "deployment/web", "A=B"])?.ok()?;
        until("there are two revisions", async || {
            let copies = ns.api::<ReplicaSet>().list(&ListParams::default()).await?.items;
            Ok(if copies.len() == 2 { Ok(()) } else { Err(copies.len()) })
        })
        .await?;
        kubectl(&["-n", &ns.name, "rollout", "undo", "deployment/web"])?.ok()?;
        holds_for(Duration::from_secs(3), "there is one experiment", async || {
            let count = experiments(ns).await?.len();
            Ok(if count == 1 { Ok(()) } else { Err(format!("{count} experiments")) })
        })
        .await?;
        bare(ns, "web").await?;
        // Also not with annotation and ticket written back by hand.
        let chaos = experiments(ns).await?.remove(0);
        let id = chaos.annotations()[names::MADE_FOR].rsplit('/').next().unwrap_or_default().to_owned();
        let uid = ns.api::<Deployment>().get("web").await?.uid().unwrap_or_default();
        let ticket = json!({"pod-kill": {"id": id, "uid": uid, "value": "all", "by": {"username": "x"},
                                         "at": jiff::Timestamp::now().to_string()}});
        let forged = json!({names::ASK_POD_KILL: "all", names::REQUESTED_BY: ticket.to_string()});
        let left: Deployment = ns.merge("web", json!({"metadata": {"annotations": forged}})).await?;
        assert!(!left.annotations().contains_key(names::ASK_POD_KILL), "{:?}", left.annotations());
        Ok(())
    });
}

#[test]
fn a_lasting_one_takes_its_annotation_along_at_its_end() {
    with_ns("annotate-end", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 2, true)).await?;
        ns.pods_until("web", "there are two", |pods| pods.len() == 2).await?;
        annotate(ns, "deployment/web", "squall.dev/pod-failure=all,2s")?.ok()?;
        ns.pods_until("web", "both are failed", |pods| pods.iter().all(|pod| pod.is_failed())).await?;
        bare(ns, "web").await?;
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn on_a_pod_it_acts_in_the_very_request() {
    with_ns("annotate-pod", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let said = annotate(ns, "pod/web", "squall.dev/pod-failure=10m")?.ok()?;
        assert!(said.contains("fails until") && said.contains("(10m)"), "{said}");
        let now = ns.pod("web").await?;
        assert!(now.is_failed(), "not in that same request: {:?}", now.images());
        one(ns, "its experiment holds it too", |chaos| {
            chaos.phase() == squall_api::podchaos::Phase::Injected
        })
        .await?;
        // By the annotation.
        annotate(ns, "pod/web", "squall.dev/pod-failure-")?.ok()?;
        let now = ns.pod("web").await?;
        assert!(now.substituted().is_empty(), "not in that same request: {:?}", now.images());
        ns.whole("web").await?;
        // It was ended with the annotation, or by the pod's being released, whichever was seen first.
        until("its experiment is gone or over", async || {
            let open =
                experiments(ns).await?.into_iter().filter(|chaos| chaos.completed_at().is_none()).count();
            Ok(if open == 0 { Ok(()) } else { Err(open) })
        })
        .await?;
        // By the label.
        annotate(ns, "pod/web", "squall.dev/pod-failure=")?.ok()?;
        assert!(ns.pod("web").await?.is_failed());
        kubectl(&["-n", &ns.name, "label", "pod", "web", "squall.dev/fault-"])?.ok()?;
        let now = ns.pod("web").await?;
        assert!(now.substituted().is_empty());
        assert!(!now.annotations().contains_key(names::ASK_POD_FAILURE), "{:?}", now.annotations());
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_bad_one_is_refused_and_kubectl_says_why() {
    with_ns("annotate-bad", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, true)).await?;
        let said = annotate(ns, "deployment/web", "squall.dev/pod-kill=true")?.refused()?;
        assert!(
            said.contains("squall.dev/pod-kill") && said.contains("true") && said.contains("grace=30s"),
            "{said}"
        );
        let said = annotate(ns, "deployment/web", "squall.dev/container-kill=nginx")?.refused()?;
        assert!(said.contains("nginx") && said.contains("app"), "{said}");
        // Everything else about the object can be changed.
        annotate(ns, "deployment/web", "example.org/a=b")?.ok()?;
        assert!(deployment_annotations(ns, "web").await?.is_empty());
        Ok(())
    });
}

#[test]
fn only_who_may_delete_pods_may_have_them_killed() {
    with_ns("annotate-rights", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, true)).await?;
        let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"]}]);
        for (kind, extra) in [
            ("Role", json!({"rules": rules})),
            (
                "RoleBinding",
                json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deployer"},
                       "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "dora"}]}),
            ),
        ] {
            let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                                    "metadata": {"name": "deployer", "namespace": ns.name}});
            for (key, value) in extra.as_object().context("an object")? {
                object[key] = value.clone();
            }
            squall_tests::kubectl_stdin(&["apply", "-f", "-"], &object.to_string())?.ok()?;
        }
        let dora = kube::Api::<Deployment>::namespaced(client_as("dora", &[]).await?, &ns.name);
        let kill = json!({"metadata": {"annotations": {names::ASK_POD_KILL: "one"}}});
        let refused = until("her rights are known, and don't suffice", async || {
            let patch = kube::api::Patch::Merge(&kill);
            Ok(match dora.patch("web", &kube::api::PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.message.contains("may not delete pods") => {
                    Ok(status.message.clone())
                }
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        assert!(refused.contains("dora"), "{refused}");
        assert!(experiments(ns).await?.is_empty());
        Ok(())
    });
}

async fn told(ns: &Ns, name: &str) -> Result<Vec<String>> {
    let events = ns.api::<Event>().list(&ListParams::default()).await?;
    let about = events.items.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(name));
    Ok(about.filter_map(|event| event.message).collect())
}

#[test]
fn templates_and_births_ask_for_nothing_and_are_told_so() {
    with_ns("annotate-birth", OptIn::Yes, async |ns| {
        ns.keeps(names::ASK_POD_KILL);
        ns.keeps(names::LAST_ERROR);
        let mut born = deployment("web", 1, true);
        born.annotations_mut().insert(names::ASK_POD_KILL.to_owned(), "all".to_owned());
        ns.create(&born).await?;
        let mut solo = unschedulable("solo", "solo");
        solo.annotations_mut().insert(names::ASK_POD_KILL.to_owned(), String::new());
        ns.create(&solo).await?;
        until("both say that nothing is done", async || {
            let on = [
                ns.api::<Deployment>().get("web").await?.annotations().get(names::LAST_ERROR).cloned(),
                ns.api::<Pod>().get("solo").await?.annotations().get(names::LAST_ERROR).cloned(),
            ];
            let said = on.iter().flatten().filter(|text| text.contains("nothing is done")).count();
            Ok(if said == 2 { Ok(()) } else { Err(format!("{on:?}")) })
        })
        .await?;
        until("an Event tells it", async || {
            let told = told(ns, "web").await?;
            Ok(if told.iter().any(|text| text.contains("nothing is done")) {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            })
        })
        .await?;
        assert!(experiments(ns).await?.is_empty());
        assert_eq!(ns.pods("web").await?.len(), 1);
        Ok(())
    });
}

#[test]
fn outside_of_opted_in_namespaces_it_says_what_to_label() {
    with_ns("annotate-out", OptIn::No, async |ns| {
        ns.keeps(names::ASK_POD_KILL);
        ns.keeps(names::LAST_ERROR);
        ns.create(&stateful_set("db", 0)).await?;
        annotate(ns, "statefulset/db", "squall.dev/pod-kill=one")?.ok()?;
        let said = until("it says so", async || {
            let found = ns.api::<StatefulSet>().get("db").await?;
            Ok(found.annotations().get(names::LAST_ERROR).cloned().ok_or("nothing yet"))
        })
        .await?;
        assert!(said.contains("kubectl label namespace"), "{said}");
        assert!(experiments(ns).await?.is_empty());
        Ok(())
    });
}

#[test]
fn container_kill_names_container_and_signal() {
    with_ns("annotate-signal", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        annotate(ns, "pod/web", "squall.dev/container-kill=app:TERM")?.ok()?;
        let chaos = one(ns, "it is over", |chaos| chaos.completed_at().is_some()).await?;
        assert_eq!(
            chaos.told().targets[0].receipt.as_ref().map(|receipt| receipt.signal),
            Some(15),
            "{}",
            chaos.shown()
        );
        ns.pod_until("web", "it runs again, without the annotation", |pod| {
            pod.restarts("app") == 1
                && pod.is_ready()
                && !pod.annotations().contains_key(names::ASK_CONTAINER_KILL)
        })
        .await?;
        Ok(())
    });
}

/// Stress by annotation is an experiment of the other kind; how many containers it has hit.
async fn stressed(ns: &Ns) -> Result<Vec<StressChaos>> {
    Ok(ns.api::<StressChaos>().list(&ListParams::default()).await?.items)
}

#[test]
fn stress_lasts_as_long_as_its_annotation() {
    with_ns("annotate-stress", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, false)).await?;
        let pod = ns.ready_pods("web", 1).await?.remove(0);
        let id = pod.container("app").and_then(|one| one.container_id).context("it does not run")?;
        let own = containers_processes(&id)?.len();
        for (annotation, shown) in
            [("squall.dev/stress-cpu=one", "cpu"), ("squall.dev/stress-memory=16Mi,4m", "memory")]
        {
            annotate(ns, "deployment/web", annotation)?.ok()?;
            let chaos = until("it is injected", async || {
                let all = stressed(ns).await?;
                let there = all.iter().find(|chaos| chaos.is("Injected")).cloned();
                Ok(there.ok_or_else(|| format!("{all:?}")))
            })
            .await?;
            let told = chaos.told();
            assert!(told.stressors.clone().unwrap_or_default().contains(shown), "{}", chaos.shown());
            assert!(chaos.annotations()[names::REQUESTED_BY].contains("username"), "{}", chaos.shown());
            assert!(containers_processes(&id)?.len() > own, "{}", chaos.shown());
            let (key, _) = annotation.split_once('=').context("key and value")?;
            annotate(ns, "deployment/web", &format!("{key}-"))?.ok()?;
            until("nothing of it is left", async || {
                let (left, processes) = (stressed(ns).await?, containers_processes(&id)?.len());
                let fits = left.is_empty() && processes == own;
                Ok(if fits { Ok(()) } else { Err(format!("{processes} processes, {own} before; {left:?}")) })
            })
            .await?;
        }
        bare(ns, "web").await?;
        assert_eq!(ns.pod(&pod.name()).await?.restarts("app"), 0);
        Ok(())
    });
}

#[test]
fn what_a_policy_forbids_is_refused_when_it_is_annotated() {
    with_ns("annotate-policy", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 3, true)).await?;
        ns.pods_until("web", "there are three", |pods| pods.len() == 3).await?;
        let rules = json!({
            "allow": { "actions": ["pod-failure", "stress"] }, "limits": { "maxDuration": "10m", "maxTargets": 1 },
        });
        let policy = Policy::make(ns, rules).await?;
        for (annotation, parts) in [
            ("squall.dev/pod-kill=one", ["allow.actions", "found pod-kill", "pod-failure, stress"]),
            ("squall.dev/pod-failure=one,1h", ["limits.maxDuration", "found 1h", "at most 10m"]),
            ("squall.dev/stress-cpu=2,5m", ["limits.maxTargets", "found 2", "allowed: 1"]),
        ] {
            let said = annotate(ns, "deployment/web", annotation)?.refused()?;
            squall_tests::says(&said, &parts)?;
            squall_tests::says(&said, &[&policy.name])?;
        }
        assert!(deployment_annotations(ns, "web").await?.is_empty());
        assert!(experiments(ns).await?.is_empty() && stressed(ns).await?.is_empty());
        Ok(())
    });
}
