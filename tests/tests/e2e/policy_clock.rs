//! Policies that go by a clock: how old a pod must be, and windows that close.

use std::time::Duration;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::json;
use squall_api::chaospolicy::PolicyState;
use squall_api::podchaos::{Action, Mode, Phase};
use squall_tests::{
    ExperimentExt as _, OptIn, PodExt as _, Policy, experiment, hit, holds_for, refusal, released, says,
    switch, switch_off, unschedulable, until, until_within, with_ns,
};

/// How late the end of a window may be carried out while other tests run beside.
const SOON: Duration = Duration::from_secs(10);

/// The next full minute that leaves time for what has to happen before.
fn soon() -> Result<Timestamp> {
    let minute = (Timestamp::now().as_second() + 25).div_euclid(60) + 1;
    Ok(Timestamp::from_second(minute * 60)?)
}

fn time_of_day(at: Timestamp) -> String {
    at.strftime("%H:%M").to_string()
}

#[test]
fn a_pod_is_left_alone_until_it_is_old_enough() {
    with_ns("policy-age", OptIn::Yes, async |ns| {
        let policy = Policy::make(ns, json!({ "limits": { "minPodAge": "1h" } })).await?;
        ns.create(&unschedulable("web", "web")).await?;
        until("the switch is refused", async || {
            let ran = switch(ns, "web", &[])?;
            if ran.success {
                switch_off(ns, "web")?;
            }
            let parts = [policy.name.as_str(), "limits.minPodAge", "found an age of", "allowed: at least 1h"];
            Ok(if ran.success { Err(ran.text) } else { Ok(says(&ran.text, &parts)?) })
        })
        .await?;
        ns.create(&experiment("young", Action::PodFailure, Mode::All, |_| ())).await?;
        holds_for(Duration::from_secs(2), "nothing is hit", async || {
            let hit = hit(ns, "web").await?;
            Ok(if hit.is_empty() { Ok(()) } else { Err(format!("{hit:?}")) })
        })
        .await?;
        ns.end_chaos("young").await?;
        policy.patch(r#"{"spec": {"limits": {"minPodAge": "1s"}}}"#)?;
        until("it is old enough", async || {
            let ran = switch(ns, "web", &[])?;
            Ok(if ran.success { Ok(()) } else { Err(ran.text) })
        })
        .await?;
        switch_off(ns, "web")?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_window_that_closes_ends_experiments_and_labels() {
    with_ns("policy-window", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&unschedulable("hand", "hand")).await?;
        let closes = soon()?;
        let opened = closes - jiff::SignedDuration::from_hours(12);
        let window = json!({ "from": time_of_day(opened), "to": time_of_day(closes) });
        let policy = Policy::make(ns, json!({ "windows": [window] })).await?;
        ns.create(&experiment("fail", Action::PodFailure, Mode::All, |spec| {
            spec.selector.label_selectors.insert("app".to_owned(), "web".to_owned());
        }))
        .await?;
        ns.phase("fail", Phase::Injected).await?;
        switch(ns, "hand", &[])?.ok()?;
        let failed = async |name: &str| -> Result<bool> { Ok(ns.pod(name).await?.is_failed()) };
        until_within(Duration::from_secs(100), "the window has closed and both are whole", async || {
            let (web, hand) = (failed("web").await?, failed("hand").await?);
            let now = Timestamp::now();
            ensure!(now >= closes || (web && hand), "ended {} before it closes", closes - now);
            Ok(if web || hand { Err(format!("{now}: web {web}, hand {hand}")) } else { Ok(()) })
        })
        .await?;
        let late = Duration::try_from(Timestamp::now().duration_since(closes))?;
        println!("recovered {late:?} after the window had closed");
        ensure!(late <= SOON, "{late:?}");
        let ended = ns.completed("fail").await?;
        assert_eq!(
            (ended.phase(), ended.reason("Completed").as_str(), ended.reason("Failed").as_str()),
            (Phase::Halted, "Halted", "WindowClosed"),
            "{}",
            ended.shown()
        );
        released(ns, "hand", &[&policy.name, "windows", "the next window opens at"]).await?;
        says(&switch(ns, "hand", &[])?.refused()?, &[&policy.name, "windows", "inside a window"])?;
        let late = experiment("late", Action::PodFailure, Mode::All, |_| ());
        says(&refusal(ns, &late).await?, &[&policy.name, "windows"])?;
        policy.state(ns, PolicyState::Closed).await?;
        ns.whole("web").await?;
        ns.whole("hand").await?;
        Ok(())
    });
}
