//! Specs as nobody would write them, mixed with parts that make sense.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use squall_api::podchaos::{
    Action, ConnectTrigger, FaultStyle, Mode, PodChaosSpec, PodSelector, Processes, Scope, Trigger,
};

use crate::world;

/// A text that is sometimes sensible somewhere, and often not.
pub fn text() -> impl Strategy<Value = String> {
    let sensible =
        vec!["a", "web", "shop", "kube-system", "app", "In", "Exists", "Running", "metadata.name", "node-1"];
    prop_oneof![
        3 => select(sensible).prop_map(str::to_owned),
        1 => ".{0,12}",
        1 => "[a-z./_-]{0,70}",
    ]
}

fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(text(), text(), 0..3)
}

fn selector() -> impl Strategy<Value = PodSelector> {
    let expression = (text(), text(), option::of(vec(text(), 0..3)))
        .prop_map(|(key, operator, values)| LabelSelectorRequirement { key, operator, values });
    let lists = (vec(text(), 0..3), vec(text(), 0..3), vec(text(), 0..3));
    let maps = (texts(), texts(), texts(), texts());
    let junk = (lists, maps, vec(expression, 0..3), btree_map(text(), vec(text(), 0..3), 0..3)).prop_map(
        |((namespaces, nodes, phases), (labels, annotations, fields, node_labels), expressions, pods)| {
            PodSelector {
                namespaces,
                label_selectors: labels,
                expression_selectors: expressions,
                annotation_selectors: annotations,
                field_selectors: fields,
                nodes,
                node_selectors: node_labels,
                pods,
                pod_phase_selectors: phases,
            }
        },
    );
    prop_oneof![2 => Just(PodSelector::default()), 2 => world::selector(), 1 => junk]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[0-9]{0,10}",
        2 => select(vec!["0", "1", "50", "100", "101", "007", "-1", "+1", "5%", " 5", "5\n", "\u{665}"]).prop_map(str::to_owned),
        1 => text(),
    ]
}

fn signal() -> impl Strategy<Value = IntOrString> {
    prop_oneof![
        (-2_i32..70).prop_map(IntOrString::Int),
        select(vec!["SIGTERM", "9", "RTMIN+3", "RTMAX-31", "nope", ""])
            .prop_map(|name| IntOrString::String(name.to_owned())),
    ]
}

/// Any spec.
pub fn spec() -> impl Strategy<Value = PodChaosSpec> {
    let action = select(vec![Action::PodKill, Action::PodFailure, Action::ContainerKill]);
    let modes = vec![Mode::One, Mode::All, Mode::Fixed, Mode::FixedPercent, Mode::RandomMaxPercent];
    let what = (action, select(modes), option::weighted(0.7, value()), selector());
    let duration = option::weighted(0.3, prop_oneof![3 => "[1-9][0-9]?(s|m|h|ms)", 1 => text()]);
    let grace = option::weighted(0.3, prop_oneof![Just(0), -1_i64..100, any::<i64>()]);
    let containers = prop_oneof![3 => Just(vec![]), 1 => vec(text(), 0..3)];
    let scope =
        select(vec![Scope::Init, Scope::All]).prop_map(|scope| Processes { scope, ..Processes::default() });
    let name = || option::weighted(0.5, select(vec!["fsync", "", "/bin/x", "../x"]).prop_map(str::to_owned));
    let port = option::weighted(0.4, select(vec![0, 1, 5432, 65536]))
        .prop_map(|port| port.map(|port| ConnectTrigger { port }));
    let nth = option::weighted(0.3, select(vec![0_i64, 1, 7]));
    let trigger = (name(), nth, name(), port).prop_map(|(syscall, nth, exec, connect)| Trigger {
        syscall,
        nth,
        exec,
        connect,
        comm: None,
    });
    let rare = |value| option::weighted(0.15, Just(value)).boxed();
    let switches = (
        prop_oneof![rare(true), rare(false)],
        prop_oneof![rare(true), rare(false)],
        prop_oneof![rare(true), rare(false)],
        prop_oneof![rare(true), rare(false)],
    );
    let rest = (
        duration,
        grace,
        containers,
        option::weighted(0.2, signal()),
        option::weighted(0.15, scope),
        option::weighted(0.15, trigger),
        option::weighted(0.15, select(vec![FaultStyle::Pause, FaultStyle::Crash])),
        option::of(any::<i64>()),
        option::weighted(0.1, select(vec!["", "other"])),
    );
    (what, rest, switches).prop_map(
        |((action, mode, value, selector), rest, (evict, fast, terminal, dry))| {
            let (
                duration,
                grace_period,
                container_names,
                signal,
                processes,
                trigger,
                fault_style,
                seed,
                cluster,
            ) = rest;
            PodChaosSpec {
                action,
                mode,
                value,
                selector,
                container_names,
                grace_period,
                duration,
                signal,
                processes,
                trigger,
                evict,
                fast,
                fault_style,
                allow_terminal: terminal,
                seed,
                dry_run: dry,
                steady_state: Vec::new(),
                on_halt: None,
                remote_cluster: cluster.map(str::to_owned),
            }
        },
    )
}
