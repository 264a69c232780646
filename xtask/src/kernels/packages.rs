//! Debian's kernels: which release has which, fetched by apt with lists and a cache of their own, and unpacked.
//!
//! The mirror is the one that this machine's own apt uses; no host is named here. Nothing is installed, and apt's own
//! state is not touched. Refuses packages that Debian's keys have not signed, by leaving that to apt.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::Kernel;
use crate::{
    cluster::{kubernetes, prereq::DEBIAN_KEYS},
    progress::Step,
    sh,
};

/// A release of Debian, and what is known of its kernel beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Debian's name.
    pub suite: &'static str,
    /// The series of its kernel.
    pub series: &'static str,
}

/// Oldest first. The last one moves on with Debian.
pub const KERNELS: [Release; 4] = [
    Release { suite: "bullseye", series: "5.10" },
    Release { suite: "bookworm", series: "6.1" },
    Release { suite: "trixie", series: "6.12" },
    Release { suite: "sid", series: "newest" },
];

/// The release that a person means.
pub fn release(name: &str) -> Result<Release, String> {
    KERNELS.iter().find(|known| known.suite == name || known.series == name).copied().ok_or_else(|| {
        let known: Vec<_> =
            KERNELS.iter().map(|known| format!("{} ({})", known.series, known.suite)).collect();
        format!("there is no kernel {name:?}: known are {}", known.join(", "))
    })
}

/// The kernels of these releases, from the cache where they are in it.
pub fn fetch(releases: &[Release], mirror: Option<&str>, refresh: bool) -> Result<Vec<Kernel>> {
    let cache = kubernetes::cache()?.join("kernels");
    releases
        .iter()
        .map(|release| {
            let directory = cache.join(release.suite);
            if !refresh && let Some(kernel) = cached(*release, &directory)? {
                return Ok(kernel);
            }
            let mirror = match mirror {
                Some(mirror) => mirror.to_owned(),
                None => own_mirror()?,
            };
            let step = Step::begin(format!("fetching the kernel of Debian {}", release.suite));
            download(release.suite, &mirror, &directory)
                .with_context(|| format!("can't get the kernel of Debian {}", release.suite))?;
            step.done();
            cached(*release, &directory)?.context("the packages hold no kernel")
        })
        .collect()
}

/// What is in the cache: `vmlinuz-VERSION`, and only one of them.
fn cached(release: Release, directory: &Path) -> Result<Option<Kernel>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(None) };
    for entry in entries {
        let image = entry.with_context(|| format!("can't read {}", directory.display()))?.path();
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            return Ok(Some(Kernel { release, version: version.to_owned(), image: image.clone() }));
        }
    }
    Ok(None)
}

/// Where this machine's own apt gets Debian from.
fn own_mirror() -> Result<String> {
    let mut targets = sh::command(
        "apt-get",
        ["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages", "Component: main"],
    );
    let said = sh::output(&mut targets)?;
    main_archive(&said).context("this machine's apt knows no mirror of Debian: name one with --mirror URL")
}

/// Of lines `RELEASE URI`, the first that is Debian's main archive.
fn main_archive(targets: &str) -> Option<String> {
    targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(release, _)| !release.contains('-'))
        .find(|(_, uri)| uri.trim_end_matches('/').ends_with("/debian"))
        .map(|(_, uri)| uri.trim_end_matches('/').to_owned())
}

fn download(suite: &str, mirror: &str, directory: &Path) -> Result<()> {
    // Beside the cache, so that what is there stays until the new one is complete.
    let work = directory.with_extension("new");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))?;
    }
    for part in ["lists/partial", "cache/archives/partial"] {
        let path = work.join(part);
        fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
    }
    let source = format!("deb [signed-by={DEBIAN_KEYS}] {mirror} {suite} main\n");
    fs::write(work.join("sources.list"), source).context("can't write a list of sources")?;
    sh::output(apt("apt-get", &work).args(["-qq", "update"]))?;
    // The metapackage names the real one.
    let meta = format!("linux-image-cloud-{}", debian_arch()?);
    let said = sh::output(apt("apt-cache", &work).args(["depends", &meta]))?;
    let package = real_package(&said).with_context(|| format!("{meta} depends on no image:\n{said}"))?;
    // Newer ones keep the image itself in a package beside it.
    let beside = package.replacen("linux-image-", "linux-binary-", 1);
    let mut packages = vec![package.clone()];
    if sh::output(apt("apt-cache", &work).args(["pkgnames", &beside]))?.lines().any(|name| name == beside) {
        packages.push(beside);
    }
    sh::output(apt("apt-get", &work).args(["-qq", "download"]).args(packages).current_dir(&work))?;
    let tree = work.join("tree");
    for entry in fs::read_dir(&work).context("can't look at what was fetched")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            // dpkg-deb unpacks to files of whoever calls it, scripts are not run.
            sh::output(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&tree))?;
        }
    }
    let version = package.trim_start_matches("linux-image-");
    let places = [
        tree.join(format!("boot/vmlinuz-{version}")),
        tree.join(format!("usr/lib/modules/{version}/vmlinuz")),
    ];
    let Some(image) = places.iter().find(|path| path.exists()) else {
        bail!("no kernel at {}", places.map(|path| path.display().to_string()).join(", "));
    };
    let ready = work.join("ready");
    fs::create_dir(&ready)?;
    fs::copy(image, ready.join(format!("vmlinuz-{version}"))).context("can't copy the kernel")?;
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("can't remove {}", directory.display()))?;
    }
    fs::rename(&ready, directory).context("can't put the kernel into the cache")?;
    fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))
}

/// apt with everything of its own under `work`.
fn apt(program: &str, work: &Path) -> Command {
    let mut command = Command::new(program);
    let set = |name: &str, path: PathBuf| format!("{name}={}", path.display());
    for option in [
        set("Dir::Etc::sourcelist", work.join("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        set("Dir::State::lists", work.join("lists")),
        "Dir::State::status=/dev/null".to_owned(),
        set("Dir::Cache", work.join("cache")),
        // Whoever runs this may not be able to become apt's own user.
        format!("APT::Sandbox::User={}", env::var("USER").unwrap_or_else(|_| "root".to_owned())),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    command.stdin(Stdio::null());
    command
}

/// The package with a version that the metapackage depends on.
fn real_package(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| {
            name.strip_prefix("linux-image-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .map(str::to_owned)
}

fn debian_arch() -> Result<&'static str> {
    match env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        other => bail!("no kernels are known for {other}: x86_64 only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_meant_by_series_or_suite_and_an_unknown_one_lists_all() {
        assert_eq!(release("6.1"), release("bookworm"));
        assert_eq!(release("newest").map(|release| release.suite), Ok("sid"));
        let error = release("4.19").unwrap_err();
        assert!(
            KERNELS.iter().all(|known| error.contains(known.suite) && error.contains(known.series)),
            "{error}"
        );
    }

    #[test]
    fn the_metapackage_names_one_with_a_version() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-base-cloud-amd64\n  \
                       Depends: linux-image-7.2.13+deb14-cloud-amd64\n";
        assert_eq!(real_package(depends).as_deref(), Some("linux-image-7.2.13+deb14-cloud-amd64"));
        assert_eq!(real_package("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn the_main_archive_is_told_from_updates_and_other_archives() {
        let targets = "nodistro https://a.example/node\nbookworm-security http://m.example/debian-security/\n\
                       bookworm-updates http://u.example/debian/\nbookworm http://m.example/debian/\n";
        assert_eq!(main_archive(targets).as_deref(), Some("http://m.example/debian"));
        assert_eq!(main_archive("noble http://m.example/ubuntu/\n"), None);
    }
}
