//! Experiments at admission: what is refused, by whom, and what the refusal says; what is accepted and how.

use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, TargetPhase};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, Ns, OptIn, PodExt as _, client_as, experiment, from_json, kubectl,
    kubectl_stdin, target_of, unschedulable, until, with_ns,
};

/// A manifest as somebody writes it.
fn manifest(name: &str, spec: Value) -> String {
    json!({
        "apiVersion": "squall.dev/v1alpha1",
        "kind": "PodChaos",
        "metadata": { "name": name },
        "spec": spec,
    })
    .to_string()
}

fn apply(ns: &Ns, text: &str) -> Result<squall_tests::Ran> {
    kubectl_stdin(&["-n", &ns.name, "apply", "-f", "-"], text)
}

/// Applies `spec`, which is to be refused with all of `words`.
fn refuses(ns: &Ns, spec: Value, words: &[&str]) -> Result<()> {
    let said =
        apply(ns, &manifest("wrong", spec.clone()))?.refused().with_context(|| format!("for {spec}"))?;
    for word in words {
        assert!(said.contains(word), "{word:?} is not in the refusal of {spec}: {said}");
    }
    Ok(())
}

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
            refuses(ns, spec, &[name, "never hit"])?;
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
            &["spec.signal", "SIGFOO", "SIGTERM"],
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

/// A ServiceAccount that may write experiments and, beside that, what `pods` says; and a client that acts as it.
async fn account(ns: &Ns, name: &str, pods: &[(&str, &str)]) -> Result<Client> {
    let user = format!("system:serviceaccount:{}:{name}", ns.name);
    let account: ServiceAccount = from_json(json!({ "metadata": { "name": name } }));
    ns.create(&account).await?;
    grant(ns, name, &ns.name, name, pods).await?;
    client_as(&user, &["system:serviceaccounts", "system:authenticated"]).await
}

/// Grants, in `ns`, to an account of `home`.
async fn grant(ns: &Ns, role: &str, home: &str, account: &str, pods: &[(&str, &str)]) -> Result<()> {
    let mut rules = vec![json!({
        "apiGroups": [names::GROUP], "resources": ["podchaos"],
        "verbs": ["get", "list", "create", "update", "patch", "delete"],
    })];
    rules.extend(
        pods.iter()
            .map(|(verb, resource)| json!({ "apiGroups": [""], "resources": [resource], "verbs": [verb] })),
    );
    let granted: Role = from_json(json!({ "metadata": { "name": role }, "rules": rules }));
    ns.create(&granted).await?;
    let binding: RoleBinding = from_json(json!({
        "metadata": { "name": role },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": home }],
    }));
    ns.create(&binding).await?;
    Ok(())
}

/// Creates it as `client`; the API server learns of a new right a moment after it was granted.
async fn create_as(client: &Client, ns: &Ns, chaos: &PodChaos) -> Result<Result<PodChaos, String>> {
    let api: Api<PodChaos> = Api::namespaced(client.clone(), &ns.name);
    until("the right to write experiments is known", async || {
        Ok(match api.create(&PostParams::default(), chaos).await {
            Ok(chaos) => Ok(Ok(chaos)),
            Err(kube::Error::Api(status))
                if status.message.contains("cannot create resource \"podchaos\"") =>
            {
                Err(status.message.clone())
            }
            Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
            Err(error) => return Err(error.into()),
        })
    })
    .await
}

#[test]
fn nobody_does_by_an_experiment_what_he_may_not_do_himself() {
    with_ns("admit-access", OptIn::Yes, async |ns| {
        type Change = fn(&mut squall_api::podchaos::PodChaosSpec);
        type Right = (&'static str, &'static str);
        let cases: [(&str, Action, Change, Right, Right); 4] = [
            ("kill", Action::PodKill, |_| (), ("delete", "pods"), ("patch", "pods")),
            (
                "evict",
                Action::PodKill,
                |spec| spec.evict = Some(true),
                ("create", "pods/eviction"),
                ("delete", "pods"),
            ),
            (
                "fail",
                Action::PodFailure,
                |spec| spec.duration = Some("1s".into()),
                ("patch", "pods"),
                ("delete", "pods"),
            ),
            ("ckill", Action::ContainerKill, |_| (), ("patch", "pods"), ("create", "pods/eviction")),
        ];
        for (name, action, change, enough, not_enough) in cases {
            let chaos = experiment(name, action, Mode::One, |spec| {
                change(spec);
                spec.dry_run = Some(true);
            });
            let poor = account(ns, &format!("{name}-poor"), &[not_enough]).await?;
            let refused = create_as(&poor, ns, &chaos).await?;
            let why =
                refused.err().with_context(|| format!("{name} was accepted with {not_enough:?} only"))?;
            let may_not = format!("may not {} {} in namespace {}", enough.0, enough.1, ns.name);
            assert!(why.contains(&may_not), "{may_not:?} is not in {why}");
            assert!(ns.api::<PodChaos>().get_opt(name).await?.is_none());

            let rich = account(ns, &format!("{name}-rich"), &[enough]).await?;
            let accepted = create_as(&rich, ns, &chaos).await?;
            let accepted =
                accepted.map_err(|why| anyhow::anyhow!("{name} was refused with {enough:?}: {why}"))?;
            let by = accepted.metadata.annotations.unwrap_or_default().remove(names::REQUESTED_BY);
            let user = format!("system:serviceaccount:{}:{name}-rich", ns.name);
            assert!(by.as_ref().is_some_and(|by| by.contains(&user)), "{by:?}");
        }
        Ok(())
    });
}

#[test]
fn rights_are_asked_for_in_every_namespace_that_is_named() {
    with_ns("admit-access-far", OptIn::Yes, async |ns| {
        let far = ns.another("admit-access-far-b", OptIn::Yes).await?;
        let client = account(ns, "dev", &[("delete", "pods")]).await?;
        let chaos = experiment("kill", Action::PodKill, Mode::One, |spec| {
            spec.dry_run = Some(true);
            spec.selector.namespaces = vec![ns.name.clone(), far.name.clone()];
        });
        let why = create_as(&client, ns, &chaos).await?.err().context("it was accepted")?;
        assert!(why.contains(&far.name) && why.contains("may not delete pods"), "{why}");
        grant(&far, "dev", &ns.name, "dev", &[("delete", "pods")]).await?;
        until("the right is known", async || Ok(create_as(&client, ns, &chaos).await?.map(drop))).await
    });
}

#[test]
fn an_update_asks_for_rights_again() {
    with_ns("admit-access-update", OptIn::Yes, async |ns| {
        ns.create(&experiment("down", Action::PodFailure, Mode::All, |spec| {
            spec.duration = Some("1h".into())
        }))
        .await?;
        let poor = account(ns, "poor", &[("get", "pods")]).await?;
        let api: Api<PodChaos> = Api::namespaced(poor, &ns.name);
        let longer = json!({ "spec": { "duration": "2h" } });
        let why = until("the right to write experiments is known", async || {
            Ok(match api.patch("down", &PatchParams::default(), &Patch::Merge(&longer)).await {
                Ok(_) => Ok(None),
                Err(kube::Error::Api(status))
                    if status.message.contains("cannot patch resource \"podchaos\"") =>
                {
                    Err(status.message.clone())
                }
                Err(kube::Error::Api(status)) => Ok(Some(status.message.clone())),
                Err(error) => return Err(error.into()),
            })
        })
        .await?;
        let why = why.context("it was accepted")?;
        assert!(why.contains("may not patch pods"), "{why}");
        Ok(())
    });
}

#[test]
fn the_roles_that_kubernetes_ships_know_experiments() {
    with_ns("admit-roles", OptIn::Yes, async |ns| {
        for role in ["view", "edit", "admin"] {
            let user = format!("{}-{role}", ns.name);
            let binding: RoleBinding = from_json(json!({
                "metadata": { "name": role },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user }],
            }));
            ns.create(&binding).await?;
        }
        let may = |role: &str, verb: &str| -> Result<bool> {
            let user = format!("{}-{role}", ns.name);
            let said = kubectl(&["-n", &ns.name, "auth", "can-i", verb, "podchaos", "--as", &user])?;
            Ok(said.success)
        };
        until("the aggregated roles are known", async || {
            let found = [
                may("view", "list")?,
                !may("view", "create")?,
                may("edit", "list")?,
                !may("edit", "create")?,
                may("admin", "create")?,
                may("admin", "delete")?,
            ];
            Ok(if found.iter().all(|&fits| fits) { Ok(()) } else { Err(format!("{found:?}")) })
        })
        .await
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
