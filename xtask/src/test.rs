//! `cargo xtask test`: every test, on the real kernel and the real cluster.
//!
//! A test that can't run fails: nothing is skipped but what this machine's kernel was built without, and that is counted.
//! Every suite runs to its end whatever fails before it, and the last line says `N passed, N failed`.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{build, cluster, cluster::prereq, deploy, kubectl::Kubectl, progress::Step, prometheus, sh};

/// The folder whose tests need Squall installed.
const END_TO_END: &str = "tests";
/// The folder of the chores.
const CHORES: &str = "xtask";
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
    /// Only test programs whose name contains this (laws_plan, kernel), and of the others only tests whose name does.
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
    let programs = programs()?;
    suite("units and kernel", units(&programs, up.as_ref().ok(), filter));
    match up {
        Ok(kubectl) => {
            let installed =
                deploy::install(&kubectl, args.registry.as_deref()).context("can't install Squall");
            suite("end to end", installed.and_then(|()| end_to_end(&programs, &kubectl, filter)));
            suite("chores", chores(&programs, Some(&kubectl), filter));
        }
        Err(error) => {
            suite("end to end", Err(error.context("there is no cluster to test on")));
            suite("chores", chores(&programs, None, filter));
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
    something_ran(total, filter)
}

/// A filter that nothing matched is a typo, and no success.
fn something_ran(total: Count, filter: Option<&str>) -> Result<()> {
    match filter {
        Some(filter) if total == Count::default() => {
            bail!("nothing was tested: no test program and no test has {filter} in its name")
        }
        Some(_) | None => Ok(()),
    }
}

/// A test program.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    /// Of its package: where cargo would run it.
    directory: PathBuf,
}

impl Program {
    /// Whether it is one of the package with this directory's name.
    fn is_of(&self, package: &str) -> bool {
        self.directory.file_name().is_some_and(|name| name == package)
    }

    /// Its name, without the hash that cargo puts behind it.
    fn name(&self) -> &str {
        let stem = self.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        stem.rsplit_once('-').map_or(stem, |(name, _)| name)
    }

    /// By what its tests are chosen: where the filter means the program itself, by nothing.
    fn chosen_by<'a>(&self, filter: Option<&'a str>) -> Option<&'a str> {
        filter.filter(|filter| !self.name().contains(filter))
    }
}

/// Builds all of them at once: package by package, each would have dependencies compiled anew, with other features.
fn programs() -> Result<Vec<Program>> {
    let mut command = build::cargo();
    command.current_dir(build::checkout()?).args(["test", "--workspace", "--no-run"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let messages = build::watched(&mut command, Step::begin("building the tests"))?;
    Ok(named(&messages))
}

/// The test programs that cargo's messages name.
fn named(messages: &str) -> Vec<Program> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_test = parsed.filter(|message| message["profile"]["test"] == true);
    of_test
        .filter_map(|message| {
            let path = PathBuf::from(message["executable"].as_str()?);
            let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
            Some(Program { path, directory })
        })
        .collect()
}

/// Everything that needs no cluster, the tests on this machine's kernel among it.
fn units(programs: &[Program], kubectl: Option<&Kubectl>, filter: Option<&str>) -> Result<Count> {
    prereq::ensure_runtimes()?;
    let others = programs.iter().filter(|program| !program.is_of(END_TO_END) && !program.is_of(CHORES));
    all(others, filter, |command| kubectl.map_or(Ok(()), |kubectl| kubectl.export(command)))
}

/// The end-to-end tests, with Squall installed.
fn end_to_end(programs: &[Program], kubectl: &Kubectl, filter: Option<&str>) -> Result<Count> {
    prometheus::provide()?;
    // They wait for the cluster far more than they use the processor; those that take Squall apart lock each other out.
    let threads = std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| "6".to_owned());
    all(programs.iter().filter(|program| program.is_of(END_TO_END)), filter, |command| {
        command.arg("--include-ignored").env("RUST_TEST_THREADS", &threads);
        kubectl.export(command)
    })
}

/// The tests of these chores: manifests, and the local cluster itself, for which clusters are made and broken one after
/// another. Not on somebody's cluster: those would be ignored, and are counted as such.
fn chores(programs: &[Program], kubectl: Option<&Kubectl>, filter: Option<&str>) -> Result<Count> {
    let own = kubectl.is_none_or(|kubectl| kubectl.cluster().is_some());
    let flags: &[&str] = if own { &["--include-ignored", "--test-threads=1"] } else { &[] };
    all(programs.iter().filter(|program| program.is_of(CHORES)), filter, |command| {
        command.args(flags).env(CLUSTER_TESTS, "1").env_remove(cluster::NAME_VARIABLE);
        kubectl.map_or(Ok(()), |kubectl| kubectl.export(command))
    })
}

/// Runs them one after another, each as `prepare` has it, to the last one whatever fails.
fn all<'a>(
    programs: impl Iterator<Item = &'a Program>,
    filter: Option<&str>,
    prepare: impl Fn(&mut Command) -> Result<()>,
) -> Result<Count> {
    let (mut count, mut broken) = (Count::default(), Vec::new());
    for program in programs {
        let Program { path, directory } = program;
        let mut command = Command::new(path);
        command.args(program.chosen_by(filter)).current_dir(directory).env("CARGO_MANIFEST_DIR", directory);
        prepare(&mut command)?;
        match counted(&mut command) {
            Ok(more) => count = count.plus(more),
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    if !broken.is_empty() {
        bail!("{} passed, {} failed, and {}", count.passed, count.failed, broken.join("; "));
    }
    Ok(count)
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
    fn only_test_programs_are_run_each_where_its_package_is() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/model/Cargo.toml","executable":"/t/laws","profile":{"test":true}}
{"reason":"compiler-artifact","manifest_path":"/w/fault/Cargo.toml","executable":"/t/pause","profile":{"test":false}}
{"reason":"compiler-artifact","manifest_path":"/w/api/Cargo.toml","executable":null,"profile":{"test":true}}
{"reason":"build-finished","success":true}"#;
        let laws = Program { path: "/t/laws".into(), directory: "/w/model".into() };
        assert!(laws.is_of("model") && !laws.is_of(END_TO_END));
        assert_eq!(named(messages), [laws]);
    }

    #[test]
    fn a_filter_means_a_whole_program_or_else_tests_by_name() {
        let program = |path: &str| Program { path: path.into(), directory: "/w/model".into() };
        let laws = program("/t/deps/laws_plan-0123456789abcdef");
        assert_eq!(laws.name(), "laws_plan");
        assert_eq!(laws.chosen_by(None), None);
        assert_eq!(laws.chosen_by(Some("laws_plan")), None);
        assert_eq!(laws.chosen_by(Some("laws")), None);
        assert_eq!(laws.chosen_by(Some("a_rollback")), Some("a_rollback"));
        // The hash is nobody's name.
        assert_eq!(laws.chosen_by(Some("cdef")), Some("cdef"));
        assert_eq!(program("/t/deps/kernel-00").chosen_by(Some("laws_plan")), Some("laws_plan"));
    }

    #[test]
    fn a_filter_that_nothing_matched_is_no_success() {
        let error = something_ran(Count::default(), Some("lasw_plan")).unwrap_err().to_string();
        assert!(error.contains("lasw_plan"), "{error}");
        assert!(something_ran(Count { passed: 1, ..Count::default() }, Some("laws_plan")).is_ok());
        assert!(something_ran(Count::default(), None).is_ok());
    }

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
