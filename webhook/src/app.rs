//! A review comes in, an answer goes out: always, in time, whatever is in it.
//!
//! What is no review gets an HTTP error that says why; the API server then does as the failurePolicy says: pods
//! pass, experiments don't.

use std::net::{IpAddr, Ipv4Addr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request as HttpRequest, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube::Client;
use squall_api::names;
use tracing::{Instrument, Span, field};

use crate::experiments::{Ask, Wanted};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::review::{Answer, Denied, Request};
use crate::serve::Peer;
use crate::shares::{Share, Shares};
use crate::world::World;
use crate::{access, annotations, experiments, pods, policies, removal, schedules};

/// The largest body: etcd takes 1.5 MiB an object, and an UPDATE carries two.
pub const LIMIT: usize = 8 << 20;
/// What all bodies together may take, so that nobody can have us killed for memory; and those of one peer, so that
/// nobody can keep it from the API servers.
const ROOM: (usize, usize) = (16 << 20, LIMIT);
/// How many values a body may have, roughly: each takes more in memory than the two bytes that it takes at least.
const VALUES: usize = 500_000;
/// How many objects a review of pods may have: `{}` where a container belongs takes kilobytes.
const OBJECTS: usize = 20_000;
/// How long a body may take to come in.
const BODY: Duration = Duration::from_secs(4);

/// What answers depend on.
#[derive(Clone)]
pub struct App {
    /// How pods are admitted.
    pub pods: Pods,
    /// What is known of the cluster.
    pub world: Arc<World>,
    /// For what has to be asked about experiments.
    pub client: Client,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The app, and what its reviews share.
struct Desk {
    app: App,
    /// In bytes. A body takes it as it comes in: who only announces one takes nothing.
    room: Shares,
    /// Of questions to the API server.
    turns: Shares,
    /// Of removals that are held up.
    removals: Shares,
}

/// A body, and its room.
type Held = (Vec<u8>, Share);

#[derive(Clone, Copy, Debug)]
enum Path {
    MutatePods,
    MutateAnnotations,
    MutateExperiments,
    ValidateExperiments,
    ValidateRemoval,
    ValidatePolicies,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::MutatePods => names::PATH_MUTATE_PODS,
            Self::MutateAnnotations => names::PATH_MUTATE_ANNOTATIONS,
            Self::MutateExperiments => names::PATH_MUTATE_EXPERIMENTS,
            Self::ValidateExperiments => names::PATH_VALIDATE_EXPERIMENTS,
            Self::ValidateRemoval => names::PATH_VALIDATE_REMOVAL,
            Self::ValidatePolicies => names::PATH_VALIDATE_POLICIES,
        }
    }
}

/// Why a body could not be answered as a review.
struct Rejected {
    status: StatusCode,
    outcome: &'static str,
    message: String,
}

/// Every path.
pub fn router(app: App) -> Router {
    let desk = Arc::new(Desk {
        app,
        room: Shares::new(ROOM.0, ROOM.1),
        turns: Shares::new(access::TOGETHER, access::TOGETHER / 2),
        removals: Shares::new(removal::TOGETHER.0, removal::TOGETHER.1),
    });
    let paths = [
        Path::MutatePods,
        Path::MutateAnnotations,
        Path::MutateExperiments,
        Path::ValidateExperiments,
        Path::ValidateRemoval,
        Path::ValidatePolicies,
    ];
    paths
        .into_iter()
        .fold(Router::new(), |router, path| {
            let handler = move |State(desk): State<Arc<Desk>>, request: HttpRequest| async move {
                let (head, body) = request.into_parts();
                desk.answer(path, &head, body).await
            };
            router.route(path.name(), post(handler))
        })
        // Ours is stricter, and says so.
        .layer(DefaultBodyLimit::disable())
        .with_state(desk)
}

impl Desk {
    async fn answer(&self, path: Path, head: &Parts, body: Body) -> Response {
        // Without a wire there is nobody to tell from others.
        let peer =
            head.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(peer)| *peer);
        let (body, _room) = match self.read(head, peer, body).await {
            Ok(held) => held,
            Err(rejected) => return self.reject(path, rejected, Duration::ZERO),
        };
        let start = Instant::now();
        let review = AssertUnwindSafe(self.review(path, peer, &body)).catch_unwind();
        match review.await {
            Ok(Ok((outcome, body))) => {
                self.app.metrics.reviewed(path.name(), outcome, start.elapsed());
                (StatusCode::OK, [(CONTENT_TYPE, "application/json")], body).into_response()
            }
            Ok(Err(rejected)) => self.reject(path, rejected, start.elapsed()),
            Err(_) => {
                let rejected = Rejected {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    outcome: "panic",
                    message: "a defect of Squall's kept this review from being answered".to_owned(),
                };
                self.reject(path, rejected, start.elapsed())
            }
        }
    }

    async fn review(
        &self,
        path: Path,
        peer: IpAddr,
        body: &[u8],
    ) -> Result<(&'static str, Vec<u8>), Rejected> {
        if is_bomb(path, body) {
            return Err(Rejected { message: "the review has too many parts".to_owned(), ..too_large() });
        }
        let request = Request::parse(body).map_err(|error| Rejected {
            status: StatusCode::BAD_REQUEST,
            outcome: "malformed",
            message: error.to_string(),
        })?;
        let span = tracing::info_span!(
            "review",
            uid = request.uid,
            kind = request.kind.kind,
            object = format!("{}/{}", request.namespace, request.name),
            operation = request.operation,
            outcome = field::Empty
        );
        async {
            let answer = self.decide(path, peer, &request).await;
            let outcome = told(&request, &answer);
            if let Some((policy, rule)) = answer.denied.as_ref().and_then(|denied| denied.refused.as_ref()) {
                self.app.metrics.refused(policy, rule);
            }
            let body = answer.write(&request).map_err(|error| Rejected {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                outcome: "unwritable",
                message: format!("the answer can't be written: {error}"),
            })?;
            Ok((outcome, body))
        }
        .instrument(span)
        .await
    }

    async fn decide(&self, path: Path, peer: IpAddr, request: &Request<'_>) -> Answer {
        match path {
            Path::MutatePods => self.app.pods.review(request, &self.app.world, Timestamp::now()),
            Path::MutateAnnotations => match annotations::check(request, Timestamp::now()) {
                annotations::Verdict::Answered(answer) => answer,
                annotations::Verdict::Ask { questions, wishes, answer } => {
                    for ask in &questions {
                        if let Err(denied) = self.allowed(peer, ask).await {
                            return denied.into();
                        }
                    }
                    let who = pods::who(&request.user_info);
                    for wish in &wishes.1 {
                        let wanted = Wanted { ask: policies::ask_of(wish), who: who.clone(), begins: true };
                        if let Err(denied) = self.permitted([&request.namespace], &wanted) {
                            return denied.into();
                        }
                    }
                    answer
                }
            },
            Path::MutateExperiments if schedules::concerns(request) => schedules::mutate(request),
            Path::MutateExperiments => experiments::mutate(request),
            Path::ValidateExperiments => match judged(request) {
                experiments::Verdict::Answered(answer) => answer,
                experiments::Verdict::Ask(ask, warnings) => match self.allowed(peer, &ask).await {
                    Ok(()) => {
                        match ask.wanted.as_ref().map(|wanted| self.permitted(&ask.namespaces, wanted)) {
                            Some(Err(denied)) => denied.into(),
                            Some(Ok(())) | None => Answer { warnings, ..Answer::default() },
                        }
                    }
                    Err(denied) => denied.into(),
                },
            },
            Path::ValidatePolicies => policies::review(request),
            Path::ValidateRemoval => {
                removal::review(&self.app.client, || self.removals.try_take(peer), request).await
            }
        }
    }

    async fn allowed(&self, peer: IpAddr, ask: &Ask) -> Result<(), Denied> {
        access::allowed(&self.app.client, &self.turns, peer, ask).await
    }

    /// What halts and policies say, for now: whoever chooses targets asks them again.
    fn permitted<'a>(
        &self,
        namespaces: impl IntoIterator<Item = &'a String>,
        wanted: &Wanted,
    ) -> Result<(), Denied> {
        let permitted = self.app.world.permits(namespaces, wanted, Timestamp::now());
        permitted.map_err(|refused| Denied::by_policy(refused.policy, refused.rule, refused.message))
    }

    async fn read(&self, head: &Parts, peer: IpAddr, body: Body) -> Result<Held, Rejected> {
        let length =
            head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > LIMIT as u64) {
            return Err(too_large());
        }
        match tokio::time::timeout(BODY, self.read_all(peer, body)).await {
            Ok(held) => held,
            Err(_) => Err(Rejected {
                status: StatusCode::REQUEST_TIMEOUT,
                outcome: "timeout",
                message: "the review did not come in in time".to_owned(),
            }),
        }
    }

    async fn read_all(&self, peer: IpAddr, body: Body) -> Result<Held, Rejected> {
        let mut all = Vec::new();
        let mut held = self.room(peer, 0).await?;
        let mut parts = body.into_data_stream();
        // Also a peer that hangs up, whom no answer reaches.
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| too_large())?;
            if all.len() + part.len() > LIMIT {
                return Err(too_large());
            }
            held.merge(self.room(peer, part.len()).await?);
            all.extend_from_slice(&part);
        }
        Ok((all, held))
    }

    async fn room(&self, peer: IpAddr, bytes: usize) -> Result<Share, Rejected> {
        let bytes = u32::try_from(bytes).map_err(|_| too_large())?;
        self.room.take(peer, bytes).await.ok_or_else(too_large)
    }

    fn reject(&self, path: Path, rejected: Rejected, took: Duration) -> Response {
        let Rejected { status, outcome, message } = rejected;
        self.app.metrics.reviewed(path.name(), outcome, took);
        tracing::warn!(path = path.name(), outcome, message, "not answered as a review");
        (status, format!("{message}\n")).into_response()
    }
}

fn judged(request: &Request<'_>) -> experiments::Verdict {
    if schedules::concerns(request) {
        schedules::check(request, Timestamp::now())
    } else {
        experiments::check(request)
    }
}

/// One line if something was changed or refused; nothing otherwise.
fn told(request: &Request<'_>, answer: &Answer) -> &'static str {
    let Answer { patch, warnings, denied } = answer;
    let outcome = match (denied, patch) {
        (Some(_), _) => "denied",
        (None, Some(patch)) if !patch.0.is_empty() => "changed",
        (None, Some(_) | None) => "unchanged",
    };
    Span::current().record("outcome", outcome);
    let user = &request.user_info.username;
    match denied {
        Some(denied) => tracing::info!(user, reason = denied.reason, message = denied.message, "refused"),
        None if outcome == "changed" => tracing::info!(user, warnings = warnings.len(), "changed"),
        None => {}
    }
    outcome
}

/// Whether `body` would take far more memory than it has bytes. Counts what stands in strings, too.
fn is_bomb(path: Path, body: &[u8]) -> bool {
    let objects = body.iter().filter(|byte| **byte == b'{').count();
    let commas = body.iter().filter(|byte| **byte == b',').count();
    objects + commas > VALUES
        || match path {
            Path::MutatePods | Path::MutateAnnotations => objects > OBJECTS,
            Path::MutateExperiments
            | Path::ValidateExperiments
            | Path::ValidateRemoval
            | Path::ValidatePolicies => false,
        }
}

fn too_large() -> Rejected {
    Rejected {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        outcome: "too_large",
        message: format!("the review is larger than {LIMIT} bytes"),
    }
}
