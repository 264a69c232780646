//! Laws of policies: what all of them allow is what each of them allows, and no number of choices made one after the
//! other ever exceeds a limit.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, MicroTime};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use rstest::rstest;
use squall_api::chaospolicy::{
    Allow, ChaosPolicy, ChaosPolicySpec, Halt, Limits, PolicyAction, ProbeStatus, Protect, Window,
};
use squall_api::names;
use squall_api::status::{ExperimentStatus, Target, TargetPhase};
use squall_model::plan::{Daemon, Report, World};
use squall_model::pod::{NamespaceView, Owner, PodView};
use squall_model::policy::choice::{Budget, choose, excess};
use squall_model::policy::ledger::{Hold, Ledger};
use squall_model::policy::used::{Used, usage};
use squall_model::policy::{Ask, Labels, Policies, Policy, Rule, Who};
use squall_model::select::Nodes;
use squall_model::substitute::{Holder, MANUAL};

const NOW: i64 = 1_795_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

#[derive(Default)]
struct Fake {
    namespaces: BTreeMap<String, NamespaceView>,
    pods: Vec<PodView>,
    policies: Policies,
    ledger: Ledger,
    budgets: Vec<Budget>,
}

impl Nodes for Fake {
    fn labels(&self, _: &str) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl World for Fake {
    fn namespace(&self, name: &str) -> Option<&NamespaceView> {
        self.namespaces.get(name)
    }
    fn pods<'a>(&'a self, namespace: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        let namespace = namespace.to_owned();
        Box::new(self.pods.iter().filter(move |pod| pod.namespace == namespace))
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<&PodView> {
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
    }
    fn held_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        let uid = uid.to_owned();
        Box::new(self.pods.iter().filter(move |pod| pod.held_by.iter().any(|holder| holder.uid == uid)))
    }
    fn owned_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        let uid = uid.to_owned();
        Box::new(self.pods.iter().filter(move |pod| pod.owner.as_ref().is_some_and(|owner| owner.uid == uid)))
    }
    fn daemon(&self, _: &str) -> Daemon {
        Daemon::None
    }
    fn report(&self, _: &str, _: &str) -> Option<Report> {
        None
    }
    fn policies(&self) -> &Policies {
        &self.policies
    }
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    fn budgets(&self, _: &str) -> &[Budget] {
        &self.budgets
    }
}

fn namespace(name: &str) -> NamespaceView {
    let label = ("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    NamespaceView { name: name.into(), opted_in: true, labels: [label].into(), ..NamespaceView::default() }
}

fn labels(pairs: &[(&str, &str)]) -> LabelSelector {
    let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    LabelSelector { match_labels: Some(pairs), match_expressions: None }
}

fn policy(name: &str, spec: ChaosPolicySpec) -> Policy {
    Policy::of(&ChaosPolicy::new(name, spec))
}

fn limits(name: &str, limits: Limits) -> Policy {
    policy(name, ChaosPolicySpec { limits: Some(limits), ..ChaosPolicySpec::default() })
}

/// A pod of the Deployment `of`, through its ReplicaSet.
fn pod(of: &str, index: usize) -> PodView {
    PodView {
        namespace: "shop".into(),
        name: format!("{of}-abc-{index}"),
        uid: format!("uid-{of}-{index}"),
        phase: "Running".into(),
        ready: true,
        created: Some(now() - SignedDuration::from_hours(1)),
        labels: [("pod-template-hash".to_owned(), "abc".to_owned()), ("app".to_owned(), of.to_owned())]
            .into(),
        owner: Some(Owner { kind: "ReplicaSet".into(), name: format!("{of}-abc"), uid: format!("rs-{of}") }),
        ..PodView::default()
    }
}

/// Held by hand since so many seconds after now.
fn failed_by_hand(pod: PodView, since: i64) -> PodView {
    let since = Some(now() + SignedDuration::from_secs(since));
    PodView { held_by: vec![Holder { uid: MANUAL.into(), since, ..Holder::default() }], ..pod }
}

/// What is more than allowed, where these were found to be within the limits before.
fn too_much(world: &Fake, settled: &[&str]) -> Vec<String> {
    let settled = settled.iter().map(|uid| (*uid).to_owned()).collect();
    excess(world, &settled, now()).into_keys().collect()
}

fn world(policies: Vec<Policy>, pods: Vec<PodView>) -> Fake {
    Fake {
        namespaces: [("shop".to_owned(), namespace("shop"))].into(),
        pods,
        policies: Policies::new(policies),
        ..Fake::default()
    }
}

fn hold(pods: &[&PodView], since: i64) -> Hold {
    let status = ExperimentStatus {
        selected_at: Some(MicroTime(Timestamp::from_second(since).unwrap())),
        targets: pods
            .iter()
            .map(|pod| Target {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                owner: pod.owner.as_ref().map(|owner| owner.uid.clone()),
                workload: Some(pod.workload()),
                phase: TargetPhase::Injected,
                ..Target::default()
            })
            .collect(),
        ..ExperimentStatus::default()
    };
    Hold::of(&status, now())
}

fn refusal(world: &Fake, wanted: usize) -> String {
    let ranked: Vec<&PodView> = world.pods.iter().collect();
    choose(world, "new", &Hold::default(), &ranked, wanted, now()).unwrap_err().to_string()
}

fn ask() -> Ask {
    Ask {
        action: PolicyAction::PodFailure,
        signal: None,
        duration: Some(std::time::Duration::from_secs(60)),
        pods: Some(1),
    }
}

#[test]
fn a_deployments_pods_are_one_workload_through_their_replica_set() {
    assert_eq!(pod("web", 1).workload(), "Deployment/web");
    let mut set = pod("db", 0);
    set.owner = Some(Owner { kind: "StatefulSet".into(), name: "db".into(), uid: "s".into() });
    assert_eq!(set.workload(), "StatefulSet/db");
    set.owner = None;
    assert_eq!(set.workload(), "Pod/db-abc-0");
    let mut bare = pod("x", 0);
    bare.labels.clear();
    assert_eq!(bare.workload(), "ReplicaSet/x-abc");
}

#[rstest]
#[case::percent(
    Limits { max_percent_per_workload: Some(10), ..Limits::default() }, 5, 1,
    "ChaosPolicy p, limits.maxPercentPerWorkload: found 1 of the 5 pods of Deployment/web; allowed: 0 (10 % of 5 is 0)"
)]
#[case::percent_of_some(
    Limits { max_percent_per_workload: Some(50), ..Limits::default() }, 5, 3,
    "ChaosPolicy p, limits.maxPercentPerWorkload: found 3 of the 5 pods of Deployment/web; allowed: 2 (50 % of 5 is 2)"
)]
#[case::targets(
    Limits { max_targets: Some(2), ..Limits::default() }, 5, 3,
    "ChaosPolicy p, limits.maxTargets: found 3 asked for, 2 hit when it came to this one; allowed: 2"
)]
#[case::available(
    Limits { min_available_per_workload: Some(4), ..Limits::default() }, 5, 2,
    "ChaosPolicy p, limits.minAvailablePerWorkload: found 3 pods of Deployment/web that would stay Ready; allowed: at least 4"
)]
#[case::experiments(
    Limits { max_concurrent_experiments: Some(0), ..Limits::default() }, 5, 1,
    "ChaosPolicy p, limits.maxConcurrentExperiments: found 1 with this one; allowed: 0"
)]
fn a_refusal_names_policy_rule_and_both_numbers(
    #[case] limit: Limits,
    #[case] pods: usize,
    #[case] wanted: usize,
    #[case] text: &str,
) {
    let world = world(vec![limits("p", limit)], (0..pods).map(|index| pod("web", index)).collect());
    assert_eq!(refusal(&world, wanted), text);
}

#[test]
fn of_several_policies_the_strictest_wins_and_is_named() {
    let loose = limits("a-loose", Limits { max_targets: Some(5), ..Limits::default() });
    let strict = limits("z-strict", Limits { max_targets: Some(1), ..Limits::default() });
    let world = world(vec![loose, strict], (0..5).map(|index| pod("web", index)).collect());
    assert!(refusal(&world, 2).starts_with("ChaosPolicy z-strict, limits.maxTargets"));
}

#[test]
fn a_policy_of_other_namespaces_says_nothing() {
    let spec = ChaosPolicySpec {
        namespace_selector: Some(labels(&[("kubernetes.io/metadata.name", "bank")])),
        limits: Some(Limits { max_targets: Some(0), ..Limits::default() }),
        ..ChaosPolicySpec::default()
    };
    let world = world(vec![policy("bank", spec)], vec![pod("web", 0)]);
    let ranked: Vec<&PodView> = world.pods.iter().collect();
    assert_eq!(choose(&world, "new", &Hold::default(), &ranked, 1, now()).unwrap().taken.len(), 1);
    assert_eq!(world.policies.permits(&namespace("shop"), &ask(), &Who::default()), Ok(()));
}

#[test]
fn a_pod_of_a_full_workload_is_passed_over_for_one_of_another() {
    let limit = Limits { max_percent_per_workload: Some(50), ..Limits::default() };
    let pods = vec![pod("web", 0), pod("web", 1), pod("api", 0), pod("api", 1)];
    let world = world(vec![limits("p", limit)], pods);
    let ranked: Vec<&PodView> = world.pods.iter().collect();
    let choice = choose(&world, "new", &Hold::default(), &ranked, 2, now()).unwrap();
    let names: Vec<&str> = choice.taken.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["web-abc-0", "api-abc-0"]);
}

#[test]
fn a_pod_that_is_hit_already_takes_no_more_room() {
    let mut world = world(
        vec![limits("p", Limits { max_targets: Some(1), ..Limits::default() })],
        vec![pod("web", 0), pod("web", 1)],
    );
    world.ledger.set("other", hold(&[&pod("web", 0)], NOW));
    let first = [&world.pods[0]];
    assert!(choose(&world, "new", &Hold::default(), &first, 1, now()).is_ok());
    let second = [&world.pods[1]];
    assert!(choose(&world, "new", &Hold::default(), &second, 1, now()).is_err());
}

#[test]
fn pods_whose_budget_is_used_up_are_left_out_counting_what_is_held() {
    let limit = Limits { respect_disruption_budgets: Some(true), ..Limits::default() };
    let mut world = world(vec![limits("p", limit)], (0..4).map(|index| pod("web", index)).collect());
    let mut errors = Vec::new();
    let pods = Labels::parse("", &labels(&[("app", "web")]), &mut errors);
    world.budgets =
        vec![Budget { namespace: "shop".into(), name: "web".into(), pods, desired: 2, allowed: 2 }];
    // The budget doesn't know yet of the one that is held.
    world.ledger.set("other", hold(&[&pod("web", 3)], NOW));
    let ranked: Vec<&PodView> = world.pods[..3].iter().collect();
    let choice = choose(&world, "new", &Hold::default(), &ranked, 3, now()).unwrap();
    assert_eq!(choice.taken.len(), 1);
    assert_eq!(choice.spared.len(), 2);
    assert_eq!(
        choice.spared[0].1.to_string(),
        "ChaosPolicy p, limits.respectDisruptionBudgets: found PodDisruptionBudget web with 0 disruptions left; \
         allowed: pods whose budget has some left"
    );
}

#[test]
fn faults_by_hand_count() {
    let world = world(
        vec![limits("p", Limits { max_targets: Some(1), ..Limits::default() })],
        vec![failed_by_hand(pod("web", 0), 1), pod("web", 1)],
    );
    let ranked = [&world.pods[1]];
    let refused = choose(&world, "new", &Hold::default(), &ranked, 1, now()).unwrap_err();
    assert_eq!(refused.rule, Rule::Targets);
    let used = usage(&world, now());
    assert_eq!(used.get("p"), Some(&Used { pods: 1, by_hand: 1, experiments: 0 }));
}

#[test]
fn what_is_used_is_counted_once_for_each_policy_that_it_concerns() {
    let everywhere = limits("everywhere", Limits::default());
    let spec = ChaosPolicySpec {
        namespace_selector: Some(labels(&[("kubernetes.io/metadata.name", "bank")])),
        ..ChaosPolicySpec::default()
    };
    let both = failed_by_hand(pod("web", 0), 1);
    let mut world = world(vec![everywhere, policy("bank", spec)], vec![both, pod("web", 1)]);
    world.ledger.set("a", hold(&[&pod("web", 0), &pod("web", 1)], NOW));
    world.ledger.set("b", hold(&[&pod("web", 1)], NOW));
    let used = usage(&world, now());
    assert_eq!(used.get("everywhere"), Some(&Used { pods: 2, by_hand: 1, experiments: 2 }));
    assert_eq!(used.get("bank"), None);
}

#[test]
fn what_is_too_much_goes_newest_first_and_the_hand_before_experiments() {
    let mut world = world(
        vec![limits("p", Limits { max_targets: Some(1), ..Limits::default() })],
        vec![pod("web", 0), pod("web", 1), failed_by_hand(pod("web", 2), -20)],
    );
    world.ledger.set("newer", hold(&[&pod("web", 0)], NOW - 1));
    world.ledger.set("older", hold(&[&pod("web", 1)], NOW - 9));
    assert_eq!(too_much(&world, &[]), ["uid-web-0", "uid-web-2"]);
}

#[test]
fn of_the_pods_that_are_held_by_hand_the_newest_goes_whatever_its_uid() {
    let mut of_an_earlier_version = failed_by_hand(pod("web", 9), 0);
    of_an_earlier_version.held_by[0].since = None;
    let world = world(
        vec![limits("p", Limits { max_targets: Some(2), ..Limits::default() })],
        vec![failed_by_hand(pod("web", 1), 2), failed_by_hand(pod("web", 3), 1), of_an_earlier_version],
    );
    assert_eq!(too_much(&world, &[]), ["uid-web-1"]);
}

#[test]
fn the_hand_leaves_as_many_ready_as_a_policy_wants_and_what_stays_is_not_judged_again() {
    let limit = Limits { min_available_per_workload: Some(3), ..Limits::default() };
    let of = |ready: &[usize], hit: &[usize]| {
        let one = |index| PodView { ready: ready.contains(&index), ..pod("web", index) };
        let pods = (0..5).map(|index| match hit.iter().position(|hit| *hit == index) {
            Some(at) => failed_by_hand(one(index), i64::try_from(at).unwrap()),
            None => one(index),
        });
        world(vec![limits("p", limit.clone())], pods.collect())
    };
    // Three at once: whether the kubelet has ended them already or not, the last goes.
    for ready in [&[0, 1, 2, 3, 4][..], &[0, 1], &[0, 1, 4]] {
        let world = of(ready, &[4, 2, 3]);
        assert_eq!(too_much(&world, &[]), ["uid-web-3"], "{ready:?}");
    }
    let found = excess(&of(&[0, 1], &[4, 2, 3]), &BTreeSet::new(), now());
    assert_eq!(
        found["uid-web-3"].to_string(),
        "ChaosPolicy p, limits.minAvailablePerWorkload: found 2 pods of Deployment/web that would stay Ready; allowed: \
         at least 3"
    );
    // It was let go and isn't Ready yet: that is no reason to let the others go too, but none to take another.
    let settled = ["uid-web-4", "uid-web-2"];
    assert!(too_much(&of(&[0, 1], &[4, 2]), &settled).is_empty());
    assert_eq!(too_much(&of(&[1], &[4, 2, 0]), &settled), ["uid-web-0"]);
    // A new leader judges all of them.
    assert_eq!(too_much(&of(&[0, 1], &[4, 2]), &[]), ["uid-web-2"]);
}

#[test]
fn the_hand_respects_budgets_though_their_own_count_comes_late() {
    let limit = Limits { respect_disruption_budgets: Some(true), ..Limits::default() };
    let pods = vec![
        pod("web", 0),
        pod("web", 1),
        failed_by_hand(pod("web", 2), 1),
        failed_by_hand(PodView { ready: false, ..pod("web", 3) }, 2),
    ];
    let mut world = world(vec![limits("p", limit)], pods);
    let mut errors = Vec::new();
    let pods = Labels::parse("", &labels(&[("app", "web")]), &mut errors);
    let budget = Budget { namespace: "shop".into(), name: "web".into(), pods, desired: 3, allowed: 0 };
    world.budgets = vec![budget];
    assert_eq!(too_much(&world, &[]), ["uid-web-3"]);
    world.budgets[0].desired = 2;
    assert!(too_much(&world, &[]).is_empty());
}

#[test]
fn a_killed_pod_is_held_until_what_replaces_it_is_ready() {
    let target =
        Target { uid: "u".into(), owner: Some("rs".into()), phase: TargetPhase::Killed, ..Target::default() };
    let mut status = ExperimentStatus {
        selected_at: Some(MicroTime(now())),
        completed_at: Some(MicroTime(now())),
        targets: vec![target],
        ..ExperimentStatus::default()
    };
    let held = Hold::of(&status, now());
    assert!(!held.active && held.pods.contains_key("u"));
    assert!(Hold::of(&status, now() + SignedDuration::from_mins(11)).pods.is_empty());
    status.targets[0].ready_at = Some(MicroTime(now()));
    assert_eq!(Hold::of(&status, now()), Hold::default());
}

/// The status of an experiment with one target in this phase.
fn one_in(phase: TargetPhase) -> ExperimentStatus {
    let web = pod("web", 0);
    let target = Target {
        namespace: web.namespace.clone(),
        pod: web.name.clone(),
        uid: web.uid.clone(),
        workload: Some(web.workload()),
        phase,
        ..Target::default()
    };
    ExperimentStatus {
        selected_at: Some(MicroTime(now())),
        targets: vec![target],
        ..ExperimentStatus::default()
    }
}

#[test]
fn a_dry_run_that_is_over_holds_nothing() {
    let mut dry = one_in(TargetPhase::Selected);
    assert_eq!(Hold::of(&dry, now()).pods.len(), 1);
    dry.completed_at = Some(MicroTime(now()));
    assert_eq!(Hold::of(&dry, now()), Hold::default());
    // Whoever comes next is asked what every other is.
    let limit = Limits { min_available_per_workload: Some(1), ..Limits::default() };
    let mut world = world(vec![limits("p", limit)], vec![pod("web", 0)]);
    world.ledger.set("dry", Hold::of(&dry, now()));
    assert!(refusal(&world, 1).contains("limits.minAvailablePerWorkload"));
}

#[test]
fn what_a_pause_put_back_keeps_its_place_until_it_is_over() {
    let mut paused = one_in(TargetPhase::Recovered);
    let mut world = world(
        vec![limits("p", Limits { max_targets: Some(1), ..Limits::default() })],
        vec![pod("web", 0), pod("web", 1)],
    );
    world.ledger.set("paused", Hold::of(&paused, now()));
    let another = [&world.pods[1]];
    let refused = choose(&world, "new", &Hold::default(), &another, 1, now()).unwrap_err();
    assert_eq!(refused.rule, Rule::Targets);
    assert_eq!(usage(&world, now()).get("p"), Some(&Used { pods: 1, by_hand: 0, experiments: 1 }));
    // Its time is over while others are still being put back: it does not come back.
    paused.ends_at = Some(MicroTime(now() + SignedDuration::from_secs(1)));
    assert_eq!(Hold::of(&paused, now()).pods.len(), 1);
    assert!(Hold::of(&paused, now() + SignedDuration::from_secs(1)).pods.is_empty());
    paused.ends_at = None;
    paused.completed_at = Some(MicroTime(now()));
    assert_eq!(Hold::of(&paused, now()), Hold::default());
}

#[rstest]
#[case::actions(
    Allow { actions: Some(vec![PolicyAction::PodKill]), ..Allow::default() },
    "ChaosPolicy p, allow.actions: found pod-failure; allowed: pod-kill"
)]
#[case::no_action(
    Allow { actions: Some(vec![]), ..Allow::default() },
    "ChaosPolicy p, allow.actions: found pod-failure; allowed: none"
)]
#[case::users(
    Allow { users: Some(vec!["anna".into()]), ..Allow::default() },
    "ChaosPolicy p, allow.users: found bob; allowed: users anna"
)]
#[case::both(
    Allow { users: Some(vec!["anna".into()]), groups: Some(vec!["sre".into()]), ..Allow::default() },
    "ChaosPolicy p, allow.users: found bob; allowed: users anna, groups sre"
)]
fn who_and_what(#[case] allow: Allow, #[case] text: &str) {
    let policies =
        Policies::new([policy("p", ChaosPolicySpec { allow: Some(allow), ..ChaosPolicySpec::default() })]);
    let who = Who::recorded(Some(r#"{"username":"bob","groups":["dev"]}"#));
    assert_eq!(policies.permits(&namespace("shop"), &ask(), &who).unwrap_err().to_string(), text);
}

#[test]
fn signals_and_durations() {
    let spec = ChaosPolicySpec {
        allow: Some(Allow { signals: Some(vec![IntOrString::String("TERM".into())]), ..Allow::default() }),
        limits: Some(Limits { max_duration: Some("10m".into()), ..Limits::default() }),
        ..ChaosPolicySpec::default()
    };
    let policies = Policies::new([policy("p", spec)]);
    let say = |ask: Ask| {
        let said = policies.permits(&namespace("shop"), &ask, &Who::default());
        said.map_err(|refusal| refusal.to_string())
    };
    assert_eq!(say(ask()), Ok(()));
    assert_eq!(
        say(Ask { signal: Some(9), ..ask() }).unwrap_err(),
        "ChaosPolicy p, allow.signals: found SIGKILL; allowed: SIGTERM"
    );
    assert_eq!(
        say(Ask { duration: None, ..ask() }).unwrap_err(),
        "ChaosPolicy p, limits.maxDuration: found no duration; allowed: at most 10m"
    );
    assert_eq!(
        say(Ask { duration: Some(std::time::Duration::from_secs(3600)), ..ask() }).unwrap_err(),
        "ChaosPolicy p, limits.maxDuration: found 1h; allowed: at most 10m"
    );
}

#[test]
fn halts_by_namespace_cluster_policy_and_probe() {
    let system = NamespaceView { halt: Some("".into()), ..namespace(names::NAMESPACE) };
    let quiet = namespace(names::NAMESPACE);
    let halted = NamespaceView { halt: Some("incident 4711".into()), ..namespace("shop") };
    let none = Policies::NONE;
    let stop = none.stop(&halted, Some(&quiet), now()).unwrap();
    assert_eq!(
        stop.message,
        "namespace shop is halted: incident 4711 (to lift it: kubectl annotate namespace shop squall.dev/halt-)"
    );
    assert!(
        none.stop(&namespace("shop"), Some(&system), now()).unwrap().message.starts_with("the whole cluster")
    );
    assert_eq!(none.stop(&namespace("shop"), Some(&quiet), now()), None);

    let halt = Halt { active: true, reason: Some("audit".into()) };
    let own = policy("p", ChaosPolicySpec { halt: Some(halt), ..ChaosPolicySpec::default() });
    assert_eq!(own.stop(now()).unwrap().message, "ChaosPolicy p, spec.halt: halted: audit");

    let mut probed = ChaosPolicy::new("p", ChaosPolicySpec::default());
    probed.spec.halt_when = vec![squall_api::probe::Probe {
        nodes: Some(squall_api::probe::NodesProbe::default()),
        ..squall_api::probe::Probe::default()
    }];
    let healthy = |healthy: &str| ProbeStatus {
        name: "nodes".into(),
        healthy: healthy.into(),
        message: Some("2 nodes unwell".into()),
        since: None,
    };
    probed.status =
        Some(squall_api::ChaosPolicyStatus { probes: vec![healthy("False")], ..Default::default() });
    assert_eq!(
        Policy::of(&probed).stop(now()).unwrap().message,
        "ChaosPolicy p, haltWhen: nodes: 2 nodes unwell"
    );
    probed.status =
        Some(squall_api::ChaosPolicyStatus { probes: vec![healthy("True")], ..Default::default() });
    assert_eq!(Policy::of(&probed).stop(now()), None);
}

#[test]
fn windows_intersect_over_policies_and_unite_within_one() {
    let window = |from: &str, to: &str| Window { from: from.into(), to: to.into(), ..Window::default() };
    let with = |name: &str, windows: Vec<Window>| {
        policy(name, ChaosPolicySpec { windows: Some(windows), ..ChaosPolicySpec::default() })
    };
    let noon: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
    let shop = namespace("shop");
    let morning = with("a", vec![window("08:00", "13:00"), window("20:00", "21:00")]);
    let afternoon = with("b", vec![window("11:00", "18:00")]);
    let both = Policies::new([morning.clone(), afternoon]);
    assert_eq!(both.stop(&shop, None, noon), None);
    assert_eq!(both.turns(&shop, noon), Some("2026-11-23T13:00:00Z".parse().unwrap()));
    let evening: Timestamp = "2026-11-23T20:30:00Z".parse().unwrap();
    let stop = both.stop(&shop, None, evening).unwrap();
    assert_eq!((stop.reason, stop.by.as_str()), ("WindowClosed", "ChaosPolicy b"));
    assert_eq!(
        stop.message,
        "ChaosPolicy b, windows: found the time 2026-11-23T20:30:00Z; allowed: inside a window, and the next window \
         opens at 2026-11-24T11:00:00Z"
    );
    assert_eq!(Policies::new([morning]).stop(&shop, None, evening), None);
    let never = with("never", vec![]);
    assert!(never.stop(noon).unwrap().message.ends_with("no window ever opens"));
}

#[test]
fn a_policy_that_makes_no_sense_allows_nothing_and_says_why() {
    let spec = ChaosPolicySpec {
        windows: Some(vec![Window {
            from: "09:00".into(),
            to: "17:00".into(),
            time_zone: Some("Europe/Berln".into()),
            ..Window::default()
        }]),
        halt: Some(Halt { active: true, reason: None }),
        ..ChaosPolicySpec::default()
    };
    let broken = policy("p", spec);
    // To stop is understood all the same.
    assert!(broken.stop(now()).is_some());
    let refused = Policies::new([broken]).permits(&namespace("shop"), &ask(), &Who::default()).unwrap_err();
    assert_eq!(refused.rule, Rule::Invalid);
    assert!(refused.to_string().contains("spec.windows[0].timeZone: found \"Europe/Berln\""), "{refused}");
}

#[test]
fn young_and_protected_pods_are_spared_whatever_the_clock_does() {
    let spec = ChaosPolicySpec {
        limits: Some(Limits { min_pod_age: Some("10m".into()), ..Limits::default() }),
        protect: Some(Protect { pod_selector: labels(&[("app", "db")]) }),
        ..ChaosPolicySpec::default()
    };
    let policies = Policies::new([policy("p", spec)]);
    let shop = namespace("shop");
    let spared = |pod: &PodView, now| policies.spares(&shop, pod, now).map(|refusal| refusal.to_string());
    assert_eq!(spared(&pod("web", 0), now()), None);
    assert!(spared(&pod("db", 0), now()).unwrap().contains("protect"));
    let born = pod("web", 0).created.unwrap();
    assert_eq!(
        spared(&pod("web", 0), born + SignedDuration::from_secs(30)).unwrap(),
        "ChaosPolicy p, limits.minPodAge: found an age of 30s; allowed: at least 10m"
    );
    // The clock was put back: the pod is from the future.
    assert!(spared(&pod("web", 0), born - SignedDuration::from_hours(5)).unwrap().contains("an age of 0s"));
}

proptest! {
    /// Asked together or one by one, policies say the same of a pod.
    #[test]
    fn the_sieve_says_what_the_policies_say(
        ages in prop::collection::vec(prop::option::of(0i64..7200), 0..5),
        protects in prop::collection::vec(prop::option::of(prop::sample::select(vec!["web", "db", "cache"])), 5),
        seconds in -3600i64..7200,
        created in any::<bool>(),
        app in prop::sample::select(vec!["web", "db", "cache", "mail"]),
    ) {
        let policies = Policies::new(ages.iter().zip(&protects).enumerate().map(|(index, (age, protect))| {
            let limits = age.map(|age| Limits { min_pod_age: Some(format!("{age}s")), ..Limits::default() });
            let protect = protect.map(|app| Protect { pod_selector: labels(&[("app", app)]) });
            policy(&format!("p{index}"), ChaosPolicySpec { limits, protect, ..ChaosPolicySpec::default() })
        }));
        let shop = namespace("shop");
        let mut pod = pod(app, 0);
        let now = pod.created.unwrap() + SignedDuration::from_secs(seconds);
        if !created {
            pod.created = None;
        }
        prop_assert_eq!(policies.sieve(&shop, now).spares(&pod), policies.spares(&shop, &pod, now));
    }

    /// Whatever is asked for one after the other, in whatever order: no limit is ever exceeded, and who is refused
    /// holds nothing.
    #[test]
    fn choices_made_one_after_the_other_never_exceed_a_limit(
        sizes in prop::collection::vec(1usize..8, 1..4),
        most in prop::option::of(0i32..10),
        percent in prop::option::of(0i32..101),
        available in prop::option::of(0i32..6),
        experiments in prop::option::of(0i32..6),
        asks in prop::collection::vec((1usize..6, any::<u64>()), 1..12),
    ) {
        let limit = Limits {
            max_targets: most,
            max_percent_per_workload: percent,
            min_available_per_workload: available,
            max_concurrent_experiments: experiments,
            ..Limits::default()
        };
        let pods: Vec<PodView> = sizes
            .iter()
            .enumerate()
            .flat_map(|(index, size)| (0..*size).map(move |n| pod(&format!("w{index}"), n)))
            .collect();
        let mut world = world(vec![limits("p", limit)], pods);
        for (number, (wanted, seed)) in asks.into_iter().enumerate() {
            let uid = format!("experiment-{number}");
            let drawn = squall_model::select::draw(world.pods.iter().map(|pod| pod.uid.as_str()), usize::MAX, seed);
            let ranked: Vec<&PodView> =
                drawn.iter().filter_map(|uid| world.pods.iter().find(|pod| pod.uid == *uid)).collect();
            let chosen = choose(&world, &uid, &Hold::default(), &ranked, wanted, now())
                .map(|choice| {
                    assert_eq!(choice.taken.len(), wanted.min(ranked.len()));
                    hold(&choice.taken, NOW + i64::try_from(number).unwrap())
                });
            if let Ok(hold) = chosen {
                world.ledger.set(&uid, hold);
            }
            let held: BTreeSet<&str> =
                world.ledger.iter().flat_map(|(_, hold)| hold.pods.keys()).map(String::as_str).collect();
            if let Some(most) = most {
                prop_assert!(held.len() <= usize::try_from(most).unwrap());
            }
            if let Some(experiments) = experiments {
                prop_assert!(world.ledger.iter().count() <= usize::try_from(experiments).unwrap());
            }
            for (index, size) in sizes.iter().enumerate() {
                let of = format!("uid-w{index}-");
                let hit = held.iter().filter(|uid| uid.starts_with(&of)).count();
                if let Some(percent) = percent {
                    prop_assert!(hit * 100 <= size * usize::try_from(percent).unwrap());
                }
                if let Some(available) = available {
                    prop_assert!(hit == 0 || size - hit >= usize::try_from(available).unwrap());
                }
            }
            // What was chosen within the limits is never called too much.
            prop_assert!(excess(&world, &BTreeSet::new(), now()).is_empty());
        }
    }

    /// Two policies allow what each of them allows.
    #[test]
    fn policies_intersect(
        a in prop::option::of(prop::collection::vec(prop::sample::select(vec!["anna", "bob"]), 0..2)),
        b in prop::option::of(prop::collection::vec(prop::sample::select(vec!["anna", "bob"]), 0..2)),
        user in prop::sample::select(vec!["anna", "bob", "eve"]),
    ) {
        let with = |name: &str, users: &Option<Vec<&str>>| {
            let users = users.as_ref().map(|users| users.iter().map(|user| (*user).to_owned()).collect());
            let allow = Some(Allow { users, ..Allow::default() });
            policy(name, ChaosPolicySpec { allow, ..ChaosPolicySpec::default() })
        };
        let who = Who { user: user.to_owned(), groups: vec![] };
        let says = |policies: Vec<Policy>| Policies::new(policies).permits(&namespace("shop"), &ask(), &who).is_ok();
        let both = says(vec![with("a", &a), with("b", &b)]);
        prop_assert_eq!(both, says(vec![with("a", &a)]) && says(vec![with("b", &b)]));
    }
}
