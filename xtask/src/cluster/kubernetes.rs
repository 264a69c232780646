//! Kubernetes itself: one Go program that is every component, built once from `xtask/kubernetes` and cached in the user's
//! cache directory, so that a fresh clone finds it.
//!
//! To move to another version: k8s.io/kubernetes requires its staging modules as v0.0.0, replaced by directories that its
//! module lacks. `go.mod` there replaces each by the v0.X.Y published beside v1.X.Y, sample-cli-plugin and
//! sample-controller left out; change them all, then `go mod tidy`.

use std::{
    env, fs,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::FlockOperation;

use crate::{image, progress::Step, sh};

/// Its sources; a change of any of them means another program.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// The packages whose variables carry the version.
const VERSION_PACKAGES: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

/// The program for this checkout; built when the cache does not have it.
pub fn program(checkout: &Path) -> Result<PathBuf> {
    let sources = checkout.join("xtask/kubernetes");
    let mut all = env::consts::ARCH.as_bytes().to_vec();
    for file in SOURCES {
        let path = sources.join(file);
        all.extend(fs::read(&path).with_context(|| format!("can't read {}", path.display()))?);
    }
    let version = version(&String::from_utf8_lossy(&all))?.to_owned();
    let directory = cache()?.join(format!("k8s-{version}-{}", &image::hex_digest(&all)[..12]));
    let program = directory.join("k8s");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let lock = File::create(directory.join("lock"))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let step = Step::begin("waiting for another build of Kubernetes");
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .context("can't lock the build of Kubernetes")?;
        step.done();
    }
    if !program.exists() {
        build(&sources, &version, &directory, &program)?;
    }
    Ok(program)
}

/// What outlives a checkout: Squall's part of the user's cache directory.
pub fn cache() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?)
            .join(".cache"),
    };
    Ok(cache.join("squall"))
}

fn build(sources: &Path, version: &str, directory: &Path, program: &Path) -> Result<()> {
    ensure!(
        sh::succeeds(&mut sh::command("go", ["version"])),
        "Go is needed to build Kubernetes for the local cluster: install Go 1.24 or newer"
    );
    let new = directory.join("k8s.new");
    let mut go = Command::new("go");
    go.current_dir(sources).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly");
    // What a debugger reads is stripped by the linker anyway, and a compiler that collects its garbage less often is done
    // earlier: together they save a tenth of the time.
    go.env("GOGC", "400").args(["build", "-v", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false"]);
    go.args(["-ldflags", &linker_flags(version), "-o"]).arg(&new).arg(".");
    go.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut step = Step::begin(format!(
        "building Kubernetes {version}, once (8 minutes on 2 cores when nothing is cached)"
    ));
    let log_path = directory.join("build.log");
    let mut log = File::create(&log_path).with_context(|| format!("can't write {}", log_path.display()))?;
    let mut child = go.spawn().context("can't start go")?;
    let mut compiled = 0;
    for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
        let line = line.context("can't read what go says")?;
        writeln!(log, "{line}")?;
        if line.starts_with("go: downloading ") {
            step.at(&line);
        } else {
            compiled += 1;
            step.at(&format!("package {compiled}: {line}"));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let text = fs::read_to_string(&log_path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(8)..].join("\n  ");
        bail!("go build ended with {status}; its log is {}, and ends:\n  {end}", log_path.display());
    }
    fs::rename(&new, program).with_context(|| format!("can't rename {}", new.display()))?;
    step.done();
    Ok(())
}

/// The version of Kubernetes that go.mod requires.
fn version(go_mod: &str) -> Result<&str> {
    let mut lines = go_mod.lines().map(|line| line.trim().trim_start_matches("require "));
    lines
        .find_map(|line| line.strip_prefix("k8s.io/kubernetes "))
        .context("go.mod requires no k8s.io/kubernetes")
}

/// Without these every component would call itself v0.0.0.
fn linker_flags(version: &str) -> String {
    let minor = version.split('.').nth(1).unwrap_or_default();
    let mut flags = "-s -w".to_owned();
    for package in VERSION_PACKAGES {
        let values =
            [("gitVersion", version), ("gitMajor", "1"), ("gitMinor", minor), ("gitTreeState", "clean")];
        for (name, value) in values {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_go_mod_requires() {
        let go_mod = "require (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.34.4\n)\n";
        assert_eq!(version(go_mod).unwrap(), "v1.34.4");
        assert!(version("module x").is_err());
        assert!(linker_flags("v1.34.4").contains("-X k8s.io/client-go/pkg/version.gitMinor=34"));
    }
}
