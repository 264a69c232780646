//! A Schedule whose controller dies.

use kube::ResourceExt as _;
use serde_json::json;
use squall_api::Schedule;
use squall_api::podchaos::Phase;
use squall_tests::schedules::{children, end, runs, schedule, schedule_until};
use squall_tests::{
    ExperimentExt as _, OptIn, alone, leader, restart_now, settled, unschedulable, until, with_ns,
};

#[test]
fn a_controller_that_dies_begins_nothing_twice() {
    let _alone = alone();
    with_ns("sched-dies", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let change = json!({"schedule": "*/3 * * * * *", "concurrencyPolicy": "Allow", "historyLimit": 100,
                            "podChaos": {"action": "pod-failure", "mode": "all", "duration": "1s",
                                         "selector": {"labelSelectors": {"app": "web"}}}});
        ns.create(&schedule("storm", change)).await?;
        schedule_until(ns, "storm", "one began", |schedule| runs(schedule) >= 1).await?;
        if let Some(leading) = leader(&ns.client).await? {
            restart_now(&ns.client, &leading).await?;
        }
        let before = runs(&ns.api::<Schedule>().get("storm").await?);
        let now = schedule_until(ns, "storm", "it goes on", |schedule| runs(schedule) > before + 1).await?;
        // As many experiments as runs, each of its own second: what was missed is counted, and isn't made up for.
        let mut names: Vec<String> = children(ns).await?.iter().map(|chaos| chaos.name_any()).collect();
        names.sort();
        names.dedup_by_key(|name| name.split('-').nth(2).map(str::to_owned));
        let status = now.status.unwrap_or_default();
        assert!(names.len() as i64 >= status.runs.unwrap_or_default(), "{names:?} {status:?}");
        settled(&ns.client).await?;
        until("all are over", async || {
            ns.merge::<Schedule>("storm", json!({"spec": {"suspend": true}})).await?;
            let open =
                children(ns).await?.into_iter().filter(|chaos| chaos.phase() != Phase::Completed).count();
            Ok(if open == 0 { Ok(()) } else { Err(open) })
        })
        .await?;
        end(ns, "storm").await?;
        ns.whole("web").await?;
        Ok(())
    });
}
