//! What halts by itself: `haltWhen` of policies and `steadyState` of experiments, each with what it really asks (pods,
//! nodes, a web server, a Prometheus), before, during and after.

mod policies;
mod prometheus;
mod steady;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use squall_api::podchaos::{Action, Mode, PodChaos, PodChaosSpec};
use squall_api::status::Phase;
use squall_tests::{ExperimentExt as _, Ns, container, experiment, from_json, kubectl};

/// What no message may ever show.
const SECRET: &str = "hunter2";
const PORT: i32 = 8080;

/// A StatefulSet `web` that serves the file `health`, and what Prometheus may read, until it is failed or the file goes.
async fn web(ns: &Ns, replicas: i32) -> Result<()> {
    let script = format!(
        "mkdir /tmp/www; echo {SECRET} > /tmp/www/health; echo 'answers 42' > /tmp/www/metrics; \
         trap 'exit 0' TERM; busybox httpd -f -p {PORT} -h /tmp/www & echo $! > /tmp/httpd; wait $!"
    );
    let mut app = container("app", &script);
    app["readinessProbe"] = json!({ "httpGet": { "path": "/metrics", "port": PORT }, "periodSeconds": 1 });
    let labels = json!({ "app": "web" });
    let template = json!({
        "metadata": { "labels": labels },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [app] },
    });
    ns.create(&from_json::<k8s_openapi::api::apps::v1::StatefulSet>(json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas, "serviceName": "web", "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels }, "template": template,
        },
    })))
    .await?;
    ns.create(&from_json::<Service>(json!({
        "metadata": { "name": "web" },
        "spec": { "selector": labels, "ports": [{ "port": PORT }] },
    })))
    .await?;
    ns.ready_pods("web", usize::try_from(replicas)?).await?;
    Ok(())
}

/// The Service's own address.
async fn address(ns: &Ns) -> Result<String> {
    let service: Service = ns.api().get("web").await?;
    service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")
}

/// From now on the web server answers 404 to those who ask for its health.
fn fall_ill(ns: &Ns, pod: &str) -> Result<()> {
    kubectl(&["-n", &ns.name, "exec", pod, "--", "rm", "/tmp/www/health"])?.ok().map(drop)
}

fn recover(ns: &Ns, pod: &str) -> Result<()> {
    kubectl(&["-n", &ns.name, "exec", pod, "--", "touch", "/tmp/www/health"])?.ok().map(drop)
}

/// pod-failure of `web`.
fn failure(name: &str, mode: Mode, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, mode, |spec| {
        spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
        change(spec);
    })
}

/// A probe of the health of `web`.
fn health() -> Value {
    json!({ "http": { "service": { "name": "web", "port": PORT, "path": "/health" }, "every": "1s", "failures": 2 } })
}

/// The experiment ended as Halted, says all of `parts`, and nothing of any answer.
async fn halted(ns: &Ns, name: &str, parts: &[&str]) -> Result<PodChaos> {
    let chaos = ns.completed(name).await?;
    ensure!(chaos.phase() == Phase::Halted, "{}", chaos.shown());
    let message = chaos.told().message.unwrap_or_default();
    for part in parts {
        ensure!(message.contains(part), "{part:?} is missing in: {message}");
    }
    silent(&serde_json::to_string(&chaos)?)?;
    Ok(chaos)
}

fn silent(text: &str) -> Result<()> {
    ensure!(!text.contains(SECRET), "an answer is shown: {text}");
    ensure!(!text.contains("<H"), "an answer is shown: {text}");
    Ok(())
}
