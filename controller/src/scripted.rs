//! A scripted API server for tests: what is asked of it, and the answers that it is to give.

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// The server's side.
pub type ApiServer = tower_test::mock::Handle<http::Request<Body>, http::Response<Body>>;

/// A client, and the server that it asks.
pub fn client() -> (Client, ApiServer) {
    let (service, api) = tower_test::mock::pair();
    (Client::new(service, "default"), api)
}

/// The answer that refuses with this code, for this reason of Kubernetes's.
pub fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "no", "reason": reason, "code": code,
    });
    (code, status)
}

/// Gives these answers, one a request and no more; which requests there were.
pub async fn server(mut api: ApiServer, answers: Vec<(u16, Value)>) -> Vec<(String, Value)> {
    let mut asked = Vec::new();
    for (code, answer) in answers {
        let (request, send) = api.next_request().await.expect("one request more");
        let what = format!("{} {}", request.method(), request.uri().path());
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        asked.push((what, serde_json::from_slice(&body).unwrap_or_default()));
        let answer = Body::from(answer.to_string().into_bytes());
        send.send_response(http::Response::builder().status(code).body(answer).expect("an answer"));
    }
    asked
}
