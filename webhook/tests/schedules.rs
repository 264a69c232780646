//! Reviews of schedules, with a scripted API server for what is asked live.

mod support;

use http::Response;
use kube::client::Body as KubeBody;
use rstest::rstest;
use serde_json::{Value, json};
use squall_api::names;
use support::{ApiServer, Bench, Reviewed, bench, review};

const SCHEDULE: (&str, &str, &str) = ("squall.dev", "v1alpha1", "Schedule");

fn schedule(change: Value) -> Value {
    let mut spec = json!({
        "schedule": "0 9 * * mon-fri", "timeZone": "Europe/Berlin", "type": "PodChaos",
        "podChaos": {"action": "pod-kill", "mode": "one", "selector": {"namespaces": ["a", "b"]}}
    });
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "squall.dev/v1alpha1", "kind": "Schedule",
           "metadata": {"name": "x", "namespace": "team"}, "spec": spec})
}

/// Says yes to everything, in namespaces that take part; what was asked.
async fn answering(mut api: ApiServer, allowed: bool) -> Vec<(String, Value)> {
    let mut asked = Vec::new();
    while let Some((request, send)) = api.next_request().await {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let mut answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        asked.push((format!("{} {}", head.method, head.uri.path()), answer.clone()));
        if head.method == "POST" {
            answer["status"] = json!({"allowed": allowed});
        } else {
            let name = head.uri.path().rsplit('/').next().unwrap().to_owned();
            answer = json!({"apiVersion": "v1", "kind": "Namespace",
                            "metadata": {"name": name, "labels": {names::INJECT: names::INJECT_ENABLED}}});
        }
        let response = Response::builder().status(200).body(KubeBody::from(answer.to_string().into_bytes()));
        send.send_response(response.unwrap());
    }
    asked
}

async fn validate(review: &Value, allowed: bool) -> (Reviewed, Vec<(String, Value)>) {
    let Bench { router, world, metrics, api } = bench();
    let answered = async move {
        let bench = Bench { router, world, metrics, api: support::nobody() };
        bench.review(names::PATH_VALIDATE_EXPERIMENTS, review).await
    };
    futures::join!(answered, answering(api, allowed))
}

#[tokio::test]
async fn who_asked_is_written_down_and_stays() {
    let bench = bench();
    let mut forged = schedule(json!({}));
    forged["metadata"]["annotations"] = json!({names::REQUESTED_BY: "{\"username\":\"root\"}"});
    let asked = review("CREATE", SCHEDULE, "ann", Value::Null, forged);
    let answer = bench.review(names::PATH_MUTATE_EXPERIMENTS, &asked).await;
    let meta = &answer.object["metadata"];
    assert!(meta["annotations"][names::REQUESTED_BY].as_str().unwrap().contains("\"ann\""));
    // Its experiments have one; it needs none.
    assert_eq!(meta["finalizers"], Value::Null);
    // `kubectl replace` leaves it out: it comes back.
    let old = answer.object;
    let asked = review("UPDATE", SCHEDULE, "bob", old.clone(), schedule(json!({"suspend": true})));
    let kept = bench.review(names::PATH_MUTATE_EXPERIMENTS, &asked).await;
    assert_eq!(kept.object["metadata"]["annotations"], old["metadata"]["annotations"]);
    // Another one is refused.
    let mut new = old.clone();
    new["metadata"]["annotations"][names::REQUESTED_BY] = json!("{\"username\":\"bob\"}");
    let (answer, questions) = validate(&review("UPDATE", SCHEDULE, "bob", old, new), true).await;
    assert!(!answer.allowed() && questions.is_empty());
    assert!(answer.message().contains(names::REQUESTED_BY), "{}", answer.message());
}

/// As `user` made it.
async fn signed(user: &str, change: Value) -> Value {
    let asked = review("CREATE", SCHEDULE, user, Value::Null, schedule(change));
    bench().review(names::PATH_MUTATE_EXPERIMENTS, &asked).await.object
}

fn requester(schedule: &Value) -> &str {
    let text = schedule["metadata"]["annotations"][names::REQUESTED_BY].as_str().unwrap();
    if text.contains("\"ann\"") { "ann" } else { "bob" }
}

#[rstest]
#[case::what(json!({"podChaos": {"action": "pod-kill", "mode": "all", "selector": {"namespaces": ["a", "b"]}}}), true)]
#[case::when(json!({"schedule": "@every 1s"}), true)]
#[case::held_up(json!({"suspend": true}), false)]
#[case::tidied(json!({"historyLimit": 3}), false)]
#[tokio::test]
async fn whoever_changes_what_it_does_answers_for_it(#[case] change: Value, #[case] asks: bool) {
    let anns = signed("ann", json!({})).await;
    let mut changed = anns.clone();
    for (key, value) in change.as_object().unwrap() {
        changed["spec"][key] = value.clone();
    }
    let mutated = bench()
        .review(
            names::PATH_MUTATE_EXPERIMENTS,
            &review("UPDATE", SCHEDULE, "bob", anns.clone(), changed.clone()),
        )
        .await
        .object;
    assert_eq!(requester(&mutated), if asks { "bob" } else { "ann" });
    // Only ann may: bob is refused what she could ask for, by its name in hers as well.
    let only_ann = json!({"apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": {"name": "p"},
                          "spec": {"allow": {"users": ["ann"]}}});
    for (user, object) in [("bob", &mutated), ("bob", &changed), ("ann", &changed)] {
        let Bench { router, world, metrics, api } = bench();
        let policy = serde_json::from_value(only_ann.clone()).unwrap();
        world.policy_event(kube_runtime::watcher::Event::Apply(policy));
        let asked = review("UPDATE", SCHEDULE, user, anns.clone(), object.clone());
        let answered = async move {
            let bench = Bench { router, world, metrics, api: support::nobody() };
            bench.review(names::PATH_VALIDATE_EXPERIMENTS, &asked).await
        };
        // Where it does nothing else than before, nobody needs a right to pods.
        let (answer, _) = futures::join!(answered, answering(api, asks));
        assert_eq!(answer.allowed(), !asks || user == "ann", "{user}: {}", answer.message());
        if !answer.allowed() {
            let words = if object == &mutated {
                "allow.users: found bob; allowed: users ann"
            } else {
                "requested-by"
            };
            assert!(answer.message().contains(words), "{}", answer.message());
        }
    }
}

#[tokio::test]
async fn whoever_writes_it_must_be_allowed_to_do_it_by_hand() {
    let asked = review("CREATE", SCHEDULE, "ann", Value::Null, schedule(json!({})));
    let (answer, questions) = validate(&asked, true).await;
    assert!(answer.allowed(), "{}", answer.message());
    let rights: Vec<String> = questions
        .iter()
        .filter(|(what, _)| what.starts_with("POST"))
        .map(|(_, body)| {
            let wanted = &body["spec"]["resourceAttributes"];
            assert_eq!(body["spec"]["user"], "ann");
            format!("{} {} {}", wanted["verb"], wanted["resource"], wanted["namespace"])
        })
        .collect();
    assert_eq!(rights, ["\"delete\" \"pods\" \"a\"", "\"delete\" \"pods\" \"b\""]);
    let (answer, _) = validate(&asked, false).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains("ann may not delete pods in namespace a"), "{}", answer.message());
    // Who changes it, too; only what is named anew must take part.
    let wider =
        json!({"podChaos": {"action": "pod-kill", "mode": "one", "selector": {"namespaces": ["a", "c"]}}});
    let asked = review("UPDATE", SCHEDULE, "bob", schedule(json!({})), signed("bob", wider).await);
    let (answer, questions) = validate(&asked, true).await;
    assert!(answer.allowed() && questions[0].1["spec"]["user"] == "bob");
    let live: Vec<&str> = questions.iter().filter_map(|(what, _)| what.strip_prefix("GET ")).collect();
    assert_eq!(live, ["/api/v1/namespaces/c"]);
}

#[rstest]
#[case(json!({"schedule": "0 0 30 2 *"}), "spec.schedule", "never runs")]
#[case(json!({"schedule": "61 * * * *"}), "spec.schedule", "five cron fields")]
#[case(json!({"timeZone": "Europe/Berln"}), "spec.timeZone", "IANA")]
#[case(json!({"schedule": "@every 1m", "jitter": "90s"}), "spec.jitter", "1m")]
#[case(json!({"historyLimit": 0}), "spec.historyLimit", "1 to 100")]
#[case(json!({"podChaos": {"action": "pod-kill", "mode": "one", "duration": "soon"}}), "spec.podChaos.duration", "30s")]
#[case(json!({"podChaos": {"action": "pod-kill", "mode": "one", "selector": {"namespaces": ["kube-system"]}}}),
       "spec.podChaos.selector", "kube-system")]
#[tokio::test]
async fn errors_name_their_fields(#[case] change: Value, #[case] field: &str, #[case] says: &str) {
    let asked = review("CREATE", SCHEDULE, "ann", Value::Null, schedule(change));
    let (answer, questions) = validate(&asked, true).await;
    assert!(!answer.allowed() && questions.is_empty());
    assert!(answer.message().contains(field) && answer.message().contains(says), "{}", answer.message());
}
