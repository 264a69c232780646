//! Reviews of pods, recorded and answered without a cluster: nothing here may make a call.

mod support;

use futures::StreamExt;
use http::StatusCode;
use k8s_openapi::api::core::v1::Namespace;
use kube_runtime::watcher::Event;
use rstest::rstest;
use serde_json::{Value, json};
use squall_api::{PodChaos, names};
use squall_model::pod::NamespaceView;
use support::{Bench, CRASH, PAUSE, bench, review};

const POD: (&str, &str, &str) = ("", "v1", "Pod");
const CONTROLLER: &str = names::CONTROLLER_USER;
const PATHS: [&str; 6] = [
    names::PATH_MUTATE_PODS,
    names::PATH_MUTATE_ANNOTATIONS,
    names::PATH_MUTATE_EXPERIMENTS,
    names::PATH_VALIDATE_EXPERIMENTS,
    names::PATH_VALIDATE_REMOVAL,
    names::PATH_VALIDATE_POLICIES,
];

/// As the API server stores it; `labels` and `annotations` may be null.
fn pod(labels: Value, annotations: Value) -> Value {
    let mut metadata = json!({
        "name": "web-1", "namespace": "team", "uid": "0d9b3e4c-0001", "resourceVersion": "41",
        "creationTimestamp": "2026-11-22T20:00:00Z",
        "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs-1",
            "controller": true, "blockOwnerDeletion": true
        }]
    });
    for (key, value) in [("labels", labels), ("annotations", annotations)] {
        if !value.is_null() {
            metadata[key] = value;
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "restartPolicy": "Always",
            "someFieldOfTheFuture": {"kept": true},
            "initContainers": [
                {"name": "migrate", "image": "registry.example/migrate:3"},
                {"name": "proxy", "image": "registry.example/proxy:3", "restartPolicy": "Always",
                 "readinessProbe": {"tcpSocket": {"port": 1}}}
            ],
            "containers": [
                {"name": "web", "image": "registry.example/web:3", "command": ["serve"],
                 "resizePolicy": [], "somethingNew": 1},
                {"name": "log", "image": "registry.example/log:3"}
            ]
        },
        "status": {"phase": "Running"}
    })
}

fn failed_by_hand() -> Value {
    json!({names::FAULT: names::POD_FAILURE})
}

fn images(pod: &Value) -> Vec<&str> {
    ["initContainers", "containers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().unwrap())
        .map(|container| container["image"].as_str().unwrap())
        .collect()
}

const ORIGINALS: [&str; 4] = [
    "registry.example/migrate:3",
    "registry.example/proxy:3",
    "registry.example/web:3",
    "registry.example/log:3",
];
const FAILED: [&str; 4] = [CRASH, PAUSE, PAUSE, CRASH];

async fn update(bench: &Bench, user: &str, old: &Value, new: &Value) -> support::Reviewed {
    bench.review(names::PATH_MUTATE_PODS, &review("UPDATE", POD, user, old.clone(), new.clone())).await
}

async fn create(bench: &Bench, new: &Value) -> support::Reviewed {
    let user = "system:serviceaccount:kube-system:replicaset-controller";
    bench.review(names::PATH_MUTATE_PODS, &review("CREATE", POD, user, Value::Null, new.clone())).await
}

/// A pod that was failed by hand, as it is stored then.
async fn failed(bench: &Bench) -> Value {
    let answer =
        update(bench, "ann", &pod(Value::Null, Value::Null), &pod(failed_by_hand(), Value::Null)).await;
    assert!(answer.allowed() && answer.patched());
    answer.object
}

fn held_by(pod: &Value) -> Value {
    serde_json::from_str(pod["metadata"]["annotations"][names::HELD_BY].as_str().unwrap()).unwrap()
}

fn assert_whole(pod: &Value) {
    assert_eq!(images(pod), ORIGINALS);
    assert!(!pod["metadata"].to_string().contains("squall.dev"), "{}", pod["metadata"]);
}

#[tokio::test]
async fn the_label_fails_the_pod_and_its_removal_makes_it_whole() {
    let bench = bench();
    let failed = failed(&bench).await;
    assert_eq!(images(&failed), FAILED);
    assert_eq!(held_by(&failed)[0]["uid"], "manual");
    assert_eq!(failed["spec"]["someFieldOfTheFuture"]["kept"], true);

    let mut off = failed.clone();
    off["metadata"]["labels"].as_object_mut().unwrap().remove(names::FAULT);
    let answer = update(&bench, "ann", &failed, &off).await;
    assert!(answer.allowed());
    assert_whole(&answer.object);
    // Asked again about the same request, nothing changes.
    let again = update(&bench, "ann", &failed, &answer.object).await;
    assert!(!again.patched() && again.allowed());
    // What this version doesn't know is as it was.
    let mut expected = pod(Value::Null, Value::Null);
    expected["metadata"].as_object_mut().unwrap().remove("labels");
    let mut found = answer.object.clone();
    found["metadata"].as_object_mut().unwrap().remove("labels");
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_warning_says_when_it_ends() {
    let bench = bench();
    let old = pod(Value::Null, Value::Null);
    let answer = update(&bench, "ann", &old, &pod(failed_by_hand(), Value::Null)).await;
    assert!(answer.warnings().contains("(1h)"), "{}", answer.warnings());
    let answer = update(&bench, "ann", &old, &pod(failed_by_hand(), json!({names::UNTIL: "10m"}))).await;
    assert!(answer.warnings().contains("(10m)"), "{}", answer.warnings());
    let until: jiff::Timestamp = held_by(&answer.object)[0]["until"].as_str().unwrap().parse().unwrap();
    let left = until.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((590..=600).contains(&left), "{left}");
}

#[tokio::test]
async fn asked_twice_about_one_request_the_answer_is_the_same() {
    let bench = bench();
    let old = pod(Value::Null, Value::Null);
    let first = update(&bench, "ann", &old, &pod(failed_by_hand(), Value::Null)).await.object;
    // Meanwhile another webhook has added a container and sent our image through its own mirror.
    let mut seen = first.clone();
    seen["spec"]["containers"][0]["image"] = json!("mirror.example/squall-pause:1");
    seen["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late", "image": "late:1"}));
    let second = update(&bench, "ann", &old, &seen).await;
    assert!(second.allowed());
    let mut expected = images(&seen);
    expected[4] = CRASH;
    assert_eq!(images(&second.object), expected);
    let originals: Value = serde_json::from_str(
        second.object["metadata"]["annotations"][names::ORIGINAL_IMAGES].as_str().unwrap(),
    )
    .unwrap();
    assert_eq!(originals["web"], "registry.example/web:3");
    assert_eq!(originals["late"], "late:1");
    // And the way back.
    let mut off = second.object.clone();
    off["metadata"].as_object_mut().unwrap().remove("labels");
    let whole = update(&bench, "ann", &second.object, &off).await.object;
    assert_eq!(images(&whole)[..4], ORIGINALS);
    assert_eq!(images(&whole)[4], "late:1");

    // The same at birth.
    let first = create(&bench, &pod(failed_by_hand(), Value::Null)).await.object;
    let second = create(&bench, &first).await;
    assert_eq!(images(&second.object), FAILED);
    assert_eq!(
        second.object["metadata"]["annotations"][names::ORIGINAL_IMAGES],
        first["metadata"]["annotations"][names::ORIGINAL_IMAGES]
    );
}

#[tokio::test]
async fn an_image_written_meanwhile_is_kept_for_later() {
    let bench = bench();
    let failed = failed(&bench).await;
    let mut new = failed.clone();
    new["spec"]["containers"][0]["image"] = json!("registry.example/web:4");
    let answer = update(&bench, "ann", &failed, &new).await;
    assert_eq!(images(&answer.object), FAILED);
    assert!(answer.warnings().contains("new image is kept"), "{}", answer.warnings());
    // Asked a second time about the same request, what was taken over the first time stays.
    let again = update(&bench, "ann", &failed, &answer.object).await;
    assert!(!again.patched(), "{:?}", again.response);
    assert_eq!(again.warnings(), "");
    // The label and another image in one request: that image it is.
    let mut off = again.object.clone();
    off["metadata"].as_object_mut().unwrap().remove("labels");
    off["spec"]["containers"][1]["image"] = json!("registry.example/log:9");
    let whole = update(&bench, "ann", &again.object, &off).await.object;
    assert_eq!(images(&whole)[2..], ["registry.example/web:4", "registry.example/log:9"]);
}

#[tokio::test]
async fn the_record_is_squalls_own() {
    let bench = bench();
    let failed = failed(&bench).await;
    for (key, value) in [
        (names::HELD_BY, Some("[]")),
        (names::ORIGINAL_IMAGES, Some("{\"web\":\"evil.example/x:1\"}")),
        (names::HELD_BY, None),
        (names::ORIGINAL_IMAGES, None),
    ] {
        let mut new = failed.clone();
        let annotations = new["metadata"]["annotations"].as_object_mut().unwrap();
        match value {
            Some(value) => annotations.insert(key.to_owned(), json!(value)),
            None => annotations.remove(key),
        };
        let answer = update(&bench, "ann", &failed, &new).await;
        assert!(answer.allowed());
        assert_eq!(answer.object, failed);
        assert!(answer.warnings().contains("put back"), "{}", answer.warnings());
    }
    let whole = pod(Value::Null, Value::Null);
    let forged = pod(Value::Null, json!({names::ORIGINAL_IMAGES: "{\"web\":\"evil:1\"}", "mine": "x"}));
    let answer = update(&bench, "ann", &whole, &forged).await;
    assert_eq!(answer.object, pod(Value::Null, json!({"mine": "x"})));
    assert!(answer.warnings().contains("can be set by Squall only"));
    let answer = update(&bench, "ann", &whole, &pod(Value::Null, json!({names::HELD_BY: "["}))).await;
    assert_whole(&answer.object);
}

#[tokio::test]
async fn the_controller_says_who_holds_a_pod() {
    let bench = bench();
    let whole = pod(Value::Null, Value::Null);
    let holder = |uid: &str, containers: Value| json!({"kind": "PodChaos", "namespace": "team", "name": "x", "uid": uid, "containers": containers});
    let held = |holders: Value| pod(failed_by_hand(), json!({names::HELD_BY: holders.to_string()}));
    let one = update(&bench, CONTROLLER, &whole, &held(json!([holder("a", json!(["web"]))]))).await.object;
    assert_eq!(images(&one), [ORIGINALS[0], ORIGINALS[1], PAUSE, ORIGINALS[3]]);
    // It writes the list alone; what was saved is remembered.
    let mut more = one.clone();
    more["metadata"]["annotations"][names::HELD_BY] =
        json!(json!([holder("a", json!(["web"])), holder("b", json!(["web", "log"]))]).to_string());
    let two = update(&bench, CONTROLLER, &one, &more).await.object;
    assert_eq!(images(&two), [ORIGINALS[0], ORIGINALS[1], PAUSE, CRASH]);
    let mut less = two.clone();
    less["metadata"]["annotations"][names::HELD_BY] = json!(json!([holder("a", json!(["web"]))]).to_string());
    let one = update(&bench, CONTROLLER, &two, &less).await.object;
    assert_eq!(images(&one), [ORIGINALS[0], ORIGINALS[1], PAUSE, ORIGINALS[3]]);
    // Somebody else takes the label off: that wins, and is told.
    let mut off = one.clone();
    off["metadata"].as_object_mut().unwrap().remove("labels");
    let answer = update(&bench, "ann", &one, &off).await;
    assert_whole(&answer.object);
    assert!(answer.warnings().contains("PodChaos team/x"), "{}", answer.warnings());
    // The last holder lets go, but the label stays: off with it.
    let mut none = one.clone();
    none["metadata"]["annotations"].as_object_mut().unwrap().remove(names::HELD_BY);
    assert_whole(&update(&bench, CONTROLLER, &one, &none).await.object);
    // Its complete recovery patch needs no help.
    let answer = update(&bench, CONTROLLER, &one, &whole).await;
    assert!(!answer.patched());
    // What it does to other pods is its own affair.
    let noted = pod(Value::Null, json!({names::UNTIL: "10m"}));
    assert!(!update(&bench, CONTROLLER, &noted, &noted).await.patched());
}

#[rstest]
#[case(json!({names::FAULT: "network"}), Value::Null, "allowed is: pod-failure")]
#[case(failed_by_hand(), json!({names::CONTAINERS: "web,nope"}), "migrate, proxy, web, log")]
#[case(failed_by_hand(), json!({names::FAULT_STYLE: "explode"}), "allowed are: pause, crash")]
#[case(failed_by_hand(), json!({names::UNTIL: "soon"}), "squall.dev/until")]
#[case(failed_by_hand(), json!({names::UNTIL: "2020-01-01T00:00:00Z"}), "lie ahead")]
#[case(json!({names::FAULT: names::POD_FAILURE, names::PROTECT: "true"}), Value::Null, "squall.dev/protect")]
#[tokio::test]
async fn nonsense_is_refused_on_update_and_born_whole(
    #[case] labels: Value,
    #[case] annotations: Value,
    #[case] says: &str,
) {
    let bench = bench();
    let new = pod(labels, annotations);
    let answer = update(&bench, "ann", &pod(Value::Null, Value::Null), &new).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains(says), "{}", answer.message());

    let born = create(&bench, &new).await;
    assert!(born.allowed());
    assert_eq!(images(&born.object), ORIGINALS);
    assert!(born.warnings().contains("created whole"), "{}", born.warnings());
    let error = born.object["metadata"]["annotations"][names::LAST_ERROR].as_str().unwrap();
    assert!(error.contains(says), "{error}");

    // Whoever changes something else on it later isn't bothered.
    let mut other = born.object.clone();
    other["metadata"]["annotations"]["other"] = json!("1");
    let answer = update(&bench, "kubelet", &born.object, &other).await;
    assert!(answer.allowed() && !answer.patched());
    // Without the label nothing of ours is left, bar what the owner wrote for another time.
    let mut off = born.object.clone();
    off["metadata"].as_object_mut().unwrap().remove("labels");
    let answer = update(&bench, "ann", &born.object, &off).await;
    assert!(answer.allowed());
    assert_eq!(images(&answer.object), ORIGINALS);
}

#[rstest]
#[case("restartPolicy")]
#[case("Job")]
#[tokio::test]
async fn what_would_not_recover_is_left_alone(#[case] why: &str) {
    let bench = bench();
    let mut old = pod(Value::Null, Value::Null);
    if why == "Job" {
        old["metadata"]["ownerReferences"][0]["kind"] = json!("Job");
    } else {
        old["spec"]["restartPolicy"] = json!("Never");
    }
    let mut new = old.clone();
    new["metadata"]["labels"] = failed_by_hand();
    let answer = update(&bench, "ann", &old, &new).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains("WouldNotRecover") && answer.message().contains(why));
    let born = create(&bench, &new).await;
    assert!(born.allowed());
    assert_eq!(images(&born.object), ORIGINALS);
    // The Job's controller takes its finalizer off.
    let mut done = born.object.clone();
    done["status"]["phase"] = json!("Succeeded");
    assert!(update(&bench, "job-controller", &born.object, &done).await.allowed());
}

#[tokio::test]
async fn the_hand_changes_its_mind() {
    let bench = bench();
    let failed = failed(&bench).await;
    let end = held_by(&failed)[0]["until"].clone();
    let mut new = failed.clone();
    new["metadata"]["annotations"][names::CONTAINERS] = json!("log");
    new["metadata"]["annotations"][names::FAULT_STYLE] = json!("pause");
    let answer = update(&bench, "ann", &failed, &new).await;
    assert_eq!(images(&answer.object), [ORIGINALS[0], ORIGINALS[1], ORIGINALS[2], PAUSE]);
    assert_eq!(held_by(&answer.object)[0]["until"], end);
    let mut new = answer.object.clone();
    new["metadata"]["annotations"][names::UNTIL] = json!("5m");
    let later = update(&bench, "ann", &answer.object, &new).await;
    assert_ne!(held_by(&later.object)[0]["until"], end);
    new["metadata"]["annotations"][names::UNTIL] = json!("nonsense");
    assert!(!update(&bench, "ann", &later.object, &new).await.allowed());
}

#[tokio::test]
async fn protection_during_a_fault_recovers_the_pod() {
    let bench = bench();
    let failed = failed(&bench).await;
    let mut new = failed.clone();
    new["metadata"]["annotations"][names::PROTECT] = json!("true");
    let answer = update(&bench, "ann", &failed, &new).await;
    assert_eq!(images(&answer.object), ORIGINALS);
    assert_eq!(answer.object["metadata"]["annotations"], json!({names::PROTECT: "true"}));
}

#[tokio::test]
async fn a_copied_record_is_undone_at_birth() {
    let bench = bench();
    let mut copy = failed(&bench).await;
    copy["metadata"].as_object_mut().unwrap().remove("labels");
    let answer = create(&bench, &copy).await;
    assert_eq!(images(&answer.object), ORIGINALS);
    assert!(answer.object["metadata"].get("annotations").is_none());
    // A rolled template carries the annotation of long ago beside new images: they stay.
    let mut copy = pod(Value::Null, json!({names::ORIGINAL_IMAGES: "{\"web\":\"registry.example/web:1\"}"}));
    copy["spec"]["containers"][0]["image"] = json!("registry.example/web:5");
    let answer = create(&bench, &copy).await;
    assert_eq!(images(&answer.object)[2], "registry.example/web:5");
    assert!(answer.object["metadata"].get("annotations").is_none());
}

fn experiment(mode: &str, status: Value) -> PodChaos {
    serde_json::from_value(json!({
        "apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos",
        "metadata": {"name": "x", "namespace": "team", "uid": "chaos-1"},
        "spec": {"action": "pod-failure", "mode": mode, "selector": {"labelSelectors": {"app": "web"}}},
        "status": status
    }))
    .unwrap()
}

fn know(bench: &Bench, experiment: PodChaos, opted_in: bool) {
    let labels = if opted_in { json!({names::INJECT: names::INJECT_ENABLED}) } else { json!({}) };
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "team", "labels": labels}})).unwrap();
    for event in [Event::Init, Event::InitApply(NamespaceView::of(&namespace)), Event::InitDone] {
        bench.world.namespace_event(event);
    }
    for event in [Event::Init, Event::InitApply(experiment), Event::InitDone] {
        bench.world.experiment(event);
    }
    assert_eq!(bench.world.missing(), Some("policies have not been listed yet"));
    for event in [Event::Init, Event::InitDone] {
        bench.world.policy_event(event);
    }
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"] {
        assert_eq!(bench.world.missing(), Some("workloads have not been listed yet"));
        for event in [Event::Init, Event::InitDone] {
            bench.world.workload_event(kind, event);
        }
    }
    assert_eq!(bench.world.missing(), None);
}

/// The Deployment `web` says that its pods are to be left alone, or doesn't any more.
fn shield(bench: &Bench, value: &str) {
    let meta = json!({"name": "web", "namespace": "team", "labels": {names::PROTECT: value}});
    bench.world.workload_event("Deployment", Event::Apply(serde_json::from_value(meta).unwrap()));
}

#[tokio::test]
async fn what_a_workload_says_protects_its_pods() {
    let bench = bench();
    know(&bench, experiment("all", json!({"phase": "Injected"})), true);
    let mut born = newborn();
    born["metadata"]["labels"]["pod-template-hash"] = json!("5d4f");
    born["metadata"]["ownerReferences"][0]["name"] = json!("web-5d4f");
    let mut whole = pod(json!({"app": "web", "pod-template-hash": "5d4f"}), Value::Null);
    whole["metadata"]["ownerReferences"][0]["name"] = json!("web-5d4f");
    let mut labelled = whole.clone();
    labelled["metadata"]["labels"][names::FAULT] = json!(names::POD_FAILURE);
    shield(&bench, "true");
    assert!(!create(&bench, &born).await.patched());
    let refused = update(&bench, "ann", &whole, &labelled).await;
    let words = "the pod's workload is protected: remove squall.dev/protect from it";
    assert!(!refused.allowed() && refused.message().contains(words), "{}", refused.message());
    shield(&bench, "false");
    assert!(create(&bench, &born).await.patched());
    assert!(update(&bench, "ann", &whole, &labelled).await.patched());
}

fn newborn() -> Value {
    let mut pod = pod(json!({"app": "web"}), Value::Null);
    let meta = pod["metadata"].as_object_mut().unwrap();
    for key in ["name", "namespace", "uid", "resourceVersion"] {
        meta.remove(key);
    }
    meta.insert("generateName".to_owned(), json!("web-"));
    pod["status"] = json!({});
    pod
}

#[rstest]
#[case("all", json!({"phase": "Injected"}), true)]
#[case("all", json!({"phase": "Injecting"}), true)]
#[case("all", json!({"phase": "Paused"}), false)]
#[case("all", json!({"phase": "Completed"}), false)]
#[case("all", json!({"phase": "Injected", "endsAt": "2020-01-01T00:00:00.000000Z"}), false)]
#[case("one", json!({"phase": "Injected", "drawn": 1}), false)]
#[case("one", json!({"phase": "Injected", "drawn": 1,
    "targets": [{"namespace": "team", "pod": "web-1", "uid": "1", "owner": "rs-1", "phase": "Gone"}]}), true)]
#[case("one", json!({"phase": "Injected", "drawn": 1,
    "targets": [{"namespace": "team", "pod": "web-1", "uid": "1", "owner": "rs-2", "phase": "Gone"}]}), false)]
#[case("one", json!({"phase": "Injected", "drawn": 1,
    "targets": [{"namespace": "team", "pod": "web-1", "uid": "1", "owner": "rs-1", "phase": "Gone"},
                {"namespace": "team", "pod": "web-2", "uid": "2", "owner": "rs-1", "phase": "Injected"}]}), false)]
#[tokio::test]
async fn births(#[case] mode: &str, #[case] status: Value, #[case] is_failed: bool) {
    let bench = bench();
    // Before anything is known a pod is born whole.
    assert!(!create(&bench, &newborn()).await.patched());
    know(&bench, experiment(mode, status), true);
    let born = create(&bench, &newborn()).await;
    assert!(born.allowed());
    assert_eq!(born.patched(), is_failed);
    if is_failed {
        assert_eq!(images(&born.object), FAILED);
        assert_eq!(held_by(&born.object)[0]["uid"], "chaos-1");
        assert_eq!(born.object["metadata"]["labels"][names::FAULT], names::POD_FAILURE);
    }
    // Others, and those that must not be hit.
    let mut other = newborn();
    other["metadata"]["labels"]["app"] = json!("db");
    assert!(!create(&bench, &other).await.patched());
    let mut protected = newborn();
    protected["metadata"]["labels"][names::PROTECT] = json!("true");
    assert!(!create(&bench, &protected).await.patched());
    let mut job = newborn();
    job["metadata"]["ownerReferences"][0]["kind"] = json!("Job");
    assert!(!create(&bench, &job).await.patched());
}

#[rstest]
#[case::of_the_namespace("team")]
#[case::of_the_cluster(names::NAMESPACE)]
#[case::by_a_policy("")]
#[tokio::test]
async fn nobody_is_born_failed_under_a_halt(#[case] halted: &str) {
    let bench = bench();
    know(&bench, experiment("all", json!({"phase": "Injected"})), true);
    assert!(create(&bench, &newborn()).await.patched());
    let halt = |reason: Option<&str>| {
        if halted.is_empty() {
            let policy = json!({
                "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": {"name": "p"},
                "spec": {"halt": {"active": reason.is_some(), "reason": reason}}
            });
            bench.world.policy_event(Event::Apply(serde_json::from_value(policy).unwrap()));
        } else {
            let namespace = json!({"metadata": {
                "name": halted, "labels": {names::INJECT: names::INJECT_ENABLED},
                "annotations": reason.map(|reason| json!({names::HALT: reason}))
            }});
            let namespace: Namespace = serde_json::from_value(namespace).unwrap();
            bench.world.namespace_event(Event::Apply(NamespaceView::of(&namespace)));
        }
    };
    halt(Some("incident 4711"));
    let born = create(&bench, &newborn()).await;
    assert!(born.allowed() && !born.patched());
    // A template with the label makes no failed pods either, and says why.
    let mut labelled = newborn();
    labelled["metadata"]["labels"][names::FAULT] = json!(names::POD_FAILURE);
    let born = create(&bench, &labelled).await;
    assert!(born.allowed() && born.warnings().contains("incident 4711"), "{}", born.warnings());
    assert_eq!(images(&born.object), ORIGINALS);
    halt(None);
    assert!(create(&bench, &newborn()).await.patched());
}

#[tokio::test]
async fn nobody_is_born_failed_where_the_namespace_takes_no_part() {
    let bench = bench();
    know(&bench, experiment("all", json!({"phase": "Injected"})), false);
    assert!(!create(&bench, &newborn()).await.patched());
}

#[tokio::test]
async fn in_doubt_a_pod_passes() {
    let bench = bench();
    let other = review("CREATE", ("apps", "v1", "Deployment"), "ann", Value::Null, json!({"metadata": {}}));
    let answer = bench.review(names::PATH_MUTATE_PODS, &other).await;
    assert!(answer.allowed() && answer.warnings().contains("passes unchanged"));
    let odd = review("CREATE", POD, "ann", Value::Null, json!({"spec": {"containers": "none"}}));
    let answer = bench.review(names::PATH_MUTATE_PODS, &odd).await;
    assert!(answer.allowed() && answer.warnings().contains("can't be read"), "{}", answer.warnings());
    let missing = review("UPDATE", POD, "ann", Value::Null, pod(Value::Null, Value::Null));
    assert!(bench.review(names::PATH_MUTATE_PODS, &missing).await.allowed());
    let mut resize = review("UPDATE", POD, "ann", Value::Null, pod(failed_by_hand(), Value::Null));
    resize["request"]["subResource"] = json!("resize");
    assert!(!bench.review(names::PATH_MUTATE_PODS, &resize).await.patched());
}

#[tokio::test]
async fn what_is_no_review_gets_an_answer_too() {
    let bench = bench();
    for path in PATHS {
        for body in [
            "",
            "{",
            "null",
            "[]",
            "{}",
            "\u{0}",
            "{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"}",
        ] {
            let (status, text) = bench.post(path, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
            assert!(!text.is_empty());
        }
        let mut old = review("CREATE", POD, "ann", Value::Null, json!({}));
        old["apiVersion"] = json!("admission.k8s.io/v1beta1");
        let (status, text) = bench.post(path, old.to_string()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(text.contains("admissionReviewVersions"), "{text}");
        let deep = "[".repeat(100_000);
        assert_eq!(bench.post(path, deep).await.0, StatusCode::BAD_REQUEST);
        let large = vec![b' '; squall_webhook::app::LIMIT + 1];
        assert_eq!(bench.post(path, large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let text = bench.metrics.encode().unwrap();
    assert!(text.contains("outcome=\"malformed\"") && text.contains("outcome=\"too_large\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_talking_is_answered_too() {
    let bench = bench();
    let never = axum::body::Body::from_stream(futures::stream::pending::<
        Result<axum::body::Bytes, std::io::Error>,
    >());
    let (status, _) = bench.post(names::PATH_MUTATE_PODS, never).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
}

/// A body as large as one may be, which then says no more and does not end.
fn stuck() -> axum::body::Body {
    let whole = axum::body::Bytes::from(vec![b' '; squall_webhook::app::LIMIT]);
    let part = futures::stream::iter([Ok::<_, std::io::Error>(whole)]);
    axum::body::Body::from_stream(part.chain(futures::stream::pending()))
}

#[tokio::test(start_paused = true)]
async fn large_bodies_wait_for_each_other() {
    let bench = bench();
    // Two take all the room there is.
    let path = names::PATH_MUTATE_PODS;
    let third = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let begun = tokio::time::Instant::now();
        let (status, _) = bench.post(path, "{}").await;
        (status, begun.elapsed().as_secs())
    };
    let (one, two, (status, waited)) =
        tokio::join!(bench.post(path, stuck()), bench.post(path, stuck()), third);
    assert_eq!((one.0, two.0), (StatusCode::REQUEST_TIMEOUT, StatusCode::REQUEST_TIMEOUT));
    assert_eq!(status, StatusCode::BAD_REQUEST, "it was read, and is no review");
    assert_eq!(waited, 3);
    let silent = axum::body::Body::from_stream(futures::stream::pending::<
        Result<axum::body::Bytes, std::io::Error>,
    >());
    let ((silent, _), (status, _)) = tokio::join!(bench.post(path, silent), bench.post(path, "{}"));
    assert_eq!((silent, status), (StatusCode::REQUEST_TIMEOUT, StatusCode::BAD_REQUEST));
}

#[tokio::test(start_paused = true)]
async fn one_peer_leaves_room_for_the_others() {
    let bench = bench();
    let path = names::PATH_MUTATE_PODS;
    let other = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let begun = tokio::time::Instant::now();
        let (status, _) = bench.post_as([10, 0, 0, 2], path, "{}").await;
        (status, begun.elapsed().as_millis())
    };
    let greedy = || bench.post_as([10, 0, 0, 1], path, stuck());
    let (one, two, other) = tokio::join!(greedy(), greedy(), other);
    assert_eq!((one.0, two.0), (StatusCode::REQUEST_TIMEOUT, StatusCode::REQUEST_TIMEOUT));
    assert_eq!(other, (StatusCode::BAD_REQUEST, 0));
}

#[tokio::test]
async fn what_would_take_far_more_memory_than_it_has_bytes_is_not_read() {
    let bench = bench();
    let bomb = |of: &str, count: usize| {
        let object = format!("{{\"spec\":{{\"containers\":[{}]}}}}", vec![of; count].join(","));
        let raw = serde_json::value::RawValue::from_string(object).unwrap();
        let mut whole = review("CREATE", POD, "ann", Value::Null, json!({})).to_string();
        whole = whole.replacen("\"object\":{}", &format!("\"object\":{raw}"), 1);
        whole
    };
    for path in PATHS {
        let (status, text) = bench.post(path, bomb("1", 1_000_000)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
    }
    let (status, text) = bench.post(names::PATH_MUTATE_PODS, bomb("{}", 30_000)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
    // A very large pod is read all the same.
    let (status, text) = bench.post(names::PATH_MUTATE_PODS, bomb("{\"name\":\"c\"}", 5_000)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let sizes =
        (size_of::<k8s_openapi::api::core::v1::Container>(), size_of::<k8s_openapi::api::core::v1::Volume>());
    assert!(sizes.0.max(sizes.1) < 4096, "{sizes:?}");
}
