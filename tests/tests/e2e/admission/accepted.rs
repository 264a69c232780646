//! What is accepted, and how.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, TargetPhase};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, OptIn, PodExt as _, experiment, kubectl, kubectl_stdin, target_of,
    unschedulable, with_ns,
};

use super::*;

#[test]
fn what_is_accepted_carries_defaults_warnings_and_who_asked() {
    with_ns("admit-accepted", OptIn::Yes, async |ns| {
        let said = apply(ns, &manifest("down", json!({ "action": "pod-failure", "mode": "all" })))?.ok()?;
        assert!(said.contains("Warning") && said.contains("duration is unset"), "{said}");
        let said =
            apply(ns, &manifest("kill", json!({ "action": "container-kill", "mode": "one" })))?.ok()?;
        assert!(!said.contains("Warning"), "{said}");
        let chaos = ns.chaos("kill").await?;
        assert_eq!(chaos.metadata.finalizers.as_deref(), Some(&[names::FINALIZER.to_owned()][..]));
        assert!(chaos.spec.signal.is_some() && chaos.spec.processes.is_some(), "{:?}", chaos.spec);
        let by = chaos.metadata.annotations.unwrap_or_default().remove(names::REQUESTED_BY);
        let by: Value = serde_json::from_str(&by.context("who asked isn't written down")?)?;
        assert!(by["username"].as_str().is_some_and(|name| !name.is_empty()), "{by}");
        // The same manifest again changes nothing.
        let said =
            apply(ns, &manifest("kill", json!({ "action": "container-kill", "mode": "one" })))?.ok()?;
        assert!(said.contains("unchanged"), "{said}");
        Ok(())
    });
}

#[test]
fn who_asked_can_not_be_forged_nor_changed() {
    with_ns("admit-requested-by", OptIn::Yes, async |ns| {
        let forged = r#"{"username":"somebody-else"}"#;
        let mut chaos = experiment("dry", Action::PodKill, Mode::One, |spec| spec.dry_run = Some(true));
        chaos.metadata.annotations = Some([(names::REQUESTED_BY.to_owned(), forged.to_owned())].into());
        let created = ns.create(&chaos).await?;
        let by = |chaos: &PodChaos| {
            chaos.metadata.annotations.as_ref().and_then(|all| all.get(names::REQUESTED_BY)).cloned()
        };
        let written = by(&created).context("who asked isn't written down")?;
        assert_ne!(written, forged);
        let key = names::REQUESTED_BY;
        let refused = kubectl(&[
            "-n",
            &ns.name,
            "annotate",
            "--overwrite",
            "podchaos",
            "dry",
            &format!("{key}={forged}"),
        ])?
        .refused()?;
        assert!(refused.contains(key) && refused.contains("can't be changed"), "{refused}");
        // Removing it has no effect; `kubectl replace` would do it without meaning to.
        let _ = kubectl(&["-n", &ns.name, "annotate", "podchaos", "dry", &format!("{key}-")])?;
        assert_eq!(by(&ns.chaos("dry").await?), Some(written));
        Ok(())
    });
}

/// As people have them for Chaos Mesh: of each only `apiVersion` is another, and names are the test's.
const CHAOS_MESH: [(&str, &str); 5] = [
    (
        "by-component",
        r#"
apiVersion: squall.dev/v1alpha1
kind: PodChaos
metadata:
  name: by-component
spec:
  action: pod-failure
  mode: one
  duration: '2s'
  selector:
    labelSelectors:
      'app.kubernetes.io/component': 'store'
"#,
    ),
    (
        "in-namespaces",
        r#"
apiVersion: squall.dev/v1alpha1
kind: PodChaos
metadata:
  name: in-namespaces
  labels:
    team: reliability
spec:
  action: pod-kill
  mode: fixed
  value: '1'
  gracePeriod: 0
  selector:
    namespaces:
      - NAMESPACE
    labelSelectors:
      'app.kubernetes.io/component': 'cache'
    podPhaseSelectors:
      - 'Pending'
"#,
    ),
    (
        "by-name",
        r#"
apiVersion: squall.dev/v1alpha1
kind: PodChaos
metadata:
  name: by-name
spec:
  action: pod-failure
  mode: all
  duration: 2s
  value: ''
  selector:
    pods:
      NAMESPACE:
        - queue
"#,
    ),
    (
        "by-expression",
        r#"
apiVersion: squall.dev/v1alpha1
kind: PodChaos
metadata:
  name: by-expression
spec:
  action: pod-kill
  mode: random-max-percent
  value: "100"
  selector:
    annotationSelectors:
      'example.com/owner': 'team-a'
    expressionSelectors:
      - { key: app.kubernetes.io/component, operator: In, values: [front, back] }
      - { key: canary, operator: DoesNotExist }
"#,
    ),
    (
        "container",
        r#"
apiVersion: squall.dev/v1alpha1
kind: PodChaos
metadata:
  name: container
spec:
  action: container-kill
  mode: one
  containerNames: ['app']
  duration: '30s'
  gracePeriod: 0
  selector:
    namespaces: [NAMESPACE]
    labelSelectors:
      'app.kubernetes.io/component': 'running'
"#,
    ),
];

#[test]
fn manifests_of_chaos_mesh_work_with_another_api_version() {
    with_ns("admit-chaos-mesh", OptIn::Yes, async |ns| {
        for (name, component, nowhere) in [
            ("store", "store", true),
            ("cache", "cache", true),
            ("queue", "queue", true),
            ("front", "front", true),
            ("running", "running", false),
        ] {
            let mut pod = if nowhere { unschedulable(name, name) } else { squall_tests::pod(name) };
            let labels = pod.metadata.labels.get_or_insert_default();
            labels.insert("app.kubernetes.io/component".into(), component.into());
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert("example.com/owner".into(), "team-a".into());
            ns.create(&pod).await?;
        }
        ns.pod_until("running", "it is Ready", |pod| pod.is_ready()).await?;
        for (_, text) in CHAOS_MESH {
            apply(ns, &text.replace("NAMESPACE", &ns.name))?.ok()?;
        }
        for (name, pod, phase) in [
            ("by-component", "store", TargetPhase::Recovered),
            ("in-namespaces", "cache", TargetPhase::Killed),
            ("by-name", "queue", TargetPhase::Recovered),
            ("by-expression", "front", TargetPhase::Killed),
            ("container", "running", TargetPhase::Killed),
        ] {
            let chaos = ns.completed(name).await?;
            assert_eq!(chaos.phase(), Phase::Completed, "{name}: {}", chaos.shown());
            assert_eq!(chaos.told().targets.len(), 1, "{name}: {}", chaos.shown());
            let target = target_of(&chaos, pod).with_context(|| format!("{name} did not hit {pod}"))?;
            assert_eq!(target.phase, phase, "{name}: {}", chaos.shown());
        }
        Ok(())
    });
}

#[test]
fn the_examples_pass_a_dry_run_on_the_server() {
    with_ns("admit-examples", OptIn::Yes, async |ns| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let mut seen = 0;
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            // Their namespaces are the reader's; here they are the test's. No image is pulled by a dry run.
            let text = std::fs::read_to_string(&path)?;
            let text = text
                .replace("[shop, shop-canary]", &format!("[{}]", ns.name))
                .replace("[monitoring]", &format!("[{}]", ns.name))
                .replace("nginx:1.29", BUSYBOX);
            let said = kubectl_stdin(&["-n", &ns.name, "apply", "--dry-run=server", "-f", "-"], &text)?;
            assert!(said.success, "{}: {}", path.display(), said.text);
            seen += 1;
        }
        assert!(seen >= 5, "only {seen} examples in {}", directory.display());
        assert!(kubectl(&["-n", &ns.name, "get", "pods,podchaos"])?.text.contains("No resources"));
        Ok(())
    });
}
