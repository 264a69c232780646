//! What policies and halts say at admission: of experiments, of the label by hand, and of policies themselves.

mod support;

use http::Response;
use k8s_openapi::api::core::v1::Namespace;
use kube::client::Body as KubeBody;
use kube_runtime::watcher::Event;
use rstest::rstest;
use serde_json::{Value, json};
use squall_api::{ChaosPolicy, names};
use squall_model::pod::NamespaceView;
use support::{ApiServer, Bench, PAUSE, bench, review};

const CHAOS: (&str, &str, &str) = ("squall.dev", "v1alpha1", "PodChaos");
const POLICY: (&str, &str, &str) = ("squall.dev", "v1alpha1", "ChaosPolicy");
const POD: (&str, &str, &str) = ("", "v1", "Pod");

fn know(bench: &Bench, annotations: Value, policies: &[Value]) {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {
        "name": "team", "labels": {names::INJECT: names::INJECT_ENABLED}, "annotations": annotations
    }}))
    .unwrap();
    for event in [Event::Init, Event::InitApply(NamespaceView::of(&namespace)), Event::InitDone] {
        bench.world.namespace_event(event);
    }
    bench.world.policy_event(Event::Init);
    for policy in policies {
        let policy: ChaosPolicy = serde_json::from_value(policy.clone()).unwrap();
        bench.world.policy_event(Event::InitApply(policy));
    }
    bench.world.policy_event(Event::InitDone);
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": {"name": "p"}, "spec": spec})
}

/// Everything may be done and takes part.
async fn yes(mut api: ApiServer) {
    while let Some((request, send)) = api.next_request().await {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let answer = if head.method == "POST" {
            let mut answer: Value = serde_json::from_slice(&body).unwrap();
            answer["status"] = json!({"allowed": true});
            answer
        } else {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": "team", "labels": {names::INJECT: names::INJECT_ENABLED}
            }})
        };
        let response = Response::builder().status(200).body(KubeBody::from(answer.to_string().into_bytes()));
        send.send_response(response.unwrap());
    }
}

fn object(spec: Value) -> Value {
    json!({
        "apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos",
        "metadata": {"name": "x", "namespace": "team"}, "spec": spec
    })
}

/// The answer to an experiment with this spec, or to one that runs with `old`, where `policies` and `annotations` say
/// something.
async fn experiment(old: Value, spec: Value, annotations: Value, policies: &[Value]) -> support::Reviewed {
    let asked = if old.is_null() {
        review("CREATE", CHAOS, "ann", Value::Null, object(spec))
    } else {
        let mut old = object(old);
        old["status"] = json!({"phase": "Injected"});
        review("UPDATE", CHAOS, "ann", old, object(spec))
    };
    reviewed(asked, annotations, policies).await
}

async fn reviewed(asked: Value, annotations: Value, policies: &[Value]) -> support::Reviewed {
    let bench = bench();
    know(&bench, annotations, policies);
    let support::Bench { router, world, metrics, api } = bench;
    let answered = async move {
        let bench = support::Bench { router, world, metrics, api: support::nobody() };
        bench.review(names::PATH_VALIDATE_EXPERIMENTS, &asked).await
    };
    futures::join!(answered, yes(api)).0
}

fn failure(duration: &str) -> Value {
    json!({"action": "pod-failure", "mode": "one", "duration": duration})
}

#[rstest]
#[case(json!({"allow": {"actions": ["pod-kill"]}}), "ChaosPolicy p, allow.actions: found pod-failure; allowed: pod-kill")]
#[case(json!({"allow": {"groups": ["sre"]}}), "ChaosPolicy p, allow.users: found ann; allowed: groups sre")]
#[case(json!({"limits": {"maxDuration": "5m"}}), "ChaosPolicy p, limits.maxDuration: found 1h; allowed: at most 5m")]
#[case(json!({"limits": {"maxTargets": 0}}), "ChaosPolicy p, limits.maxTargets: found 1; allowed: 0")]
#[case(json!({"windows": []}), "no window ever opens")]
#[case(json!({"halt": {"active": true, "reason": "audit"}}), "ChaosPolicy p, spec.halt: halted: audit")]
#[case(json!({"windows": [{"from": "09:00", "to": "17:00", "timeZone": "Mars/Base"}]}), "spec.windows[0].timeZone: found \"Mars/Base\"")]
#[tokio::test]
async fn a_policy_refuses_an_experiment_in_its_words(#[case] spec: Value, #[case] words: &str) {
    let answer = experiment(Value::Null, failure("1h"), json!({}), &[policy(spec)]).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains(words), "{}", answer.message());
}

#[tokio::test]
async fn what_policies_allow_is_accepted_and_a_group_is_enough() {
    let spec = json!({"allow": {"users": ["bob"], "groups": ["devs"], "actions": ["pod-failure"]},
                      "limits": {"maxDuration": "1h", "maxTargets": 1}});
    let answer = experiment(Value::Null, failure("1h"), json!({}), &[policy(spec)]).await;
    assert!(answer.allowed(), "{}", answer.message());
}

#[tokio::test]
async fn where_it_is_halted_no_experiment_begins_and_a_running_one_can_be_shortened() {
    let halted = json!({names::HALT: "incident 4711"});
    let answer = experiment(Value::Null, failure("1h"), halted.clone(), &[]).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains("namespace team is halted: incident 4711"), "{}", answer.message());
    assert!(
        answer.message().contains("kubectl annotate namespace team squall.dev/halt-"),
        "{}",
        answer.message()
    );

    let tight = policy(json!({"limits": {"maxDuration": "1m"}, "windows": []}));
    let answer =
        experiment(failure("1h"), failure("30m"), halted.clone(), std::slice::from_ref(&tight)).await;
    assert!(answer.allowed(), "{}", answer.message());
    let answer = experiment(failure("1h"), failure("2h"), halted, &[tight]).await;
    assert!(answer.message().contains("limits.maxDuration: found 2h"), "{}", answer.message());
}

/// What waits for targets is not another's way to hit pods in the name of who made it.
#[tokio::test]
async fn whoever_changes_what_has_hit_nothing_yet_is_judged_by_the_policies() {
    let only = |user: &str| policy(json!({"allow": {"users": [user]}}));
    let mutate = async |asked: Value| bench().review(names::PATH_MUTATE_EXPERIMENTS, &asked).await.object;
    let mut old = mutate(review("CREATE", CHAOS, "ann", Value::Null, object(failure("1h")))).await;
    old["status"] = json!({"phase": "Pending"});
    let mut other = old.clone();
    other["spec"]["selector"] = json!({"labelSelectors": {"app": "another"}});
    let other = mutate(review("UPDATE", CHAOS, "bob", old.clone(), other)).await;
    let asked = review("UPDATE", CHAOS, "bob", old, other);
    let answer = reviewed(asked.clone(), json!({}), &[only("ann")]).await;
    assert!(answer.message().contains("allow.users: found bob; allowed: users ann"), "{}", answer.message());
    let answer = reviewed(asked, json!({}), &[only("bob")]).await;
    assert!(answer.allowed(), "{}", answer.message());
}

fn pod(labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-1", "namespace": "team", "uid": "u", "resourceVersion": "1", "labels": labels,
                     "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "web", "image": "web:1", "command": ["serve"]}]},
        "status": {"phase": "Running"}
    })
}

#[rstest]
#[case(json!({names::HALT: "incident"}), json!({}), "namespace team is halted: incident")]
#[case(json!({}), json!({"allow": {"actions": []}}), "ChaosPolicy p, allow.actions: found pod-failure; allowed: none")]
#[case(json!({}), json!({"protect": {"podSelector": {"matchLabels": {"app": "web"}}}}), "ChaosPolicy p, protect")]
#[case(json!({}), json!({"limits": {"maxTargets": 0}}), "ChaosPolicy p, limits.maxTargets: found 1; allowed: 0")]
#[case(json!({}), json!({"haltWhen": [{"nodes": {}}]}), "ChaosPolicy p, haltWhen: found a probe that has not been looked")]
#[tokio::test]
async fn the_label_by_hand_is_refused_on_a_live_pod_and_a_pod_is_born_whole(
    #[case] annotations: Value,
    #[case] spec: Value,
    #[case] words: &str,
) {
    let bench = bench();
    know(&bench, annotations, &[policy(spec)]);
    let failed = pod(json!({"app": "web", names::FAULT: names::POD_FAILURE}));
    let asked = review("UPDATE", POD, "ann", pod(json!({"app": "web"})), failed.clone());
    let answer = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains(words), "{}", answer.message());
    let answer =
        bench.review(names::PATH_MUTATE_PODS, &review("CREATE", POD, "ann", Value::Null, failed)).await;
    assert!(answer.allowed());
    assert_eq!(answer.object["spec"]["containers"][0]["image"], "web:1");
    assert!(answer.warnings().contains(words), "{}", answer.warnings());
}

#[tokio::test]
async fn taking_the_label_away_asks_no_policy() {
    let bench = bench();
    know(&bench, json!({}), &[]);
    let failed = pod(json!({"app": "web", names::FAULT: names::POD_FAILURE}));
    let asked = review("UPDATE", POD, "ann", pod(json!({"app": "web"})), failed);
    let failed = bench.review(names::PATH_MUTATE_PODS, &asked).await.object;
    assert_eq!(failed["spec"]["containers"][0]["image"], PAUSE);
    know(&bench, json!({names::HALT: ""}), &[policy(json!({"allow": {"actions": []}, "windows": []}))]);
    let mut whole = failed.clone();
    whole["metadata"]["labels"].as_object_mut().unwrap().remove(names::FAULT);
    let answer = bench.review(names::PATH_MUTATE_PODS, &review("UPDATE", POD, "ann", failed, whole)).await;
    assert!(answer.allowed());
    assert_eq!(answer.object["spec"]["containers"][0]["image"], "web:1");
}

#[tokio::test]
async fn at_the_limit_a_fault_by_hand_can_be_shortened_and_none_be_added() {
    let bench = bench();
    let full = || {
        let mut full = policy(json!({"limits": {"maxTargets": 1}}));
        full["status"] = json!({"usage": {
            "namespaces": 1, "targets": 1, "byHand": 1, "experiments": 0, "summary": "1/1"
        }});
        full
    };
    know(&bench, json!({}), &[]);
    let failed = pod(json!({names::FAULT: names::POD_FAILURE}));
    let asked = review("UPDATE", POD, "ann", pod(json!({})), failed.clone());
    let failed_by_hand = bench.review(names::PATH_MUTATE_PODS, &asked).await.object;
    know(&bench, json!({}), &[full()]);
    let another = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(
        another.message().contains("limits.maxTargets: found 1 asked for, 1 hit"),
        "{}",
        another.message()
    );
    let mut shorter = failed_by_hand.clone();
    shorter["metadata"]["annotations"][names::UNTIL] = json!("1m");
    let asked = review("UPDATE", POD, "ann", failed_by_hand.clone(), shorter);
    let answer = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(answer.allowed() && answer.warnings().contains("(1m)"), "{}", answer.message());
    // Since when it is held is not asked anew.
    let since = |pod: &Value| {
        let held = pod["metadata"]["annotations"][names::HELD_BY].as_str().unwrap();
        let held: Value = serde_json::from_str(held).unwrap();
        held[0]["since"].as_str().unwrap().to_owned()
    };
    assert_eq!(since(&answer.object), since(&failed_by_hand));
}

#[tokio::test]
async fn what_the_hand_holds_can_be_shortened_while_a_probe_is_unseen_and_none_begins() {
    let bench = bench();
    let probed = |healthy: &str| {
        let mut probed = policy(json!({"haltWhen": [{"nodes": {}}]}));
        probed["status"] = json!({"probes": [{"name": "haltWhen[0].nodes", "healthy": healthy}]});
        probed
    };
    know(&bench, json!({}), &[probed("True")]);
    let failed = pod(json!({names::FAULT: names::POD_FAILURE}));
    let asked = review("UPDATE", POD, "ann", pod(json!({})), failed);
    let answer = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(answer.allowed(), "{}", answer.message());
    let failed = answer.object;
    know(&bench, json!({}), &[probed("Unknown")]);
    let another = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(another.message().contains("try again in some seconds"), "{}", another.message());
    let mut shorter = failed.clone();
    shorter["metadata"]["annotations"][names::UNTIL] = json!("1m");
    let asked = review("UPDATE", POD, "ann", failed, shorter);
    let answer = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(answer.allowed() && answer.warnings().contains("(1m)"), "{}", answer.message());
}

#[tokio::test]
async fn without_a_duration_the_hand_gets_what_the_policy_allows() {
    let bench = bench();
    know(&bench, json!({}), &[policy(json!({"limits": {"maxDuration": "10m"}}))]);
    let failed = pod(json!({"app": "web", names::FAULT: names::POD_FAILURE}));
    let asked = review("UPDATE", POD, "ann", pod(json!({"app": "web"})), failed);
    let answer = bench.review(names::PATH_MUTATE_PODS, &asked).await;
    assert!(answer.allowed(), "{}", answer.message());
    assert!(answer.warnings().contains("(10m)"), "{}", answer.warnings());
}

#[rstest]
#[case(json!({"windows": [{"from": "09:00", "to": "09:00"}]}), "spec.windows[0].to")]
#[case(json!({"limits": {"maxDuration": "soon"}}), "spec.limits.maxDuration: found \"soon\"")]
#[case(json!({"haltWhen": [{"http": {"url": "http://169.254.169.254/"}}]}), "spec.haltWhen[0].http.url")]
#[case(json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}), "spec.namespaceSelector.matchExpressions[0].operator")]
#[tokio::test]
async fn a_policy_that_makes_no_sense_is_refused_but_never_one_that_halts(
    #[case] spec: Value,
    #[case] field: &str,
) {
    let bench = bench();
    let asked = review("CREATE", POLICY, "ann", Value::Null, policy(spec.clone()));
    let answer = bench.review(names::PATH_VALIDATE_POLICIES, &asked).await;
    assert!(!answer.allowed());
    assert!(answer.message().contains(field), "{}", answer.message());
    let mut halting = policy(spec);
    halting["spec"]["halt"] = json!({"active": true});
    let asked = review("CREATE", POLICY, "ann", Value::Null, halting);
    assert!(bench.review(names::PATH_VALIDATE_POLICIES, &asked).await.allowed());
}

#[rstest]
#[case(json!({"windows": []}), "spec.windows is an empty list: nothing may ever be hit")]
#[case(json!({"allow": {"actions": []}}), "spec.allow.actions is an empty list: no action is allowed")]
#[case(json!({"namespaceSelector": {}}), "spec.namespaceSelector is empty: the policy is for every namespace")]
#[case(json!({"protect": {"podSelector": {}}}), "spec.protect.podSelector is empty: it protects every pod")]
#[case(json!({"haltWhen": [{"availability": {"podSelector": {"matchLabels": {}}, "below": 1}}]}),
       "spec.haltWhen[0].availability.podSelector is empty: it counts every pod of a namespace")]
#[case(json!({"namespaceSelector": {"matchLabels": {"team": "a"}}, "protect": {"podSelector": {"matchLabels": {"app": "db"}}}}), "")]
#[tokio::test]
async fn what_is_empty_is_accepted_with_a_warning(#[case] spec: Value, #[case] words: &str) {
    let asked = review("CREATE", POLICY, "ann", Value::Null, policy(spec));
    let answer = bench().review(names::PATH_VALIDATE_POLICIES, &asked).await;
    assert!(answer.allowed(), "{}", answer.message());
    assert_eq!(answer.warnings(), if words.is_empty() { String::new() } else { format!("squall: {words}") });
}

#[tokio::test]
async fn a_selector_that_selects_everything_is_told_to_whoever_meets_it() {
    let asked = review("UPDATE", POD, "ann", pod(json!({})), pod(json!({names::FAULT: names::POD_FAILURE})));
    let rules = json!({"namespaceSelector": {}, "protect": {"podSelector": {}}});
    let (answer, _) = under(rules, names::PATH_MUTATE_PODS, &asked).await;
    let words =
        "ChaosPolicy p, protect: found a pod that podSelector selects; allowed: pods that it does not select";
    assert!(!answer.allowed() && answer.message().contains(words), "{}", answer.message());
}

const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");
const SCHEDULE: (&str, &str, &str) = ("squall.dev", "v1alpha1", "Schedule");

/// The answer to `asked` where this policy holds, and what was counted.
async fn under(spec: Value, path: &str, asked: &Value) -> (support::Reviewed, String) {
    let bench = bench();
    know(&bench, json!({}), &[policy(spec)]);
    let support::Bench { router, world, metrics, api } = bench;
    let counted = metrics.clone();
    let answered = async move {
        let bench = support::Bench { router, world, metrics, api: support::nobody() };
        bench.review(path, asked).await
    };
    (futures::join!(answered, yes(api)).0, counted.encode().unwrap())
}

#[rstest]
#[case("pod-kill", "one", "allow.actions: found pod-kill; allowed: pod-failure, stress", "allow.actions")]
#[case("pod-failure", "one,1h", "limits.maxDuration: found 1h; allowed: at most 10m", "limits.maxDuration")]
#[case("stress-cpu", "2", "limits.maxTargets: found 2; allowed: 1", "limits.maxTargets")]
#[tokio::test]
async fn annotations_and_schedules_are_told_what_policies_say_and_it_is_counted(
    #[case] fault: &str,
    #[case] value: &str,
    #[case] words: &str,
    #[case] rule: &str,
) {
    let rules = json!({
        "allow": {"actions": ["pod-failure", "stress"]}, "limits": {"maxDuration": "10m", "maxTargets": 1},
    });
    let line = format!(r#"squall_webhook_refusals_total{{policy="p",rule="{rule}"}} 1"#);
    let object = |annotations: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "team", "uid": "d-1", "annotations": annotations},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "app", "image": "app:1"}]}}
            }
        })
    };
    let asked = review(
        "UPDATE",
        DEPLOYMENT,
        "ann",
        object(json!({})),
        object(json!({format!("squall.dev/{fault}"): value})),
    );
    let (answer, counted) = under(rules.clone(), names::PATH_MUTATE_ANNOTATIONS, &asked).await;
    assert!(!answer.allowed() && answer.message().contains(words), "{}", answer.message());
    assert!(counted.contains(&line), "{counted}");

    let cpu = json!({"mode": "fixed", "value": "2", "duration": "5m", "stressors": {"cpu": {"workers": 1}}});
    let (kind, chaos) = match fault {
        "pod-kill" => ("podChaos", json!({"action": "pod-kill", "mode": "one"})),
        "pod-failure" => ("podChaos", failure("1h")),
        _ => ("stressChaos", cpu),
    };
    let type_ = if kind == "podChaos" { "PodChaos" } else { "StressChaos" };
    let schedule = json!({
        "apiVersion": "squall.dev/v1alpha1", "kind": "Schedule", "metadata": {"name": "x", "namespace": "team"},
        "spec": {"schedule": "@daily", "type": type_, kind: chaos}
    });
    let asked = review("CREATE", SCHEDULE, "ann", Value::Null, schedule);
    let (answer, counted) = under(rules, names::PATH_VALIDATE_EXPERIMENTS, &asked).await;
    assert!(!answer.allowed() && answer.message().contains(words), "{}", answer.message());
    assert!(counted.contains(&line), "{counted}");
}

#[tokio::test]
async fn what_the_hand_is_refused_is_counted_too() {
    let asked = review("UPDATE", POD, "ann", pod(json!({})), pod(json!({names::FAULT: names::POD_FAILURE})));
    for (spec, rule) in [
        (json!({"allow": {"actions": []}}), "allow.actions"),
        (json!({"halt": {"active": true}}), "halt"),
        (json!({"windows": []}), "windows"),
    ] {
        let (answer, counted) = under(spec, names::PATH_MUTATE_PODS, &asked).await;
        assert!(!answer.allowed());
        let line = format!(r#"squall_webhook_refusals_total{{policy="p",rule="{rule}"}} 1"#);
        assert!(counted.contains(&line), "{counted}");
    }
}
