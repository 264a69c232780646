//! What StressChaos does to a container, and to nobody else; and that what it doesn't do is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use rustix::process::{Pid, Signal, kill_process};
use squall_api::names;
use squall_api::status::{Phase, TargetPhase};
use squall_api::stresschaos::{
    CpuStressor, MemoryStressor, Mode, Squeeze, StressChaos, StressChaosSpec, Stressors,
};
use squall_tests::{
    Cgroups, ExperimentExt as _, Ns, OptIn, PodExt as _, alone, containers_processes, pod, until, with_ns,
};

fn stress(stressors: Option<Stressors>, squeeze: Option<Squeeze>) -> StressChaos {
    let mut spec = StressChaosSpec { mode: Mode::One, stressors, squeeze, ..StressChaosSpec::default() };
    spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
    StressChaos::new("stress", spec)
}

fn busy(load: i32) -> Stressors {
    let cpu = CpuStressor { workers: 1, load: Some(load), options: Vec::new() };
    Stressors { cpu: Some(cpu), ..Stressors::default() }
}

fn container_id(pod: &Pod) -> Result<String> {
    pod.container("app").and_then(|one| one.container_id).context("it has no container ID")
}

async fn injected(ns: &Ns) -> Result<StressChaos> {
    ns.experiment_until("stress", "it is injected", |chaos: &StressChaos| chaos.is("Injected")).await
}

/// A container's file in whichever of its cgroups has it.
fn file(id: &str, names: &[&str]) -> Result<PathBuf> {
    let init = *containers_processes(id)?.first().context("it has no process")?;
    let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let bare = id.rsplit('/').next().unwrap_or(id);
    let path = text
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find(|path| path.contains(bare))
        .context("it has no cgroup")?
        .trim_start_matches('/')
        .to_owned();
    let top = Path::new("/sys/fs/cgroup");
    let mounts = fs::read_dir(top)?.flatten().map(|entry| entry.path()).chain([top.to_owned()]);
    let mut files =
        mounts.flat_map(|mount| names.iter().map(move |name| mount.join(name)).collect::<Vec<_>>());
    files
        .find_map(|file| {
            let (mount, name) = (file.parent()?, file.file_name()?);
            Some(mount.join(&path).join(name)).filter(|file| file.exists())
        })
        .with_context(|| format!("no cgroup of {id} has {names:?}"))
}

fn cpu_time(id: &str) -> Result<Duration> {
    let text = fs::read_to_string(file(id, &["cpuacct.usage", "cpu.stat"])?)?;
    let nanos = match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
        Some(micros) => micros.parse::<u64>()? * 1000,
        None => text.trim().parse()?,
    };
    Ok(Duration::from_nanos(nanos))
}

fn memory(id: &str) -> Result<u64> {
    Ok(fs::read_to_string(file(id, &["memory.usage_in_bytes", "memory.current"])?)?.trim().parse()?)
}

#[test]
fn the_target_uses_above_half_a_core_and_its_neighbour_nothing() {
    let _alone = alone();
    with_ns("stress-neighbour", OptIn::Yes, async |ns| {
        let (web, other) = (ns.ready_pod(&pod("web")).await?, ns.ready_pod(&pod("other")).await?);
        let (web, other) = (container_id(&web)?, container_id(&other)?);
        let size = 64 << 20;
        let memory_stressor =
            MemoryStressor { workers: 1, size: "64Mi".to_owned(), ..MemoryStressor::default() };
        let before = (memory(&web)?, memory(&other)?);
        ns.create(&stress(Some(Stressors { memory: Some(memory_stressor), ..busy(100) }), None)).await?;
        injected(ns).await?;
        until("the target holds it", async || {
            let grown = memory(&web)?.saturating_sub(before.0);
            Ok(if grown >= size { Ok(()) } else { Err(format!("{grown} bytes")) })
        })
        .await?;
        let (began, first) = (Instant::now(), (cpu_time(&web)?, cpu_time(&other)?));
        // Over a stretch of time, so time has to pass.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let share = |used: Duration| used.as_secs_f64() / began.elapsed().as_secs_f64();
        let (targets, neighbours) = (share(cpu_time(&web)? - first.0), share(cpu_time(&other)? - first.1));
        ensure!(targets > 0.5, "the target uses {targets:.3} of a core");
        ensure!(neighbours < 0.01, "the neighbour uses {neighbours:.3} of a core");
        let grown = memory(&other)?.saturating_sub(before.1);
        ensure!(grown < size / 100, "the neighbour has {grown} bytes more");
        Ok(())
    });
}

#[test]
fn stress_that_shows_no_effect_is_a_failure_with_its_reason() {
    let _alone = alone();
    with_ns("stress-no-effect", OptIn::Yes, async |ns| {
        let web = container_id(&ns.ready_pod(&pod("web")).await?)?;
        ns.create(&stress(Some(busy(80)), None)).await?;
        injected(ns).await?;
        // It is there, and can do nothing.
        let mine = containers_processes(&web)?;
        let stressors = Cgroups::around(&web)?.stressors()?;
        let (stressor, _) =
            stressors.into_iter().find(|(pid, _)| mine.contains(pid)).context("no stressor")?;
        kill_process(Pid::from_raw(stressor).context("no PID")?, Signal::STOP)?;
        let chaos: StressChaos = ns
            .experiment_until("stress", "it has failed", |chaos: &StressChaos| chaos.is("Completed"))
            .await?;
        ensure!(chaos.is("Failed") && !chaos.is("Injected"), "{}", chaos.shown());
        let failed = chaos.in_phase(TargetPhase::Failed);
        ensure!(failed.len() == 1 && failed[0].reason.as_deref() == Some("NoEffect"), "{}", chaos.shown());
        let why = failed[0].message.clone().unwrap_or_default();
        ensure!(why.contains("m were asked for") && why.contains("its limit is"), "{why}");
        assert_eq!(containers_processes(&web)?.len() + 1, mine.len(), "its stressor is left");
        Ok(())
    });
}

#[test]
fn a_limit_that_somebody_else_changed_stays_and_an_event_says_so() {
    let _alone = alone();
    with_ns("stress-outsider", OptIn::Yes, async |ns| {
        let web = container_id(&ns.ready_pod(&pod("web")).await?)?;
        let limit = file(&web, &["pids.max"])?;
        ns.create(&stress(None, Some(Squeeze { pids: Some(60), ..Squeeze::default() }))).await?;
        injected(ns).await?;
        assert_eq!(fs::read_to_string(&limit)?.trim(), "60");
        fs::write(&limit, "77")?;
        ns.annotate::<StressChaos>("stress", names::PAUSE, Some("true")).await?;
        ns.experiment_until("stress", "it is paused", |chaos: &StressChaos| chaos.phase() == Phase::Paused)
            .await?;
        assert_eq!(fs::read_to_string(&limit)?.trim(), "77");
        until("an Event says so", async || {
            let events = ns.api::<Event>().list(&ListParams::default()).await?.items;
            let told = |event: &Event| {
                let message = event.message.as_deref().unwrap_or_default();
                event.involved_object.name.as_deref() == Some("web")
                    && event.type_.as_deref() == Some("Warning")
                    && message.contains("pids.max")
                    && message.contains("77")
            };
            Ok(if events.iter().any(told) { Ok(()) } else { Err(format!("{} Events", events.len())) })
        })
        .await
    });
}
