//! What of ours is in the kernel: programs and maps, by the kernel's own list.
//!
//! It is the whole machine's list, and another daemon on it may have the same. So only what came since the case began
//! counts, and a case waits for what it expects: another's probe has gone after a moment.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};

use super::sandbox::until;

const PROGRAMS: [&str; 8] = [
    "signal_tasks",
    "signal_forking",
    "signal_generate",
    "signal_deliver",
    "sched_process_exit",
    "trigger_syscall",
    "trigger_connect",
    "trigger_exec",
];
const MAPS: [&str; 9] =
    ["WATCHES", "LEVELS", "TRIGGERS", "EXECS", "FIRED", "SCRATCH", "CLAIMS", "RECORDS", "COUNTERS"];

/// The numbers of the programs and of the maps that were there when the case began.
static OTHERS: Mutex<(BTreeSet<u32>, BTreeSet<u32>)> = Mutex::new((BTreeSet::new(), BTreeSet::new()));

/// What is in the kernel now is others'.
pub fn look_around() {
    let ids = |all: Vec<(u32, String)>| all.into_iter().map(|(id, _)| id).collect();
    *OTHERS.lock().unwrap_or_else(PoisonError::into_inner) = (ids(all_programs()), ids(all_maps()));
}

/// The names of the programs of ours that came since the case began, as far as the kernel keeps names.
pub fn programs() -> Vec<String> {
    let others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    new(all_programs(), &others.0)
}

/// Waits until there are so many of them.
pub async fn programs_are(count: usize) {
    until(Duration::from_secs(2), &format!("{count} programs are loaded"), || programs().len() == count)
        .await;
}

pub async fn nothing_is_loaded() {
    let maps = || new(all_maps(), &OTHERS.lock().unwrap_or_else(PoisonError::into_inner).1);
    until(Duration::from_secs(2), "programs and maps are gone", || {
        programs().is_empty() && maps().is_empty()
    })
    .await;
}

/// How often the programs of such a name that came since the case began have run, as long as the kernel counts it.
pub fn runs(name: &str) -> u64 {
    let others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    let new = aya::programs::loaded_programs().flatten().filter(|program| !others.0.contains(&program.id()));
    let named = new.filter(|program| program.name_as_str().is_some_and(|found| found.starts_with(name)));
    named.map(|program| program.run_count()).sum()
}

/// The map of that name that came since the case began.
pub fn new_map(name: &str) -> HashMap<MapData, u32, u64> {
    let others = &OTHERS.lock().unwrap_or_else(PoisonError::into_inner).1;
    let new = all_maps().into_iter().find(|(id, found)| found == name && !others.contains(id));
    let map = MapData::from_id(new.expect("the map").0).expect("opening the map");
    Map::HashMap(map).try_into().expect("a hash map")
}

fn new(all: Vec<(u32, String)>, others: &BTreeSet<u32>) -> Vec<String> {
    all.into_iter().filter(|(id, _)| !others.contains(id)).map(|(_, name)| name).collect()
}

fn all_programs() -> Vec<(u32, String)> {
    let all = aya::programs::loaded_programs().flatten();
    let all = all.filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())));
    let ours = |name: &str| !name.is_empty() && PROGRAMS.iter().any(|our| our.starts_with(name));
    all.filter(|(_, name)| ours(name)).collect()
}

fn all_maps() -> Vec<(u32, String)> {
    let all = aya::maps::loaded_maps().flatten();
    let all = all.filter_map(|map| Some((map.id(), map.name_as_str()?.to_owned())));
    all.filter(|(_, name)| MAPS.contains(&name.as_str())).collect()
}
