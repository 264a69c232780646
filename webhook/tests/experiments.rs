//! Reviews of experiments, with a scripted API server for what is asked live.

mod support;

use http::Response;
use kube::client::Body as KubeBody;
use rstest::rstest;
use serde_json::{Value, json};
use squall_api::names;
use support::{ApiServer, Bench, bench, review};

const CHAOS: (&str, &str, &str) = ("squall.dev", "v1alpha1", "PodChaos");

fn chaos(spec: Value) -> Value {
    json!({
        "apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos",
        "metadata": {"name": "x", "namespace": "team"},
        "spec": spec
    })
}

fn pod_kill() -> Value {
    json!({"action": "pod-kill", "mode": "one", "selector": {"labelSelectors": {"app": "web"}}})
}

/// Answers questions as `answer` says, given method, path and body, until nobody asks any more; the questions.
async fn answering(
    mut api: ApiServer,
    answer: impl Fn(&str, &str, &Value) -> (u16, Value),
) -> Vec<(String, Value)> {
    let mut asked = Vec::new();
    while let Some((request, send)) = api.next_request().await {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (status, text) = answer(head.method.as_str(), head.uri.path(), &body);
        asked.push((format!("{} {}", head.method, head.uri.path()), body));
        let response = Response::builder().status(status).body(KubeBody::from(text.to_string().into_bytes()));
        send.send_response(response.unwrap());
    }
    asked
}

fn namespace(name: &str, labels: Value) -> (u16, Value) {
    (200, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
}

fn access(question: &Value, allowed: bool) -> (u16, Value) {
    let mut answer = question.clone();
    answer["status"] = json!({"allowed": allowed});
    (201, answer)
}

fn yes(method: &str, path: &str, body: &Value) -> (u16, Value) {
    if method == "POST" {
        access(body, true)
    } else {
        namespace(path.rsplit('/').next().unwrap(), json!({names::INJECT: names::INJECT_ENABLED}))
    }
}

/// The answer of the validating path, and what the API server was asked meanwhile.
async fn validate(
    review: &Value,
    answer: impl Fn(&str, &str, &Value) -> (u16, Value),
) -> (support::Reviewed, Vec<(String, Value)>) {
    let support::Bench { router, world, metrics, api } = bench();
    let answered = async move {
        let bench = support::Bench { router, world, metrics, api: support::nobody() };
        // The client goes with the bench, and so the script ends.
        bench.review(names::PATH_VALIDATE_EXPERIMENTS, review).await
    };
    futures::join!(answered, answering(api, answer))
}

#[tokio::test]
async fn created_ones_get_defaults_finalizer_and_requester() {
    let bench = bench();
    let asked = review("CREATE", CHAOS, "ann", Value::Null, chaos(pod_kill()));
    let answer = bench.review(names::PATH_MUTATE_EXPERIMENTS, &asked).await;
    assert!(answer.allowed());
    let meta = &answer.object["metadata"];
    assert_eq!(meta["finalizers"], json!([names::FINALIZER]));
    let requester: Value =
        serde_json::from_str(meta["annotations"][names::REQUESTED_BY].as_str().unwrap()).unwrap();
    assert_eq!(
        requester,
        json!({"username": "ann", "uid": "u-1", "groups": ["devs", "system:authenticated"],
               "extra": {"example.org/mfa": ["yes"]}})
    );
    // Whatever the user says, it was she.
    let mut forged = chaos(pod_kill());
    forged["metadata"]["annotations"] = json!({names::REQUESTED_BY: "{\"username\":\"root\"}", "a": "b"});
    forged["metadata"]["finalizers"] = json!(["example.org/other"]);
    let answer = bench
        .review(names::PATH_MUTATE_EXPERIMENTS, &review("CREATE", CHAOS, "ann", Value::Null, forged.clone()))
        .await;
    let meta = &answer.object["metadata"];
    assert!(meta["annotations"][names::REQUESTED_BY].as_str().unwrap().contains("ann"));
    assert_eq!(meta["annotations"]["a"], "b");
    assert_eq!(meta["finalizers"], json!(["example.org/other", names::FINALIZER]));
    // Asked again, nothing changes.
    let again = review("CREATE", CHAOS, "ann", Value::Null, answer.object.clone());
    assert!(!bench.review(names::PATH_MUTATE_EXPERIMENTS, &again).await.patched());
    // What our controller makes for somebody is somebody's.
    let ours = review("CREATE", CHAOS, names::CONTROLLER_USER, Value::Null, forged);
    let answer = bench.review(names::PATH_MUTATE_EXPERIMENTS, &ours).await;
    assert!(answer.object["metadata"]["annotations"][names::REQUESTED_BY].as_str().unwrap().contains("root"));
}

#[tokio::test]
async fn what_the_schema_refuses_is_left_to_it() {
    let bench = bench();
    let odd = chaos(json!({"action": "no-such-thing", "mode": 7, "unknown": true}));
    let answer =
        bench.review(names::PATH_MUTATE_EXPERIMENTS, &review("CREATE", CHAOS, "ann", Value::Null, odd)).await;
    assert!(answer.allowed());
    assert_eq!(answer.object["spec"]["unknown"], true);
    assert_eq!(answer.object["metadata"]["finalizers"], json!([names::FINALIZER]));
}

#[tokio::test]
async fn the_requester_stays() {
    let bench = bench();
    let mut old = chaos(pod_kill());
    old["metadata"]["annotations"] = json!({names::REQUESTED_BY: "{\"username\":\"ann\"}"});
    old["status"] = json!({"phase": "Injected"});
    // `kubectl replace` leaves it out: it comes back.
    let mut new = chaos(pod_kill());
    new["spec"]["duration"] = json!("10s");
    let answer =
        bench.review(names::PATH_MUTATE_EXPERIMENTS, &review("UPDATE", CHAOS, "bob", old.clone(), new)).await;
    assert_eq!(answer.object["metadata"]["annotations"], old["metadata"]["annotations"]);
    // Another one is refused, whoever says so.
    let mut new = old.clone();
    new["metadata"]["annotations"][names::REQUESTED_BY] = json!("{\"username\":\"bob\"}");
    for user in ["bob", names::CONTROLLER_USER] {
        let (answer, asked) = validate(&review("UPDATE", CHAOS, user, old.clone(), new.clone()), yes).await;
        assert!(!answer.allowed() && asked.is_empty());
        assert!(answer.message().contains(names::REQUESTED_BY), "{}", answer.message());
    }
}

/// Without it, it would hit the pods of others that its selector fits, in the name of whoever set the annotation.
#[tokio::test]
async fn what_an_experiment_was_made_for_stays() {
    let bench = bench();
    let mut old = chaos(pod_kill());
    old["metadata"]["annotations"] =
        json!({names::REQUESTED_BY: "{\"username\":\"ann\"}", names::MADE_FOR: "pod-kill/r1"});
    let mut new = old.clone();
    new["metadata"]["annotations"] = json!({names::REQUESTED_BY: "{\"username\":\"ann\"}"});
    let update = review("UPDATE", CHAOS, "bob", old.clone(), new.clone());
    let answer = bench.review(names::PATH_MUTATE_EXPERIMENTS, &update).await;
    assert_eq!(answer.object["metadata"]["annotations"], old["metadata"]["annotations"]);
    let mut another = old.clone();
    another["metadata"]["annotations"][names::MADE_FOR] = json!("pod-kill/r2");
    for (old, new) in [(old.clone(), new.clone()), (old.clone(), another), (new, old)] {
        let (answer, asked) = validate(&review("UPDATE", CHAOS, "bob", old, new), yes).await;
        assert!(!answer.allowed() && asked.is_empty());
        assert!(answer.message().contains(names::MADE_FOR), "{}", answer.message());
    }
}

#[rstest]
#[case(json!({"action": "pod-kill"}), "delete", Value::Null)]
#[case(json!({"action": "pod-kill", "evict": true}), "create", json!("eviction"))]
#[case(json!({"action": "pod-failure", "duration": "1m"}), "patch", Value::Null)]
#[case(json!({"action": "container-kill"}), "patch", Value::Null)]
#[tokio::test]
async fn the_requester_must_be_allowed_to_do_it_by_hand(
    #[case] mut spec: Value,
    #[case] verb: &str,
    #[case] subresource: Value,
) {
    spec["mode"] = json!("one");
    spec["selector"] = json!({"namespaces": ["a", "b"]});
    let asked = review("CREATE", CHAOS, "ann", Value::Null, chaos(spec));
    let (answer, questions) = validate(&asked, yes).await;
    assert!(answer.allowed(), "{}", answer.message());
    let rights: Vec<&Value> = questions
        .iter()
        .filter(|(what, _)| what.starts_with("POST"))
        .map(|(_, body)| &body["spec"])
        .collect();
    assert_eq!(rights.len(), 2);
    for (right, namespace) in rights.iter().zip(["a", "b"]) {
        let wanted = &right["resourceAttributes"];
        assert_eq!((&wanted["verb"], &wanted["resource"]), (&json!(verb), &json!("pods")));
        assert_eq!(wanted["subresource"], subresource);
        assert_eq!(wanted["namespace"], namespace);
        assert_eq!((&right["user"], &right["uid"]), (&json!("ann"), &json!("u-1")));
        assert_eq!(right["groups"], json!(["devs", "system:authenticated"]));
        assert_eq!(right["extra"], json!({"example.org/mfa": ["yes"]}));
    }

    let no = |method: &str, path: &str, body: &Value| {
        if method == "POST" {
            let there = body["spec"]["resourceAttributes"]["namespace"] == "a";
            access(body, there)
        } else {
            yes(method, path, body)
        }
    };
    let (answer, questions) = validate(&asked, no).await;
    assert!(!answer.allowed());
    let what = if subresource.is_null() { "pods".to_owned() } else { "pods/eviction".to_owned() };
    let expected = format!("ann may not {verb} {what} in namespace b");
    assert!(answer.message().contains(&expected), "{}", answer.message());
    assert_eq!(answer.response["status"]["code"], 403);
    // Who has no right there isn't told anything else.
    assert!(questions.iter().all(|(what, _)| what.starts_with("POST")));
}

#[tokio::test]
async fn what_our_controller_makes_was_asked_before() {
    let asked = review("CREATE", CHAOS, names::CONTROLLER_USER, Value::Null, chaos(pod_kill()));
    let (answer, questions) = validate(&asked, yes).await;
    assert!(answer.allowed());
    assert!(questions.iter().all(|(what, _)| what == "GET /api/v1/namespaces/team"), "{questions:?}");
}

#[tokio::test]
async fn namespaces_take_part_or_not() {
    let asked = review("CREATE", CHAOS, "ann", Value::Null, chaos(pod_kill()));
    let with = |labels: Value| {
        move |method: &str, path: &str, body: &Value| {
            if method == "POST" { yes(method, path, body) } else { namespace("team", labels.clone()) }
        }
    };
    let (answer, _) = validate(&asked, with(json!({}))).await;
    assert!(!answer.allowed());
    assert!(
        answer.message().contains("kubectl label namespace team squall.dev/inject=enabled"),
        "{}",
        answer.message()
    );
    let (answer, _) =
        validate(&asked, with(json!({names::INJECT: names::INJECT_ENABLED, names::PROTECT: "true"}))).await;
    assert!(!answer.allowed() && answer.message().contains(names::PROTECT));
    let gone = |method: &str, path: &str, body: &Value| {
        if method == "POST" {
            return yes(method, path, body);
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
                            "message": "not there", "code": 404});
        (404, status)
    };
    let (answer, _) = validate(&asked, gone).await;
    assert!(!answer.allowed() && answer.message().contains("does not exist"), "{}", answer.message());
    // Those of the system are refused without asking.
    let mut spec = pod_kill();
    spec["selector"] = json!({"namespaces": ["kube-system"]});
    let (answer, questions) = validate(&review("CREATE", CHAOS, "ann", Value::Null, chaos(spec)), yes).await;
    assert!(!answer.allowed() && questions.is_empty());
    assert!(answer.message().contains("kube-system"), "{}", answer.message());
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_means_no() {
    let asked = review("CREATE", CHAOS, "ann", Value::Null, chaos(pod_kill()));
    let broken = |_: &str, _: &str, _: &Value| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                            "reason": "InternalError", "message": "broken", "code": 500});
        (500, status)
    };
    let (answer, _) = validate(&asked, broken).await;
    assert!(!answer.allowed() && answer.message().contains("try again"), "{}", answer.message());
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_means_no() {
    let bench = bench();
    let asked = review("CREATE", CHAOS, "ann", Value::Null, chaos(pod_kill()));
    let answer = bench.review(names::PATH_VALIDATE_EXPERIMENTS, &asked).await;
    assert!(!answer.allowed() && answer.message().contains("in time"), "{}", answer.message());
}

fn in_namespaces(count: usize) -> Value {
    let names: Vec<String> = (0..count).map(|index| format!("team-{index}")).collect();
    let mut spec = pod_kill();
    spec["selector"]["namespaces"] = json!(names);
    review("CREATE", CHAOS, "ann", Value::Null, chaos(spec))
}

#[tokio::test]
async fn an_experiment_names_a_hundred_namespaces_at_most() {
    let (answer, questions) = validate(&in_namespaces(100), yes).await;
    assert!(answer.allowed(), "{}", answer.message());
    assert_eq!(questions.len(), 200);
    let (answer, questions) = validate(&in_namespaces(101), yes).await;
    assert!(!answer.allowed() && questions.is_empty());
    assert!(answer.message().contains("up to 100"), "{}", answer.message());
}

#[tokio::test(start_paused = true)]
async fn many_reviews_ask_few_questions_at_a_time() {
    let Bench { router, world, metrics, mut api } = bench();
    let bench = Bench { router, world, metrics, api: support::nobody() };
    let asked = in_namespaces(50);
    // An API server that takes questions and is slow to answer.
    let count = async {
        let mut open = Vec::new();
        let second = std::time::Duration::from_secs(1);
        while let Ok(Some(question)) = tokio::time::timeout(second, api.next_request()).await {
            open.push(question);
        }
        open.len()
    };
    let path = names::PATH_VALIDATE_EXPERIMENTS;
    let reviews = [1, 2, 3].map(|last| bench.review_as([10, 0, 0, last], path, &asked));
    let (answers, open) = tokio::join!(futures::future::join_all(reviews), count);
    assert_eq!(open, squall_webhook::access::TOGETHER);
    assert!(answers.iter().all(|answer| !answer.allowed()));
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_much_leaves_turns_to_the_others() {
    let Bench { router, world, metrics, mut api } = bench();
    let bench = Bench { router, world, metrics, api: support::nobody() };
    let asked = in_namespaces(50);
    let one = review("CREATE", CHAOS, "bob", Value::Null, chaos(pod_kill()));
    // An API server that answers the other's questions only.
    let serving = async {
        let mut held = Vec::new();
        while let Some((request, send)) = api.next_request().await {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let question: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            if head.method == "POST" && question["spec"]["user"] == "ann" {
                held.push(send);
                continue;
            }
            let (status, text) = yes(head.method.as_str(), head.uri.path(), &question);
            let body = KubeBody::from(text.to_string().into_bytes());
            send.send_response(Response::builder().status(status).body(body).unwrap());
        }
    };
    let path = names::PATH_VALIDATE_EXPERIMENTS;
    let flood = futures::future::join_all([0; 3].map(|_| bench.review_as([10, 0, 0, 1], path, &asked)));
    let other = async {
        // When the first one's questions are all under way.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        bench.review_as([10, 0, 0, 2], path, &one).await
    };
    let answer = tokio::select! {
        answer = other => answer,
        _ = flood => panic!("it was answered when the first one had given up"),
        () = serving => unreachable!("the API server is there"),
    };
    assert!(answer.allowed(), "{}", answer.message());
}

#[tokio::test]
async fn errors_name_their_fields() {
    let spec = json!({"action": "pod-failure", "mode": "fixed", "value": "many", "duration": "soon", "selector": {}});
    let (answer, questions) = validate(&review("CREATE", CHAOS, "ann", Value::Null, chaos(spec)), yes).await;
    assert!(!answer.allowed() && questions.is_empty());
    let status = &answer.response["status"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(422), &json!("Invalid")));
    let fields: Vec<&str> = status["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    assert!(fields.contains(&"spec.value") && fields.contains(&"spec.duration"), "{fields:?}");
    for field in fields {
        assert!(answer.message().contains(field));
    }
}

#[tokio::test]
async fn a_lasting_fault_without_end_is_warned_of() {
    let spec = json!({"action": "pod-failure", "mode": "one", "selector": {"labelSelectors": {"a": "b"}}});
    let (answer, _) = validate(&review("CREATE", CHAOS, "ann", Value::Null, chaos(spec)), yes).await;
    assert!(answer.allowed());
    assert!(answer.warnings().contains("spec.duration"), "{}", answer.warnings());
}

#[tokio::test]
async fn while_it_runs_little_may_change() {
    let mut old = chaos(json!({"action": "pod-failure", "mode": "one", "duration": "1m",
                               "selector": {"labelSelectors": {"app": "web"}}}));
    let mut longer = old.clone();
    longer["spec"]["duration"] = json!("2m");
    let mut wider = old.clone();
    wider["spec"]["selector"] = json!({"namespaces": ["team", "other"]});

    // Nothing chosen yet: everything is open, and asked about; the user who changes it must be allowed to, and it is he
    // who asks for it from now on, with nobody else's name.
    let changed = review("UPDATE", CHAOS, "bob", old.clone(), wider.clone());
    assert!(!validate(&changed, yes).await.0.allowed(), "it says that somebody else asks");
    let signed = bench().review(names::PATH_MUTATE_EXPERIMENTS, &changed).await.object;
    let requester = signed["metadata"]["annotations"][names::REQUESTED_BY].as_str().unwrap();
    assert!(requester.contains("\"bob\""), "{requester}");
    let (answer, questions) = validate(&review("UPDATE", CHAOS, "bob", old.clone(), signed), yes).await;
    assert!(answer.allowed(), "{}", answer.message());
    assert_eq!(questions[0].1["spec"]["user"], "bob");
    // Only what is named anew must take part.
    let live: Vec<&String> =
        questions.iter().map(|(what, _)| what).filter(|what| what.starts_with("GET")).collect();
    assert_eq!(live, ["GET /api/v1/namespaces/other"]);

    old["status"] = json!({"phase": "Injected", "targets": []});
    let (answer, _) = validate(&review("UPDATE", CHAOS, "ann", old.clone(), longer), yes).await;
    assert!(answer.allowed(), "{}", answer.message());
    let (answer, questions) = validate(&review("UPDATE", CHAOS, "ann", old, wider), yes).await;
    assert!(!answer.allowed() && questions.is_empty());
    assert!(answer.message().contains("spec.selector"), "{}", answer.message());
}

#[tokio::test]
async fn other_kinds_are_refused() {
    let bench = bench();
    let other =
        review("CREATE", ("squall.dev", "v1alpha1", "StormChaos"), "ann", Value::Null, chaos(json!({})));
    for path in [names::PATH_MUTATE_EXPERIMENTS, names::PATH_VALIDATE_EXPERIMENTS] {
        let answer = bench.review(path, &other).await;
        assert!(!answer.allowed() && answer.message().contains("StormChaos"), "{}", answer.message());
    }
    let mut status = review("UPDATE", CHAOS, "ann", chaos(pod_kill()), chaos(json!({"broken": 1})));
    status["request"]["subResource"] = json!("status");
    assert!(bench.review(names::PATH_VALIDATE_EXPERIMENTS, &status).await.allowed());
}

const STRESS: (&str, &str, &str) = ("squall.dev", "v1alpha1", "StressChaos");

fn stress(stressors: Value) -> Value {
    json!({
        "apiVersion": "squall.dev/v1alpha1", "kind": "StressChaos",
        "metadata": {"name": "x", "namespace": "team"},
        "spec": {"mode": "one", "selector": {"labelSelectors": {"app": "web"}}, "stressors": stressors}
    })
}

#[tokio::test]
async fn a_stresschaos_is_admitted_by_the_same_code() {
    let bench = bench();
    let written = stress(json!({"cpu": {"workers": 2, "options": ["--cpu 2"]}}));
    let created = review("CREATE", STRESS, "ann", Value::Null, written.clone());
    let answer = bench.review(names::PATH_MUTATE_EXPERIMENTS, &created).await;
    assert!(answer.allowed());
    assert_eq!(answer.object["spec"]["stressors"]["cpu"]["load"], 100);
    assert_eq!(answer.object["metadata"]["finalizers"], json!([names::FINALIZER]));
    assert!(answer.object["metadata"]["annotations"][names::REQUESTED_BY].as_str().unwrap().contains("ann"));

    let (answer, asked) = validate(&created, yes).await;
    assert!(answer.allowed(), "{}", answer.message());
    assert!(answer.warnings().contains("spec.stressors.cpu.options is ignored"), "{}", answer.warnings());
    assert!(answer.warnings().contains("spec.duration is unset"), "{}", answer.warnings());
    let access = asked.iter().find(|(question, _)| question.starts_with("POST")).unwrap();
    let attributes = &access.1["spec"]["resourceAttributes"];
    assert_eq!((&attributes["verb"], &attributes["resource"]), (&json!("patch"), &json!("pods")));

    let refused = review("CREATE", STRESS, "ann", Value::Null, stress(json!({"cpu": {"workers": 0}})));
    let (answer, asked) = validate(&refused, yes).await;
    assert!(!answer.allowed() && asked.is_empty());
    assert!(answer.message().contains("spec.stressors.cpu.workers"), "{}", answer.message());
}

#[tokio::test]
async fn a_paused_experiment_of_chaos_meshs_does_not_begin_here() {
    let with = |value: &str| {
        let mut chaos = chaos(pod_kill());
        chaos["metadata"]["annotations"] = json!({"experiment.chaos-mesh.org/pause": value});
        review("CREATE", CHAOS, "ann", Value::Null, chaos)
    };
    let (answer, asked) = validate(&with("true"), yes).await;
    assert!(!answer.allowed() && asked.is_empty());
    let said = answer.message();
    for word in ["metadata.annotations[experiment.chaos-mesh.org/pause]", "true", names::PAUSE] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    assert!(validate(&with("false"), yes).await.0.allowed());
}
