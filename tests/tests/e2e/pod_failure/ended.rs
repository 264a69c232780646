//! Ends in the middle of it.

use std::time::Duration;

use anyhow::Result;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use squall_api::names;
use squall_api::podchaos::{Mode, PodChaos, TargetPhase};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, client_as, event_on, holds_for, kubectl, kubectl_stdin, pod, target_of,
    unschedulable, until, until_within, with_ns,
};

use super::*;

#[test]
fn deletion_in_the_middle_of_the_injection_puts_everything_back() {
    with_ns("fail-mid", OptIn::Yes, async |ns| {
        let pods: Vec<Pod> = (0..15).map(|n| unschedulable(&format!("web-{n}"), "web")).collect();
        try_join_all(pods.iter().map(|pod| ns.create(pod))).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        // As soon as the first is failed, and not when the last is.
        ns.pods_until("web", "one is failed", |pods| failed(pods) > 0).await?;
        ns.end_chaos("down").await?;
        let left = failed(&ns.pods("web").await?);
        assert_eq!(left, 0, "the object went before its pods were whole");
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_objects_namespace_is_deleted_during_the_fault() {
    with_ns("fail-home-gone", OptIn::Yes, async |ns| {
        let home = ns.another("fail-home-gone-b", OptIn::Yes).await?;
        ns.create(&unschedulable("web", "web")).await?;
        let chaos = failure("down", Mode::All, |spec| spec.selector.namespaces = vec![ns.name.clone()]);
        home.create(&chaos).await?;
        home.condition("down", "Injected").await?;
        namespace_goes(ns, &home.name).await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_targets_namespace_is_deleted_during_the_fault() {
    with_ns("fail-ns-gone", OptIn::Yes, async |ns| {
        let far = ns.another("fail-ns-gone-b", OptIn::Yes).await?;
        far.ready_pod(&pod("web")).await?;
        let chaos = failure("down", Mode::All, |spec| spec.selector.namespaces = vec![far.name.clone()]);
        ns.create(&chaos).await?;
        ns.condition("down", "Injected").await?;
        namespace_goes(ns, &far.name).await?;
        // Which it is depends on what is seen first: the namespace's end or the pod's.
        let over = [TargetPhase::Gone, TargetPhase::Released];
        ns.chaos_until("down", "its target is over", |chaos| {
            target_of(chaos, "web")
                .is_some_and(|target| over.contains(&target.phase) && target.message.is_some())
        })
        .await?;
        ns.end_chaos("down").await
    });
}

async fn namespace_goes(ns: &Ns, name: &str) -> Result<()> {
    let api: Api<Namespace> = Api::all(ns.client.clone());
    api.delete(name, &DeleteParams::background()).await?;
    until_within(Duration::from_secs(60), &format!("the namespace {name} is gone"), async || {
        Ok(match api.get_opt(name).await? {
            None => Ok(()),
            Some(namespace) => Err(format!("{:?}", namespace.status)),
        })
    })
    .await
}

/// For as long as it lives the controller may change no pod of the test.
struct Forbidden<'a>(&'a Ns);

impl<'a> Forbidden<'a> {
    /// As soon as the API server goes by it, which is seen at `pod`.
    async fn make(ns: &'a Ns, pod: &str) -> Result<Self> {
        let controller = format!("system:serviceaccount:{}:{}", names::NAMESPACE, names::CONTROLLER);
        let object = |kind: &str, spec: Value| {
            let metadata = json!({ "name": ns.name });
            json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec })
        };
        let policy = json!({
            "matchConstraints": { "resourceRules": [
                { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"] },
            ] },
            "validations": [{ "expression": format!("request.userInfo.username != '{controller}'") }],
        });
        let here = json!({ "matchLabels": { "kubernetes.io/metadata.name": ns.name } });
        let binding = json!({
            "policyName": ns.name, "validationActions": ["Deny"], "matchResources": { "namespaceSelector": here },
        });
        let made = Self(ns);
        for (kind, spec) in
            [("ValidatingAdmissionPolicy", policy), ("ValidatingAdmissionPolicyBinding", binding)]
        {
            kubectl_stdin(&["create", "-f", "-"], &object(kind, spec).to_string())?.ok()?;
        }
        let pods: Api<Pod> = Api::namespaced(client_as(&controller, &[]).await?, &ns.name);
        let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
        let tried = Patch::Merge(json!({ "metadata": { "labels": { "tried": "true" } } }));
        until("the controller may change no pod", async || {
            Ok(match pods.patch(pod, &dry_run, &tried).await {
                Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        Ok(made)
    }
}

impl Drop for Forbidden<'_> {
    /// Also when an assertion fails.
    fn drop(&mut self) {
        let both = "validatingadmissionpolicybinding,validatingadmissionpolicy";
        let _ = kubectl(&["delete", both, &self.0.name, "--ignore-not-found"]);
    }
}

#[test]
fn only_a_forced_clean_up_lets_an_object_go_whose_pod_is_not_restored() {
    with_ns("fail-forced", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        let forbidden = Forbidden::make(ns, "web").await?;
        ns.delete_chaos("down").await?;
        ns.chaos_until("down", "it says what it waits for", |chaos| {
            chaos.told().message.is_some_and(|message| message.contains("1 pods are still to be restored"))
        })
        .await?;
        holds_for(Duration::from_secs(3), "the object stays", async || {
            let there = ns.api::<PodChaos>().get_opt("down").await?.is_some();
            Ok(if there { Ok(()) } else { Err("it is gone".to_owned()) })
        })
        .await?;
        ns.annotate::<PodChaos>("down", names::CLEANUP, Some(names::CLEANUP_FORCED)).await?;
        ns.chaos_gone("down").await?;
        let said = event_on(ns, "PodChaos", "down", "ForcedCleanup").await?;
        assert!(said.contains(&format!("{}/web", ns.name)), "{said:?} does not name the pod");
        assert!(ns.pod("web").await?.is_failed(), "who restored it?");
        // Nobody forgets it for that.
        drop(forbidden);
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_target_that_goes_by_itself_holds_nothing_up() {
    with_ns("fail-gone", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&unschedulable("other", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        ns.api::<Pod>().delete("web", &DeleteParams::default()).await?;
        ns.chaos_until("down", "the pod that went is told of", |chaos| {
            target_of(chaos, "web").is_some_and(|target| target.phase == TargetPhase::Gone)
        })
        .await?;
        ns.end_chaos("down").await?;
        ns.whole("other").await?;
        Ok(())
    });
}
