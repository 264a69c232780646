//! Building our own programs: static ones, for images FROM scratch and for the local cluster. Nothing but cargo runs.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{cluster::prereq, progress::Step, sh};

/// The root of the checkout that this xtask was built from, without symbolic links.
pub fn checkout() -> Result<PathBuf> {
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&here).join("..");
    root.canonicalize().with_context(|| format!("can't find the checkout at {}", root.display()))
}

/// The cargo that runs us, or the one in the path; as somebody would call it. What it has told us of our own package is
/// kept from it: ring is built anew whenever that changes, and most of what we build needs ring.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_our_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo sets this variable for a program of one package, so that it is not one of the user's settings.
fn is_of_our_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}

/// This machine's target. Static means glibc linked in: the musl target is not everywhere.
pub fn target() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// Builds all binaries of these packages statically, for images, with features (`PACKAGE/FEATURE`), and says where each
/// is, by its name.
pub fn static_binaries(packages: &[&str], features: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    static_binaries_in("target/static", packages, features)
}

/// The same, in a target directory of the checkout that is not the usual one: there, with other flags, each build would
/// undo the other's.
pub fn static_binaries_in(
    directory: &str,
    packages: &[&str],
    features: &[&str],
) -> Result<BTreeMap<String, PathBuf>> {
    if packages.contains(&"squall-daemon") {
        prereq::ensure_build()?;
    }
    let mut command = statically(directory, &["build", "--bins"])?;
    for package in packages {
        command.args(["-p", package]);
    }
    for feature in features {
        command.args(["--features", feature]);
    }
    let messages = watched(&mut command, Step::begin(format!("building {} (static)", packages.join(", "))))?;
    Ok(executables(&messages))
}

/// Builds a test program of a package statically, for another machine, and says where it is.
pub fn static_test(package: &str, test: &str) -> Result<PathBuf> {
    prereq::ensure_build()?;
    let mut command = statically("target/static", &["test", "--no-run"])?;
    command.args(["-p", package, "--test", test]);
    let step = Step::begin(format!("building the test {test} of {package} (static)"));
    let messages = watched(&mut command, step)?;
    executables(&messages).remove(test).with_context(|| format!("{package} has no test {test}"))
}

/// A command of cargo's whose programs need nothing of the machine that they run on.
fn statically(directory: &str, words: &[&str]) -> Result<Command> {
    let root = checkout()?;
    let directory = root.join(directory);
    let mut command = cargo();
    command
        .current_dir(&root)
        .args(words)
        .args(["--profile", "image", "--target", &target(), "--target-dir"])
        .arg(&directory)
        .args(["--message-format", "json-render-diagnostics"]);
    let mut flags = env::var("RUSTFLAGS").unwrap_or_default();
    // The same sources are looked at when the tests are built; here another flag would only mean another build.
    if lints() {
        command.env_remove(WRAPPER);
        flags = flags.replace(DENIED, "");
    }
    flags.push_str(" -C target-feature=+crt-static");
    command.env("RUSTFLAGS", flags.trim()).env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

/// Cargo's: what compiles the packages of this workspace.
const WRAPPER: &str = "RUSTC_WORKSPACE_WRAPPER";

/// With it, what clippy says is an error.
const DENIED: &str = "-D warnings";

/// Whether clippy is what compiles this workspace, so that building lints.
pub fn lints() -> bool {
    env::var_os(WRAPPER).is_some_and(|wrapper| wrapper == "clippy-driver")
}

/// Runs cargo while the step tells what it says; the error shows the compiler's own words.
pub fn watched(command: &mut Command, mut step: Step) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("can't start {}", sh::show(command)))?;
    let stdout = child.stdout.take();
    let messages = thread::spawn(move || {
        let mut text = String::new();
        stdout.map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut text)).map(|_| text)
    });
    let mut said = String::new();
    for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
        let line = line.context("can't read what cargo says")?;
        if !line.is_empty() {
            step.at(line.trim());
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait()?;
    let messages = messages.join().ok().context("the reader of cargo's messages panicked")??;
    if !status.success() {
        bail!("{} ended with {status}:\n{said}", sh::show(command));
    }
    step.done();
    Ok(messages)
}

/// The executables that cargo's JSON messages name.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| {
            let path = PathBuf::from(message.get("executable")?.as_str()?);
            Some((message["target"]["name"].as_str()?.to_owned(), path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_us_and_keeps_what_the_user_set() {
        for removed in
            ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR", "CARGO_MANIFEST_LINKS"]
        {
            assert!(is_of_our_package(removed), "{removed}");
        }
        for kept in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_PROFILE_IMAGE_OPT_LEVEL", "CARGO_TERM_COLOR"] {
            assert!(!is_of_our_package(kept), "{kept}");
        }
    }

    #[test]
    fn only_messages_with_an_executable_count() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"pause"},"executable":"/t/pause"}
{"reason":"build-finished","success":true}"#;
        let found = executables(messages);
        assert_eq!(found, BTreeMap::from([("pause".to_owned(), PathBuf::from("/t/pause"))]));
    }
}
