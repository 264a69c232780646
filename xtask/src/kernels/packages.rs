//! Debian's kernels: which release has which, fetched and kept. Nothing is installed.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::Kernel;
use crate::{
    cluster::kubernetes,
    debian::{self, Suite},
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
                None => debian::mirror().context("name one with --mirror URL")?,
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

fn download(suite: &str, mirror: &str, directory: &Path) -> Result<()> {
    // Beside the cache, so that what is there stays until the new one is complete.
    let work = directory.with_extension("new");
    let debian = Suite::open(suite, mirror, &work)?;
    // The metapackage names the real one.
    let meta = format!("linux-image-cloud-{}", debian_arch()?);
    let said = sh::output(debian.apt("apt-cache").args(["depends", &meta]))?;
    let package = real_package(&said).with_context(|| format!("{meta} depends on no image:\n{said}"))?;
    // Newer ones keep the image itself in a package beside it.
    let beside = package.replacen("linux-image-", "linux-binary-", 1);
    let mut packages = vec![package.clone()];
    if sh::output(debian.apt("apt-cache").args(["pkgnames", &beside]))?.lines().any(|name| name == beside) {
        packages.push(beside);
    }
    let tree = debian.fetch(&packages)?;
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
}
