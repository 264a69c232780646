//! The laws of pod-failure on one pod: whatever the pod looks like, whoever holds it and in whatever order they
//! let go, its own images come back, and nothing else was touched.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use squall_api::names;
use squall_api::podchaos::FaultStyle;
use squall_model::pod::PodView;
use squall_model::substitute::{FaultImages, Holder, inject, is_substituted, release, restore};

fn images() -> FaultImages {
    FaultImages {
        pause: "registry.example/squall-pause:1".into(),
        crash: "registry.example/squall-crash:1".into(),
    }
}

/// Those of the version before, in another registry.
fn older_images() -> FaultImages {
    FaultImages {
        pause: "old.example:5000/x/squall-pause:0".into(),
        crash: "old.example:5000/x/squall-crash:0".into(),
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]([a-z0-9-]{0,10}[a-z0-9])?", "[a-z][a-z0-9-]{61}[a-z0-9]"]
}

fn image() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        8 => "([a-z]{1,9}(:5000)?/){0,2}[a-z]{1,12}(:[a-z0-9.]{1,8})?(@sha256:[0-9a-f]{64})?".prop_map(Some),
        1 => Just(Some(images().pause)),
        1 => Just(Some("mirror.example/squall-crash:1".to_owned())),
        1 => Just(None),
    ]
}

fn container() -> impl Strategy<Value = Container> {
    (image(), any::<bool>(), any::<bool>()).prop_map(|(image, command, probe)| Container {
        image,
        command: command.then(|| vec!["serve".to_owned()]),
        readiness_probe: probe.then(Probe::default),
        ..Container::default()
    })
}

fn map() -> impl Strategy<Value = Option<BTreeMap<String, String>>> {
    proptest::option::of(proptest::collection::btree_map("[a-z]{1,8}(\\.io/[a-z]{1,8})?", "\\PC{0,40}", 0..4))
}

prop_compose! {
    fn pod()(
        names in proptest::collection::btree_set(name(), 1..24),
        containers in proptest::collection::vec((container(), 0..3_u8), 24),
        order in any::<u64>(),
        labels in map(),
        annotations in map(),
        pod_name in name(),
    ) -> Pod {
        let mut names: Vec<String> = names.into_iter().collect();
        let turn = usize::try_from(order % 97).unwrap() % names.len();
        names.rotate_left(turn);
        let (mut init, mut main) = (Vec::new(), Vec::new());
        for (index, (name, (mut container, kind))) in names.into_iter().zip(containers).enumerate() {
            container.name = name;
            match kind {
                _ if index == 0 => main.push(container),
                0 => init.push(container),
                1 => {
                    container.restart_policy = Some("Always".to_owned());
                    init.push(container);
                }
                _ => main.push(container),
            }
        }
        Pod {
            metadata: ObjectMeta { name: Some(pod_name), labels, annotations, ..ObjectMeta::default() },
            spec: Some(PodSpec {
                init_containers: (order % 3 != 0 || !init.is_empty()).then_some(init),
                containers: main,
                ..PodSpec::default()
            }),
            status: None,
        }
    }
}

/// A holder: which of the pod's containers it asks for (empty: all), and its style.
fn holder() -> impl Strategy<Value = (Vec<prop::sample::Index>, Option<FaultStyle>, bool)> {
    let style = prop_oneof![Just(None), Just(Some(FaultStyle::Pause)), Just(Some(FaultStyle::Crash))];
    (proptest::collection::vec(any::<prop::sample::Index>(), 0..4), style, any::<bool>())
}

fn all(pod: &Pod) -> Vec<&Container> {
    let spec = pod.spec.as_ref().unwrap();
    spec.init_containers.iter().flatten().chain(&spec.containers).collect()
}

fn all_mut(pod: &mut Pod) -> Vec<&mut Container> {
    let spec = pod.spec.as_mut().unwrap();
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).collect()
}

fn holders(pod: &Pod, asked: &[(Vec<prop::sample::Index>, Option<FaultStyle>, bool)]) -> Vec<Holder> {
    let names: Vec<String> = all(pod).iter().map(|container| container.name.clone()).collect();
    asked
        .iter()
        .enumerate()
        .map(|(index, (containers, style, by_hand))| Holder {
            kind: if *by_hand { "Manual" } else { "PodChaos" }.to_owned(),
            namespace: "team".to_owned(),
            name: "same-name".to_owned(),
            uid: format!("uid-{index}"),
            containers: containers.iter().map(|at| at.get(&names).clone()).collect(),
            style: *style,
            since: None,
            until: None,
        })
        .collect()
}

/// The pod without what may change: images, and our keys.
fn rest(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    all_mut(&mut pod).into_iter().for_each(|container| container.image = None);
    for map in [&mut pod.metadata.labels, &mut pod.metadata.annotations] {
        let mut left = map.take().unwrap_or_default();
        left.retain(|key, _| !key.starts_with("squall.dev/"));
        *map = Some(left);
    }
    pod
}

fn keys_of_ours(pod: &Pod) -> Vec<String> {
    let maps = [&pod.metadata.labels, &pod.metadata.annotations];
    maps.into_iter()
        .flatten()
        .flat_map(|map| map.keys())
        .filter(|key| key.starts_with("squall.dev/"))
        .cloned()
        .collect()
}

#[test]
fn a_record_that_can_not_be_read_is_let_go_of_whole() {
    let container = Container {
        name: "main".to_owned(),
        image: Some("registry.example/web:1".to_owned()),
        ..Container::default()
    };
    let whole =
        Pod { spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }), ..Pod::default() };
    let holder = Holder { kind: "PodChaos".to_owned(), uid: "u".to_owned(), ..Holder::default() };
    let mut failed = whole.clone();
    inject(&mut failed, &holder, &images()).unwrap();
    let annotations = failed.metadata.annotations.get_or_insert_default();
    annotations.insert(names::HELD_BY.to_owned(), "nonsense".to_owned());
    release(&mut failed, "u", &images()).unwrap();
    assert_eq!(failed, whole);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn inject_then_release_is_identity(pod in pod(), asked in holder()) {
        let holder = holders(&pod, &[asked]).remove(0);
        let mut failed = pod.clone();
        inject(&mut failed, &holder, &images()).unwrap();
        prop_assert!(is_substituted(&failed, &images()));
        prop_assert_eq!(rest(&failed), rest(&pod));
        let mut restored = failed.clone();
        release(&mut restored, &holder.uid, &images()).unwrap();
        prop_assert_eq!(&restored, &pod);
        restore(&mut failed);
        prop_assert_eq!(&failed, &pod);
    }

    #[test]
    fn a_sketch_is_enough_to_put_a_pod_back(pod in pod(), asked in holder()) {
        let holder = holders(&pod, &[asked]).remove(0);
        let mut failed = pod.clone();
        inject(&mut failed, &holder, &images()).unwrap();
        let mut sketch = PodView::of(&failed).sketch();
        // In the same place, or a patch of the sketch would hit another container of the pod.
        let places = |pod: &Pod| {
            let spec = pod.spec.clone().unwrap();
            let names = |all: Vec<Container>| all.into_iter().map(|one| one.name).collect::<Vec<_>>();
            (names(spec.init_containers.unwrap_or_default()), names(spec.containers))
        };
        prop_assert_eq!(places(&sketch), places(&failed));
        release(&mut sketch, &holder.uid, &images()).unwrap();
        for (container, original) in all(&sketch).into_iter().zip(all(&pod)) {
            prop_assert_eq!(&container.image, &original.image);
        }
        prop_assert_eq!(keys_of_ours(&sketch), Vec::<String>::new());
        // The maps stay, whatever the view did not keep.
        prop_assert!(sketch.metadata.labels.is_some() && sketch.metadata.annotations.is_some());
    }

    #[test]
    fn inject_twice_is_once(pod in pod(), asked in proptest::collection::vec(holder(), 1..4)) {
        let holders = holders(&pod, &asked);
        let mut once = pod.clone();
        holders.iter().for_each(|holder| inject(&mut once, holder, &images()).unwrap());
        let mut twice = once.clone();
        holders.iter().for_each(|holder| inject(&mut twice, holder, &images()).unwrap());
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn holders_let_go_in_any_order(
        pod in pod(),
        asked in proptest::collection::vec(holder(), 1..5),
        order in any::<prop::sample::Index>(),
    ) {
        let mut holders = holders(&pod, &asked);
        let mut failed = pod.clone();
        for holder in &holders {
            inject(&mut failed, holder, &images()).unwrap();
        }
        let turn = order.index(holders.len());
        holders.rotate_left(turn);
        if turn % 2 == 1 {
            holders.reverse();
        }
        while let Some(holder) = holders.pop() {
            prop_assert!(is_substituted(&failed, &images()));
            release(&mut failed, &holder.uid, &images()).unwrap();
            // What nobody asks for any more runs its own image already.
            for (container, original) in all(&failed).into_iter().zip(all(&pod)) {
                let covered = holders.iter().any(|holder| {
                    holder.containers.is_empty() || holder.containers.contains(&container.name)
                });
                prop_assert!(covered || container.image == original.image);
            }
        }
        prop_assert_eq!(failed, pod);
    }

    #[test]
    fn an_image_written_meanwhile_is_what_remains(
        pod in pod(),
        asked in proptest::collection::vec(holder(), 1..4),
        which in any::<prop::sample::Index>(),
        at_once in any::<bool>(),
    ) {
        let holders = holders(&pod, &asked);
        let mut failed = pod.clone();
        let (first, later) = holders.split_first().unwrap();
        inject(&mut failed, first, &images()).unwrap();
        let mut expected = pod.clone();
        let index = which.index(all(&pod).len());
        for pod in [&mut failed, &mut expected] {
            all_mut(pod)[index].image = Some("someones.example/new:2".to_owned());
        }
        if at_once {
            restore(&mut failed);
        } else {
            for holder in later {
                inject(&mut failed, holder, &images()).unwrap();
            }
            for holder in &holders {
                release(&mut failed, &holder.uid, &images()).unwrap();
            }
        }
        prop_assert_eq!(failed, expected);
    }

    #[test]
    fn an_upgrade_meanwhile_neither_restarts_a_container_nor_loses_its_image(
        pod in pod(),
        asked in proptest::collection::vec(holder(), 2..4),
    ) {
        let holders = holders(&pod, &asked);
        let mut failed = pod.clone();
        inject(&mut failed, &holders[0], &older_images()).unwrap();
        let before = failed.clone();
        inject(&mut failed, &holders[0], &images()).unwrap();
        prop_assert!(is_substituted(&failed, &images()));
        prop_assert_eq!(&before, &failed);
        for holder in &holders[1..] {
            inject(&mut failed, holder, &images()).unwrap();
        }
        for holder in &holders {
            release(&mut failed, &holder.uid, &images()).unwrap();
        }
        prop_assert_eq!(failed, pod);
    }

    #[test]
    fn restore_after_any_sequence_leaves_nothing_of_ours(
        pod in pod(),
        asked in proptest::collection::vec(holder(), 1..4),
        steps in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 0..12),
        garbled in proptest::option::weighted(0.3, prop_oneof!["", "\\PC{0,20}", Just("[]".to_owned())]),
    ) {
        let holders = holders(&pod, &asked);
        let mut failed = pod.clone();
        for (which, on, older) in &steps {
            let holder = which.get(&holders);
            let images = if *older { older_images() } else { images() };
            if *on {
                inject(&mut failed, holder, &images).unwrap();
            } else {
                release(&mut failed, &holder.uid, &images).unwrap();
            }
        }
        // Even with the list of holders spoilt the images are known.
        if let (Some(garbled), Some(annotations)) = (garbled, &mut failed.metadata.annotations)
            && let Some(held_by) = annotations.get_mut(names::HELD_BY)
        {
            *held_by = garbled;
        }
        restore(&mut failed);
        prop_assert_eq!(keys_of_ours(&failed), Vec::<String>::new());
        for (container, original) in all(&failed).into_iter().zip(all(&pod)) {
            prop_assert_eq!(&container.image, &original.image);
        }
        prop_assert_eq!(rest(&failed), rest(&pod));
    }
}
