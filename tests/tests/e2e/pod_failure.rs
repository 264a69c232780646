//! pod-failure on real pods: injected, recovered, and put back whatever happens in between.

mod births;
mod ended;
mod injected;
mod meanwhile;
mod overlap;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use squall_api::podchaos::{Action, Mode, PodChaos, PodChaosSpec};
use squall_tests::{PodExt as _, experiment};

fn app(spec: &mut PodChaosSpec, app: &str) {
    spec.selector.label_selectors.insert("app".into(), app.into());
}

fn failure(name: &str, mode: Mode, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, mode, change)
}

fn failed(pods: &[Pod]) -> usize {
    pods.iter().filter(|pod| pod.is_failed()).count()
}

/// What the test may take for "it is left alone".
const A_WHILE: Duration = Duration::from_millis(1500);
