//! What is refused, by whom, and what the refusal says.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos};
use squall_tests::{ExperimentExt as _, OptIn, PodExt as _, experiment, kubectl, unschedulable, with_ns};

use super::*;

#[test]
fn a_namespace_that_does_not_take_part_is_refused_and_untouched() {
    with_ns("admit-no-opt-in", OptIn::No, async |ns| {
        let open = ns.another("admit-opt-in", OptIn::Yes).await?;
        ns.create(&unschedulable("web", "web")).await?;
        for (home, spec) in [
            (ns, json!({ "action": "pod-kill", "mode": "all" })),
            (ns, json!({ "action": "pod-failure", "mode": "all", "duration": "1m" })),
            (&open, json!({ "action": "pod-kill", "mode": "all", "selector": { "namespaces": [ns.name] } })),
            (
                &open,
                json!({ "action": "pod-kill", "mode": "all", "selector": { "pods": { (&*ns.name): ["web"] } } }),
            ),
        ] {
            let said = apply(home, &manifest("kill", spec))?.refused()?;
            let command = format!("kubectl label namespace {} squall.dev/inject=enabled", ns.name);
            for words in ["does not take part", &command] {
                assert!(said.contains(words), "{words:?} is not in {said}");
            }
            assert!(home.api::<PodChaos>().get_opt("kill").await?.is_none(), "refused, but there");
        }
        let pod = ns.pod("web").await?;
        assert!(!pod.is_terminating() && pod.substituted().is_empty());
        assert_eq!(pod.metadata.labels.iter().flatten().count(), 1, "{:?}", pod.metadata.labels);
        // What the refusal says to do is what helps.
        kubectl(&["label", "namespace", &ns.name, "squall.dev/inject=enabled"])?.ok()?;
        apply(ns, &manifest("kill", json!({ "action": "pod-kill", "mode": "all" })))?.ok()?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert!(ns.api::<Pod>().get_opt("web").await?.is_none());
        Ok(())
    });
}

#[test]
fn protected_namespaces_can_not_be_opened() {
    with_ns("admit-protected", OptIn::Yes, async |ns| {
        for name in names::PROTECTED_NAMESPACES {
            let spec = json!({ "action": "pod-kill", "mode": "one", "dryRun": true, "selector": { "namespaces": [name] } });
            refuses(ns, spec, &[name, "no label can open it"])?;
        }
        let missing = json!({ "action": "pod-kill", "mode": "one", "selector": { "namespaces": ["squall-test-nowhere"] } });
        refuses(ns, missing, &["squall-test-nowhere", "does not exist"])?;
        // A namespace's owner can close what its administrator opened.
        let api: Api<Namespace> = Api::all(ns.client.clone());
        let protect = json!({ "metadata": { "labels": { names::PROTECT: "true" } } });
        api.patch(&ns.name, &PatchParams::default(), &Patch::Merge(&protect)).await?;
        refuses(ns, json!({ "action": "pod-kill", "mode": "one" }), &[&ns.name, "protected", names::PROTECT])
    });
}

#[test]
fn what_the_schema_knows_is_refused_by_the_api_server() {
    with_ns("admit-schema", OptIn::Yes, async |ns| {
        let kill = |more: Value| {
            let mut spec = json!({ "action": "pod-kill", "mode": "one" });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        refuses(ns, json!({ "mode": "one" }), &["action", "Required"])?;
        refuses(
            ns,
            json!({ "action": "pod-kil", "mode": "one" }),
            &["pod-kil", "pod-kill", "container-kill"],
        )?;
        refuses(ns, kill(json!({ "mode": "some" })), &["some", "fixed-percent"])?;
        refuses(ns, kill(json!({ "mode": "fixed" })), &["spec.value", "value is required"])?;
        refuses(ns, kill(json!({ "mode": "fixed", "value": "two" })), &["spec.value", "whole number"])?;
        refuses(ns, kill(json!({ "mode": "fixed", "value": "0" })), &["spec.value", "at least 1"])?;
        refuses(ns, kill(json!({ "mode": "fixed-percent", "value": "101" })), &["spec.value", "1 to 100"])?;
        refuses(ns, kill(json!({ "mode": "fixed", "value": 2 })), &["value"])?;
        refuses(ns, kill(json!({ "gracePeriod": -1 })), &["gracePeriod", "-1"])?;
        refuses(ns, kill(json!({ "fast": true })), &["fast belongs to action pod-failure only"])?;
        refuses(
            ns,
            kill(json!({ "faultStyle": "pause" })),
            &["faultStyle belongs to action pod-failure only"],
        )?;
        refuses(ns, kill(json!({ "signal": 9 })), &["signal belongs to action container-kill only"])?;
        refuses(ns, kill(json!({ "processes": {} })), &["processes belongs to action container-kill only"])?;
        refuses(ns, kill(json!({ "allowTerminal": true })), &["allowTerminal belongs to"])?;
        let failure = |more: Value| {
            let mut spec = kill(more);
            spec["action"] = json!("pod-failure");
            spec
        };
        refuses(ns, failure(json!({ "evict": true })), &["evict belongs to action pod-kill only"])?;
        refuses(ns, failure(json!({ "gracePeriod": 5 })), &["gracePeriod belongs to action pod-kill only"])?;
        refuses(ns, kill(json!({ "remoteCluster": "b" })), &["remoteCluster is not supported"])?;
        refuses(ns, kill(json!({ "gracePeriods": 5 })), &["unknown field", "gracePeriods"])?;
        Ok(())
    });
}

#[test]
fn what_only_squall_knows_is_refused_with_field_finding_and_what_is_allowed() {
    with_ns("admit-fields", OptIn::Yes, async |ns| {
        let with = |action: &str, more: Value| {
            let mut spec = json!({ "action": action, "mode": "one" });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        refuses(
            ns,
            with("pod-failure", json!({ "duration": "5 parsecs" })),
            &["spec.duration", "5 parsecs", "30s"],
        )?;
        refuses(
            ns,
            with("container-kill", json!({ "signal": "SIGFOO" })),
            &["spec.signal", "SIGFOO", "TERM"],
        )?;
        refuses(ns, with("container-kill", json!({ "signal": 99 })), &["spec.signal", "99", "64"])?;
        refuses(
            ns,
            with("container-kill", json!({ "containerNames": ["ok", "Bad_Name"] })),
            &["spec.containerNames[1]", "Bad_Name"],
        )?;
        refuses(
            ns,
            with("pod-kill", json!({ "selector": { "podPhaseSelectors": ["Runing"] } })),
            &["podPhaseSelectors", "Runing", "Running"],
        )?;
        refuses(
            ns,
            with("pod-kill", json!({ "selector": { "fieldSelectors": { "spec.color": "red" } } })),
            &["fieldSelectors", "spec.color", "metadata.name"],
        )?;
        refuses(
            ns,
            with("pod-kill", json!({ "selector": { "labelSelectors": { "app": "no spaces" } } })),
            &["labelSelectors", "no spaces"],
        )?;
        refuses(
            ns,
            with(
                "pod-kill",
                json!({ "selector": { "expressionSelectors": [{ "key": "app", "operator": "Maybe" }] } }),
            ),
            &["expressionSelectors", "Maybe", "NotIn"],
        )?;
        // All at once, not one after the other.
        refuses(
            ns,
            with("container-kill", json!({ "duration": "x", "signal": "SIGFOO" })),
            &["spec.duration", "spec.signal"],
        )
    });
}

#[test]
fn of_an_active_experiment_only_little_may_change() {
    with_ns("admit-update", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&unschedulable("api", "api")).await?;
        ns.create(&experiment("down", Action::PodFailure, Mode::All, |spec| {
            spec.duration = Some("1h".into())
        }))
        .await?;
        ns.condition("down", "Injected").await?;
        let change = |spec: Value| {
            let patch = json!({ "spec": spec }).to_string();
            kubectl(&["-n", &ns.name, "patch", "podchaos", "down", "--type=merge", "-p", &patch])
        };
        for (spec, words) in [
            (json!({ "action": "pod-kill" }), vec!["can't be changed"]),
            (json!({ "mode": "one" }), vec!["can't be changed"]),
            (json!({ "faultStyle": "crash" }), vec!["spec.faultStyle", "crash"]),
            (json!({ "fast": true }), vec!["spec.fast"]),
            (json!({ "containerNames": ["app"] }), vec!["spec.containerNames", "app"]),
            (json!({ "seed": 4 }), vec!["spec.seed"]),
            (json!({ "dryRun": true }), vec!["spec.dryRun"]),
        ] {
            let said = change(spec.clone())?.refused().with_context(|| format!("{spec}"))?;
            for word in words {
                assert!(said.contains(word), "{word:?} is not in the refusal of {spec}: {said}");
            }
        }
        // Narrower is allowed, and not wider again.
        change(json!({ "selector": { "labelSelectors": { "app": "web" } } }))?.ok()?;
        let said = change(json!({ "selector": { "labelSelectors": { "app": null } } }))?.refused()?;
        assert!(said.contains("spec.selector") && said.contains("narrowed"), "{said}");
        ns.whole("api").await?;
        // A shorter duration ends it.
        change(json!({ "duration": "1s" }))?.ok()?;
        ns.completed("down").await?;
        ns.whole("web").await?;
        Ok(())
    });
}
