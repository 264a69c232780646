//! The figures of a large cluster: a hundred nodes, two thousand pods, fifty policies and a hundred active experiments,
//! beside the real node. Nodes and pods are kwok's, which `cargo xtask bench scale` starts; whatever is measured is what
//! is written in specs and statuses, for nothing runs in such a pod.
//!
//! It prints each figure with its n, and exits with 1 when one is above its limit times `--slack`. What it made it
//! takes away again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use squall_api::podchaos::{Action, Mode, PodChaos};
use squall_api::{ChaosPolicy, names};
use squall_tests::figures::{Arguments, nth, quantile, resident, watch};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, PodExt as _, containers_processes, delete_lease, experiment, from_json,
    kubectl, leader, patch_daemon_set, pods_of_component, restart_now, runtime, settled, sigkill,
    until_within,
};

const NODES: usize = 100;
const POLICIES: usize = 50;
const ACTIVE: usize = 100;
/// Pods that are all failed at once.
const MANY: usize = 1000;
/// Pods for each of the active experiments to choose from.
const EACH: usize = 10;
/// What kwok looks after, by `cargo xtask bench scale`.
const FAKE: (&str, &str) = ("kwok.x-k8s.io/node", "fake");
/// Requests under way at the same time, of what is only made and not measured.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let Arguments { slack, rounds, only: _ } = Arguments::read(false)?;
    let mut figures = Figures { slack, missed: 0, resident: 0.0 };
    runtime().block_on(async {
        let client = squall_tests::client().await?;
        let unique = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 100_000;
        let stage = Stage { client, name: format!("squall-bench-{unique}") };
        let measured = match stage.build().await {
            Ok(()) => stage.measure(&mut figures, rounds).await,
            Err(error) => Err(error.context("while building it up")),
        };
        let cleared = stage.clear().await.context("while clearing it away");
        measured.and(cleared)
    })?;
    ensure!(figures.missed == 0, "{} figures are above {slack} times their limit", figures.missed);
    Ok(())
}

struct Figures {
    slack: f64,
    missed: u32,
    /// The largest so far of the controller, in MiB.
    resident: f64,
}

impl Figures {
    fn row(&mut self, what: &str, value: f64, unit: &str, limit: f64, n: usize, beside: &str) {
        let above = value > limit * self.slack;
        self.missed += u32::from(above);
        let verdict = if above { "  MISSED" } else { "" };
        println!("{what:<60} {value:>8.1} {unit:<3} (at most {limit:.0}, n={n}){beside}{verdict}");
    }

    async fn look_at_memory(&mut self, client: &Client) -> Result<()> {
        for pod in pods_of_component(client, names::CONTROLLER).await? {
            let Some(id) = pod.container("controller").and_then(|one| one.container_id) else { continue };
            for process in containers_processes(&id)? {
                // One that has just been killed has none.
                self.resident = self.resident.max(resident(process).unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// What the controller's metrics say of choosing.
struct Chosen {
    /// In seconds.
    sum: f64,
    count: f64,
}

/// What is built up, by its name.
struct Stage {
    client: Client,
    name: String,
}

impl Stage {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    fn chaos(&self) -> Api<PodChaos> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The namespace beside it that has not opted in.
    fn plain(&self) -> String {
        format!("{}-plain", self.name)
    }

    fn policies(&self) -> impl Iterator<Item = String> {
        (0..POLICIES).map(|number| format!("{}-{number}", self.name))
    }

    async fn build(&self) -> Result<()> {
        self.keep_the_daemon_on_real_nodes().await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for (name, label) in [(self.name.clone(), Some(names::INJECT_ENABLED)), (self.plain(), None)] {
            let labels: BTreeMap<&str, &str> =
                label.map(|value| (names::INJECT, value)).into_iter().collect();
            let namespace = from_json(json!({ "metadata": { "name": name, "labels": labels } }));
            namespaces.create(&PostParams::default(), &namespace).await?;
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
            until_within(PATIENCE, "the namespace can have pods", async || {
                Ok(accounts.get_opt("default").await?.map(|_| ()).ok_or("no ServiceAccount"))
            })
            .await?;
        }
        let began = Instant::now();
        let nodes: Api<Node> = Api::all(self.client.clone());
        make(&nodes, (0..NODES).map(|number| self.node(number))).await?;
        let policies: Api<ChaosPolicy> = Api::all(self.client.clone());
        make(&policies, self.policies().map(|name| self.policy(&name))).await?;
        let many = (0..MANY).map(|number| self.pod(&format!("web-{number}"), "web", number));
        let few = (0..ACTIVE * EACH)
            .map(|number| self.pod(&format!("one-{number}"), &format!("one-{}", number / EACH), number));
        make(&self.pods(), many.chain(few)).await?;
        until_within(PATIENCE * 2, "every pod is Ready", async || {
            let all = self.pods().list_metadata(&ListParams::default()).await?.items.len();
            let running = ListParams::default().fields("status.phase=Running");
            let ready = self.pods().list_metadata(&running).await?.items.len();
            Ok(if ready == all { Ok(()) } else { Err(format!("{ready} of {all}")) })
        })
        .await?;
        println!("{NODES} nodes and {} pods after {:.0?}", MANY + ACTIVE * EACH, began.elapsed());
        make(&self.chaos(), (0..ACTIVE).map(|number| one_of(&format!("one-{number}")))).await?;
        self.play_the_kubelet().await?;
        until_within(PATIENCE, "a hundred experiments are active", async || {
            let all = self.chaos().list(&ListParams::default()).await?.items;
            let open = all.iter().find(|chaos| !chaos.is("Injected"));
            Ok(match open {
                None => Ok(()),
                Some(chaos) => Err(chaos.shown()),
            })
        })
        .await
    }

    /// A daemon tolerates everything, so it would be put on nodes that don't exist.
    async fn keep_the_daemon_on_real_nodes(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let real = nodes.list_metadata(&ListParams::default()).await?.items;
        let name = real.iter().find_map(|node| node.metadata.labels.as_ref()?.get("kubernetes.io/hostname"));
        self.daemon_on(Some(name.context("no node has a host name")?)).await
    }

    async fn daemon_on(&self, host: Option<&str>) -> Result<()> {
        let selector = json!({ "kubernetes.io/hostname": host });
        patch_daemon_set(
            &self.client,
            json!({ "spec": { "template": { "spec": { "nodeSelector": selector } } } }),
        )
        .await?;
        settled(&self.client).await
    }

    fn node(&self, number: usize) -> Node {
        from_json(json!({
            "metadata": {
                "name": format!("{}-{number}", self.name),
                "labels": { "squall-bench": self.name },
                "annotations": { FAKE.0: FAKE.1, "node.alpha.kubernetes.io/ttl": "0" },
            },
            "spec": { "taints": [{ "key": FAKE.0, "value": FAKE.1, "effect": "NoSchedule" }] },
            "status": {
                "allocatable": { "cpu": "32", "memory": "256Gi", "pods": "110" },
                "capacity": { "cpu": "32", "memory": "256Gi", "pods": "110" },
            },
        }))
    }

    fn pod(&self, name: &str, app: &str, number: usize) -> Pod {
        let node = format!("{}-{}", self.name, number % NODES);
        let mut spec = pod_spec();
        spec["nodeName"] = json!(node);
        from_json(json!({ "metadata": { "name": name, "labels": { "app": app } }, "spec": spec }))
    }

    fn policy(&self, name: &str) -> ChaosPolicy {
        from_json(json!({
            "metadata": { "name": name },
            "spec": {
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": self.name } },
                "limits": { "maxTargets": 3000, "maxConcurrentExperiments": 500, "minPodAge": "1s" },
                "protect": { "podSelector": { "matchLabels": { "tier": "holy" } } },
            },
        }))
    }

    /// kwok tells of a pod once: what a kubelet would say of one whose image is ours is said here.
    async fn play_the_kubelet(&self) -> Result<()> {
        let failed = ListParams::default().labels(&format!("{}={}", names::FAULT, names::POD_FAILURE));
        let pods = until_within(PATIENCE, "each has its pod", async || {
            let pods = self.pods().list(&failed).await?.items;
            Ok(if pods.len() == ACTIVE { Ok(pods) } else { Err(pods.len()) })
        })
        .await?;
        let down = json!({ "status": { "containerStatuses": [{
            "name": "app", "image": BUSYBOX, "imageID": "", "ready": false, "restartCount": 1,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
        }] } });
        for pod in pods {
            let patch = Patch::Strategic(&down);
            self.pods().patch_status(&pod.name(), &PatchParams::default(), &patch).await?;
        }
        Ok(())
    }

    async fn measure(&self, figures: &mut Figures, rounds: u32) -> Result<()> {
        figures.look_at_memory(&self.client).await?;
        self.admission(figures).await?;
        self.selection(figures).await?;
        self.many_at_once(figures).await?;
        self.killed_in_between(figures, rounds).await?;
        let resident = figures.resident;
        figures.row("memory of the controller, the largest seen", resident, "MiB", 60.0, 1, "");
        Ok(())
    }

    /// What the webhook adds to the creation of a pod: with it and without it, in turns.
    async fn admission(&self, figures: &mut Figures) -> Result<()> {
        let plain: Api<Pod> = Api::namespaced(self.client.clone(), &self.plain());
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let pod: Pod = from_json(json!({ "metadata": { "generateName": "new-" }, "spec": pod_spec() }));
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for round in 0..1050 {
            for (api, times) in [(&self.pods(), &mut with), (&plain, &mut without)] {
                let began = Instant::now();
                api.create(&params, &pod).await?;
                // What is done for the first time isn't measured.
                if round >= 50 {
                    times.push(began.elapsed());
                }
            }
        }
        let added = quantile(&with, 99) - quantile(&without, 99);
        let beside = format!(
            "; median {:.1} and {:.1} ms, p99 {:.1} and {:.1} ms",
            quantile(&with, 50),
            quantile(&without, 50),
            quantile(&with, 99),
            quantile(&without, 99)
        );
        figures.row("admission of a pod, added at p99", added, "ms", 5.0, with.len(), &beside);
        Ok(())
    }

    /// What choosing takes in the controller, as it says itself, on average; and from the response to the create call
    /// until the choice is written and seen.
    async fn selection(&self, figures: &mut Figures) -> Result<()> {
        let mut times = Vec::new();
        let before = self.chosen().await?;
        for round in 0..30 {
            let mut events = watch(&self.chaos(), "").await?;
            let name = format!("ten-{round}");
            let chaos = experiment(&name, Action::PodFailure, Mode::Fixed, |spec| {
                spec.value = Some("10".to_owned());
                spec.dry_run = Some(true);
            });
            self.chaos().create(&PostParams::default(), &chaos).await?;
            let began = Instant::now();
            let chosen = |chaos: &PodChaos| {
                chaos.metadata.name.as_ref() == Some(&name) && chaos.told().selected_at.is_some()
            };
            let took = nth(&mut events, began, 1, PATIENCE, chosen).await?;
            let told = self.chaos().get(&name).await?;
            let hit = told.told().drawn;
            ensure!(hit == Some(10), "{}", told.shown());
            times.push(took);
            self.end(&name).await?;
        }
        let after = self.chosen().await?;
        let count = after.count - before.count;
        ensure!(count == 30.0, "{count} choices in the controller's metrics, in place of 30");
        let mean = (after.sum - before.sum) / count * 1000.0;
        let beside = format!(
            "; until it is written and seen from outside {:.1} ms, p90 {:.1} ms",
            quantile(&times, 50),
            quantile(&times, 90)
        );
        figures.row("10 of 2,000 pods chosen, in the controller", mean, "ms", 20.0, times.len(), &beside);
        Ok(())
    }

    /// How often the leader has chosen, and how long that took altogether.
    async fn chosen(&self) -> Result<Chosen> {
        let leader = leader(&self.client).await?.context("nobody leads")?;
        let path = format!("/api/v1/namespaces/{}/pods/{leader}:8081/proxy/metrics", names::NAMESPACE);
        let text = kubectl(&["get", "--raw", &path])?.ok()?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.with_context(|| format!("no {name} among the controller's metrics"))?
                .parse::<f64>()
                .context("a number")
        };
        Ok(Chosen { sum: value("squall_choose_seconds_sum")?, count: value("squall_choose_seconds_count")? })
    }

    async fn many_at_once(&self, figures: &mut Figures) -> Result<()> {
        let (mut there, mut back) = (Vec::new(), Vec::new());
        for round in 0..3 {
            let name = format!("all-{round}");
            let mut events = watch(&self.pods(), "app=web").await?;
            self.chaos().create(&PostParams::default(), &all_of_web(&name)).await?;
            let began = Instant::now();
            there.push(
                nth(&mut events, began, MANY, PATIENCE, |pod: &Pod| !pod.substituted().is_empty()).await?,
            );
            figures.look_at_memory(&self.client).await?;
            let mut events = watch(&self.pods(), "app=web").await?;
            self.chaos().delete(&name, &DeleteParams::default()).await?;
            let began = Instant::now();
            back.push(
                nth(&mut events, began, MANY, PATIENCE, |pod: &Pod| pod.substituted().is_empty()).await?,
            );
            self.gone(&name).await?;
            figures.look_at_memory(&self.client).await?;
        }
        for (what, times) in [("pod-failure of 1,000 pods: substituted", there), ("... restored", back)] {
            let worst = format!("; the worst {:.1} s", quantile(&times, 100) / 1000.0);
            figures.row(what, quantile(&times, 50) / 1000.0, "s", 10.0, times.len(), &worst);
        }
        Ok(())
    }

    /// The leader is killed in the middle, and the experiment deleted: nothing of it is left.
    async fn killed_in_between(&self, figures: &mut Figures, rounds: u32) -> Result<()> {
        let mut left = 0;
        let mut moments = Vec::new();
        for round in 0..rounds {
            let name = format!("killed-{round}");
            let leads = until_within(PATIENCE, "a replica leads, and another waits", async || {
                let pods = pods_of_component(&self.client, names::CONTROLLER).await?;
                let holder = leader(&self.client).await?;
                let ready = pods.iter().filter(|pod| pod.is_ready()).count();
                let leads = pods.iter().find(|pod| Some(pod.name()) == holder && pod.is_ready()).cloned();
                Ok(leads.filter(|_| ready > 1).ok_or_else(|| format!("{ready} are Ready")))
            })
            .await?;
            self.chaos().create(&PostParams::default(), &all_of_web(&name)).await?;
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
            tokio::time::sleep(Duration::from_millis(u64::from(nanos / 1000 % 4000))).await;
            sigkill(&leads, "controller")?;
            moments.push(self.failed().await?);
            self.chaos().delete(&name, &DeleteParams::default()).await?;
            // Neither the kubelet's patience nor the lease's is what is tried here.
            restart_now(&self.client, &leads.name()).await?;
            delete_lease(&self.client).await?;
            self.gone(&name).await?;
            left += self.failed().await?;
            figures.look_at_memory(&self.client).await?;
        }
        let beside = format!("; failed when it was killed: {moments:?}");
        figures.row("left failed by a killed controller", left as f64, "", 0.0, rounds as usize, &beside);
        Ok(())
    }

    /// How many of the many are failed.
    async fn failed(&self) -> Result<usize> {
        let pods = self.pods().list(&ListParams::default().labels("app=web")).await?.items;
        Ok(pods
            .iter()
            .filter(|pod| pod.label(names::FAULT).is_some() || !pod.substituted().is_empty())
            .count())
    }

    async fn end(&self, name: &str) -> Result<()> {
        self.chaos().delete(name, &DeleteParams::default()).await?;
        self.gone(name).await
    }

    async fn gone(&self, name: &str) -> Result<()> {
        until_within(PATIENCE, "the experiment is gone", async || {
            Ok(match self.chaos().get_opt(name).await? {
                None => Ok(()),
                Some(chaos) => Err(chaos.told().message.unwrap_or_default()),
            })
        })
        .await
    }

    async fn clear(&self) -> Result<()> {
        let all = ListParams::default();
        let now = DeleteParams::default().grace_period(0);
        self.chaos().delete_collection(&DeleteParams::default(), &all).await?;
        until_within(PATIENCE, "no experiment is left", async || {
            let left = self.chaos().list(&all).await?.items;
            Ok(left.first().map_or(Ok(()), |chaos| Err(chaos.shown())))
        })
        .await?;
        self.pods().delete_collection(&now, &all).await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in [self.name.clone(), self.plain()] {
            namespaces.delete(&name, &DeleteParams::background()).await?;
        }
        let policies: Api<ChaosPolicy> = Api::all(self.client.clone());
        for name in self.policies() {
            policies.delete(&name, &DeleteParams::default()).await?;
        }
        until_within(PATIENCE, "the namespace is gone", async || {
            Ok(namespaces.get_opt(&self.name).await?.map_or(Ok(()), |left| Err(format!("{:?}", left.status))))
        })
        .await?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(&format!("squall-bench={}", self.name));
        nodes.delete_collection(&now, &ours).await?;
        self.daemon_on(None).await
    }
}

fn pod_spec() -> Value {
    json!({ "terminationGracePeriodSeconds": 1, "containers": [
        { "name": "app", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "9999"] },
    ] })
}

fn one_of(app: &str) -> PodChaos {
    experiment(app, Action::PodFailure, Mode::One, |spec| {
        spec.selector.label_selectors.insert("app".to_owned(), app.to_owned());
    })
}

fn all_of_web(name: &str) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::All, |spec| {
        spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
    })
}

async fn make<K>(api: &Api<K>, objects: impl Iterator<Item = K>) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let params = PostParams::default();
    futures::stream::iter(objects)
        .map(|object| {
            let params = &params;
            async move { api.create(params, &object).await.map(|_| ()) }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(())
}
