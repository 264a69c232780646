//! `haltWhen`: pods, an address, nodes.

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use squall_api::chaospolicy::PolicyState;
use squall_api::podchaos::Mode;
use squall_api::status::Phase;
use squall_tests::{Ns, OptIn, Policy, from_json, hit, kubectl, refusal, says, until, with_ns};

use super::{PORT, address, failure, fall_ill, halted, recover, silent, web};

#[test]
fn too_few_ready_pods_halt_what_made_them_too_few() {
    with_ns("halt-availability", OptIn::Yes, async |ns| {
        web(ns, 2).await?;
        let probe = json!({ "name": "web-up", "availability": {
            "podSelector": { "matchLabels": { "app": "web" } }, "below": "60%", "for": "1s"
        } });
        let policy = Policy::make(ns, json!({ "haltWhen": [probe] })).await?;
        ns.create(&failure("half", Mode::One, |_| ())).await?;
        halted(ns, "half", &[&policy.name, "haltWhen", "web-up", "1 of 2 pods Ready at", "60 %"]).await?;
        ns.all_whole("web").await?;
        ns.ready_pods("web", 2).await?;
        policy.state(ns, PolicyState::Open).await?;
        Ok(())
    });
}

#[test]
fn an_address_that_answers_otherwise_halts_before_and_during() {
    with_ns("halt-http", OptIn::Yes, async |ns| {
        web(ns, 1).await?;
        let url = format!("http://{}:{PORT}/health", address(ns).await?);
        let probe = json!({ "http": { "url": url, "every": "1s", "failures": 2 } });
        let policy = Policy::make(ns, json!({ "haltWhen": [probe] })).await?;
        // Something of this namespace that web does not suffer from.
        ns.create(&squall_tests::unschedulable("other", "other")).await?;
        let other = |name: &str| {
            let mut chaos = failure(name, Mode::All, |_| ());
            chaos.spec.selector.label_selectors.insert("app".to_owned(), "other".to_owned());
            chaos
        };
        ns.create(&other("during")).await?;
        ns.phase("during", Phase::Injected).await?;
        fall_ill(ns, "web-0")?;
        halted(ns, "during", &[&policy.name, "haltWhen[0].http", "status 404 at", "wanted 200 to 299"])
            .await?;
        let stopped = policy.state(ns, PolicyState::Halted).await?;
        silent(&serde_json::to_string(&stopped)?)?;
        let why = refusal(ns, &other("before")).await?;
        says(&why, &[&policy.name, "haltWhen[0].http", "status 404"])?;
        assert!(hit(ns, "other").await?.is_empty());
        recover(ns, "web-0")?;
        policy.state(ns, PolicyState::Open).await?;
        ns.create(&other("again")).await?;
        ns.phase("again", Phase::Injected).await?;
        ns.end_chaos("again").await
    });
}

#[test]
fn another_status_may_be_expected_and_no_answer_in_time_is_none() {
    with_ns("halt-http-own", OptIn::Yes, async |ns| {
        web(ns, 1).await?;
        fall_ill(ns, "web-0")?;
        let url = format!("http://{}:{PORT}/health", address(ns).await?);
        let probe = json!({ "http": {
            "url": url, "expectStatus": [404, 410], "timeout": "500ms", "every": "1s", "failures": 2
        } });
        let policy = Policy::make(ns, json!({ "haltWhen": [probe] })).await?;
        // What is expected is well, and what is well elsewhere isn't.
        policy.state(ns, PolicyState::Open).await?;
        recover(ns, "web-0")?;
        let says_why = async |words: &[&str]| -> Result<()> {
            until("the policy says why", async || {
                let message = policy.now(ns).await?.status.and_then(|status| status.message);
                let message = message.unwrap_or_default();
                Ok(if says(&message, words).is_ok() { Ok(()) } else { Err(message) })
            })
            .await
        };
        says_why(&["status 200 at", "wanted 404, 410"]).await?;
        fall_ill(ns, "web-0")?;
        policy.state(ns, PolicyState::Open).await?;
        // It takes connections, and says nothing.
        let signal = |signal: &str| {
            let script = format!("kill -{signal} $(cat /tmp/httpd)");
            kubectl(&["-n", &ns.name, "exec", "web-0", "--", "sh", "-c", &script])?.ok().map(drop)
        };
        signal("STOP")?;
        says_why(&["no answer in time at"]).await?;
        signal("CONT")?;
        policy.state(ns, PolicyState::Open).await?;
        ns.ready_pods("web", 1).await?;
        Ok(())
    });
}

/// A node that no kubelet looks after, so that its conditions are the test's. It has the name of the test's namespace.
struct MadeUpNode<'a>(&'a Ns);

impl<'a> MadeUpNode<'a> {
    async fn make(ns: &'a Ns) -> Result<Self> {
        let node = json!({
            "metadata": { "name": ns.name, "labels": { "squall-test/node": ns.name } },
            "spec": { "unschedulable": true },
        });
        let made = Self(ns);
        Api::<Node>::all(ns.client.clone()).create(&PostParams::default(), &from_json(node)).await?;
        made.ready("True").await?;
        Ok(made)
    }

    async fn ready(&self, status: &str) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = json!({
            "type": "Ready", "status": status, "reason": "Test", "message": "", "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        });
        let patch = json!({ "status": { "conditions": [condition] } });
        let api: Api<Node> = Api::all(self.0.client.clone());
        api.patch_status(&self.0.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(())
    }
}

impl Drop for MadeUpNode<'_> {
    /// Also when the test's time is over.
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "node", &self.0.name, "--ignore-not-found", "--wait=false"]);
    }
}

#[test]
fn nodes_that_are_not_ready_halt() {
    with_ns("halt-nodes", OptIn::Yes, async |ns| {
        let node = MadeUpNode::make(ns).await?;
        ns.create(&squall_tests::unschedulable("web", "web")).await?;
        let probe = json!({ "nodes": { "selector": { "matchLabels": { "squall-test/node": ns.name } } } });
        let policy = Policy::make(ns, json!({ "haltWhen": [probe] })).await?;
        ns.create(&failure("node", Mode::One, |_| ())).await?;
        ns.phase("node", Phase::Injected).await?;
        node.ready("False").await?;
        halted(ns, "node", &[&policy.name, "1 nodes unwell by Ready at", "at most 0 wanted"]).await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn where_policies_may_not_ask_is_said_when_they_are_written() {
    with_ns("halt-addresses", OptIn::Yes, async |ns| {
        for (url, words) in [
            ("http://127.0.0.1:8081/metrics", "loopback, link-local and multicast addresses are never asked"),
            ("http://169.254.169.254/latest/meta-data", "loopback, link-local and multicast addresses"),
            ("http://localhost/", "loopback addresses are never asked"),
            ("https://example.org/", "write an address that begins with http://"),
            ("http://u:p@example.org/", "no user, password or fragment"),
        ] {
            let policy = json!({
                "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": { "name": ns.name },
                "spec": { "haltWhen": [{ "http": { "url": url } }] },
            });
            let said =
                squall_tests::kubectl_stdin(&["create", "--dry-run=server", "-f", "-"], &policy.to_string())?;
            says(&said.refused()?, &["spec.haltWhen[0].http.url", url, words])?;
        }
        Ok(())
    });
}

#[test]
fn a_policy_that_is_deleted_while_it_halts_lets_go_and_one_during_a_fault_changes_nothing() {
    with_ns("policy-deleted", OptIn::Yes, async |ns| {
        ns.create(&squall_tests::unschedulable("web", "web")).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxTargets": 1 } })).await?;
        ns.create(&failure("goes-on", Mode::One, |_| ())).await?;
        ns.phase("goes-on", Phase::Injected).await?;
        kubectl(&["delete", "chaospolicy", &policy.name])?.ok()?;
        squall_tests::holds_for(std::time::Duration::from_secs(1), "it goes on", async || {
            let now = ns.chaos("goes-on").await?;
            let phase = squall_tests::ExperimentExt::phase(&now);
            Ok(if phase == Phase::Injected { Ok(()) } else { Err(format!("{phase:?}")) })
        })
        .await?;
        ns.end_chaos("goes-on").await?;
        let halt = json!({ "halt": { "active": true, "reason": "audit" } });
        let policy = Policy::make_that_is(ns, halt, PolicyState::Halted).await?;
        says(&refusal(ns, &failure("not-now", Mode::One, |_| ())).await?, &["audit"])?;
        kubectl(&["delete", "chaospolicy", &policy.name])?.ok()?;
        until("it may be again", async || {
            let tried = ns.api().create(&PostParams::default(), &failure("now", Mode::One, |_| ())).await;
            Ok(tried.map_err(|error| error.to_string()))
        })
        .await?;
        ns.phase("now", Phase::Injected).await?;
        ns.end_chaos("now").await
    });
}
