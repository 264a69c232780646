//! The outlet for CloudEvents, from a controller in the cluster to a web server in it.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use squall_api::names;
use squall_api::podchaos::{Action, Mode};
use squall_tests::{Ns, container, disrupt, experiment, kubectl, pod, pod_of, settled, until};

/// Keeps the body of each request as a line.
const COLLECTOR: &str = r#"mkdir -p /tmp/www/cgi-bin
cat > /tmp/www/cgi-bin/sink <<'END'
#!/bin/sh
cat >> /tmp/told
echo >> /tmp/told
printf 'Content-Type: text/plain\r\n\r\n'
END
chmod +x /tmp/www/cgi-bin/sink
touch /tmp/told
trap 'exit 0' TERM
busybox httpd -f -p 8080 -h /tmp/www & wait $!"#;

/// Sets the controller's sink; with `-` at the end it is taken away.
async fn sink(ns: &Ns, setting: &str) -> Result<()> {
    let variable = format!("{}{setting}", names::ENV_EVENTS_SINK);
    kubectl(&["-n", names::NAMESPACE, "set", "env", "deployment", names::CONTROLLER, &variable])?.ok()?;
    kubectl(&["-n", names::NAMESPACE, "rollout", "status", "deployment", names::CONTROLLER])?.ok()?;
    settled(&ns.client).await
}

fn told(ns: &Ns) -> Result<Vec<Value>> {
    let text = kubectl(&["-n", &ns.name, "exec", "collector", "--", "cat", "/tmp/told"])?.ok()?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
        .collect()
}

#[test]
fn what_is_told_of_an_experiment_comes_to_the_sink_too() {
    disrupt("sink", async |ns| {
        let collector: Pod = ns
            .ready_pod(&pod_of("collector", json!({ "containers": [container("app", COLLECTOR)] })))
            .await?;
        let address = collector.status.and_then(|status| status.pod_ip).context("it has no address")?;
        ns.ready_pod(&pod("web")).await?;
        sink(ns, &format!("=http://{address}:8080/cgi-bin/sink")).await?;
        let heard = async {
            ns.create(&experiment("kill", Action::PodKill, Mode::One, |spec| {
                spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
            }))
            .await?;
            ns.completed("kill").await?;
            until("the end of it is told", async || {
                let told = told(ns)?;
                let end = told.iter().any(|event| event["data"]["reason"] == "Completed");
                Ok(if end { Ok(told) } else { Err(format!("{told:?}")) })
            })
            .await
        }
        .await;
        sink(ns, "-").await?;
        let mut heard = heard?;
        heard.retain(|event| event["data"]["object"]["namespace"] == ns.name.as_str());
        ensure!(!heard.is_empty(), "nothing is told of this namespace");
        for event in &heard {
            ensure!(event["specversion"] == "1.0", "{event}");
            ensure!(event["data"]["object"]["kind"] == "PodChaos", "{event}");
            ensure!(event["data"]["requestedBy"].as_str().is_some_and(|user| !user.is_empty()), "{event}");
        }
        let hit = heard.iter().any(|event| event["data"]["pod"]["name"] == "web");
        ensure!(hit, "the pod is not told of: {heard:?}");
        Ok(())
    });
}
