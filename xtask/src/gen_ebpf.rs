//! Builds the eBPF object from `daemon-ebpf/` and keeps the checked-in copy fresh.
//!
//! The object is checked in like generated code, so that nobody needs a nightly toolchain to build the daemon. Beside
//! it lies what it was built from: a hash of each source and of the object, and the versions of the tools. The programs
//! are built with nightly, `rust-src` and `bpf-linker`; what is missing is fetched where that is safe to do (`rust-src`
//! by rustup, or from a Debian suite that has it; `bpf-linker` by cargo) and named before it is.
//! Refuses to check in an object that could not be stripped, or that names a path of the machine it was built on.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::debian::{self, Suite};

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.10.3";
const TOOLCHAIN: &str = "nightly";
/// A Debian suite whose `rust-src` builds with the nightly that the project is tested with.
const DEBIAN_SUITE: &str = "forky";
const OBJECT: &str = "daemon-ebpf/squall.bpf.o";
const SOURCES: &str = "daemon-ebpf/squall.bpf.o.sources";
/// What the object is made of, and the object; a test of the daemon reads the same list from the file beside it.
const HASHED: [&str; 4] =
    ["daemon-ebpf/Cargo.toml", "daemon-ebpf/src/lib.rs", "daemon-ebpf/src/main.rs", OBJECT];
/// Another object than the checked-in one, for the build of the daemon.
pub const OBJECT_VARIABLE: &str = "SQUALL_BPF_OBJECT";

/// Builds the object from source, stripped of debug information but with its BTF, and says where it is.
pub fn build() -> Result<PathBuf> {
    let root = root();
    ensure_rust_src()?;
    ensure_linker()?;
    let target = root.join("target/ebpf");
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=.", root.display()),
        format!("--remap-path-prefix={}=/rust", sysroot()?.display()),
    ];
    if let Some(home) = cargo_home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
        // The folder below is named after the registry; the last matching prefix wins.
        for registry in fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
            flags.push(format!("--remap-path-prefix={}=/crates", registry.path().display()));
        }
    }
    // What an outer cargo sets for its own build must not leak into this one.
    let mut command = Command::new("cargo");
    command
        .args([&format!("+{TOOLCHAIN}"), "build", "--release", "-Zbuild-std=core"])
        .args(["--target", "bpfel-unknown-none", "--package", "squall-daemon-ebpf"])
        .args(["--features", "programs", "--bin", "squall-bpf"])
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    for leaked in ["RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTFLAGS"] {
        command.env_remove(leaked);
    }
    run(&mut command)?;

    let built = target.join("bpfel-unknown-none/release/squall-bpf");
    let stripped = self::built();
    let strip = llvm_strip().context(
        "no llvm-strip found: install it (apt-get install llvm, or rustup component add llvm-tools)",
    )?;
    run(Command::new(strip).arg("--strip-debug").arg("-o").arg(&stripped).arg(&built))?;
    let bytes = fs::read(&stripped)?;
    for home in [root.as_path(), &sysroot()?] {
        let needle = home.display().to_string();
        ensure!(
            !bytes.windows(needle.len()).any(|part| part == needle.as_bytes()),
            "the object names a path of this machine: {needle}",
        );
    }
    Ok(stripped)
}

/// Where [`build`] puts it.
pub fn built() -> PathBuf {
    root().join("target/ebpf/squall.bpf.o")
}

/// Whether it can be built with what is here, so that nothing has to be fetched.
pub fn can_build() -> bool {
    library().is_ok_and(|library| has_core(&library)) && has_linker() && llvm_strip().is_some()
}

/// Writes the checked-in object and the list of its sources; with `check_only` says whether sources and object are those
/// of the list, and writes nothing.
pub fn refresh(check_only: bool) -> Result<()> {
    let root = root();
    let recorded = fs::read_to_string(root.join(SOURCES)).unwrap_or_default();
    let recorded = recorded.lines().filter(|line| line.starts_with("sha256 "));
    if hashes(&root).is_ok_and(|now| recorded.eq(now.lines())) {
        return Ok(());
    }
    ensure!(!check_only, "{OBJECT} is not what was built, or not from these sources: run `cargo xtask gen`");
    let object = build()?;
    fs::copy(&object, root.join(OBJECT))
        .with_context(|| format!("copying {} to {OBJECT}", object.display()))?;
    let tools = format!(
        "{}\n{LINKER} {LINKER_VERSION}\n",
        output(Command::new("rustc").args([&format!("+{TOOLCHAIN}"), "--version"]))?
    );
    fs::write(root.join(SOURCES), format!("{}{tools}", hashes(&root)?))
        .with_context(|| format!("writing {SOURCES}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|_| PathBuf::from("."))
}

fn hashes(root: &Path) -> Result<String> {
    let mut text = String::new();
    for input in HASHED {
        let bytes = fs::read(root.join(input)).with_context(|| format!("reading {input}"))?;
        let mut hex = String::new();
        for byte in Sha256::digest(&bytes) {
            write!(hex, "{byte:02x}")?;
        }
        writeln!(text, "sha256 {hex} {input}")?;
    }
    Ok(text)
}

fn sysroot() -> Result<PathBuf> {
    let out = output(Command::new("rustc").args([&format!("+{TOOLCHAIN}"), "--print", "sysroot"]))
        .context("the eBPF programs need a nightly toolchain: rustup toolchain install nightly")?;
    Ok(PathBuf::from(out))
}

fn has_linker() -> bool {
    output(Command::new(LINKER).arg("--version")).is_ok_and(|version| version.contains(LINKER_VERSION))
}

fn ensure_linker() -> Result<()> {
    if has_linker() {
        return Ok(());
    }
    eprintln!("installing {LINKER} {LINKER_VERSION} by cargo (a minute and a half)");
    run(Command::new("cargo").args(["install", LINKER, "--locked", "--version", LINKER_VERSION]))
}

/// Core has to be built for the eBPF target, which takes the sources of the standard library.
fn library() -> Result<PathBuf> {
    Ok(sysroot()?.join("lib/rustlib/src/rust/library"))
}

fn has_core(library: &Path) -> bool {
    library.join("core/src/lib.rs").exists()
}

fn ensure_rust_src() -> Result<()> {
    let library = library()?;
    if has_core(&library) {
        return Ok(());
    }
    eprintln!("adding rust-src to the {TOOLCHAIN} toolchain");
    let by_rustup =
        Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", TOOLCHAIN]).status();
    if by_rustup.is_ok_and(|status| status.success()) && has_core(&library) {
        return Ok(());
    }
    eprintln!("rustup could not add it: taking the package rust-src of Debian {DEBIAN_SUITE}");
    rust_src_from_debian(&library)
}

fn rust_src_from_debian(library: &Path) -> Result<()> {
    let why = "rust-src can't be had (rustup component add rust-src)";
    let work = root().join("target/rust-src");
    let debian = Suite::open(DEBIAN_SUITE, &debian::mirror().context(why)?, &work)?;
    let tree = debian.fetch(&["rust-src".to_owned()]).context(why)?;
    let source = find(&tree.join("usr/src"), |name| name.starts_with("rustc-"))
        .map(|dir| dir.join("library"))
        .filter(|dir| dir.is_dir())
        .context("the package rust-src has no usr/src/rustc-*/library")?;
    if let Some(parent) = library.parent() {
        fs::create_dir_all(parent)?;
    }
    run(Command::new("cp").arg("-r").arg(&source).arg(library))?;
    fs::remove_dir_all(&work).context("removing the unpacked package")
}

fn llvm_strip() -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    if let Ok(sysroot) = sysroot() {
        dirs.push(
            sysroot.join("lib/rustlib").join(format!("{}-unknown-linux-gnu", env::consts::ARCH)).join("bin"),
        );
    }
    dirs.iter().find_map(|dir| {
        let plain = dir.join("llvm-strip");
        if plain.is_file() { Some(plain) } else { find(dir, |name| name.starts_with("llvm-strip-")) }
    })
}

fn find(dir: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
        .collect();
    found.sort();
    found.pop()
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("starting {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
