//! What may happen to an experiment.

use proptest::prelude::*;
use squall_api::chaospolicy::{ChaosPolicySpec, Limits};
use squall_api::names;
use squall_model::substitute;

use crate::sim::Sim;

#[derive(Clone, Debug)]
pub enum Move {
    Turn(Option<u32>),
    Wait(i64),
    CatchUp,
    See,
    Failing(u32),
    Lost(u32),
    RemoveLabel(usize),
    NewImage(usize),
    DeletePod(usize),
    Birth,
    Pause(bool),
    OptIn(bool),
    Restart(usize),
    Away(bool),
    KillDaemon,
    Halt(bool),
    Policy(Option<(i32, i32)>),
    Excess(Option<usize>),
    Trip,
    Exit,
}

pub fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => proptest::option::of(0_u32..12).prop_map(Move::Turn),
        3 => (0_i64..90).prop_map(Move::Wait),
        4 => Just(Move::CatchUp),
        2 => Just(Move::See),
        1 => (0_u32..6).prop_map(Move::Failing),
        1 => (0_u32..6).prop_map(Move::Lost),
        1 => (0_usize..30).prop_map(Move::RemoveLabel),
        1 => (0_usize..30).prop_map(Move::NewImage),
        1 => (0_usize..30).prop_map(Move::DeletePod),
        1 => Just(Move::Birth),
        1 => any::<bool>().prop_map(Move::Pause),
        1 => any::<bool>().prop_map(Move::OptIn),
        1 => (0_usize..30).prop_map(Move::Restart),
        1 => any::<bool>().prop_map(Move::Away),
        1 => Just(Move::KillDaemon),
        1 => any::<bool>().prop_map(Move::Halt),
        1 => proptest::option::of((0_i32..5, 0_i32..101)).prop_map(Move::Policy),
        1 => proptest::option::of(0_usize..30).prop_map(Move::Excess),
        1 => Just(Move::Trip),
        1 => Just(Move::Exit),
    ];
    proptest::collection::vec(one, 0..60)
}

pub fn play(sim: &mut Sim, moves: Vec<Move>) {
    for step in moves {
        let name = |sim: &Sim, index: usize| sim.pods.keys().nth(index % sim.pods.len().max(1)).cloned();
        match step {
            Move::Turn(crash) => sim.turn(crash),
            Move::Wait(seconds) => sim.wait(seconds),
            Move::CatchUp => sim.all_catch_up(),
            Move::See => sim.see(),
            Move::Failing(count) => sim.failing = count,
            Move::Lost(count) => sim.lost = count,
            Move::RemoveLabel(index) => {
                if let Some(name) = name(sim, index) {
                    sim.version += 1;
                    let version = sim.version.to_string();
                    let pod = sim.pods.get_mut(&name).unwrap();
                    if pod.metadata.labels.is_some() {
                        substitute::restore(pod);
                        pod.metadata.resource_version = Some(version);
                    }
                }
            }
            Move::NewImage(index) => {
                if let Some(name) = name(sim, index) {
                    let pod = sim.pods.get_mut(&name).unwrap();
                    if pod.metadata.labels.is_none() {
                        pod.spec.as_mut().unwrap().containers[0].image = Some("app:2".into());
                    }
                }
            }
            Move::DeletePod(index) => {
                if let Some(name) = name(sim, index) {
                    sim.pods.remove(&name);
                    sim.birth();
                }
            }
            Move::Birth => {
                sim.birth();
            }
            Move::Pause(on) => sim.annotate(names::PAUSE, on.then_some("true")),
            Move::OptIn(on) => sim.namespace.opted_in = on,
            Move::Restart(index) => {
                if let Some(name) = name(sim, index) {
                    sim.restart(&name);
                }
            }
            Move::Away(true) => sim.node.away = true,
            Move::Away(false) => {
                sim.node.back();
                sim.news();
            }
            Move::KillDaemon => {
                sim.node.away = true;
                sim.node.killed = true;
            }
            Move::Excess(None) => sim.excess.clear(),
            Move::Excess(Some(index)) => {
                if let Some(pod) = sim.pods.values().nth(index % sim.pods.len().max(1)) {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    sim.exceed(&uid);
                }
            }
            Move::Trip => sim.node.trip(),
            Move::Exit => sim.exits(),
            Move::Halt(on) => sim.namespace.halt = on.then(|| "incident".to_owned()),
            Move::Policy(limit) => sim.policy(limit.map(|(targets, percent)| ChaosPolicySpec {
                limits: Some(Limits {
                    max_targets: Some(targets),
                    max_percent_per_workload: Some(percent),
                    ..Limits::default()
                }),
                ..ChaosPolicySpec::default()
            })),
        }
    }
}
