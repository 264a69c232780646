//! Laws of small faults by annotation: whatever is written, copied, repeated or interrupted.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::PodChaosSpec;
use squall_model::annotation::{
    Asker, Experiment, Fault, Kind, Known, Made, Parent, Reviewed, Subject, Turn, name_of, parse, review,
    turn,
};
use squall_model::experiment::parsed;
use squall_model::pod::PodView;
use squall_model::select::{AtBirth, Nodes};
use squall_model::validate::validate;

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn subject(kind: Kind, annotations: &[(&str, &str)]) -> Subject {
    Subject {
        kind,
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "uid-1".to_owned(),
        labels: BTreeMap::new(),
        annotations: annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        owner: None,
        terminating: false,
        selector: serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap(),
        containers: vec!["app".to_owned()],
    }
}

/// `old` with `key` set or removed by `user`, as the webhook leaves it.
fn edited(old: &Subject, key: &str, value: Option<&str>, id: &str) -> Subject {
    let mut new = old.clone();
    match value {
        Some(value) => new.annotations.insert(key.to_owned(), value.to_owned()),
        None => new.annotations.remove(key),
    };
    admitted(old, new, id)
}

fn admitted(old: &Subject, mut new: Subject, id: &str) -> Subject {
    let by = json!({"username": "ann"});
    let Reviewed { annotations, labels, .. } =
        review(old, &new, Asker { id, by: &by, now: now() }).expect("it is well-formed");
    new.annotations = annotations;
    new.labels = labels;
    new
}

fn go(subject: &Subject, known: &[Known], at: Timestamp) -> Turn {
    turn(subject, None, known, true, at)
}

/// `subject` after the controller's turn.
fn after(subject: &Subject, due: &Turn) -> Subject {
    let mut subject = subject.clone();
    for (key, value) in &due.annotations {
        match value {
            Some(value) => subject.annotations.insert(key.clone(), value.clone()),
            None => subject.annotations.remove(key),
        };
    }
    subject
}

fn made(due: &Turn) -> Vec<Known> {
    due.make
        .iter()
        .map(|new| Known {
            name: new.name.clone(),
            made: new.made.clone(),
            created: Some(now()),
            completed: false,
            deleting: false,
        })
        .collect()
}

fn value(fault: Fault) -> &'static str {
    if fault == Fault::StressMemory { "1Mi" } else { "" }
}

#[test]
fn a_one_shot_fires_once_and_its_annotation_goes() {
    for fault in [Fault::PodKill, Fault::ContainerKill] {
        let asked = edited(&subject(Kind::Deployment, &[]), fault.key(), Some("one"), "r1");
        let due = go(&asked, &[], now());
        assert_eq!(due.make.len(), 1);
        assert!(due.make[0].requested_by.contains("ann"));
        // A crash before the annotation went: the same experiment, by name, or none once it is seen.
        assert_eq!(go(&asked, &[], now()).make, due.make);
        assert_eq!(go(&asked, &made(&due), now()).make, []);
        let left = after(&asked, &due);
        assert_eq!(left.annotations, BTreeMap::new());
        assert_eq!(go(&left, &made(&due), now()), Turn::default());
        // Asked for again it is another one.
        let again = go(&edited(&left, fault.key(), Some("one"), "r2"), &made(&due), now());
        assert_ne!(again.make[0].name, due.make[0].name);
    }
}

#[test]
fn a_lasting_fault_ends_with_its_annotation_and_takes_it_along() {
    for fault in [Fault::PodFailure, Fault::StressCpu, Fault::StressMemory] {
        let asked = edited(&subject(Kind::StatefulSet, &[]), fault.key(), Some(value(fault)), "r1");
        let due = go(&asked, &[], now());
        assert_eq!((due.make.len(), due.annotations.len()), (1, 0));
        let there = made(&due);
        assert_eq!(go(&asked, &there, now()), Turn::default());
        // By hand.
        let taken = edited(&asked, fault.key(), None, "r2");
        assert_eq!(taken.annotations, BTreeMap::new());
        assert_eq!(go(&taken, &there, now()).delete, [(fault, there[0].name.clone())]);
        // In other words.
        let longer = if fault == Fault::StressMemory { "10m,1Mi" } else { "10m" };
        let other = go(&edited(&asked, fault.key(), Some(longer), "r3"), &there, now());
        assert_eq!((other.make.len(), other.delete.len()), (1, 1));
        // By itself, or because somebody deleted the experiment.
        for (completed, deleting) in [(true, false), (false, true)] {
            let over = [Known { completed, deleting, ..there[0].clone() }];
            let due = go(&asked, &over, now());
            assert_eq!((due.make.len(), due.delete.len()), (0, 0));
            assert_eq!(after(&asked, &due).annotations, BTreeMap::new());
        }
    }
}

#[test]
fn what_admission_did_not_see_does_nothing_and_says_so_once() {
    for fault in Fault::ALL {
        let born = subject(Kind::Deployment, &[(fault.key(), value(fault))]);
        let due = go(&born, &[], now());
        assert_eq!(due.make, []);
        assert!(due.complaint.is_some());
        assert!(due.annotations[names::LAST_ERROR].is_some());
        assert_eq!(go(&after(&born, &due), &[], now()), Turn::default());
        let outside = turn(&born, None, &[], false, now());
        assert!(
            outside.complaint.unwrap().contains("kubectl label namespace shop squall.dev/inject=enabled")
        );
    }
}

#[test]
fn a_ticket_of_another_object_or_of_long_ago_is_worth_nothing() {
    let asked = edited(&subject(Kind::Deployment, &[]), names::ASK_POD_KILL, Some("all"), "r1");
    let copy = Subject { uid: "uid-2".to_owned(), ..asked.clone() };
    assert_eq!(go(&copy, &[], now()).make, []);
    let due = go(&asked, &[], now() + SignedDuration::from_secs(61));
    assert_eq!(due.make, []);
    assert!(due.complaint.as_deref().is_some_and(|text| text.contains("too long ago")), "{due:?}");
    assert!(!after(&asked, &due).annotations.contains_key(names::ASK_POD_KILL));
}

#[test]
fn a_rollback_brings_nothing_back() {
    for fault in Fault::ALL {
        let fresh = subject(Kind::Deployment, &[]);
        let asked = edited(&fresh, fault.key(), Some(value(fault)), "r1");
        // What `rollout undo` writes: the annotations of the copy, who asked among them.
        let mut undone = fresh.clone();
        undone.annotations.clone_from(&asked.annotations);
        let admitted = admitted(&fresh, undone, "r2");
        assert_eq!(admitted.annotations, BTreeMap::new(), "{fault:?}");
    }
}

#[test]
fn a_copy_keeps_what_its_original_has_and_nothing_else() {
    let mut copy = edited(&subject(Kind::Deployment, &[]), names::ASK_POD_FAILURE, Some("all"), "r1");
    copy.kind = Kind::ReplicaSet;
    let had = turn(&copy, Some(&Parent(vec![Fault::PodFailure])), &[], true, now());
    assert_eq!(had, Turn::default());
    let due = turn(&copy, Some(&Parent::default()), &[], true, now());
    assert_eq!(after(&copy, &due).annotations, BTreeMap::new());
    assert_eq!((due.make.len(), due.complaint), (0, None));
}

#[test]
fn on_a_pod_the_annotation_is_the_switch() {
    let on = edited(&subject(Kind::Pod, &[]), names::ASK_POD_FAILURE, Some("10m"), "r1");
    assert_eq!(on.labels.get(names::FAULT).map(String::as_str), Some(names::POD_FAILURE));
    assert_eq!(on.annotations.get(names::UNTIL).map(String::as_str), Some("10m"));
    let off = edited(&on, names::ASK_POD_FAILURE, None, "r2");
    assert!(!off.labels.contains_key(names::FAULT));
    // Its experiment is over: the hand lets go too.
    let there = made(&go(&on, &[], now()));
    let over = [Known { completed: true, ..there[0].clone() }];
    assert!(go(&on, &over, now()).let_go);
    // Taken away while there was no webhook.
    let mut bare = on.clone();
    bare.annotations.remove(names::ASK_POD_FAILURE);
    let due = go(&bare, &there, now());
    assert!(due.let_go && due.delete.len() == 1);
    // A Deployment has no switch.
    let other = edited(&subject(Kind::Deployment, &[]), names::ASK_POD_FAILURE, Some("10m"), "r1");
    assert!(other.labels.is_empty());
}

#[test]
fn who_asked_cannot_be_forged() {
    let fresh = subject(Kind::Deployment, &[]);
    let asked = edited(&fresh, names::ASK_POD_FAILURE, Some("all"), "r1");
    let mut forged = asked.clone();
    let text = asked.annotations[names::REQUESTED_BY].replace("ann", "root");
    forged.annotations.insert(names::REQUESTED_BY.to_owned(), text);
    assert_eq!(admitted(&asked, forged, "r2").annotations, asked.annotations);
    let mut gone = asked.clone();
    gone.annotations.remove(names::REQUESTED_BY);
    assert_eq!(admitted(&asked, gone, "r2").annotations, asked.annotations);
}

struct NoNodes;

impl Nodes for NoNodes {
    fn labels(&self, _: &str) -> Option<&BTreeMap<String, String>> {
        None
    }
}

#[test]
fn pods_of_others_that_have_the_workloads_labels_are_left_alone() {
    let pod = |owner: &str, name: &str, hash: Option<&str>| {
        let mut labels = json!({"app": "web"});
        labels["pod-template-hash"] = json!(hash);
        let owner = json!({"apiVersion": "v1", "kind": owner, "name": name, "uid": "u", "controller": true});
        let meta = json!({"name": "p", "namespace": "shop", "labels": labels, "ownerReferences": [owner]});
        let pod: serde_json::Value = json!({"metadata": meta, "spec": {"containers": []}});
        PodView::of(
            &serde_json::from_str(&pod.to_string().replace(",\"pod-template-hash\":null", "")).unwrap(),
        )
    };
    let pods = [
        pod("ReplicaSet", "web-abc", Some("abc")),
        pod("ReplicaSet", "web-canary-abc", Some("abc")),
        pod("ReplicaSet", "web", None),
        pod("Job", "web", None),
        pod("StatefulSet", "web", None),
    ];
    let spec: PodChaosSpec = serde_json::from_value(
        json!({"action": "pod-kill", "mode": "all", "selector": {"labelSelectors": {"app": "web"}}}),
    )
    .unwrap();
    let hit = |annotations: serde_json::Value, api: &str, kind: &str, name: &str| {
        let owner = json!([{"apiVersion": api, "kind": kind, "name": name, "uid": "w"}]);
        let meta = json!({"namespace": "shop", "annotations": annotations, "ownerReferences": owner});
        let selector = parsed(&serde_json::from_value(meta).unwrap(), &spec).unwrap().selector;
        let is_hit = |pod: &PodView| {
            let born = selector.at_birth(pod) == AtBirth::Yes;
            assert_eq!(born, selector.matches(pod, &NoNodes), "{pod:?}");
            born
        };
        pods.iter().map(is_hit).collect::<Vec<_>>()
    };
    let made = || json!({names::MADE_FOR: "whatever"});
    assert_eq!(hit(made(), "apps/v1", "Deployment", "web"), [true, false, false, false, false]);
    assert_eq!(hit(made(), "apps/v1", "ReplicaSet", "web-abc"), [true, false, false, false, false]);
    assert_eq!(hit(made(), "apps/v1", "StatefulSet", "web"), [false, false, false, false, true]);
    // A Schedule's runs and what users write go by their selector alone.
    assert_eq!(hit(json!({}), "apps/v1", "Deployment", "web"), [true; 5]);
    assert_eq!(hit(json!({}), "squall.dev/v1alpha1", "Schedule", "web"), [true; 5]);
    // Of whom somebody took the owner it is not known any more whose pods were meant.
    assert_eq!(hit(made(), "squall.dev/v1alpha1", "Schedule", "web"), [false; 5]);
}

/// A StatefulSet gives a pod's name again; a ticket is the old pod's.
#[test]
fn the_successor_of_an_annotated_pod_is_left_alone() {
    for fault in Fault::ALL {
        let asked = edited(&subject(Kind::Pod, &[]), fault.key(), Some(value(fault)), "r1");
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "uid-1"}]);
        let meta =
            json!({"namespace": "shop", "annotations": {names::MADE_FOR: "x"}, "ownerReferences": owner});
        let meta = serde_json::from_value(meta).unwrap();
        let selector = match &go(&asked, &[], now()).make[0].spec {
            Experiment::Pod(spec) => parsed(&meta, &**spec),
            Experiment::Stress(spec) => parsed(&meta, &**spec),
        };
        let selector = selector.unwrap().selector;
        let pod = |uid: &str| {
            let (namespace, name) = ("shop".to_owned(), "web".to_owned());
            PodView { namespace, name, uid: uid.to_owned(), ..PodView::default() }
        };
        let seen = |pod: &PodView| (selector.matches(pod, &NoNodes), selector.at_birth(pod));
        assert_eq!(seen(&pod("uid-1")), (true, AtBirth::Yes));
        assert_eq!(seen(&pod("uid-2")), (false, AtBirth::No));
        assert_ne!(selector.at_birth(&pod("")), AtBirth::Yes);
        let why = selector.explain_nothing([pod("uid-2")].iter(), &NoNodes);
        assert_eq!(why, "none of 1 pod has the UID uid-1");
    }
}

/// A copy of a Deployment is not touched, so what it carries must be worth nothing once it is nobody's copy any more.
#[test]
fn who_asked_cannot_be_forged_on_what_poses_as_a_copy() {
    let owned = |api: &str| {
        let owner =
            json!({"apiVersion": api, "kind": "Deployment", "name": "x", "uid": "x", "controller": true});
        Some(serde_json::from_value(owner).unwrap())
    };
    let ticket = |uid: &str| {
        let ticket = json!({"id": "r1", "uid": uid, "value": "all", "at": now(), "by": {"username": "root"}});
        json!({"pod-kill": ticket}).to_string()
    };
    let forge = |old: &Subject, api: &str, uid: &str| {
        let mut new = Subject { owner: owned(api), ..old.clone() };
        new.annotations.insert(names::ASK_POD_KILL.to_owned(), "all".to_owned());
        new.annotations.insert(names::REQUESTED_BY.to_owned(), ticket(uid));
        admitted(old, new, "r2")
    };
    let fresh = subject(Kind::ReplicaSet, &[]);
    // Its own ticket, on a copy: it goes. Nothing is made of it, neither now nor when it stands alone.
    let mut posed = forge(&fresh, "apps/v1", "uid-1");
    assert!(!posed.annotations.contains_key(names::REQUESTED_BY), "{posed:?}");
    posed.owner = None;
    assert!(go(&posed, &[], now()).make.is_empty());
    // Not even a copy: whoever asks is written down.
    let other = forge(&fresh, "other.example/v1", "uid-1");
    assert!(!other.annotations.get(names::REQUESTED_BY).is_some_and(|by| by.contains("root")), "{other:?}");
    // What it had before is kept, and a true copy's ticket is the Deployment's.
    let asked = edited(&fresh, names::ASK_POD_KILL, Some("one"), "r1");
    assert_eq!(
        forge(&asked, "apps/v1", "uid-1").annotations[names::REQUESTED_BY],
        asked.annotations[names::REQUESTED_BY]
    );
    let mut copy = forge(&fresh, "apps/v1", "uid-of-x");
    assert!(copy.annotations[names::REQUESTED_BY].contains("root"), "the Deployment's controller copies on");
    copy.owner = None;
    assert!(go(&copy, &[], now()).make.is_empty());
}

#[test]
fn unknown_containers_are_named_with_those_that_there_are() {
    let fresh = subject(Kind::Deployment, &[]);
    let mut new = fresh.clone();
    new.annotations.insert(names::ASK_CONTAINER_KILL.to_owned(), "nginx".to_owned());
    let by = json!({});
    let errors = review(&fresh, &new, Asker { id: "r", by: &by, now: now() }).unwrap_err();
    assert!(errors[0].to_string().contains("nginx") && errors[0].allowed.contains("app"), "{errors:?}");
}

#[test]
fn what_is_protected_takes_no_annotation_and_loses_those_that_it_has() {
    for kind in Kind::ALL {
        let mut fresh = subject(kind, &[]);
        fresh.labels.insert(names::PROTECT.to_owned(), "true".to_owned());
        let mut new = fresh.clone();
        new.annotations.insert(names::ASK_POD_KILL.to_owned(), "now".to_owned());
        let by = json!({});
        let asker = Asker { id: "r", by: &by, now: now() };
        let errors = review(&fresh, &new, asker).unwrap_err();
        let words = format!("the {} is protected: remove squall.dev/protect", kind.word());
        assert!(errors[0].to_string().contains(&words), "{errors:?}");
        assert!(review(&new, &fresh, asker).is_ok());
    }
}

#[test]
fn history_is_short() {
    let asked = subject(Kind::Deployment, &[]);
    let known: Vec<Known> = (0..9)
        .map(|index| Known {
            name: format!("web-{index}"),
            made: Made { fault: Fault::PodKill, id: index.to_string() },
            created: Some(now() + SignedDuration::from_secs(index)),
            completed: true,
            deleting: false,
        })
        .collect();
    let gone: Vec<String> = go(&asked, &known, now()).delete.into_iter().map(|(_, name)| name).collect();
    assert_eq!(gone, ["web-3", "web-2", "web-1", "web-0"]);
}

fn faults() -> impl Strategy<Value = Fault> {
    select(Fault::ALL.to_vec())
}

fn object_names() -> impl Strategy<Value = String> {
    "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?){0,5}"
        .prop_filter("as long as a name may be", |name| name.len() <= 253)
}

fn items() -> impl Strategy<Value = Vec<&'static str>> {
    let known =
        vec!["one", "all", "3", "50%", "5m", "grace=30s", "app:TERM", "app", "1Gi", "x y", "", "true"];
    proptest::collection::vec(select(known), 0..4)
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_with_its_key(fault in faults(), text in "\\PC{0,40}") {
        if let Err(error) = parse(fault, &text, Kind::Deployment) {
            prop_assert_eq!(error.field, fault.field());
            prop_assert!(!error.allowed.is_empty());
        }
    }

    #[test]
    fn order_does_not_matter(fault in faults(), mut items in items()) {
        let one = parse(fault, &items.join(","), Kind::Deployment);
        items.reverse();
        let other = parse(fault, &items.join(","), Kind::Deployment);
        prop_assert_eq!(one.is_ok(), other.is_ok());
        if let (Ok(one), Ok(other)) = (one, other) {
            prop_assert_eq!(one, other);
        }
    }

    #[test]
    fn what_is_accepted_is_a_valid_experiment(fault in faults(), items in items(), pod: bool) {
        let kind = if pod { Kind::Pod } else { Kind::DaemonSet };
        if let Ok(wish) = parse(fault, &items.join(","), kind) {
            let valid = match squall_model::annotation::experiment(&subject(kind, &[]), &wish) {
                Experiment::Pod(spec) => validate(&*spec, "shop"),
                Experiment::Stress(spec) => validate(&*spec, "shop"),
            };
            prop_assert!(valid.is_ok(), "{:?}", valid);
        }
    }

    #[test]
    fn names_are_dns_names_of_their_own(name in object_names(), id in "[a-f0-9-]{36}", fault in faults()) {
        let subject = Subject { name, ..subject(Kind::StatefulSet, &[]) };
        let made = Made { fault, id };
        let name = name_of(&subject, &made);
        prop_assert!(name.len() <= 253);
        prop_assert!(!name.starts_with(['-', '.']) && !name.contains(".-") && !name.contains(".."), "{}", name);
        prop_assert_eq!(Made::read(&made.written()), Some(made.clone()));
        let elsewhere = Subject { uid: "other".to_owned(), ..subject };
        prop_assert_ne!(name_of(&elsewhere, &made), name);
    }
}
