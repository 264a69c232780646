//! A real Prometheus: asked by a policy, and reading what Squall counts.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use squall_api::chaospolicy::PolicyState;
use squall_api::names;
use squall_api::podchaos::Mode;
use squall_tests::{
    Ns, OptIn, PodExt as _, Policy, container, kubectl, pod_of, pods_of_component, refusal, says, until,
    with_ns,
};

use super::{PORT, failure, halted, web};

/// Starts the machine's Prometheus in a pod, where it scrapes these every second; the pod's address.
async fn prometheus(ns: &Ns, targets: &[(&str, Vec<String>)]) -> Result<String> {
    let program =
        env::var("SQUALL_PROMETHEUS").context("SQUALL_PROMETHEUS is not set: run `cargo xtask test`")?;
    let jobs: Vec<Value> = targets
        .iter()
        .map(|(job, targets)| json!({ "job_name": job, "static_configs": [{ "targets": targets }] }))
        .collect();
    // JSON is YAML.
    let config =
        json!({ "global": { "scrape_interval": "1s", "scrape_timeout": "1s" }, "scrape_configs": jobs });
    let mut app = container(
        "app",
        "echo \"$CONFIG\" > /tmp/prometheus.yml && exec /program/prometheus --config.file=/tmp/prometheus.yml \
         --storage.tsdb.path=/tmp/data --log.level=warn",
    );
    app["env"] = json!([{ "name": "CONFIG", "value": config.to_string() }]);
    app["readinessProbe"] = json!({ "httpGet": { "path": "/-/ready", "port": 9090 }, "periodSeconds": 1 });
    // It wants the C library of the machine that it was made for: this one.
    let directory = Path::new(&program).parent().context("the program is in no directory")?;
    let mut paths = vec![(directory.display().to_string(), "/program")];
    for path in ["/lib", "/lib64", "/usr/lib"] {
        if Path::new(path).exists() {
            paths.push((path.to_owned(), path));
        }
    }
    let named = |index: usize| format!("host-{index}");
    let volumes = paths.iter().enumerate();
    let volumes: Vec<Value> = volumes
        .map(|(index, (path, _))| json!({ "name": named(index), "hostPath": { "path": path } }))
        .collect();
    let mounts = paths.iter().enumerate();
    app["volumeMounts"] = mounts
        .map(|(index, (_, at))| json!({ "name": named(index), "mountPath": at, "readOnly": true }))
        .collect();
    let pod = ns.ready_pod(&pod_of("prometheus", json!({ "containers": [app], "volumes": volumes }))).await?;
    ip(&pod)
}

fn ip(pod: &Pod) -> Result<String> {
    let status = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    status.with_context(|| format!("{} has no address", pod.name()))
}

/// What the query comes to, by the API server's way to the pod.
fn ask(ns: &Ns, query: &str) -> Result<Vec<Value>> {
    let query: String = query
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let path =
        format!("/api/v1/namespaces/{}/pods/prometheus:9090/proxy/api/v1/query?query={query}", ns.name);
    let answer: Value = serde_json::from_str(&kubectl(&["get", "--raw", &path])?.ok()?)?;
    ensure!(answer["status"] == "success", "{answer}");
    Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
}

/// The query's one number, when it is as `wanted`.
async fn counted(ns: &Ns, query: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
    until(query, async || {
        let found = ask(ns, query)?;
        let number = found.first().and_then(|one| one["value"][1].as_str()?.parse().ok());
        Ok(if number.is_some_and(&wanted) { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await
}

#[test]
fn a_number_of_prometheus_halts_with_the_number() {
    with_ns("halt-prometheus", OptIn::Yes, async |ns| {
        web(ns, 1).await?;
        let web = format!("{}:{PORT}", ip(&ns.pod("web-0").await?)?);
        let address = prometheus(ns, &[("web", vec![web])]).await?;
        counted(ns, "answers", |number| number == 42.0).await?;
        let probe = |query: &str, limit: (&str, f64)| {
            json!({ "name": "web-up", "prometheus": {
                "url": format!("http://{address}:9090"), "query": query, (limit.0): limit.1, "every": "1s", "failures": 2
            } })
        };
        let rules = json!({ "haltWhen": [probe("sum(up{job=\"web\"})", ("below", 1.0))] });
        let policy = Policy::make(ns, rules).await?;
        // It fails what is scraped, and so ends itself.
        ns.create(&failure("self", Mode::All, |_| ())).await?;
        halted(ns, "self", &[&policy.name, "haltWhen", "web-up", "0 at", "at least 1 wanted"]).await?;
        ns.all_whole("web").await?;
        ns.ready_pods("web", 1).await?;
        drop(policy);
        until("the policy is gone", async || {
            let left = kubectl(&["get", "chaospolicy", &ns.name])?;
            Ok(if left.success { Err(left.text) } else { Ok(()) })
        })
        .await?;
        // Too much before anything begins, and a query without a number.
        for (query, words) in
            [("answers", "42 at"), ("nothing_of_this_name", "the answer holds no single number at")]
        {
            let rules = json!({ "haltWhen": [probe(query, ("above", 41.0))] });
            let policy = Policy::make_that_is(ns, rules, PolicyState::Halted).await?;
            says(&refusal(ns, &failure("before", Mode::All, |_| ())).await?, &[&policy.name, words])?;
            kubectl(&["delete", "chaospolicy", &policy.name])?.ok()?;
        }
        Ok(())
    });
}

#[test]
fn prometheus_reads_what_was_hit_refused_and_halted_with_few_labels() {
    with_ns("scrape", OptIn::Yes, async |ns| {
        let mut all: Vec<(_, Vec<_>)> = Vec::new();
        for component in [names::CONTROLLER, names::WEBHOOK, names::DAEMON] {
            let pods = pods_of_component(&ns.client, component).await?;
            // A daemon waits on the node that another test has made up.
            let at = pods.iter().filter_map(|pod| ip(pod).ok());
            all.push((component, at.map(|ip| format!("{ip}:{}", names::HEALTH_PORT)).collect()));
        }
        prometheus(ns, &all).await?;
        counted(ns, "min(up)", |number| number == 1.0).await?;
        web(ns, 1).await?;
        // Refused by the leader, which alone can count pods.
        let policy = Policy::make(ns, json!({ "limits": { "maxPercentPerWorkload": 0 } })).await?;
        let why = refusal(ns, &failure("too-much", Mode::All, |_| ())).await?;
        says(&why, &[&policy.name, "limits.maxPercentPerWorkload", "0 % of 1 is 0"])?;
        let rule = "rule=\"limits.maxPercentPerWorkload\"";
        let refused = format!("sum(squall_refusals_total{{policy=\"{}\",{rule}}})", policy.name);
        counted(ns, &refused, |number| number >= 1.0).await?;
        policy.patch(r#"{"spec": {"limits": null}}"#)?;
        policy.state(ns, PolicyState::Open).await?;
        let injected = "sum(squall_targets_total{action=\"pod-failure\",outcome=\"injected\"})";
        ns.create(&failure("counted", Mode::All, |_| ())).await?;
        ns.phase("counted", squall_api::status::Phase::Injected).await?;
        counted(ns, injected, |number| number >= 1.0).await?;
        let active = "sum(squall_active_faults{action=\"pod-failure\",by=\"experiment\"})";
        counted(ns, active, |number| number >= 1.0).await?;
        // Ended by a halt, and refused by a policy from then on.
        ns.create(&squall_tests::unschedulable("hand", "hand")).await?;
        ns.label::<Pod>("hand", names::FAULT, Some(names::POD_FAILURE)).await?;
        let by_hand = "sum(squall_active_faults{action=\"pod-failure\",by=\"hand\"})";
        counted(ns, by_hand, |number| number >= 1.0).await?;
        policy.patch(r#"{"spec": {"halt": {"active": true, "reason": "audit"}}}"#)?;
        policy.state(ns, PolicyState::Halted).await?;
        ns.whole("hand").await?;
        halted(ns, "counted", &["audit"]).await?;
        refusal(ns, &failure("refused", Mode::All, |_| ())).await?;
        ns.ready_pods("web", 1).await?;
        for query in [
            "sum(squall_halts_total{by=\"ChaosPolicy\",reason=\"Halted\"})".to_owned(),
            format!("sum(squall_webhook_refusals_total{{policy=\"{}\",rule=\"halt\"}})", policy.name),
            "sum(squall_inject_seconds_count{action=\"pod-failure\"})".to_owned(),
            "sum(squall_recover_seconds_count{action=\"pod-failure\"})".to_owned(),
            "sum(squall_ready_seconds_count{action=\"pod-failure\"})".to_owned(),
        ] {
            counted(ns, &query, |number| number >= 1.0).await?;
        }
        // Nothing that users name is a label, but policies.
        for one in ask(ns, "{__name__=~\"squall_.*\"}")? {
            let labels = one["metric"].as_object().cloned().unwrap_or_default();
            for (label, value) in
                labels.iter().filter(|(label, _)| !["instance", "policy"].contains(&label.as_str()))
            {
                ensure!(!value.to_string().contains(&ns.name), "{label}: {one}");
                ensure!(
                    !["namespace", "pod", "experiment", "uid", "user", "node"].contains(&label.as_str()),
                    "{one}"
                );
            }
        }
        Ok(())
    });
}
