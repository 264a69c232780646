//! The laws of admission: a CREATE is never refused, the API server may ask twice, and whatever anyone writes on
//! a pod, taking the label off makes it whole.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use squall_api::names;
use squall_model::admission::{Actor, Guard, Setting, pod_create, pod_update};
use squall_model::substitute::{FaultImages, Holder};

fn images() -> FaultImages {
    FaultImages {
        pause: "registry.example/squall-pause:1".into(),
        crash: "registry.example/squall-crash:1".into(),
    }
}

fn setting(images: &FaultImages) -> Setting<'_> {
    Setting {
        images,
        now: "2026-11-22T20:00:00Z".parse::<Timestamp>().unwrap(),
        manual_limit: Duration::from_secs(3600),
        namespace: None,
        shielded: false,
        guard: Guard::OPEN,
    }
}

fn whole() -> impl Strategy<Value = Pod> {
    (1..6_usize, 0..3_usize, any::<bool>(), any::<bool>()).prop_map(|(main, init, command, noted)| {
        let container = |kind: &str, index: usize| Container {
            name: format!("{kind}-{index}"),
            image: Some(format!("registry.example/{kind}-{index}:1")),
            command: command.then(|| vec!["serve".to_owned()]),
            restart_policy: (kind == "init" && index == 1).then(|| "Always".to_owned()),
            ..Container::default()
        };
        Pod {
            metadata: ObjectMeta {
                name: Some("web".to_owned()),
                namespace: Some("team".to_owned()),
                resource_version: Some("7".to_owned()),
                labels: Some(BTreeMap::from([("app".to_owned(), "web".to_owned())])),
                annotations: noted.then(|| BTreeMap::from([("note".to_owned(), "x".to_owned())])),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                init_containers: Some((0..init).map(|index| container("init", index)).collect()),
                containers: (0..main).map(|index| container("main", index)).collect(),
                ..PodSpec::default()
            }),
            status: None,
        }
    })
}

/// What somebody may write on a pod.
#[derive(Clone, Debug)]
enum Edit {
    Switch(Option<String>),
    Annotate(&'static str, Option<String>),
    Image(prop::sample::Index, String),
}

fn edit() -> impl Strategy<Value = Edit> {
    let key = prop::sample::select(vec![
        names::CONTAINERS,
        names::UNTIL,
        names::FAULT_STYLE,
        names::HELD_BY,
        names::ORIGINAL_IMAGES,
        names::LAST_ERROR,
        names::PROTECT,
        "other",
    ]);
    let text = prop_oneof![
        "\\PC{0,12}",
        prop::sample::select(vec![
            "main-0",
            "main-0,init-0",
            "10m",
            "pause",
            "crash",
            "[]",
            "{}",
            "false",
            "2026-11-22T21:00:00Z",
            "{\"main-0\":\"evil.example/x:1\"}",
            "[{\"kind\":\"PodChaos\",\"uid\":\"forged\"}]",
        ])
        .prop_map(str::to_owned),
    ];
    prop_oneof![
        3 => Just(Edit::Switch(Some(names::POD_FAILURE.to_owned()))),
        2 => Just(Edit::Switch(None)),
        1 => "[a-z]{1,9}".prop_map(|value| Edit::Switch(Some(value))),
        4 => (key, proptest::option::weighted(0.8, text)).prop_map(|(key, text)| Edit::Annotate(key, text)),
        2 => (any::<prop::sample::Index>(), "someones/[a-z]{1,5}:[0-9]").prop_map(|(at, image)| Edit::Image(at, image)),
    ]
}

fn containers(pod: &mut Pod) -> Vec<&mut Container> {
    let spec = pod.spec.as_mut().unwrap();
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).collect()
}

fn write(pod: &mut Pod, edit: &Edit) {
    let set = |map: &mut Option<BTreeMap<String, String>>, key: &str, value: &Option<String>| match value {
        Some(value) => {
            map.get_or_insert_default().insert(key.to_owned(), value.clone());
        }
        None => {
            if let Some(entries) = map {
                entries.remove(key);
                // As the API server does.
                if entries.is_empty() {
                    *map = None;
                }
            }
        }
    };
    match edit {
        Edit::Switch(value) => set(&mut pod.metadata.labels, names::FAULT, value),
        Edit::Annotate(key, value) => set(&mut pod.metadata.annotations, key, value),
        Edit::Image(at, image) => {
            let mut all = containers(pod);
            let at = at.index(all.len());
            all[at].image = Some(image.clone());
        }
    }
}

fn image_list(pod: &Pod) -> Vec<String> {
    containers(&mut pod.clone())
        .into_iter()
        .map(|container| container.image.clone().unwrap_or_default())
        .collect()
}

fn rest(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    containers(&mut pod).into_iter().for_each(|container| container.image = None);
    for map in [&mut pod.metadata.labels, &mut pod.metadata.annotations] {
        let mut left = map.take().unwrap_or_default();
        left.retain(|key, _| !key.starts_with("squall.dev/") || key == names::PROTECT);
        *map = Some(left);
    }
    pod
}

fn has_record(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .is_some_and(|all| all.contains_key(names::HELD_BY) || all.contains_key(names::ORIGINAL_IMAGES))
}

fn pod_with(containers: &[&str]) -> Pod {
    let container = |name: &&str| Container {
        name: (*name).to_owned(),
        image: Some(format!("registry.example/{name}:1")),
        ..Container::default()
    };
    Pod {
        metadata: ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("team".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers: containers.iter().map(container).collect(), ..PodSpec::default() }),
        status: None,
    }
}

fn update(old: &Pod, edits: &[Edit], setting: &Setting<'_>) -> Pod {
    let mut asked = old.clone();
    edits.iter().for_each(|edit| write(&mut asked, edit));
    let verdict = pod_update(old, &asked, Actor::Someone, setting);
    assert_eq!(verdict.deny, None);
    verdict.pod.unwrap_or(asked)
}

fn switch_on() -> Edit {
    Edit::Switch(Some(names::POD_FAILURE.to_owned()))
}

#[test]
fn a_record_that_poses_as_a_second_question_changes_no_holder() {
    let images = images();
    let setting = setting(&images);
    let failed = update(&pod_with(&["a", "b"]), &[switch_on()], &setting);
    let forged = r#"[{"kind":"PodChaos","uid":"forged","takenFrom":"7","standIns":{"pause":["registry.example/x:1"]}}]"#;
    let answer = update(&failed, &[Edit::Annotate(names::HELD_BY, Some(forged.to_owned()))], &setting);
    let held_by = &answer.metadata.annotations.as_ref().unwrap()[names::HELD_BY];
    assert!(held_by.contains("\"manual\"") && !held_by.contains("forged"), "{held_by}");
    assert!(!held_by.contains("registry.example/x:1"), "{held_by}");

    // Nor does it where there is no fault at all.
    let whole = pod_with(&["a"]);
    let edits = [Edit::Annotate(names::HELD_BY, Some(forged.to_owned())), switch_on()];
    let answer = update(&whole, &edits, &setting);
    let held_by = &answer.metadata.annotations.as_ref().unwrap()[names::HELD_BY];
    assert!(!held_by.contains("forged"), "{held_by}");
    assert!(!has_record(&update(&whole, &edits[..1], &setting)));
}

#[test]
fn asked_twice_while_the_hand_takes_in_another_container_its_image_is_kept() {
    let images = images();
    let setting = setting(&images);
    let whole = pod_with(&["a", "b"]);
    let only_a = Edit::Annotate(names::CONTAINERS, Some("a".to_owned()));
    let failed = update(&whole, &[only_a, switch_on()], &setting);
    assert_eq!(image_list(&failed)[1], "registry.example/b:1");
    let both = update(&failed, &[Edit::Annotate(names::CONTAINERS, None)], &setting);
    assert_eq!(pod_update(&failed, &both, Actor::Someone, &setting).pod, None);
}

#[test]
fn a_birth_stays_within_what_the_api_server_takes_of_annotations() {
    let images = images();
    let setting = setting(&images);
    let size = |pod: &Pod| -> usize {
        pod.metadata.annotations.iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
    };
    let mut whole = pod_with(&["a"]);
    let births: Vec<Holder> = (0..5000)
        .map(|index| Holder { kind: "PodChaos".into(), uid: format!("u-{index}"), ..Holder::default() })
        .collect();
    let many = pod_create(&whole, &births, &setting).pod.unwrap();
    assert!(size(&many) < 16 << 10, "{}", size(&many));

    write(&mut whole, &Edit::Annotate("other", Some("x".repeat((256 << 10) - 5))));
    let full = pod_create(&whole, &births, &setting);
    assert_eq!(full.pod, None);
    assert!(full.warnings.iter().any(|warning| warning.contains("unchanged")), "{:?}", full.warnings);

    let mut wrong = pod_with(&["a"]);
    write(&mut wrong, &switch_on());
    write(&mut wrong, &Edit::Annotate(names::CONTAINERS, Some("é".repeat(60 << 10))));
    let born = pod_create(&wrong, &[], &setting).pod.unwrap();
    assert!(born.metadata.annotations.unwrap()[names::LAST_ERROR].len() <= 1 << 10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_birth_is_never_refused_and_may_be_asked_about_twice(
        pod in whole(),
        edits in proptest::collection::vec(edit(), 0..6),
        born_failed in any::<bool>(),
    ) {
        let images = images();
        let setting = setting(&images);
        let mut asked = pod.clone();
        edits.iter().for_each(|edit| write(&mut asked, edit));
        let births = [Holder { kind: "PodChaos".into(), uid: "u".into(), ..Holder::default() }];
        let births = if born_failed { &births[..] } else { &[] };
        let first = pod_create(&asked, births, &setting);
        prop_assert_eq!(&first.deny, &None);
        let first = first.pod.unwrap_or_else(|| asked.clone());
        prop_assert_eq!(rest(&first), rest(&asked));
        let second = pod_create(&first, births, &setting);
        prop_assert_eq!(second.pod, None);
    }

    #[test]
    fn whatever_anyone_writes_the_answer_is_the_same_twice_and_the_label_off_makes_it_whole(
        pod in whole(),
        requests in proptest::collection::vec(proptest::collection::vec(edit(), 1..4), 1..8),
    ) {
        let images = images();
        let setting = setting(&images);
        let mut stored = pod.clone();
        // What the pod would run if there were no Squall.
        let mut wished = pod.clone();
        for (version, edits) in requests.iter().enumerate() {
            stored.metadata.resource_version = Some(version.to_string());
            wished.metadata.resource_version = Some(version.to_string());
            let mut asked = stored.clone();
            edits.iter().for_each(|edit| write(&mut asked, edit));
            let first = pod_update(&stored, &asked, Actor::Someone, &setting);
            if first.deny.is_some() {
                // Refused for what is asked of Squall, never for anything else.
                prop_assert!(edits.iter().any(|edit| !matches!(edit, Edit::Image(..))));
                continue;
            }
            let first = first.pod.unwrap_or_else(|| asked.clone());
            let again = pod_update(&stored, &first, Actor::Someone, &setting);
            prop_assert_eq!(&again.deny, &None);
            prop_assert_eq!(&again.pod, &None);
            prop_assert_eq!(rest(&first), rest(&asked));
            for edit in edits {
                if matches!(edit, Edit::Image(..)) {
                    write(&mut wished, edit);
                }
            }
            stored = first;
            if !has_record(&stored) {
                prop_assert_eq!(image_list(&stored), image_list(&wished));
            }
        }
        let mut off = stored.clone();
        write(&mut off, &Edit::Switch(None));
        let restored = pod_update(&stored, &off, Actor::Someone, &setting).pod.unwrap_or(off);
        prop_assert_eq!(image_list(&restored), image_list(&wished));
        prop_assert!(!has_record(&restored));
    }

    #[test]
    fn the_label_on_and_off_leaves_the_pod_as_it_was(pod in whole()) {
        let images = images();
        let setting = setting(&images);
        let mut on = pod.clone();
        write(&mut on, &Edit::Switch(Some(names::POD_FAILURE.to_owned())));
        let failed = pod_update(&pod, &on, Actor::Someone, &setting).pod.unwrap();
        prop_assert!(image_list(&failed).iter().all(|image| image.contains("squall-")));
        let mut off = failed.clone();
        write(&mut off, &Edit::Switch(None));
        prop_assert_eq!(pod_update(&failed, &off, Actor::Someone, &setting).pod.unwrap(), pod);
    }
}
