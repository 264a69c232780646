//! Ends a run in which a case hangs, and says where: what each process of ours does in the kernel.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    process,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::sandbox::{remove_all, slack};

/// No case takes half as long, neither here nor on an emulated machine, which as a whole is given nine minutes.
const LIMIT: Duration = Duration::from_secs(60);
const LIMIT_EMULATED: Duration = Duration::from_secs(240);

static CASE: Mutex<Option<(String, Instant)>> = Mutex::new(None);

/// Watches over the cases from now on, in a thread of its own.
pub fn start() {
    let limit = slack(LIMIT).min(LIMIT_EMULATED);
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            let case = CASE.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some((name, began)) = case.filter(|(_, began)| began.elapsed() > limit) {
                println!("{name} hangs, for {:?}", began.elapsed());
                print_stacks();
                remove_all();
                process::abort();
            }
        }
    });
}

/// A case begins.
pub fn begin(name: &str) {
    *CASE.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.to_owned(), Instant::now()));
}

/// The case has ended.
pub fn end() {
    *CASE.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// The stacks of every thread of every process that runs this program, each stack once: there may be a bomb's hundreds.
fn print_stacks() {
    let file = |found: Metadata| (found.dev(), found.ino());
    let own = env::current_exe().and_then(fs::metadata).map(file).ok();
    let mut stacks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // Some run it under another name.
        if own.is_none() || fs::metadata(entry.path().join("exe")).map(file).ok() != own {
            continue;
        }
        for task in fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten() {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let status = read("status");
            let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
            let stack = format!("{} {state}\n{}", read("comm").trim_end(), read("stack"));
            stacks.entry(stack).or_default().push(task.file_name().display().to_string());
        }
    }
    for (stack, tasks) in stacks {
        println!("{} tasks ({}): {stack}", tasks.len(), tasks[..tasks.len().min(8)].join(" "));
    }
}
