//! Parts of Squall are killed while it stresses: every stressor and every lowered limit of the cluster is looked for
//! afterwards. Nothing runs that shouldn't, and every limit is as it was.
//!
//! These take turns, and no other test program runs beside this one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::DeleteParams;
use rustix::process::{Pid, Signal, kill_process};
use squall_api::names;
use squall_api::status::{Phase, TargetPhase};
use squall_api::stresschaos::{CpuStressor, Mode, Squeeze, StressChaos, StressChaosSpec, Stressors};
use squall_tests::{
    Cgroups, ExperimentExt as _, Ns, OptIn, PodExt as _, changed, containers_processes, disrupt, holds_for,
    leader, nowhere, patch_daemon_set, pod, pods_of_component, restart_now, restore, scale, sigkill, until,
    until_within,
};

/// What the squeeze leaves of processes.
const PIDS: &str = "60";
/// In which a daemon that came back has everything as it should be.
const BACK: Duration = Duration::from_secs(10);

/// A busy process, and fewer processes, in the pod `web`.
fn hungry(change: impl FnOnce(&mut StressChaosSpec)) -> StressChaos {
    let cpu = CpuStressor { workers: 1, load: Some(10), options: Vec::new() };
    let squeeze = Squeeze { pids: Some(60), ..Squeeze::default() };
    let mut spec = StressChaosSpec {
        mode: Mode::One,
        stressors: Some(Stressors { cpu: Some(cpu), ..Stressors::default() }),
        squeeze: Some(squeeze),
        ..StressChaosSpec::default()
    };
    spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
    change(&mut spec);
    StressChaos::new("stress", spec)
}

/// A stressed pod, and how everything was before.
struct Scene {
    cgroups: Cgroups,
    before: BTreeMap<PathBuf, String>,
    container: String,
}

impl Scene {
    async fn set(ns: &Ns, change: impl FnOnce(&mut StressChaosSpec)) -> Result<Self> {
        let web = ns.ready_pod(&pod("web")).await?;
        let container = web.container("app").and_then(|one| one.container_id).context("no container ID")?;
        let cgroups = Cgroups::around(&container)?;
        let before = cgroups.limits()?;
        let scene = Self { cgroups, before, container };
        scene.is_as_before()?.map_err(anyhow::Error::msg)?;
        ns.create(&hungry(change)).await?;
        ns.experiment_until("stress", "it is injected", |chaos: &StressChaos| chaos.is("Injected")).await?;
        scene.stands()?.map_err(anyhow::Error::msg)?;
        Ok(scene)
    }

    /// Exactly what should run runs, and exactly what should be lowered is.
    fn stands(&self) -> Result<Result<(), String>> {
        let mine = containers_processes(&self.container)?;
        let stressors = self.cgroups.stressors()?;
        let changed = changed(&self.before, &self.cgroups.limits()?);
        let one = matches!(stressors.as_slice(), [(pid, _)] if mine.contains(pid));
        let lowered = matches!(changed.as_slice(), [one] if one.contains(&format!("pids.max: {PIDS},")));
        Ok(if one && lowered { Ok(()) } else { Err(format!("{stressors:?} {changed:?}")) })
    }

    /// Nothing of Squall is in any cgroup of the cluster.
    fn is_as_before(&self) -> Result<Result<(), String>> {
        let stressors = self.cgroups.stressors()?;
        let changed = changed(&self.before, &self.cgroups.limits()?);
        let whole = stressors.is_empty() && changed.is_empty();
        Ok(if whole { Ok(()) } else { Err(format!("{stressors:?} {changed:?}")) })
    }

    /// Ends it, and looks that nothing is left.
    async fn end(&self, ns: &Ns) -> Result<()> {
        ns.api::<StressChaos>().delete("stress", &DeleteParams::default()).await?;
        until("the experiment is gone", async || {
            Ok(match ns.api::<StressChaos>().get_opt("stress").await? {
                None => Ok(()),
                Some(chaos) => Err(chaos.shown()),
            })
        })
        .await?;
        self.is_as_before()?.map_err(anyhow::Error::msg)?;
        assert_eq!(ns.pod("web").await?.restarts("app"), 0, "its own process was not touched");
        Ok(())
    }
}

async fn daemon(ns: &Ns) -> Result<Pod> {
    let daemons = pods_of_component(&ns.client, names::DAEMON).await?;
    daemons.into_iter().next().context("there is no daemon")
}

fn daemons_container(pod: &Pod) -> Option<String> {
    pod.container("daemon").filter(|one| one.ready).and_then(|one| one.container_id)
}

/// SIGKILL for the daemon; then waits until another one is there, and everything as it should be in time.
async fn kill_daemon(ns: &Ns, scene: &Scene) -> Result<()> {
    let killed = daemon(ns).await?;
    let before = daemons_container(&killed);
    sigkill(&killed, "daemon")?;
    // Without anybody's help: they don't outlive it.
    until_within(Duration::from_secs(2), "the daemon's stressors are gone", async || {
        let left = scene.cgroups.stressors()?;
        let orphans =
            left.iter().filter(|(_, daemon)| !PathBuf::from(format!("/proc/{daemon}")).exists()).count();
        Ok(if orphans == 0 { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await?;
    daemon_is_back(ns, before).await
}

async fn daemon_is_back(ns: &Ns, before: Option<String>) -> Result<()> {
    until("another daemon is there", async || {
        let daemons = pods_of_component(&ns.client, names::DAEMON).await?;
        let now = daemons.first().and_then(daemons_container);
        Ok(if now.is_some() && now != before { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await
}

async fn stands_again(ns: &Ns, scene: &Scene) -> Result<()> {
    until_within(BACK, "it stands again", async || scene.stands()).await?;
    let chaos: StressChaos = ns
        .experiment_until("stress", "it is told", |chaos: &StressChaos| {
            chaos.is("Injected") && chaos.told().interruptions.is_some()
        })
        .await?;
    ensure!(chaos.in_phase(TargetPhase::Injected).len() == 1, "{}", chaos.shown());
    Ok(())
}

async fn kill_controllers(ns: &Ns) -> Result<()> {
    for pod in pods_of_component(&ns.client, names::CONTROLLER).await? {
        sigkill(&pod, "controller")?;
    }
    Ok(())
}

async fn somebody_leads(ns: &Ns) -> Result<()> {
    until_within(Duration::from_secs(30), "a controller is Ready and leads", async || {
        let pods = pods_of_component(&ns.client, names::CONTROLLER).await?;
        let leads = leader(&ns.client).await?;
        let leads = pods.iter().find(|pod| Some(pod.name()) == leads && pod.is_ready());
        Ok(leads.map(|_| ()).ok_or_else(|| format!("{} pods", pods.len())))
    })
    .await
}

#[test]
fn a_daemon_that_is_killed_has_it_again_within_ten_seconds_of_its_return() {
    disrupt("stress-killed-daemon", async |ns| {
        let scene = Scene::set(ns, |_| ()).await?;
        kill_daemon(ns, &scene).await?;
        stands_again(ns, &scene).await?;
        scene.end(ns).await
    });
}

#[test]
fn a_fault_whose_time_is_over_while_the_daemon_is_dead_is_not_injected_again() {
    disrupt("stress-killed-late", async |ns| {
        let scene = Scene::set(ns, |spec| spec.duration = Some("4s".to_owned())).await?;
        kill_daemon(ns, &scene).await?;
        let over: StressChaos =
            ns.experiment_until("stress", "it is over", |chaos: &StressChaos| chaos.is("Completed")).await?;
        // Recovered is only what was seen to be: at the moment that it is told, it is so.
        scene.is_as_before()?.map_err(|left| anyhow::anyhow!("{left}: {}", over.shown()))?;
        assert_eq!(over.in_phase(TargetPhase::Recovered).len(), 1, "{}", over.shown());
        holds_for(Duration::from_secs(2), "it stays so", async || scene.is_as_before()).await?;
        scene.end(ns).await
    });
}

#[test]
fn a_killed_controller_is_not_noticed_by_what_it_ordered() {
    disrupt("stress-killed-control", async |ns| {
        let scene = Scene::set(ns, |_| ()).await?;
        kill_controllers(ns).await?;
        holds_for(Duration::from_secs(3), "it stands", async || scene.stands()).await?;
        somebody_leads(ns).await?;
        holds_for(Duration::from_secs(2), "it stands", async || scene.stands()).await?;
        let chaos: StressChaos = ns.api().get("stress").await?;
        assert_eq!(chaos.told().interruptions, None, "{}", chaos.shown());
        scene.end(ns).await
    });
}

#[test]
fn without_a_controller_the_node_ends_it_at_its_time() {
    disrupt("stress-no-control", async |ns| {
        let scene = Scene::set(ns, |spec| spec.duration = Some("8s".to_owned())).await?;
        let chaos: StressChaos = ns.api().get("stress").await?;
        let ends = chaos.told().ends_at.context("it has no end")?.0;
        scale(&ns.client, names::CONTROLLER, 0).await?;
        until_within(Duration::from_secs(20), "the node has ended it", async || scene.is_as_before()).await?;
        let late = jiff::Timestamp::now().duration_since(ends);
        ensure!(late < jiff::SignedDuration::from_secs(4), "{late:#} after its time");
        scale(&ns.client, names::CONTROLLER, 2).await?;
        ns.experiment_until("stress", "it is told", |chaos: &StressChaos| chaos.is("Completed")).await?;
        scene.end(ns).await
    });
}

#[test]
fn daemon_and_controller_killed_together_have_it_again() {
    disrupt("stress-killed-both", async |ns| {
        let scene = Scene::set(ns, |_| ()).await?;
        kill_controllers(ns).await?;
        kill_daemon(ns, &scene).await?;
        // Before anybody has ordered anything, a daemon has put back what it found in its journal.
        somebody_leads(ns).await?;
        stands_again(ns, &scene).await?;
        scene.end(ns).await
    });
}

#[test]
fn the_daemons_pod_is_replaced_and_it_stands_again() {
    disrupt("stress-restart", async |ns| {
        let scene = Scene::set(ns, |_| ()).await?;
        let old = daemon(ns).await?;
        let api: Api<Pod> = Api::namespaced(ns.client.clone(), names::NAMESPACE);
        api.delete(&old.name(), &DeleteParams::default()).await?;
        until("it is put back meanwhile", async || scene.is_as_before()).await?;
        daemon_is_back(ns, daemons_container(&old)).await?;
        stands_again(ns, &scene).await?;
        scene.end(ns).await
    });
}

#[test]
fn a_namespace_that_is_deleted_takes_everything_along() {
    disrupt("stress-namespace", async |ns| {
        let other = ns.another("stress-gone", OptIn::Yes).await?;
        let scene = Scene::set(&other, |_| ()).await?;
        let api: Api<Namespace> = Api::all(ns.client.clone());
        api.delete(&other.name, &DeleteParams::default()).await?;
        until_within(Duration::from_secs(10), "nothing runs any more", async || scene.is_as_before()).await?;
        until("the namespace is gone", async || {
            Ok(match api.get_opt(&other.name).await? {
                None => Ok(()),
                Some(left) => Err(format!("{:?}", left.status)),
            })
        })
        .await
    });
}

#[test]
fn what_a_dead_daemon_left_is_not_called_recovered() {
    disrupt("stress-unseen", async |ns| {
        let scene = Scene::set(ns, |_| ()).await?;
        let dead = daemon(ns).await?;
        let id = daemons_container(&dead).context("the daemon does not run")?;
        // Stopped first, so that it can't put back anything on its way out.
        for process in containers_processes(&id)? {
            if let Some(process) = Pid::from_raw(process) {
                let _ = kill_process(process, Signal::STOP);
            }
        }
        patch_daemon_set(&ns.client, nowhere(Some("true"))).await?;
        let sets: Api<DaemonSet> = Api::namespaced(ns.client.clone(), names::NAMESPACE);
        until("no other daemon will be made", async || {
            let status = sets.get(names::DAEMON).await?.status.unwrap_or_default();
            Ok(if status.desired_number_scheduled == 0 { Ok(()) } else { Err(format!("{status:?}")) })
        })
        .await?;
        restart_now(&ns.client, &dead.name()).await?;
        sigkill(&dead, "daemon")?;
        ns.annotate::<StressChaos>("stress", names::PAUSE, Some("true")).await?;
        let began = Instant::now();
        let node = ns.pod("web").await?.spec.and_then(|spec| spec.node_name).context("it has no node")?;
        let told: StressChaos = ns
            .experiment_until("stress", "it is told that nobody knows", |chaos: &StressChaos| {
                chaos.told().message.is_some_and(|message| message.contains(&node))
            })
            .await?;
        ensure!(told.told().targets[0].message.as_deref().is_some_and(|said| said.contains("not seen")));
        holds_for(Duration::from_secs(12), "it is not called recovered", async || {
            let chaos: StressChaos = ns.api().get("stress").await?;
            let honest = chaos.phase() == Phase::Recovering && scene.is_as_before()?.is_err();
            Ok(if honest { Ok(()) } else { Err(format!("after {:?}: {}", began.elapsed(), chaos.shown())) })
        })
        .await?;
        restore(ns).await?;
        ns.experiment_until("stress", "it is paused", |chaos: &StressChaos| chaos.phase() == Phase::Paused)
            .await?;
        scene.is_as_before()?.map_err(anyhow::Error::msg)?;
        scene.end(ns).await
    });
}
