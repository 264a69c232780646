//! What the API server says and is told: `AdmissionReview` of `admission.k8s.io/v1`.
//!
//! Own types rather than a library's, so that the objects stay unparsed until it is known what they are, and so
//! that nothing that is malformed can keep us from answering.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use squall_model::error::FieldError;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// kube-apiserver cuts what is longer.
const LONGEST_WARNING: usize = 256;

/// Why a body is not a review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or not of that shape.
    #[error("the body is no AdmissionReview: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Of another version or kind.
    #[error("found {found}; this server answers {API_VERSION} {KIND}: set admissionReviewVersions to [v1]")]
    Version {
        /// What it is.
        found: String,
    },
    /// There is no question in it.
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming<'a> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(borrow, default)]
    request: Option<&'a RawValue>,
}

/// The question. Its objects are not parsed yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// Names this question.
    pub uid: String,
    /// What kind the object is.
    #[serde(default, deserialize_with = "or_default")]
    pub kind: GroupVersionKind,
    /// Empty for the object itself.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// The object's name; empty if it is still to be generated.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// The object's namespace.
    #[serde(default, deserialize_with = "or_default")]
    pub namespace: String,
    /// CREATE, UPDATE, DELETE or CONNECT.
    #[serde(default, deserialize_with = "or_default")]
    pub operation: String,
    /// Nothing is to come of it.
    #[serde(default, deserialize_with = "or_default")]
    pub dry_run: bool,
    /// Who asks.
    #[serde(default, deserialize_with = "or_default")]
    pub user_info: UserInfo,
    /// The object as it is to be.
    #[serde(borrow, default)]
    pub object: Option<&'a RawValue>,
    /// The object as it is stored.
    #[serde(borrow, default)]
    pub old_object: Option<&'a RawValue>,
}

/// A kind.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GroupVersionKind {
    /// Group; empty for the core.
    #[serde(default, deserialize_with = "or_default")]
    pub group: String,
    /// Version.
    #[serde(default, deserialize_with = "or_default")]
    pub version: String,
    /// Kind.
    #[serde(default, deserialize_with = "or_default")]
    pub kind: String,
}

impl GroupVersionKind {
    /// Whether it is this one.
    pub fn is(&self, group: &str, version: &str, kind: &str) -> bool {
        (self.group.as_str(), self.version.as_str(), self.kind.as_str()) == (group, version, kind)
    }
}

impl std::fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.group.is_empty() {
            write!(f, "{} {}", self.version, self.kind)
        } else {
            write!(f, "{}/{} {}", self.group, self.version, self.kind)
        }
    }
}

/// Who asks; in the shape in which it is kept on an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Name.
    #[serde(default, deserialize_with = "or_default")]
    pub username: String,
    /// UID, if there is one.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What the authenticator adds.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl<'a> Request<'a> {
    /// The question in `body`.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        let Incoming { api_version, kind, request } =
            serde_json::from_slice(body).map_err(ReviewError::Malformed)?;
        if (api_version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
            return Err(ReviewError::Version { found: format!("{api_version:?} {kind:?}") });
        }
        let request = request.ok_or(ReviewError::NoRequest)?;
        serde_json::from_str(request.get()).map_err(ReviewError::Malformed)
    }
}

/// Null means the same as nothing, as in Go.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Changes to the object.
    pub patch: Option<json_patch::Patch>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Why it is refused.
    pub denied: Option<Denied>,
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The HTTP status.
    pub code: u16,
    /// Kubernetes's word for it.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// The fields that are to blame.
    pub causes: Vec<FieldError>,
    /// Where a policy or a halt says so: the policy, empty for a namespace's annotation, and the rule. To be counted.
    pub refused: Option<(String, &'static str)>,
}

impl Denied {
    /// What was written makes no sense.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Self { code: 422, reason: "Invalid", message: all.join("; "), causes: errors, refused: None }
    }

    /// It may not be done.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { code: 403, reason: "Forbidden", message: message.into(), causes: Vec::new(), refused: None }
    }

    /// `policy` says no by `rule`.
    pub fn by_policy(policy: impl Into<String>, rule: &'static str, message: impl Into<String>) -> Self {
        Self { refused: Some((policy.into(), rule)), ..Self::forbidden(message) }
    }

    /// Whether it may be done can't be told now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code: 503, reason: "ServiceUnavailable", message, causes: Vec::new(), refused: None }
    }
}

impl From<Denied> for Answer {
    fn from(denied: Denied) -> Self {
        Self { denied: Some(denied), ..Self::default() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outgoing<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<&'a str>,
}

#[derive(Serialize)]
struct Status<'a> {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

#[derive(Serialize)]
struct Details<'a> {
    // Where there is a kind, kubectl says which object is invalid, and lists the causes below it.
    kind: &'a str,
    name: &'a str,
    group: &'a str,
    causes: Vec<Cause<'a>>,
}

#[derive(Serialize)]
struct Cause<'a> {
    reason: &'static str,
    field: &'a str,
    message: String,
}

impl Answer {
    /// The answer to `request`, on the wire.
    pub fn write(&self, request: &Request<'_>) -> Result<Vec<u8>, serde_json::Error> {
        let Self { patch, warnings, denied } = self;
        let patch = match patch {
            Some(patch) if denied.is_none() && !patch.0.is_empty() => {
                Some(STANDARD.encode(serde_json::to_vec(patch)?))
            }
            Some(_) | None => None,
        };
        let status = denied.as_ref().map(|Denied { code, reason, message, causes, refused: _ }| Status {
            status: "Failure",
            code: *code,
            reason,
            message,
            details: (!causes.is_empty()).then(|| Details {
                kind: &request.kind.kind,
                name: &request.name,
                group: &request.kind.group,
                causes: causes
                    .iter()
                    .map(|error| Cause {
                        reason: "FieldValueInvalid",
                        field: &error.field,
                        message: format!("found {:?}; {}", error.found, error.allowed),
                    })
                    .collect(),
            }),
        });
        serde_json::to_vec(&Outgoing {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid: &request.uid,
                allowed: denied.is_none(),
                status,
                patch_type: patch.is_some().then_some("JSONPatch"),
                patch,
                warnings: warnings.iter().map(|warning| shortened(warning)).collect(),
            },
        })
    }
}

fn shortened(warning: &str) -> &str {
    let cut = (0..=LONGEST_WARNING.min(warning.len())).rev().find(|at| warning.is_char_boundary(*at));
    &warning[..cut.unwrap_or_default()]
}
