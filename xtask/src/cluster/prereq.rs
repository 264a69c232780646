//! What the local cluster needs of the machine. Where apt is there and we are root, what is missing gets installed, each
//! package named before it is; elsewhere the error is the list.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// One thing that has to be there.
struct Need {
    /// What to look for, and what a person reads.
    what: &'static str,
    /// Debian's package of it.
    package: &'static str,
    found: fn() -> bool,
}

const NEEDS: [Need; 9] = [
    Need { what: "containerd", package: "containerd", found: || find("containerd").is_some() },
    Need { what: "ctr", package: "containerd", found: || find("ctr").is_some() },
    Need { what: "runc", package: "runc", found: || find("runc").is_some() },
    Need {
        what: "the CNI plugins bridge, host-local and loopback",
        package: "containernetworking-plugins",
        found: || cni_plugins().is_some(),
    },
    Need { what: "nft", package: "nftables", found: || find("nft").is_some() },
    Need { what: "ip", package: "iproute2", found: || find("ip").is_some() },
    Need { what: "a static busybox", package: "busybox-static", found: || busybox().is_some() },
    Need {
        what: "unshare and nsenter",
        package: "util-linux",
        found: || find("unshare").and(find("nsenter")).is_some(),
    },
    Need { what: "setsid", package: "util-linux", found: || find("setsid").is_some() },
];

/// What the build needs beside Rust: the contracts of containerd's client are compiled by it.
const BUILD_NEEDS: [Need; 2] = [
    Need { what: "protoc", package: "protobuf-compiler", found: || find("protoc").is_some() },
    Need { what: "the well-known types of protoc", package: "libprotobuf-dev", found: well_known_types },
];

/// What other kernels need.
const EMULATOR_NEEDS: [Need; 5] = [
    Need { what: "QEMU for x86_64", package: "qemu-system-x86", found: || emulator().is_some() },
    Need { what: "a static busybox", package: "busybox-static", found: || busybox().is_some() },
    Need { what: "apt-get", package: "apt", found: || find("apt-get").is_some() },
    Need { what: "dpkg-deb", package: "dpkg", found: || find("dpkg-deb").is_some() },
    Need {
        what: "the keys of Debian's archive",
        package: "debian-archive-keyring",
        found: || Path::new(DEBIAN_KEYS).exists(),
    },
];

/// What the tests of the runtimes' clients need beside what the cluster needs.
const RUNTIME_NEEDS: [Need; 2] = [
    Need { what: "dockerd", package: "docker.io", found: || find("dockerd").is_some() },
    Need { what: "docker", package: "docker.io", found: || find("docker").is_some() },
];

/// Whoever has this file is who signs Debian's packages.
pub const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// protoc looks for them beside itself.
fn well_known_types() -> bool {
    find("protoc")
        .and_then(|protoc| protoc.canonicalize().ok())
        .and_then(|protoc| Some(protoc.parent()?.parent()?.join("include/google/protobuf/any.proto")))
        .is_some_and(|file| file.exists())
}

/// Directories of system programs that a user's PATH may lack.
const SYSTEM: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path in which components find programs.
pub fn search_path() -> String {
    match env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{SYSTEM}"),
        Ok(_) | Err(_) => SYSTEM.to_owned(),
    }
}

/// Makes sure that everything is there that the cluster needs.
pub fn ensure() -> Result<()> {
    let containerd_is_new = find("containerd").is_none();
    provide("the local cluster", &NEEDS)?;
    if containerd_is_new {
        stop_service("containerd.service")?;
    }
    Ok(())
}

/// Makes sure that everything is there that a build of all of Squall needs.
pub fn ensure_build() -> Result<()> {
    provide("the build", &BUILD_NEEDS)
}

/// Makes sure that everything is there that kernels in virtual machines need.
pub fn ensure_emulator() -> Result<()> {
    provide("kernels in QEMU", &EMULATOR_NEEDS)
}

/// Makes sure that every runtime is there that the daemon has a client for, as far as Debian has it.
pub fn ensure_runtimes() -> Result<()> {
    ensure()?;
    let docker_is_new = find("dockerd").is_none();
    provide("the tests of runtimes", &RUNTIME_NEEDS)?;
    if docker_is_new {
        stop_service("docker.socket")?;
        stop_service("docker.service")?;
    }
    Ok(())
}

/// QEMU.
pub fn emulator() -> Option<PathBuf> {
    find("qemu-system-x86_64")
}

fn provide(who: &str, needs: &[Need]) -> Result<()> {
    if missing(needs).is_empty() {
        return Ok(());
    }
    let packages = packages(&missing(needs));
    if find("apt-get").is_none() || !rustix::process::geteuid().is_root() {
        bail!("{}", explain(who, &missing(needs)));
    }
    eprintln!("installing with apt-get: {}", packages.join(" "));
    if !install(&packages) {
        apt(&["update"]).context("can't refresh apt's lists")?;
        if !install(&packages) {
            bail!("apt-get could not install {}; {}", packages.join(" "), explain(who, &missing(needs)));
        }
    }
    if !missing(needs).is_empty() {
        bail!("{}", explain(who, &missing(needs)));
    }
    Ok(())
}

/// The directory of the CNI plugins: Debian's, or the upstream one.
pub fn cni_plugins() -> Option<PathBuf> {
    ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from).into_iter().find(|directory| {
        ["bridge", "host-local", "loopback"].iter().all(|plugin| directory.join(plugin).exists())
    })
}

/// A busybox that runs in an image of its own.
pub fn busybox() -> Option<PathBuf> {
    search(&["busybox", "busybox-static", "busybox.static"])
        .into_iter()
        .find(|path| fs::read(path).is_ok_and(|program| is_static(&program)))
}

fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| !(need.found)()).collect()
}

fn packages(needs: &[&Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs.iter().map(|need| need.package).collect();
    packages.dedup();
    packages
}

fn explain(who: &str, needs: &[&Need]) -> String {
    let list: Vec<_> =
        needs.iter().map(|need| format!("  {} (Debian: {})", need.what, need.package)).collect();
    format!("{who} needs, and this machine lacks:\n{}", list.join("\n"))
}

fn apt(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    sh::output(&mut command).map(drop)
}

fn install(packages: &[&str]) -> bool {
    let args: Vec<_> = ["install", "-y", "--no-install-recommends"].iter().chain(packages).copied().collect();
    match apt(&args) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("{error:#}");
            false
        }
    }
}

/// Debian starts what it installs. Nobody asked for a runtime of the whole machine, so it goes off again.
fn stop_service(unit: &str) -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    sh::output(&mut sh::command("systemctl", ["disable", "--now", unit]))
        .with_context(|| format!("can't stop the {unit} that its package has started"))?;
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    search(&[program]).into_iter().next()
}

fn search(programs: &[&str]) -> Vec<PathBuf> {
    let path = search_path();
    let directories: Vec<_> = path.split(':').filter(|directory| !directory.is_empty()).collect();
    let all = programs.iter().flat_map(|program| directories.iter().map(move |d| Path::new(d).join(program)));
    all.filter(|path| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
    .collect()
}

/// Whether a 64-bit little-endian ELF program asks for no dynamic loader.
fn is_static(program: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let u16_at = |at: usize| program.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let u32_at = |at: usize| program.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(start), Some(size), Some(count)) = (u32_at(32), u16_at(54), u16_at(56)) else {
        return false;
    };
    (0..usize::from(count)).all(|i| u32_at(start as usize + i * usize::from(size)) != Some(INTERPRETER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_a_dynamic_program_and_text_is_none() {
        let itself = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&itself));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
    }

    #[test]
    fn the_list_names_each_thing_and_its_package_once() {
        let all: Vec<_> = NEEDS.iter().collect();
        let text = explain("the local cluster", &all);
        assert!(NEEDS.iter().all(|need| text.contains(need.what)), "{text}");
        let packages = packages(&all);
        assert_eq!(packages.iter().filter(|package| **package == "containerd").count(), 1);
    }
}
