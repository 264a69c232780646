//! What is asked of the API server, and what comes of its answers.

use futures::future::join;
use serde_json::{Value, json};

use super::*;
use crate::scripted::{self, server};

fn target() -> PodRef {
    PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() }
}

fn holder() -> Holder {
    Holder { kind: "PodChaos".into(), uid: "x".into(), ..Holder::default() }
}

/// The pod as the API server has it.
fn live(uid: &str, version: &str, image: &str) -> Value {
    let annotations = match image {
        "pause" => {
            json!({ names::ORIGINAL_IMAGES: r#"{"app":"own"}"#, names::HELD_BY: r#"[{"kind":"PodChaos","uid":"x"}]"# })
        }
        _ => json!({}),
    };
    let labels = if image == "pause" { json!({ names::FAULT: names::POD_FAILURE }) } else { json!({}) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "n", "name": "p", "uid": uid, "resourceVersion": version,
            "labels": labels, "annotations": annotations },
        "spec": { "containers": [{ "name": "app", "image": image, "command": ["app"] }] },
    })
}

fn refusal(code: u16) -> (u16, Value) {
    scripted::refusal(code, "")
}

/// What comes of an effect whose requests are answered so, and the requests.
async fn applied(
    effect: Effect,
    view: Option<PodView>,
    answers: Vec<(u16, Value)>,
) -> (Result<Outcome, ApplyError>, Vec<(String, Value)>) {
    let (client, api) = scripted::client();
    let images = FaultImages { pause: "pause".into(), crash: "crash".into() };
    let applier = Applier::new(client, images);
    let apply = async move {
        let applier = applier;
        applier.apply(&effect, view.as_ref()).await
    };
    join(apply, server(api, answers)).await
}

fn version(outcome: Result<Outcome, ApplyError>) -> u64 {
    match outcome {
        Ok(Outcome::Done { at: _, version }) => version,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_kill_names_the_incarnation_and_another_one_in_its_place_is_the_end_of_it() {
    let (outcome, asked) =
        applied(Effect::Delete { pod: target(), grace: Some(3) }, None, vec![refusal(409)]).await;
    assert_eq!(version(outcome), 0);
    let options = json!({ "gracePeriodSeconds": 3, "preconditions": { "uid": "u" } });
    assert_eq!(asked, [("DELETE /api/v1/namespaces/n/pods/p".to_owned(), options.clone())]);

    let evicted = (201, json!({ "apiVersion": "v1", "kind": "Status", "status": "Success" }));
    let (outcome, asked) =
        applied(Effect::Evict { pod: target(), grace: Some(3) }, None, vec![evicted]).await;
    assert_eq!(version(outcome), 0);
    let (what, body) = &asked[0];
    assert_eq!(what, "POST /api/v1/namespaces/n/pods/p/eviction");
    assert_eq!(body["deleteOptions"], options);
}

#[tokio::test]
async fn an_eviction_that_a_budget_forbids_is_worth_another_try() {
    // A budget that many ask at once answers 409, one that goes meanwhile 404: the pod is alive all the same.
    for refused in [429, 409, 404] {
        let effect = Effect::Evict { pod: target(), grace: None };
        let (outcome, asked) = applied(effect, None, vec![refusal(refused)]).await;
        assert!(outcome.is_err(), "{refused}");
        assert_eq!(asked[0].1["deleteOptions"], json!({ "preconditions": { "uid": "u" } }));
    }
}

#[tokio::test]
async fn a_change_that_a_policy_denies_is_not_taken_for_a_lost_race() {
    let effect = Effect::Release { pod: target(), holder: "x".into() };
    let answers = vec![(200, live("u", "1", "pause")), refusal(422), (200, live("u", "1", "pause"))];
    let (outcome, asked) = applied(effect, None, answers).await;
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains("release") && said.contains("no"), "{said}");
    assert_eq!(asked.len(), 3, "it was asked for again: {asked:?}");
}

#[tokio::test]
async fn what_is_older_than_the_injection_does_not_say_that_nothing_is_to_be_released() {
    let view = PodView { uid: "u".into(), resource_version: "1".into(), ..PodView::default() };
    let effect = Effect::Release { pod: target(), holder: "x".into() };
    let answers = vec![(200, live("u", "2", "pause")), (200, live("u", "3", "own"))];
    let (outcome, asked) = applied(effect, Some(view), answers).await;
    assert_eq!(version(outcome), 3);
    assert!(asked[1].0.starts_with("PATCH "), "{asked:?}");
}

#[tokio::test]
async fn a_switch_that_was_too_late_is_set_on_the_live_object() {
    let view = PodView { uid: "u".into(), resource_version: "1".into(), ..PodView::default() };
    let effect = Effect::Inject { pod: target(), holder: holder() };
    let answers = vec![refusal(409), (200, live("u", "2", "own")), (200, live("u", "3", "pause"))];
    let (outcome, asked) = applied(effect, Some(view), answers).await;
    assert_eq!(version(outcome), 3);
    let path = "/api/v1/namespaces/n/pods/p";
    let whats: Vec<_> = asked.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(whats, [format!("PATCH {path}"), format!("GET {path}"), format!("PATCH {path}")]);
    for (patch, version) in [(0, "1"), (2, "2")] {
        let metadata = &asked[patch].1["metadata"];
        assert_eq!((&metadata["uid"], &metadata["resourceVersion"]), (&json!("u"), &json!(version)));
    }
}

#[tokio::test]
async fn a_release_that_was_too_late_is_tried_on_the_live_object() {
    let effect = Effect::Release { pod: target(), holder: "x".into() };
    for lost in [409, 422] {
        let answers = vec![
            (200, live("u", "1", "pause")),
            refusal(lost),
            (200, live("u", "2", "pause")),
            (200, live("u", "3", "own")),
        ];
        let (outcome, asked) = applied(effect.clone(), None, answers).await;
        assert_eq!(version(outcome), 3);
        for (patch, version) in [(1, "1"), (3, "2")] {
            let tests: Vec<_> = asked[patch].1.as_array().into_iter().flatten().take(2).collect();
            let version = json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version });
            let uid = json!({ "op": "test", "path": "/metadata/uid", "value": "u" });
            assert_eq!(tests, [&version, &uid]);
        }
    }
}

#[tokio::test]
async fn a_pod_with_another_uid_is_never_patched() {
    let effects = [
        Effect::Inject { pod: target(), holder: holder() },
        Effect::Release { pod: target(), holder: "x".into() },
    ];
    for effect in effects {
        // What is known may be of the other one as well.
        let other = PodView { uid: "other".into(), resource_version: "9".into(), ..PodView::default() };
        for view in [None, Some(other)] {
            let (outcome, asked) =
                applied(effect.clone(), view, vec![(200, live("other", "9", "pause"))]).await;
            assert_eq!(version(outcome), 0);
            assert_eq!(asked[0].0, "GET /api/v1/namespaces/n/pods/p");
        }
    }
}

#[test]
fn a_holder_is_recorded_once() {
    let holder = Holder { kind: "PodChaos".into(), uid: "x".into(), ..Holder::default() };
    let once = with_holder(None, &holder).expect("valid");
    let twice = with_holder(Some(&once), &holder).expect("valid");
    assert_eq!(once, twice);
    assert!(with_holder(Some("junk"), &holder).is_err());
    let more =
        with_holder(Some(r#"[{"kind":"Manual","uid":"manual","standIns":{}}]"#), &holder).expect("valid");
    assert_eq!(more, r#"[{"kind":"Manual","standIns":{},"uid":"manual"},{"kind":"PodChaos","uid":"x"}]"#);
}

#[test]
fn a_patch_tests_incarnation_and_version_first() {
    let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() };
    let mut live = Pod::default();
    live.metadata.uid = Some("u".into());
    live.metadata.resource_version = Some("7".into());
    let mut wanted = live.clone();
    wanted.metadata.name = Some("x".into());
    let patch = difference(&pod, &live, &wanted).expect("pods are JSON");
    assert!(matches!(patch.0[0], PatchOperation::Test(_)) && matches!(patch.0[1], PatchOperation::Test(_)));
    assert_eq!(patch.0.len(), 3);
}
