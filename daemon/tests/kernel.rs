//! The kernel's side of the daemon, on the real kernel: cgroups, pidfds, perf events, eBPF.
//!
//! Needs root, BTF and the right to load programs; without them it fails, it never skips. What a case needs of the kernel
//! beside, and this one was built without (version 1, FUSE, loop devices), is named, and the case counted as ignored. The
//! tests run one after another, because some look at what is loaded in the whole machine. Each has a cgroup of its own in every hierarchy,
//! as containers have, and the targets are this same binary under another name of duty.

mod kernel {
    pub mod cases;
    pub mod cost;
    pub mod effect;
    pub mod freeze;
    pub mod loaded;
    pub mod luck;
    pub mod node;
    pub mod privileges;
    pub mod sandbox;
    pub mod stress;
    pub mod target;
    pub mod triggers;
    pub mod watchdog;
    pub mod work;
}

use std::{env, panic, process::ExitCode, time::Instant};

fn main() -> ExitCode {
    squall_daemon::stress::stressor::run_if_asked();
    if let Some(duty) = env::var_os(kernel::target::DUTY) {
        kernel::target::run(&duty.to_string_lossy());
    }
    kernel::sandbox::see_tracepoints();
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--cost") {
        return if kernel::cost::run() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let wanted = |name: &str| {
        filters.is_empty()
            || filters
                .iter()
                .any(|filter| if exact { name == filter.as_str() } else { name.contains(*filter) })
    };
    kernel::watchdog::start();
    let (mut passed, mut ignored) = (0, 0);
    let mut failed = Vec::new();
    // What `cargo xtask kernels` calls a feature, and the cases of it.
    let features = [
        ("kill", kernel::cases::ALL),
        ("order", kernel::node::ALL),
        ("stress", kernel::stress::ALL),
        ("effect", kernel::effect::ALL),
        ("trigger", kernel::triggers::ALL),
        ("freeze", kernel::freeze::ALL),
        ("luck", kernel::luck::ALL),
        ("privileges", kernel::privileges::ALL),
    ];
    let cases = features.into_iter().flat_map(|(feature, cases)| {
        cases.iter().map(move |(name, case)| (format!("{feature}::{name}"), case))
    });
    for (name, case) in cases.filter(|(name, _)| wanted(name)) {
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{name}: test");
            continue;
        }
        println!("begin {name}");
        kernel::loaded::look_around();
        kernel::watchdog::begin(&name);
        let start = Instant::now();
        let ended = panic::catch_unwind(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(case());
        });
        kernel::watchdog::end();
        let took = start.elapsed().as_secs_f64();
        match ended.map_err(|panic| panic.downcast::<kernel::sandbox::NotHere>()) {
            Ok(()) => {
                println!("test {name} ... ok ({took:.2} s)");
                passed += 1;
            }
            Err(Ok(not_here)) => {
                println!("test {name} ... ignored, {}", not_here.0);
                ignored += 1;
            }
            Err(Err(_)) => {
                println!("test {name} ... FAILED ({took:.2} s)");
                failed.push(name);
            }
        }
    }
    // As libtest says it, so that `cargo xtask test` can count.
    let outcome = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {outcome}. {passed} passed; {} failed; {ignored} ignored; {failed:?}",
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
