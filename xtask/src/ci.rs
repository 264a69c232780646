//! `cargo xtask ci`: what a commit has to pass. `.ci/run` is this on a clean clone.
//!
//! Each step runs as its own command, shown as one would type it; the first that fails ends it.

use std::{env, ffi::OsStr, process::Command, time::Instant};

use anyhow::{Context as _, Result};

use crate::{build, cluster::prereq, gen_ebpf, sh};

/// Arguments of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Args {
    /// What needs no cluster only: format, lints, licences, generated files.
    #[arg(long, conflicts_with = "full")]
    pub lint: bool,
    /// The figures and other kernels too, and cargo-deny is installed when it is not there (some minutes).
    #[arg(long)]
    pub full: bool,
}

/// The kernel tests' features that load programs: the others are the same whatever the object is.
const OF_PROGRAMS: [&str; 5] = ["kill::", "order::", "trigger::", "luck::", "privileges::"];

/// Does it.
pub fn run(args: Args) -> Result<()> {
    prereq::ensure_build()?;
    let began = Instant::now();
    let mut took = Vec::new();
    for mut step in steps(&args)? {
        let shown = sh::show(&step).replace(&env::current_exe()?.display().to_string(), "cargo xtask");
        println!("$ {shown}");
        let began = Instant::now();
        sh::run(&mut step).with_context(|| format!("ci: {shown} failed"))?;
        took.push((shown, began.elapsed()));
    }
    for (shown, took) in took {
        println!("{:>6.1} s  {shown}", took.as_secs_f64());
    }
    println!("{:>6.1} s  in all: passed", began.elapsed().as_secs_f64());
    Ok(())
}

fn steps(args: &Args) -> Result<Vec<Command>> {
    let root = build::checkout()?;
    let cargo = |words: &[&str]| {
        let mut command = build::cargo();
        command.current_dir(&root).args(words);
        command
    };
    // The same program, not `cargo xtask`: that would wait for the lock and build nothing new.
    let xtask = |words: &[&str]| -> Result<Command> {
        Ok(sh::command(env::current_exe().context("can't find myself")?, words))
    };
    let mut steps = vec![cargo(&["fmt", "--all", "--check"]), xtask(&["gen", "--check"])?];
    if build::lints() {
        println!("clippy looks at everything that is built, the tests among it");
    } else {
        steps.push(cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]));
    }
    let deny = sh::succeeds(&mut cargo(&["deny", "--version"]));
    if !deny && args.full {
        steps.push(cargo(&["install", "cargo-deny", "--locked"]));
    }
    if deny || args.full {
        steps.push(cargo(&["deny", "check", "licenses", "bans", "sources"]));
    } else {
        println!(
            "cargo-deny is not installed: licences are not looked at (cargo install cargo-deny, or --full)"
        );
    }
    // That the checked-in object is of these sources says a hash; that they make programs that work, only this.
    if args.full || gen_ebpf::can_build() {
        steps.push(xtask(&["gen", "--fresh-ebpf"])?);
        let object = format!("{}={}", gen_ebpf::OBJECT_VARIABLE, gen_ebpf::built().display());
        // Not by its package, for which its dependencies would be built once more, with fewer features.
        let mut tests = cargo(&["test", "--workspace", "--test", "kernel", "--"]);
        tests.args(OF_PROGRAMS);
        let mut on_it = sh::command("env", [OsStr::new(&object), tests.get_program()]);
        on_it.args(tests.get_args()).current_dir(&root);
        steps.push(on_it);
    } else {
        println!(
            "no nightly with rust-src, or no bpf-linker: the eBPF object is not built anew (--full fetches them)"
        );
    }
    if args.lint {
        return Ok(steps);
    }
    steps.push(xtask(&["test"])?);
    // Emulated machines are slow: this alone takes 10 minutes.
    if args.full {
        steps.push(xtask(&["kernels"])?);
    }
    steps.push(xtask(&["demo"])?);
    if args.full {
        // What else runs on its machine is not known.
        steps.push(xtask(&["bench", "--slack", "2"])?);
    }
    if env::var_os("CI").is_some_and(|value| value == "true") {
        steps.push(xtask(&["cluster", "down"])?);
    }
    Ok(steps)
}
