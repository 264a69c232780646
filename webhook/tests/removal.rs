//! Squall's own removal, with a scripted API server: it is held up for what is failed, and for nothing else.

mod support;

use std::cell::Cell;

use http::Response;
use kube::client::Body as KubeBody;
use serde_json::{Value, json};
use squall_api::names;
use squall_webhook::removal::PATIENCE;
use support::{ApiServer, Bench, Reviewed, bench, review};
use tokio::time::Instant;

const NAMESPACE: (&str, &str, &str) = ("", "v1", "Namespace");

fn removal_of(name: &str) -> Value {
    review("DELETE", NAMESPACE, "ann", json!({"metadata": {"name": name}}), Value::Null)
}

/// What there still is.
#[derive(Clone, Copy)]
struct Left {
    crd: bool,
    leaving: bool,
    experiments: usize,
    pods: usize,
}

impl Left {
    fn answer(self, path: &str) -> (u16, Value) {
        let meta = |kind: &str, items: Vec<Value>| {
            (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": kind, "metadata": {}, "items": items}))
        };
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
            "message": "not found", "code": 404});
        if path.contains("customresourcedefinitions") {
            let marked = self.leaving.then_some("2026-11-22T20:00:00Z");
            let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": path.rsplit('/').next(), "deletionTimestamp": marked}});
            return if self.crd { (200, object) } else { (404, missing) };
        }
        if path.ends_with("/pods") {
            let record = json!({"metadata": {"name": "web", "namespace": "team",
                "annotations": {names::HELD_BY: "[]"}}});
            // The label alone is no fault.
            let mut pods = vec![json!({"metadata": {"name": "x", "namespace": "not-opted-in"}})];
            pods.extend(vec![record; self.pods]);
            return meta("PartialObjectMetadataList", pods);
        }
        if !self.crd {
            return (404, missing);
        }
        let held = json!({"metadata": {"name": "x", "namespace": "team", "finalizers": [names::FINALIZER]}});
        let mut all = vec![json!({"metadata": {"name": "free", "namespace": "team"}})];
        // They are listed once for each kind; the first will do.
        let first = path.ends_with(names::CRDS[0].split('.').next().unwrap_or_default());
        all.extend(vec![held; if first { self.experiments } else { 0 }]);
        meta("PartialObjectMetadataList", all)
    }
}

/// The answer, how long it took, and how many questions were asked meanwhile.
async fn answered(review: &Value, left: impl Fn(Instant) -> Result<Left, u16>) -> (Reviewed, u64, usize) {
    let Bench { router, world, metrics, api } = bench();
    let begun = Instant::now();
    let reviewed = async move {
        let bench = Bench { router, world, metrics, api: support::nobody() };
        let answer = bench.review(names::PATH_VALIDATE_REMOVAL, review).await;
        (answer, begun.elapsed())
    };
    let questions = Cell::new(0);
    let script = async |mut api: ApiServer| {
        while let Some((request, send)) = api.next_request().await {
            questions.set(questions.get() + 1);
            let (status, body) = match left(Instant::now()) {
                Ok(left) => left.answer(request.uri().path()),
                Err(status) => (status, json!({"kind": "Status", "code": status, "message": "broken"})),
            };
            let body = KubeBody::from(body.to_string().into_bytes());
            send.send_response(Response::builder().status(status).body(body).unwrap());
        }
    };
    let ((answer, took), ()) = tokio::join!(reviewed, script(api));
    assert!(answer.allowed(), "it is never refused: {}", answer.message());
    (answer, took.as_secs(), questions.get())
}

const FULL: Left = Left { crd: true, leaving: true, experiments: 2, pods: 3 };
const EMPTY: Left = Left { crd: true, leaving: true, experiments: 0, pods: 0 };

#[tokio::test(start_paused = true)]
async fn it_is_held_up_until_nothing_is_failed() {
    let begun = Instant::now();
    let left = |now: Instant| {
        Ok(match (now - begun).as_secs() {
            0 => FULL,
            1 => Left { experiments: 0, ..FULL },
            2 => Left { pods: 0, ..FULL },
            _ => EMPTY,
        })
    };
    let (answer, took, _) = answered(&removal_of(names::NAMESPACE), left).await;
    assert_eq!((took, answer.warnings()), (3, String::new()));
    // With the CRD all of its objects are gone.
    let gone = Left { crd: false, ..EMPTY };
    assert_eq!(answered(&removal_of(names::NAMESPACE), |_| Ok(gone)).await.1, 0);
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_after_a_while_and_says_what_is_left() {
    let (answer, took, _) = answered(&removal_of(names::NAMESPACE), |_| Ok(FULL)).await;
    assert_eq!(took, PATIENCE.as_secs());
    for part in ["2 experiments", "3 failed pods", "break-glass"] {
        assert!(answer.warnings().contains(part), "{}", answer.warnings());
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_not_held_up_in_vain() {
    // No CRD is on its way out, so the controller ends nothing.
    let (_, took, _) = answered(&removal_of(names::NAMESPACE), |_| Ok(Left { leaving: false, ..FULL })).await;
    assert_eq!(took, 0);
    let (_, took, questions) = answered(&removal_of(names::NAMESPACE), |_| Err(500)).await;
    assert_eq!((took, questions), (0, 1), "an API server that does not say");
    let (_, took, questions) = answered(&removal_of("team"), |_| Ok(FULL)).await;
    assert_eq!((took, questions), (0, 0), "somebody else's namespace");
    let mut dry = removal_of(names::NAMESPACE);
    dry["request"]["dryRun"] = json!(true);
    assert_eq!(answered(&dry, |_| Ok(FULL)).await.2, 0, "nothing is removed");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_holds_it_up_for_seconds_only() {
    let bench = bench();
    let begun = Instant::now();
    assert!(bench.review(names::PATH_VALIDATE_REMOVAL, &removal_of(names::NAMESPACE)).await.allowed());
    assert!(begun.elapsed().as_secs() <= 5, "{:?}", begun.elapsed());
}
