//! The switch by hand: `kubectl label pod`, what kubectl says to it, and how it ends.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use squall_api::names;
use squall_tests::{
    BUSYBOX, Ns, OptIn, PodExt as _, Ran, SLEEPER, container, holds_for, kubectl, pod, pod_of, unschedulable,
    with_ns,
};

const ON: &str = "squall.dev/fault=pod-failure";
const OFF: &str = "squall.dev/fault-";

fn label(ns: &Ns, pod: &str, what: &str) -> Result<Ran> {
    kubectl(&["-n", &ns.name, "label", "--overwrite", "pod", pod, what])
}

fn annotate(ns: &Ns, pod: &str, what: &str) -> Result<Ran> {
    kubectl(&["-n", &ns.name, "annotate", "--overwrite", "pod", pod, what])
}

#[test]
fn on_and_off_in_the_very_requests() {
    with_ns("label-on-off", OptIn::Yes, async |ns| {
        let before = ns.ready_pod(&pod("web")).await?;
        let said = label(ns, "web", ON)?.ok()?;
        assert!(
            said.contains("fails until") && said.contains("(1h)"),
            "no warning says when it ends: {said}"
        );
        let now = ns.pod("web").await?;
        assert!(now.is_failed(), "not in that same request: {:?}", now.images());
        assert_eq!(now.holders(), ["manual"]);
        ns.pod_until("web", "it is down", |pod| !pod.is_ready()).await?;
        ns.pod_until("web", "its old process is gone", |pod| {
            pod.container("app").is_some_and(|one| one.started != Some(true))
        })
        .await?;
        label(ns, "web", OFF)?.ok()?;
        let now = ns.pod("web").await?;
        assert!(now.substituted().is_empty(), "not in that same request: {:?}", now.images());
        ns.whole("web").await?;
        let back = ns.pod_until("web", "it is Ready again", |pod| pod.is_ready()).await?;
        assert_eq!(back.uid(), before.uid());
        Ok(())
    });
}

#[test]
fn until_ends_it() {
    with_ns("label-until", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        annotate(ns, "web", "squall.dev/until=3s")?.ok()?;
        let said = label(ns, "web", ON)?.ok()?;
        assert!(said.contains("(3s)"), "{said}");
        let held = ns.pod("web").await?;
        assert!(held.is_failed());
        let record = held.annotation(names::HELD_BY).unwrap_or_default();
        assert!(record.contains("\"until\":\"20"), "the absolute time isn't kept: {record}");
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn until_may_be_a_time() {
    with_ns("label-until-at", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
        annotate(ns, "web", &format!("squall.dev/until={}", at.strftime("%Y-%m-%dT%H:%M:%SZ")))?.ok()?;
        label(ns, "web", ON)?.ok()?;
        assert!(ns.pod("web").await?.is_failed());
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn containers_names_which() {
    with_ns("label-containers", OptIn::Yes, async |ns| {
        let spec = json!({ "containers": [container("a", SLEEPER), container("b", SLEEPER)] });
        ns.ready_pod(&pod_of("web", spec)).await?;
        annotate(ns, "web", "squall.dev/containers=b")?.ok()?;
        label(ns, "web", ON)?.ok()?;
        let now = ns.pod("web").await?;
        assert_eq!(now.substituted(), ["b"], "{:?}", now.images());
        // Changed while it is on: both, and then the first alone.
        annotate(ns, "web", "squall.dev/containers=a,b")?.ok()?;
        assert_eq!(ns.pod("web").await?.substituted(), ["a", "b"]);
        annotate(ns, "web", "squall.dev/containers=a")?.ok()?;
        assert_eq!(ns.pod("web").await?.substituted(), ["a"]);
        label(ns, "web", OFF)?.ok()?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_style_is_the_owners_choice() {
    with_ns("label-style", OptIn::Yes, async |ns| {
        let bare = |name: &str| {
            pod_of(
                name,
                json!({ "containers": [{ "name": "app", "image": BUSYBOX, "stdin": true, "tty": true }] }),
            )
        };
        for name in ["crash", "pause"] {
            ns.create(&bare(name)).await?;
        }
        for name in ["crash", "pause"] {
            ns.pod_until(name, "it is Ready", |pod| pod.is_ready()).await?;
            annotate(ns, name, &format!("squall.dev/fault-style={name}"))?.ok()?;
            label(ns, name, ON)?.ok()?;
        }
        let (crash, pause) = (ns.pod("crash").await?.image("app"), ns.pod("pause").await?.image("app"));
        assert!(crash.contains("crash") && pause.contains("pause") && crash != pause, "{crash} {pause}");
        ns.pod_until("crash", "it crashes", |pod| !pod.is_ready() && pod.restarts("app") > 0).await?;
        ns.pod_until("pause", "the stand-in sleeps", |pod| {
            pod.is_ready() && pod.container("app").is_some_and(|one| one.image.contains("squall"))
        })
        .await?;
        for name in ["crash", "pause"] {
            label(ns, name, OFF)?.ok()?;
            ns.whole(name).await?;
        }
        Ok(())
    });
}

#[test]
fn nonsense_is_refused_and_says_what_is_allowed() {
    with_ns("label-wrong", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.keeps("squall.dev/until");
        ns.keeps("squall.dev/containers");
        ns.keeps("squall.dev/fault-style");
        let refused = label(ns, "web", "squall.dev/fault=pod-fail")?.refused()?;
        assert!(refused.contains("pod-failure") && refused.contains("pod-fail"), "{refused}");

        for (annotation, words) in [
            ("squall.dev/until=soon", ["soon", "30m"]),
            ("squall.dev/containers=app,web", ["web", "app"]),
            ("squall.dev/fault-style=explode", ["explode", "pause, crash"]),
        ] {
            annotate(ns, "web", annotation)?.ok()?;
            let refused = label(ns, "web", ON)?.refused()?;
            for word in words {
                assert!(refused.contains(word), "{word:?} is not in {refused}");
            }
            let (key, _) = annotation.split_once('=').unwrap_or_default();
            assert!(refused.contains(key), "{key:?} is not in {refused}");
            annotate(ns, "web", &format!("{key}-"))?.ok()?;
        }
        let now = ns.pod("web").await?;
        assert!(now.substituted().is_empty() && now.label(names::FAULT).is_none());
        Ok(())
    });
}

#[test]
fn what_would_end_for_good_is_refused() {
    with_ns("label-never", OptIn::Yes, async |ns| {
        ns.keeps(names::FAULT);
        ns.keeps(names::LAST_ERROR);
        let spec = || json!({ "restartPolicy": "Never", "containers": [container("app", SLEEPER)] });
        ns.ready_pod(&pod_of("once", spec())).await?;
        let refused = label(ns, "once", ON)?.refused()?;
        assert!(refused.contains("WouldNotRecover"), "{refused}");
        assert!(ns.pod("once").await?.is_ready());
        // A birth is never refused: it is born whole, and why is written on it.
        let mut born = pod_of("born", spec());
        born.metadata.labels.get_or_insert_default().insert(names::FAULT.into(), names::POD_FAILURE.into());
        let born = ns.create(&born).await?;
        assert!(born.substituted().is_empty(), "{:?}", born.images());
        let why = born.annotation(names::LAST_ERROR).unwrap_or_default();
        assert!(why.contains("WouldNotRecover"), "{why:?}");
        Ok(())
    });
}

#[test]
fn a_pod_can_be_born_failed() {
    with_ns("label-born", OptIn::Yes, async |ns| {
        let mut born = pod("web");
        born.metadata.labels.get_or_insert_default().insert(names::FAULT.into(), names::POD_FAILURE.into());
        let born = ns.create(&born).await?;
        assert!(born.is_failed(), "{:?}", born.images());
        ns.pod_until("web", "it can't start", |pod| {
            let waiting = pod.container("app").and_then(|one| one.state).and_then(|state| state.waiting);
            !pod.is_ready() && waiting.is_some_and(|why| why.reason.as_deref() != Some("ContainerCreating"))
                || pod.restarts("app") > 0
        })
        .await?;
        label(ns, "web", OFF)?.ok()?;
        ns.whole("web").await?;
        ns.pod_until("web", "it is Ready", |pod| pod.is_ready()).await?;
        Ok(())
    });
}

#[test]
fn without_the_opt_in_the_label_does_nothing() {
    with_ns("label-no-opt-in", OptIn::No, async |ns| {
        ns.keeps(names::FAULT);
        ns.create(&unschedulable("web", "web")).await?;
        label(ns, "web", ON)?.ok()?;
        holds_for(Duration::from_millis(1500), "the pod is left alone", async || {
            let now = ns.pod("web").await?;
            let alone = now.substituted().is_empty() && now.annotation(names::HELD_BY).is_none();
            Ok(if alone { Ok(()) } else { Err(format!("{:?} {:?}", now.images(), now.metadata.annotations)) })
        })
        .await
    });
}

#[test]
fn the_record_is_squalls_own() {
    with_ns("label-record", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        label(ns, "web", ON)?.ok()?;
        let record = |pod: &Pod, key: &str| pod.annotation(key).map(str::to_owned);
        let before = ns.pod("web").await?;
        annotate(ns, "web", r#"squall.dev/original-images={"app":"evil"}"#)?.ok()?;
        let said = annotate(ns, "web", "squall.dev/held-by-")?.ok()?;
        assert!(said.contains("put back"), "{said}");
        let after = ns.pod("web").await?;
        for key in [names::ORIGINAL_IMAGES, names::HELD_BY] {
            assert_eq!(record(&before, key), record(&after, key), "{key}");
        }
        label(ns, "web", OFF)?.ok()?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn who_may_write_a_status_writes_no_record() {
    with_ns("label-status", OptIn::Yes, async |ns| {
        let before = ns.ready_pod(&pod("web")).await?;
        let forged = [
            (names::ORIGINAL_IMAGES, r#"{"app":"example.com/evil"}"#),
            (names::REQUESTED_BY, r#"{"username":"admin"}"#),
            (names::ASK_POD_KILL, "one"),
        ];
        let patch = |metadata: serde_json::Value| json!({ "metadata": metadata }).to_string();
        let annotations = forged.map(|(key, value)| patch(json!({ "annotations": { key: value } })));
        let label = patch(json!({ "labels": { names::FAULT: names::POD_FAILURE } }));
        for patch in annotations.into_iter().chain([label]) {
            let words =
                ["-n", &ns.name, "patch", "pod", "web", "--subresource=status", "--type=merge", "-p", &patch];
            let said = kubectl(&words)?.refused()?;
            assert!(said.contains("not changed with a status"), "{patch}: {said}");
        }
        // Nobody else's keys are anybody's affair.
        let theirs = patch(json!({ "annotations": { "example.com/network": "up" } }));
        kubectl(&[
            "-n",
            &ns.name,
            "patch",
            "pod",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            &theirs,
        ])?
        .ok()?;
        let now = ns.pod("web").await?;
        assert_eq!(now.uid(), before.uid());
        assert_eq!(now.images(), before.images());
        Ok(())
    });
}
