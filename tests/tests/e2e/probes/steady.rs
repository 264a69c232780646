//! `steadyState`: before, during, after; and what an experiment may not ask.

use anyhow::ensure;
use serde_json::{Value, json};
use squall_api::podchaos::{Action, Mode, PodChaos};
use squall_api::status::Phase;
use squall_tests::{
    ExperimentExt as _, OptIn, experiment, hit, kubectl, refusal, says, unschedulable, with_ns,
};

use super::{failure, fall_ill, halted, health, recover, web};

/// Pods of `web` that are made anew are never Ready; those that are there stay as they are.
const NEVER_READY: &str = r#"{ "spec": { "updateStrategy": { "type": "OnDelete", "rollingUpdate": null },
    "template": { "spec": { "containers": [{ "name": "app", "readinessProbe": { "httpGet": { "path": "/none" } } }] } } } }"#;

fn steady(mut chaos: PodChaos, probes: Value) -> PodChaos {
    chaos.spec.steady_state = serde_json::from_value(probes).expect("the test's own probes are well-formed");
    chaos
}

#[test]
fn nothing_is_hit_where_it_is_not_well_before() {
    with_ns("steady-before", OptIn::Yes, async |ns| {
        web(ns, 1).await?;
        fall_ill(ns, "web-0")?;
        ns.create(&steady(failure("x", Mode::All, |_| ()), json!([health()]))).await?;
        let ended = halted(ns, "x", &["nothing was hit", "spec.steadyState", "status 404 at"]).await?;
        let why = ended.told().halted.map(|halted| halted.reason);
        assert_eq!(why.as_deref(), Some("Unsteady"), "{}", ended.shown());
        assert!(hit(ns, "web").await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_fault_that_its_service_does_not_survive_is_taken_back() {
    with_ns("steady-during", OptIn::Yes, async |ns| {
        web(ns, 1).await?;
        ns.create(&steady(failure("x", Mode::All, |_| ()), json!([health()]))).await?;
        let ended = halted(ns, "x", &["spec.steadyState", "steadyState[0].http: no "]).await?;
        // It dies with a question under way or before the next; in either case before the kubelet says so.
        let why = ended.told().message.unwrap_or_default();
        ensure!(why.contains("no connection at") || why.contains("no answer in time at"), "{why}");
        assert!(ended.told().targets[0].ordered_at.is_some(), "{}", ended.shown());
        ns.all_whole("web").await?;
        ns.ready_pods("web", 1).await?;
        Ok(())
    });
}

#[test]
fn what_is_not_well_afterwards_was_no_success() {
    with_ns("steady-after", OptIn::Yes, async |ns| {
        web(ns, 2).await?;
        let enough = |below: i32| {
            let pods = json!({ "matchLabels": { "app": "web" } });
            json!([{ "availability": { "podSelector": pods, "below": below, "for": "20s" } }])
        };
        let kill = |name: &str| {
            experiment(name, Action::PodKill, Mode::One, |spec| {
                spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
            })
        };
        // The replacement is waited for.
        ns.create(&steady(kill("well"), enough(2))).await?;
        let ended = ns.completed("well").await?;
        assert_eq!(ended.phase(), Phase::Completed, "{}", ended.shown());
        ns.ready_pods("web", 2).await?;
        // No replacement is Ready from now on: after the kill there is one too few, and that counts at once.
        kubectl(&["-n", &ns.name, "patch", "statefulset", "web", "-p", NEVER_READY])?.ok()?;
        let mut probes = enough(2);
        probes[0]["availability"]["for"] = json!("1ms");
        ns.create(&steady(kill("ill"), probes)).await?;
        halted(ns, "ill", &["spec.steadyState, after it:", "1 of", "at least 2 wanted"]).await?;
        Ok(())
    });
}

#[test]
fn with_resume_it_waits_until_all_is_well_again() {
    with_ns("steady-resume", OptIn::Yes, async |ns| {
        web(ns, 1).await?;
        ns.create(&unschedulable("other", "other")).await?;
        let mut chaos =
            failure("x", Mode::All, |spec| spec.on_halt = Some(squall_api::probe::OnHalt::Resume));
        chaos.spec.selector.label_selectors.insert("app".to_owned(), "other".to_owned());
        ns.create(&steady(chaos, json!([health()]))).await?;
        ns.phase("x", Phase::Injected).await?;
        fall_ill(ns, "web-0")?;
        let stopped = ns.phase("x", Phase::Halted).await?;
        assert!(stopped.completed_at().is_none(), "{}", stopped.shown());
        ns.whole("other").await?;
        recover(ns, "web-0")?;
        ns.phase("x", Phase::Injected).await?;
        ns.end_chaos("x").await
    });
}

#[test]
fn an_experiment_asks_its_own_services_and_nothing_else() {
    with_ns("steady-refused", OptIn::Yes, async |ns| {
        let service =
            |namespace: &str| json!({ "http": { "service": { "namespace": namespace, "name": "web" } } });
        let cases = [
            (json!([{ "http": { "url": "http://web.shop.svc" } }]), "spec.steadyState[0].http.url"),
            (json!([service("kube-system")]), "spec.steadyState[0].http.service.namespace"),
            (
                json!([{ "prometheus": { "url": "http://p:9090", "query": "up", "below": 1 } }]),
                "spec.steadyState[0].prometheus",
            ),
        ];
        for (probes, field) in cases {
            says(&refusal(ns, &steady(failure("x", Mode::All, |_| ()), probes)).await?, &[field])?;
        }
        // A Service that is but a name for something else.
        kubectl(&["-n", &ns.name, "create", "service", "externalname", "web", "--external-name=localhost"])?
            .ok()?;
        ns.create(&steady(failure("x", Mode::All, |_| ()), json!([health()]))).await?;
        let words = format!("Service {}/web has no IP address of its own", ns.name);
        halted(ns, "x", &["nothing was hit", &words]).await?;
        Ok(())
    });
}
