//! Spec as written → [`Spec`].

use squall_api::podchaos::PodChaosSpec;

use crate::error::FieldError;
use crate::spec::Spec;

/// Fill in what is unset and has one default. Done at admission, so that `kubectl get -o yaml` shows it.
pub fn defaults(spec: &mut PodChaosSpec) {
    let _ = spec;
    todo!("helper: model core")
}

/// Parse the spec of an experiment in `namespace`; every error at once.
pub fn validate(spec: &PodChaosSpec, namespace: &str) -> Result<Spec, Vec<FieldError>> {
    let _ = (spec, namespace);
    todo!("helper: model core")
}

/// What may change from `old` to `new`. While an experiment is active (it has chosen its targets and has not
/// completed) only `duration`, `gracePeriod` and a narrowed selector may.
pub fn validate_update(
    old: &PodChaosSpec,
    new: &PodChaosSpec,
    namespace: &str,
    active: bool,
) -> Result<(), Vec<FieldError>> {
    let _ = (old, new, namespace, active);
    todo!("helper: model core")
}

/// What a user should know about a spec that is accepted; shown by kubectl as warnings.
pub fn warnings(spec: &Spec) -> Vec<String> {
    let _ = spec;
    todo!("helper: model core")
}
