//! container-kill on real containers: which process of which one, by which signal, and what the receipt says.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use squall_api::podchaos::{
    Action, Mode, Phase, PodChaos, PodChaosSpec, Processes, Scope, Target, TargetPhase,
};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, SLEEPER, container, containers_processes, deployment,
    event_on, experiment, holds_for, kubectl, pod, pod_of, target_of, unschedulable, until, with_ns,
};

fn kill(name: &str, mode: Mode, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::ContainerKill, mode, change)
}

fn container_id(pod: &Pod, container: &str) -> String {
    pod.container(container).and_then(|one| one.container_id).unwrap_or_default()
}

/// A container that runs, and can be asked for: the kubelet tells its ID a moment after it is Ready at the latest.
async fn running(ns: &Ns, pod: &Pod) -> Result<Pod> {
    ns.ready_pod(pod).await
}

/// Waits until the experiment is over and a container of its only target runs again and is Ready.
async fn followed(ns: &Ns, name: &str) -> Result<(PodChaos, Target)> {
    let chaos = ns
        .chaos_until(name, "its target is Ready again", |chaos| {
            let told = chaos.told();
            told.completed_at.is_some() && told.targets.iter().all(|target| target.ready_at.is_some())
        })
        .await?;
    let target = chaos.told().targets.first().context("there is no target")?.clone();
    Ok((chaos, target))
}

#[test]
fn the_first_container_dies_of_sigkill_and_the_receipt_says_so() {
    with_ns("ckill-one", OptIn::Yes, async |ns| {
        let spec = json!({ "containers": [container("app", SLEEPER), container("helper", SLEEPER)] });
        let before = running(ns, &pod_of("web", spec)).await?;
        let id = container_id(&before, "app");
        let init = *containers_processes(&id)?.first().context("it has no process")?;
        ns.create(&kill("kill", Mode::One, |_| ())).await?;
        let (chaos, target) = followed(ns, "kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert_eq!(target.phase, TargetPhase::Killed, "{}", chaos.shown());
        assert_eq!(target.container.as_deref(), Some("app"), "{}", chaos.shown());
        assert_eq!(target.container_id.as_deref(), Some(id.as_str()), "{}", chaos.shown());
        assert_eq!(target.exit_code, Some(137), "{}", chaos.shown());
        assert_eq!(target.uid, before.uid());

        let receipt = target.receipt.clone().context("there is no receipt")?;
        assert!(["ebpf", "pidfd"].contains(&receipt.evidence.as_str()), "{}", chaos.shown());
        assert_eq!((receipt.signal, receipt.total, receipt.processes.len()), (9, 1, 1), "{}", chaos.shown());
        let process = &receipt.processes[0];
        assert_eq!(process.pid, i64::from(init), "{}", chaos.shown());
        assert_eq!(process.comm, "sh", "{}", chaos.shown());
        assert_eq!(process.exit_code, Some(137), "{}", chaos.shown());
        let (sent, exited) = process.sent.clone().zip(process.exited.clone()).context("a time is missing")?;
        assert!(exited.0 >= sent.0, "{}", chaos.shown());
        if receipt.evidence == "ebpf" {
            let delivered = process.delivered.clone().context("there is no time of delivery")?;
            assert!(sent.0 <= delivered.0 && delivered.0 <= exited.0, "{}", chaos.shown());
        }
        let told = chaos.told();
        let selected = told.selected_at.context("there is no time of choice")?;
        let whole_second = exited.0.duration_since(selected.0).as_secs_f64();
        assert!((-0.5..10.0).contains(&whole_second), "{}", chaos.shown());
        assert!(target.restarted_at.is_some(), "{}", chaos.shown());

        let after = ns.pod("web").await?;
        assert_eq!(after.restarts("app"), before.restarts("app") + 1);
        assert_ne!(container_id(&after, "app"), id);
        let ended = after.container("app").and_then(|one| one.last_state).and_then(|state| state.terminated);
        assert_eq!(ended.map(|ended| ended.exit_code), Some(137), "the kubelet saw something else");
        assert_eq!(after.restarts("helper"), 0, "its neighbour was hit");
        assert_eq!(container_id(&after, "helper"), container_id(&before, "helper"));
        let said = event_on(ns, "Pod", "web", "Killed").await?;
        assert!(said.contains("container app") && said.contains(&format!("{}/kill", ns.name)), "{said}");
        Ok(())
    });
}

#[test]
fn the_receipt_rests_on_what_the_kernel_saw() {
    with_ns("ckill-ebpf", OptIn::Yes, async |ns| {
        // A kill waits at most 10 ms for the programs: on a busy machine it may have to do without, and says so.
        for name in ["first", "second", "third", "fourth", "fifth"] {
            running(ns, &pod(name)).await?;
            ns.create(&kill(name, Mode::One, |spec| {
                spec.selector.label_selectors.insert("app".into(), name.into());
            }))
            .await?;
            let (chaos, target) = followed(ns, name).await?;
            let receipt = target.receipt.context("there is no receipt")?;
            assert_eq!(receipt.lost.unwrap_or_default(), 0, "{}", chaos.shown());
            if receipt.evidence == "ebpf" {
                assert_eq!(receipt.evidence_error, None, "{}", chaos.shown());
                return Ok(());
            }
            assert!(receipt.evidence_error.is_some(), "{}", chaos.shown());
        }
        anyhow::bail!("five kills in a row had to do without eBPF")
    });
}

#[test]
fn a_signal_by_name_lets_the_process_put_its_things_in_order() {
    with_ns("ckill-term", OptIn::Yes, async |ns| {
        let tidy = "trap 'exit 7' TERM; trap 'exit 8' USR1; while :; do sleep 1000 & wait $!; done";
        let spec = |name: &str| pod_of(name, json!({ "containers": [container("app", tidy)] }));
        let signals = [
            ("name", IntOrString::String("SIGTERM".into()), 15, 7),
            ("short", IntOrString::String("usr1".into()), 10, 8),
            ("number", IntOrString::Int(15), 15, 7),
        ];
        for (name, ..) in &signals {
            ns.create(&spec(name)).await?;
        }
        for (name, signal, number, code) in signals {
            ns.pod_until(name, "it is Ready", |pod| pod.is_ready()).await?;
            ns.create(&kill(name, Mode::One, |spec| {
                spec.selector.label_selectors.insert("app".into(), name.into());
                spec.signal = Some(signal);
            }))
            .await?;
            let (chaos, target) = followed(ns, name).await?;
            assert_eq!(target.exit_code, Some(code), "{name}: {}", chaos.shown());
            assert_eq!(
                target.receipt.map(|receipt| receipt.signal),
                Some(number),
                "{name}: {}",
                chaos.shown()
            );
            let ended = ns.pod(name).await?.container("app").and_then(|one| one.last_state?.terminated);
            assert_eq!(
                ended.map(|ended| ended.exit_code),
                Some(code),
                "{name}: the kubelet saw something else"
            );
        }
        Ok(())
    });
}

#[test]
fn every_process_gets_it_exactly_once() {
    with_ns("ckill-all", OptIn::Yes, async |ns| {
        // Each process that is told to end writes a line, so that one told twice would write two. The first ends the
        // container a moment later, time enough for a second line; what was written outlives it, and the next one only
        // sleeps. The workers' sleeps end of it without a word.
        let script = format!(
            "[ ! -e /told/lines ] || {{ {SLEEPER}; }}; \
             listen() {{ trap \"echo $1 told >> /told/lines; $2\" TERM; echo $1 listens >> /told/lines; }}; \
             worker() {{ listen $1; while :; do sleep 0.2; done; }}; \
             end() {{ for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; exit 7; }}; \
             worker a & worker b & worker c & listen first end; while :; do sleep 0.2; done"
        );
        let mut app = container("app", &script);
        app["volumeMounts"] = json!([{ "name": "told", "mountPath": "/told" }]);
        let spec = json!({ "containers": [app], "volumes": [{ "name": "told", "emptyDir": {} }] });
        let before = running(ns, &pod_of("web", spec)).await?;
        let lines = |end: &str| -> Result<Vec<String>> {
            // At first there is no such file.
            let text = kubectl(&["-n", &ns.name, "exec", "web", "--", "cat", "/told/lines"])?.text;
            let mut lines: Vec<String> =
                text.lines().filter_map(|line| line.strip_suffix(end)).map(str::to_owned).collect();
            lines.sort_unstable();
            Ok(lines)
        };
        let all = ["a", "b", "c", "first"];
        until("all four listen", async || {
            let listen = lines(" listens")?;
            Ok(if listen == all { Ok(()) } else { Err(format!("{listen:?}")) })
        })
        .await?;
        ns.create(&kill("kill", Mode::One, |spec| {
            spec.signal = Some(IntOrString::String("TERM".into()));
            spec.processes = Some(Processes { scope: Scope::All, ..Processes::default() })
        }))
        .await?;
        let (chaos, target) = followed(ns, "kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        let receipt = target.receipt.context("there is no receipt")?;
        // The shell and its three workers at least, and the sleeps that run at that moment.
        assert!(receipt.total >= 4, "{}", chaos.shown());
        let pids: BTreeSet<i64> = receipt.processes.iter().map(|process| process.pid).collect();
        assert_eq!(pids.len(), receipt.processes.len(), "a process got it twice: {}", chaos.shown());
        assert!(receipt.processes.len() <= usize::try_from(receipt.total)?, "{}", chaos.shown());
        assert_eq!(target.exit_code, Some(7), "{}", chaos.shown());
        assert_eq!(ns.pod("web").await?.restarts("app"), before.restarts("app") + 1);
        assert_eq!(lines(" told")?, all, "{}", chaos.shown());
        Ok(())
    });
}

#[test]
fn each_mode_hits_as_many_as_it_says_and_no_pod_is_replaced() {
    with_ns("ckill-modes", OptIn::Yes, async |ns| {
        type Case = (&'static str, i32, Mode, Option<&'static str>, std::ops::RangeInclusive<usize>);
        let cases: [Case; 5] = [
            ("one", 2, Mode::One, None, 1..=1),
            ("all", 4, Mode::All, None, 4..=4),
            ("two", 3, Mode::Fixed, Some("2"), 2..=2),
            ("half", 3, Mode::FixedPercent, Some("50"), 2..=2),
            ("random", 2, Mode::RandomMaxPercent, Some("100"), 1..=2),
        ];
        for (name, replicas, ..) in &cases {
            ns.create(&deployment(name, *replicas, false)).await?;
        }
        let mut before = Vec::new();
        for (name, replicas, ..) in &cases {
            before.extend(ns.ready_pods(name, usize::try_from(*replicas)?).await?);
        }
        for (name, _, mode, value, _) in &cases {
            ns.create(&kill(name, *mode, |spec| {
                spec.selector.label_selectors.insert("app".into(), (*name).into());
                spec.value = value.map(str::to_owned);
                spec.container_names = vec!["app".into()];
            }))
            .await?;
        }
        for (name, _, _, _, wanted) in cases {
            let chaos = ns.completed(name).await?;
            assert_eq!(chaos.phase(), Phase::Completed, "{name}: {}", chaos.shown());
            let killed = chaos.in_phase(TargetPhase::Killed).len();
            assert!(wanted.contains(&killed), "{name}: {killed} instead of {wanted:?}: {}", chaos.shown());
            let what = "those that were hit, and only they, are restarted";
            let after = ns.pods_until(name, what, |pods| {
                pods.iter()
                    .all(|pod| pod.restarts("app") == i32::from(target_of(&chaos, &pod.name()).is_some()))
            });
            for pod in after.await? {
                assert!(before.iter().any(|old| old.uid() == pod.uid()), "{name}: a pod was replaced");
            }
        }
        Ok(())
    });
}

#[test]
fn the_next_incarnation_is_not_hit() {
    with_ns("ckill-race", OptIn::Yes, async |ns| {
        running(ns, &pod("web")).await?;
        // Several at once: all that chose the same incarnation find it running or gone, and never hit the next.
        let names = ["a", "b", "c", "d"];
        for name in names {
            ns.create(&kill(name, Mode::One, |_| ())).await?;
        }
        let mut hit = BTreeSet::new();
        for name in names {
            let chaos = ns.completed(name).await?;
            for target in chaos.told().targets {
                match target.phase {
                    TargetPhase::Killed => {
                        hit.insert(target.container_id.context("it has no container ID")?);
                    }
                    TargetPhase::Skipped => assert!(target.reason.is_some(), "{}", chaos.shown()),
                    other => panic!("{name}: {other:?}: {}", chaos.shown()),
                }
            }
        }
        let wanted = i32::try_from(hit.len())?;
        assert!(wanted >= 1);
        let restarts = async |limit| {
            holds_for(limit, "only incarnations that were chosen are hit", async || {
                let restarts = ns.pod("web").await?.restarts("app");
                Ok(if restarts <= wanted { Ok(()) } else { Err(format!("{restarts} restarts, {hit:?}")) })
            })
            .await
        };
        until("what was hit is restarted", async || {
            let pod = ns.pod("web").await?;
            let there = pod.restarts("app") == wanted;
            Ok(if there { Ok(()) } else { Err(format!("{} restarts, {hit:?}", pod.restarts("app"))) })
        })
        .await?;
        restarts(Duration::from_secs(1)).await
    });
}

#[test]
fn what_would_end_for_good_takes_a_word_more() {
    with_ns("ckill-terminal", OptIn::Yes, async |ns| {
        let spec = json!({ "restartPolicy": "Never", "containers": [container("app", SLEEPER)] });
        running(ns, &pod_of("once", spec)).await?;
        ns.create(&unschedulable("idle", "idle")).await?;
        ns.create(&kill("no", Mode::All, |_| ())).await?;
        let chaos = ns.completed("no").await?;
        assert_eq!(chaos.reason("Completed"), "NoTargets", "{}", chaos.shown());
        let spared = target_of(&chaos, "once").context("the pod isn't told of")?;
        assert_eq!(spared.reason.as_deref(), Some("WouldNotRecover"), "{}", chaos.shown());
        let idle = target_of(&chaos, "idle").context("the pod isn't told of")?;
        assert_eq!(idle.reason.as_deref(), Some("NotRunning"), "{}", chaos.shown());
        assert!(ns.pod("once").await?.is_ready());
        ns.create(&kill("yes", Mode::All, |spec| {
            spec.allow_terminal = Some(true);
            spec.selector.label_selectors.insert("app".into(), "once".into());
        }))
        .await?;
        let chaos = ns.completed("yes").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        ns.pod_until("once", "it has ended for good", |pod| {
            pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed")
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_container_that_no_pod_has_is_told_of() {
    with_ns("ckill-name", OptIn::Yes, async |ns| {
        running(ns, &pod("web")).await?;
        ns.create(&kill("kill", Mode::All, |spec| spec.container_names = vec!["ap".into()])).await?;
        let chaos = ns.completed("kill").await?;
        assert!(chaos.is("Failed"), "{}", chaos.shown());
        let target = target_of(&chaos, "web").context("the pod isn't told of")?;
        assert_eq!(target.reason.as_deref(), Some("NoSuchContainer"), "{}", chaos.shown());
        assert_eq!(ns.pod("web").await?.restarts("app"), 0);
        Ok(())
    });
}

#[test]
fn a_signal_that_is_ignored_is_told_of() {
    with_ns("ckill-ignored", OptIn::Yes, async |ns| {
        let deaf = "trap '' USR2; while :; do sleep 1; done";
        let before = running(ns, &pod_of("web", json!({ "containers": [container("app", deaf)] }))).await?;
        ns.create(&kill("kill", Mode::One, |spec| {
            spec.signal = Some(IntOrString::String("SIGUSR2".into()));
            spec.duration = Some("5s".into());
        }))
        .await?;
        let chaos = ns.completed("kill").await?;
        let target = target_of(&chaos, "web").context("no such target")?;
        let note = target.receipt.as_ref().and_then(|receipt| receipt.processes.first()?.note.clone());
        assert_eq!(note.as_deref(), Some("ignored"), "{}", chaos.shown());
        let after = ns.pod("web").await?;
        assert_eq!(container_id(&after, "app"), container_id(&before, "app"));
        Ok(())
    });
}
