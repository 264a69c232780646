//! StressChaos on real containers: what it does to them is measured and told, it follows a container that is started
//! again, and afterwards nothing of it is left.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use squall_api::names;
use squall_api::status::{Phase, Target, TargetPhase};
use squall_api::stresschaos::{CpuStressor, Mode, Squeeze, StressChaos, StressChaosSpec, Stressors};
use squall_tests::cpu::ticks;
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, SLEEPER, alone, container, containers_processes, holds_for,
    kubectl, pod_of, until, with_ns,
};

/// One busy process in the pod `web`, and what `change` says.
fn busy(change: impl FnOnce(&mut StressChaosSpec)) -> StressChaos {
    let cpu = CpuStressor { workers: 1, load: Some(90), options: Vec::new() };
    let stressors = Stressors { cpu: Some(cpu), ..Stressors::default() };
    let mut spec =
        StressChaosSpec { mode: Mode::One, stressors: Some(stressors), ..StressChaosSpec::default() };
    spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
    change(&mut spec);
    StressChaos::new("stress", spec)
}

async fn sleeper(ns: &Ns, name: &str) -> Result<Pod> {
    let mut pod = pod_of(name, json!({ "containers": [container("app", SLEEPER)] }));
    pod.metadata.labels.get_or_insert_default().insert("app".to_owned(), name.to_owned());
    ns.ready_pod(&pod).await
}

fn container_id(pod: &Pod) -> String {
    pod.container("app").and_then(|one| one.container_id).unwrap_or_default()
}

async fn injected(ns: &Ns) -> Result<(StressChaos, Target)> {
    let chaos: StressChaos =
        ns.experiment_until("stress", "it is injected", |chaos: &StressChaos| chaos.is("Injected")).await?;
    let target = chaos.told().targets.first().context("there is no target")?.clone();
    Ok((chaos, target))
}

async fn end(ns: &Ns) -> Result<()> {
    ns.api::<StressChaos>().delete("stress", &DeleteParams::default()).await?;
    until("the experiment is gone", async || {
        Ok(match ns.api::<StressChaos>().get_opt("stress").await? {
            None => Ok(()),
            Some(chaos) => Err(chaos.shown()),
        })
    })
    .await
}

#[test]
fn a_busy_process_is_in_the_container_measured_told_and_gone_with_the_experiment() {
    let _alone = alone();
    with_ns("stress-cpu", OptIn::Yes, async |ns| {
        let (web, other) = (sleeper(ns, "web").await?, sleeper(ns, "other").await?);
        let own = containers_processes(&container_id(&web))?.len();
        ns.create(&busy(|_| ())).await?;
        let (chaos, target) = injected(ns).await?;
        assert_eq!(
            (target.pod.as_str(), target.container.as_deref()),
            ("web", Some("app")),
            "{}",
            chaos.shown()
        );
        ensure!(containers_processes(&container_id(&web))?.len() > own, "{}", chaos.shown());
        // The neighbour is left alone.
        let (before, others) = (ticks(&container_id(&web))?, ticks(&container_id(&other))?);
        until("it uses CPU time", async || {
            let used = ticks(&container_id(&web))? - before;
            Ok(if used > 20 { Ok(()) } else { Err(format!("{used} ticks")) })
        })
        .await?;
        ensure!(ticks(&container_id(&other))? - others <= 2, "the neighbour runs too");
        let told: StressChaos = ns
            .experiment_until("stress", "the effect is told", |chaos: &StressChaos| {
                chaos.told().effect.is_some()
            })
            .await?;
        let effect = told.told().targets[0].effect.clone().context("no effect")?;
        ensure!(effect.before.is_some() && effect.during.is_some(), "{}", told.shown());
        let columns = kubectl(&["get", "stresschaos", "stress", "-n", &ns.name])?;
        for part in ["STRESSORS", "EFFECT", "cpu 1x90%", "Injected", "1/1"] {
            ensure!(columns.text.contains(part), "{part}: {}", columns.text);
        }
        end(ns).await?;
        until("its processes are gone", async || {
            let left = containers_processes(&container_id(&web))?.len();
            Ok(if left == own { Ok(()) } else { Err(format!("{left} processes, {own} before")) })
        })
        .await?;
        assert_eq!(ns.pod("web").await?.restarts("app"), 0, "its own process was not touched");
        Ok(())
    });
}

#[test]
fn it_ends_with_its_duration_and_pausing_takes_it_back_meanwhile() {
    let _alone = alone();
    with_ns("stress-duration", OptIn::Yes, async |ns| {
        let web = sleeper(ns, "web").await?;
        let own = containers_processes(&container_id(&web))?.len();
        ns.create(&busy(|spec| spec.duration = Some("20s".to_owned()))).await?;
        injected(ns).await?;
        ns.annotate::<StressChaos>("stress", names::PAUSE, Some("true")).await?;
        ns.experiment_until("stress", "it is paused", |chaos: &StressChaos| chaos.phase() == Phase::Paused)
            .await?;
        assert_eq!(containers_processes(&container_id(&web))?.len(), own);
        ns.annotate::<StressChaos>("stress", names::PAUSE, None).await?;
        let (chaos, target) = injected(ns).await?;
        assert_eq!(target.attempt, Some(1), "{}", chaos.shown());
        ensure!(containers_processes(&container_id(&web))?.len() > own, "{}", chaos.shown());
        let chaos: StressChaos =
            ns.experiment_until("stress", "it is over", |chaos: &StressChaos| chaos.is("Completed")).await?;
        assert_eq!(
            (chaos.phase(), chaos.reason("Completed").as_str()),
            (Phase::Completed, "Succeeded"),
            "{}",
            chaos.shown()
        );
        assert_eq!(chaos.in_phase(TargetPhase::Recovered).len(), 1, "{}", chaos.shown());
        assert_eq!(containers_processes(&container_id(&web))?.len(), own);
        Ok(())
    });
}

#[test]
fn a_container_that_is_started_again_is_followed() {
    let _alone = alone();
    with_ns("stress-follow", OptIn::Yes, async |ns| {
        let web = sleeper(ns, "web").await?;
        ns.create(&busy(|_| ())).await?;
        let (_, target) = injected(ns).await?;
        let init = *containers_processes(&container_id(&web))?.first().context("it has no process")?;
        let killed = std::process::Command::new("kill").args(["-9", &init.to_string()]).status()?;
        ensure!(killed.success());
        let chaos: StressChaos = ns
            .experiment_until("stress", "the new container is hit", |chaos: &StressChaos| {
                let told = chaos.told();
                chaos.is("Injected") && told.targets.iter().all(|now| now.container_id != target.container_id)
            })
            .await?;
        let id = container_id(&ns.pod("web").await?);
        assert_eq!(chaos.told().targets[0].container_id.as_deref(), Some(id.as_str()), "{}", chaos.shown());
        ensure!(containers_processes(&id)?.len() > 1, "{}", chaos.shown());
        Ok(())
    });
}

#[test]
fn a_squeezed_container_is_slow_and_then_as_it_was() {
    let _alone = alone();
    with_ns("stress-squeeze", OptIn::Yes, async |ns| {
        let web = pod_of("web", json!({ "containers": [container("app", "while :; do :; done")] }));
        let mut web = web;
        web.metadata.labels.get_or_insert_default().insert("app".to_owned(), "web".to_owned());
        let id = container_id(&ns.ready_pod(&web).await?);
        ns.create(&busy(|spec| {
            spec.stressors = None;
            spec.squeeze =
                Some(Squeeze { cpu: Some(IntOrString::String("50m".to_owned())), ..Squeeze::default() });
        }))
        .await?;
        injected(ns).await?;
        let before = ticks(&id)?;
        holds_for(Duration::from_secs(2), "it may use a twentieth of a CPU", async || {
            let used = ticks(&id)? - before;
            Ok(if used <= 30 { Ok(()) } else { Err(format!("{used} ticks")) })
        })
        .await?;
        end(ns).await?;
        let before = ticks(&id)?;
        until("it runs freely", async || {
            let used = ticks(&id)? - before;
            Ok(if used > 50 { Ok(()) } else { Err(format!("{used} ticks")) })
        })
        .await
    });
}

#[test]
fn nonsense_is_refused_by_field_and_what_is_ignored_is_said() {
    let _alone = alone();
    with_ns("stress-refused", OptIn::Yes, async |ns| {
        type Change = fn(&mut StressChaosSpec);
        let cases: [(&str, Change); 5] = [
            ("spec.stressors.cpu.workers", |spec| {
                spec.stressors.as_mut().unwrap().cpu.as_mut().unwrap().workers = 0;
            }),
            ("spec.stressors.cpu.load", |spec| {
                spec.stressors.as_mut().unwrap().cpu.as_mut().unwrap().load = Some(101);
            }),
            ("spec.squeeze.memory", |spec| {
                let memory = Some(IntOrString::String("much".to_owned()));
                spec.squeeze = Some(Squeeze { memory, ..Squeeze::default() });
            }),
            ("stressngStressors", |spec| spec.stressng_stressors = Some("--cpu 1".to_owned())),
            ("stressors.cpu", |spec| spec.stressors = None),
        ];
        for (field, change) in cases {
            let error = ns.api::<StressChaos>().create(&PostParams::default(), &busy(change)).await;
            let error = error.err().with_context(|| format!("{field} is accepted"))?.to_string();
            ensure!(error.contains(field), "{field}: {error}");
        }
        let mut ignored = serde_json::to_value(busy(|spec| {
            spec.stressors.as_mut().unwrap().cpu.as_mut().unwrap().options = vec!["--cpu-load 10".to_owned()];
            spec.dry_run = Some(true);
        }))?;
        ignored["metadata"]["namespace"] = json!(ns.name);
        let said = squall_tests::kubectl_stdin(&["apply", "-f", "-"], &ignored.to_string())?;
        ensure!(said.success && said.text.contains("spec.stressors.cpu.options is ignored"), "{}", said.text);
        Ok(())
    });
}
