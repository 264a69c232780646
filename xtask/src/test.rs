//! `cargo xtask test`: every test, on the real kernel and the real cluster.
//!
//! A test that can't run fails: nothing is skipped. Every suite runs to its end whatever fails before it, and the last
//! line says `N passed, N failed`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, cluster, cluster::prereq, deploy, kubectl::Kubectl, prometheus, sh};

/// The crate whose tests need Squall installed.
const END_TO_END: &str = "squall-tests";
/// Tells the tests of the chores that they may use this machine: they refuse without it.
const CLUSTER_TESTS: &str = "SQUALL_CLUSTER_TESTS";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
    /// Take the images from this registry (and path); with --context.
    #[arg(long, requires = "context")]
    pub registry: Option<String>,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// What tests came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Count {
    /// With the line `test result: …` of one test program.
    fn with(self, line: &str) -> Self {
        let Some((_, rest)) = line.split_once("test result: ") else { return self };
        let of = |what: &str| {
            let part = rest.split(['.', ';']).map(str::trim).find_map(|part| part.strip_suffix(what));
            part.and_then(|number| number.trim().parse::<u32>().ok()).unwrap_or(0)
        };
        Self {
            passed: self.passed + of(" passed"),
            failed: self.failed + of(" failed"),
            ignored: self.ignored + of(" ignored"),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// Does it.
pub fn run(args: Args) -> Result<()> {
    prereq::ensure_build()?;
    let filter = args.filter.as_deref();
    let mut total = Count::default();
    let mut broken = Vec::new();
    // First of all: the Go build wants both cores for itself, and tests of manifests take the cluster's kubectl.
    let up = Kubectl::up(args.context.as_deref());
    let mut suite = |what: &str, count: Result<Count>| match count {
        Ok(count) => {
            println!("{what}: {} passed, {} failed", count.passed, count.failed);
            total = total.plus(count);
        }
        Err(error) => {
            eprintln!("{what}: {error:#}");
            broken.push(format!("{what}: {error:#}"));
        }
    };
    suite("units and kernel", units(up.as_ref().ok(), filter));
    match up {
        Ok(kubectl) => {
            let installed =
                deploy::install(&kubectl, args.registry.as_deref()).context("can't install Squall");
            suite("end to end", installed.and_then(|()| end_to_end(&kubectl, filter)));
            suite("chores", chores(Some(&kubectl), filter));
        }
        Err(error) => {
            suite("end to end", Err(error.context("there is no cluster to test on")));
            suite("chores", chores(None, filter));
        }
    }
    // A suite that did not come to its end is a failure that no test program counted.
    let failed = total.failed + u32::try_from(broken.len())?;
    for line in &broken {
        println!("FAILED {line}");
    }
    if total.ignored > 0 {
        println!("{} ignored", total.ignored);
    }
    println!("{} passed, {failed} failed", total.passed);
    if failed > 0 {
        bail!("{failed} failed");
    }
    Ok(())
}

/// Everything that needs no cluster, the tests on this machine's kernel among it.
fn units(kubectl: Option<&Kubectl>, filter: Option<&str>) -> Result<Count> {
    prereq::ensure_runtimes()?;
    let mut command =
        cargo_test(&["--workspace", "--exclude", END_TO_END, "--exclude", "xtask"], filter, &[])?;
    if let Some(kubectl) = kubectl {
        kubectl.export(&mut command)?;
    }
    counted(&mut command)
}

/// The end-to-end tests, with Squall installed.
fn end_to_end(kubectl: &Kubectl, filter: Option<&str>) -> Result<Count> {
    prometheus::provide()?;
    let mut command = cargo_test(&["-p", END_TO_END], filter, &["--include-ignored"])?;
    // They wait for the cluster far more than they use the processor; those that take Squall apart lock each other out.
    command.env("RUST_TEST_THREADS", std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| "6".to_owned()));
    kubectl.export(&mut command)?;
    counted(&mut command)
}

/// The tests of these chores: manifests, and the local cluster itself, for which clusters are made and broken one after
/// another. Not on somebody's cluster: those would be ignored, and are counted as such.
fn chores(kubectl: Option<&Kubectl>, filter: Option<&str>) -> Result<Count> {
    let own = kubectl.is_none_or(|kubectl| kubectl.cluster().is_some());
    let flags: &[&str] = if own { &["--include-ignored", "--test-threads=1"] } else { &[] };
    let mut command = cargo_test(&["-p", "xtask"], filter, flags)?;
    if let Some(kubectl) = kubectl {
        kubectl.export(&mut command)?;
    }
    counted(command.env(CLUSTER_TESTS, "1").env_remove(cluster::NAME_VARIABLE))
}

fn cargo_test(what: &[&str], filter: Option<&str>, flags: &[&str]) -> Result<Command> {
    let mut command = build::cargo();
    command.current_dir(build::checkout()?).args(["test", "--no-fail-fast"]).args(what).arg("--");
    command.args(filter).args(flags);
    Ok(command)
}

/// Runs it, showing all that it says, and counts.
fn counted(command: &mut Command) -> Result<Count> {
    println!("$ {}", sh::show(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", sh::show(command)))?;
    let mut count = Count::default();
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).split(b'\n')) {
        let line = line.context("can't read what the tests say")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        count = count.with(&line);
    }
    let status = child.wait().context("can't wait for the tests")?;
    if !status.success() && count.failed == 0 {
        bail!("{} ended with {status} before its tests did", sh::show(command));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_add_up() {
        let lines = [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 2.10s",
        ];
        let count = lines.iter().fold(Count::default(), |count, line| count.with(line));
        assert_eq!(count, Count { passed: 15, failed: 2, ignored: 1 });
    }
}
