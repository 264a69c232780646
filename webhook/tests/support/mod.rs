#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]
//! What the tests share: an app with a scripted API server behind it, and reviews as kube-apiserver sends them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body as KubeBody;
use serde_json::{Value, json};
use squall_model::substitute::FaultImages;
use squall_webhook::app::{self, App};
use squall_webhook::metrics::Metrics;
use squall_webhook::pods::Pods;
use squall_webhook::serve::Peer;
use squall_webhook::world::World;
use tower::ServiceExt;
use tower_test::mock::{self, Handle};

pub const PAUSE: &str = "registry.example/squall-pause:1";
pub const CRASH: &str = "registry.example/squall-crash:1";

pub type ApiServer = Handle<Request<KubeBody>, Response<KubeBody>>;

pub struct Bench {
    pub router: Router,
    pub world: Arc<World>,
    pub metrics: Arc<Metrics>,
    pub api: ApiServer,
}

/// An app that knows nothing of the cluster yet.
pub fn bench() -> Bench {
    let (service, api) = mock::pair::<Request<KubeBody>, Response<KubeBody>>();
    let (world, metrics) = (Arc::new(World::default()), Arc::new(Metrics::default()));
    let router = app::router(App {
        pods: Pods {
            images: FaultImages { pause: PAUSE.to_owned(), crash: CRASH.to_owned() },
            manual_limit: Duration::from_secs(3600),
        },
        world: world.clone(),
        client: Client::new(service, "default"),
        metrics: metrics.clone(),
    });
    Bench { router, world, metrics, api }
}

/// An API server whom nobody asks.
pub fn nobody() -> ApiServer {
    mock::pair().1
}

impl Bench {
    /// Post `body`; status and text of the answer.
    pub async fn post(&self, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        self.post_as([0, 0, 0, 0], path, body).await
    }

    /// The same for the peer at this address.
    pub async fn post_as(&self, peer: [u8; 4], path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let mut request =
            Request::post(path).header("content-type", "application/json").body(body.into()).unwrap();
        request.extensions_mut().insert(Peer(peer.into()));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Have `review` reviewed; the `response` in the answer.
    pub async fn review(&self, path: &str, review: &Value) -> Reviewed {
        self.review_as([0, 0, 0, 0], path, review).await
    }

    /// The same for the peer at this address.
    pub async fn review_as(&self, peer: [u8; 4], path: &str, review: &Value) -> Reviewed {
        let (status, text) = self.post_as(peer, path, review.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        let response = answer["response"].clone();
        assert_eq!(response["uid"], review["request"]["uid"]);
        let mut object = review["request"]["object"].clone();
        if let Some(patch) = response["patch"].as_str() {
            assert_eq!(response["patchType"], "JSONPatch");
            let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
            json_patch::patch(&mut object, &patch).unwrap();
        }
        Reviewed { response, object }
    }
}

/// An answer, and the object as it is after the answer's patch.
pub struct Reviewed {
    pub response: Value,
    pub object: Value,
}

impl Reviewed {
    pub fn allowed(&self) -> bool {
        self.response["allowed"].as_bool().unwrap()
    }

    pub fn patched(&self) -> bool {
        self.response.get("patch").is_some()
    }

    pub fn message(&self) -> &str {
        self.response["status"]["message"].as_str().unwrap_or_default()
    }

    pub fn warnings(&self) -> String {
        let all = self.response["warnings"].as_array().cloned().unwrap_or_default();
        all.iter().map(|warning| warning.as_str().unwrap()).collect::<Vec<_>>().join("\n")
    }
}

/// A review as kube-apiserver sends it.
pub fn review(
    operation: &str,
    (group, version, kind): (&str, &str, &str),
    user: &str,
    old: Value,
    new: Value,
) -> Value {
    let resource = if kind == "Pod" { "pods" } else { "podchaos" };
    let meta = if new.is_null() { &old["metadata"] } else { &new["metadata"] };
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": group, "version": version, "kind": kind},
            "resource": {"group": group, "version": version, "resource": resource},
            "requestKind": {"group": group, "version": version, "kind": kind},
            "requestResource": {"group": group, "version": version, "resource": resource},
            "name": meta["name"],
            "namespace": "team",
            "operation": operation,
            "userInfo": {
                "username": user, "uid": "u-1", "groups": ["devs", "system:authenticated"],
                "extra": {"example.org/mfa": ["yes"]}
            },
            "object": new,
            "oldObject": old,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
        }
    })
}
