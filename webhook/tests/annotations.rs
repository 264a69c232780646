//! Reviews of small faults by annotation, with a scripted API server for what is asked live.

mod support;

use http::Response;
use kube::client::Body as KubeBody;
use rstest::rstest;
use serde_json::{Value, json};
use squall_api::names;
use support::{ApiServer, Bench, Reviewed, bench, review};

const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");
const REPLICA_SET: (&str, &str, &str) = ("apps", "v1", "ReplicaSet");
const POD: (&str, &str, &str) = ("", "v1", "Pod");

fn workload(annotations: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "team", "uid": "d-1"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                         "spec": {"containers": [{"name": "app", "image": "i"}, {"name": "side", "image": "i"}]}}
        }
    });
    if !annotations.is_null() {
        object["metadata"]["annotations"] = annotations;
    }
    object
}

fn pod(annotations: Value, labels: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-1", "namespace": "team", "uid": "p-1"},
        "spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "app", "image": "i"}]}
    });
    for (key, value) in [("annotations", annotations), ("labels", labels)] {
        if !value.is_null() {
            object["metadata"][key] = value;
        }
    }
    object
}

/// Lets `user` do what is in `rights`, in a namespace that takes part; what was asked.
async fn answering(mut api: ApiServer, rights: &[&str]) -> Vec<String> {
    let mut asked = Vec::new();
    while let Some((request, send)) = api.next_request().await {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let mut answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if head.method == "POST" {
            let verb = answer["spec"]["resourceAttributes"]["verb"].as_str().unwrap().to_owned();
            answer["status"] = json!({"allowed": rights.contains(&verb.as_str())});
            asked.push(verb);
        } else {
            asked.push(head.uri.path().to_owned());
            let labels = json!({names::INJECT: names::INJECT_ENABLED});
            answer = json!({"apiVersion": "v1", "kind": "Namespace",
                            "metadata": {"name": "team", "labels": labels}});
        }
        let response = Response::builder().status(200).body(KubeBody::from(answer.to_string().into_bytes()));
        send.send_response(response.unwrap());
    }
    asked
}

async fn ask(kind: (&str, &str, &str), old: Value, new: Value, rights: &[&str]) -> (Reviewed, Vec<String>) {
    let Bench { router, world, metrics, api } = bench();
    let review = review("UPDATE", kind, "ann", old, new);
    let answered = async move {
        let bench = Bench { router, world, metrics, api: support::nobody() };
        bench.review(names::PATH_MUTATE_ANNOTATIONS, &review).await
    };
    futures::join!(answered, answering(api, rights))
}

fn tickets(object: &Value) -> Value {
    let text = object["metadata"]["annotations"][names::REQUESTED_BY].as_str();
    text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

#[tokio::test]
async fn who_asked_is_written_beside_it() {
    let new = workload(json!({names::ASK_POD_KILL: "50%"}));
    let (answer, asked) = ask(DEPLOYMENT, workload(Value::Null), new, &["delete"]).await;
    assert!(answer.allowed(), "{}", answer.message());
    let ticket = &tickets(&answer.object)["pod-kill"];
    assert_eq!((&ticket["uid"], &ticket["value"]), (&json!("d-1"), &json!("50%")));
    assert_eq!(ticket["by"]["username"], "ann");
    assert_eq!(ticket["by"]["groups"], json!(["devs", "system:authenticated"]));
    assert_eq!(asked, ["delete", "/api/v1/namespaces/team"]);
    // Taken back, nothing of it stays, and nobody is asked.
    let (answer, asked) = ask(DEPLOYMENT, answer.object.clone(), removed(&answer.object), &[]).await;
    assert!(answer.allowed() && asked.is_empty());
    assert_eq!(answer.object["metadata"]["annotations"], json!({}));
}

fn removed(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["annotations"].as_object_mut().unwrap().remove(names::ASK_POD_KILL);
    object
}

#[rstest]
#[case(names::ASK_POD_KILL, "", "delete")]
#[case(names::ASK_POD_FAILURE, "all,1m", "patch")]
#[case(names::ASK_CONTAINER_KILL, "side:TERM", "patch")]
#[case(names::ASK_STRESS_CPU, "", "patch")]
#[case(names::ASK_STRESS_MEMORY, "64Mi", "patch")]
#[tokio::test]
async fn the_requester_must_be_allowed_to_do_it_by_hand(
    #[case] key: &str,
    #[case] value: &str,
    #[case] verb: &str,
) {
    let new = || workload(json!({key: value}));
    let (answer, _) = ask(DEPLOYMENT, workload(Value::Null), new(), &[verb]).await;
    assert!(answer.allowed(), "{}", answer.message());
    let (answer, asked) = ask(DEPLOYMENT, workload(Value::Null), new(), &["get"]).await;
    assert!(!answer.allowed());
    assert_eq!((answer.response["status"]["code"].clone(), asked), (json!(403), vec![verb.to_owned()]));
    assert!(answer.message().contains(&format!("ann may not {verb} pods in namespace team")));
}

#[rstest]
#[case(names::ASK_POD_KILL, "true", "grace=30s")]
#[case(names::ASK_CONTAINER_KILL, "nginx", "app, side")]
#[case(names::ASK_STRESS_MEMORY, "", "a size is missing")]
#[tokio::test]
async fn nonsense_is_refused_with_what_is_allowed(
    #[case] key: &str,
    #[case] value: &str,
    #[case] says: &str,
) {
    let (answer, asked) = ask(DEPLOYMENT, workload(Value::Null), workload(json!({key: value})), &[]).await;
    assert!(!answer.allowed() && asked.is_empty());
    assert_eq!(answer.response["status"]["code"], 422);
    assert!(answer.message().contains(key) && answer.message().contains(says), "{}", answer.message());
}

#[tokio::test]
async fn on_a_pod_pod_failure_sets_the_switch_and_takes_it_back() {
    let new = pod(json!({names::ASK_POD_FAILURE: "10m"}), Value::Null);
    let (answer, _) = ask(POD, pod(Value::Null, Value::Null), new, &["patch"]).await;
    assert!(answer.allowed(), "{}", answer.message());
    let meta = &answer.object["metadata"];
    assert_eq!(meta["labels"], json!({names::FAULT: names::POD_FAILURE}));
    assert_eq!(meta["annotations"][names::UNTIL], "10m");
    assert_eq!(answer.object["spec"]["containers"][0]["image"], "i");
    let mut off = answer.object.clone();
    off["metadata"]["annotations"].as_object_mut().unwrap().remove(names::ASK_POD_FAILURE);
    let (answer, asked) = ask(POD, answer.object, off, &[]).await;
    assert!(answer.allowed() && asked.is_empty());
    assert_eq!(answer.object["metadata"]["labels"], json!({}));
}

#[tokio::test]
async fn a_rollback_brings_nothing_back() {
    let new = workload(json!({names::ASK_POD_KILL: "all"}));
    let (answer, _) = ask(DEPLOYMENT, workload(Value::Null), new, &["delete"]).await;
    // As the copy on the ReplicaSet had it, with who asked.
    let (undone, asked) = ask(DEPLOYMENT, workload(Value::Null), answer.object, &["delete"]).await;
    assert!(undone.allowed() && asked.is_empty());
    assert_eq!(undone.object["metadata"]["annotations"], json!({}));
    assert!(undone.warnings().contains("copy"), "{}", undone.warnings());
}

#[tokio::test]
async fn the_copies_of_a_deployment_pass() {
    let copy = |annotations: Value| {
        let mut object = workload(annotations);
        object["kind"] = json!("ReplicaSet");
        object["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "Deployment",
            "name": "web", "uid": "d-1", "controller": true}]);
        object
    };
    // Even nonsense: the Deployment's controller must not be held up.
    let new = copy(json!({names::ASK_POD_KILL: "nonsense"}));
    let (answer, asked) = ask(REPLICA_SET, copy(Value::Null), new, &[]).await;
    assert!(answer.allowed() && !answer.patched() && asked.is_empty());
    assert!(answer.warnings().contains("annotate deployment web"), "{}", answer.warnings());
}

#[tokio::test]
async fn what_squall_writes_itself_and_what_cannot_be_read_passes() {
    let bench = bench();
    let new = workload(json!({names::ASK_POD_KILL: "nonsense"}));
    let path = names::PATH_MUTATE_ANNOTATIONS;
    let ours = review("UPDATE", DEPLOYMENT, names::CONTROLLER_USER, workload(Value::Null), new.clone());
    assert!(bench.review(path, &ours).await.allowed());
    let other = review("UPDATE", ("batch", "v1", "CronJob"), "ann", workload(Value::Null), new.clone());
    let answer = bench.review(path, &other).await;
    assert!(answer.allowed() && answer.warnings().contains("do nothing"), "{}", answer.warnings());
    let created = review("CREATE", DEPLOYMENT, "ann", Value::Null, new);
    let answer = bench.review(path, &created).await;
    assert!(answer.allowed() && !answer.patched());
}
