//! What the specs of both kinds say alike.

use squall_api::podchaos::Mode as WrittenMode;
use squall_api::probe::{OnHalt, Probe as WrittenProbe};
use squall_api::selection::PodSelector;

use super::{keep, parse_containers, parse_mode, parse_steady};
use crate::error::FieldError;
use crate::select::Selector;
use crate::spec::{Action, Spec};
use crate::time::parse_duration;

/// As written.
pub(super) struct Common<'a> {
    pub mode: WrittenMode,
    pub value: Option<&'a String>,
    pub selector: &'a PodSelector,
    pub container_names: &'a [String],
    pub duration: Option<&'a String>,
    pub seed: Option<i64>,
    pub dry_run: Option<bool>,
    pub steady_state: &'a [WrittenProbe],
    pub on_halt: Option<OnHalt>,
    pub remote_cluster: Option<&'a String>,
}

impl Common<'_> {
    /// The spec, if nothing is wrong with it and `errors` has nothing of what the kind alone has.
    pub fn parse(
        self,
        namespace: &str,
        action: Option<Action>,
        mut errors: Vec<FieldError>,
    ) -> Result<Spec, Vec<FieldError>> {
        let Self {
            mode,
            value,
            selector,
            container_names,
            duration,
            seed,
            dry_run,
            steady_state,
            on_halt,
            remote_cluster,
        } = self;
        if let Some(cluster) = remote_cluster.filter(|cluster| !cluster.is_empty()) {
            let allowed = "remoteCluster is not supported: apply the experiment in that cluster instead";
            errors.push(FieldError::new("spec.remoteCluster", cluster, allowed));
        }
        let mode = keep(parse_mode(mode, value.map(String::as_str)), &mut errors);
        let selector = match Selector::parse(selector, namespace) {
            Ok(selector) => Some(selector),
            Err(more) => {
                errors.extend(more);
                None
            }
        };
        let steady = parse_steady(steady_state, namespace, selector.as_ref(), &mut errors);
        let containers = parse_containers(container_names, &mut errors);
        let duration = duration.and_then(|text| keep(parse_duration("spec.duration", text), &mut errors));
        match (action, mode, selector) {
            (Some(action), Some(mode), Some(selector)) if errors.is_empty() => Ok(Spec {
                action,
                mode,
                selector,
                containers,
                duration,
                seed,
                dry_run: dry_run.unwrap_or(false),
                steady,
                on_halt: on_halt.unwrap_or_default(),
            }),
            _ => Err(errors),
        }
    }
}
