//! Debian's packages: fetched by apt and unpacked, never installed, so that nothing has to be taken away again.
//!
//! The mirror is the one that this machine's own apt uses; no host is named here. Of another release than this machine's
//! they are fetched with lists and a cache beside apt's own, which are not touched. Refuses packages that Debian's keys
//! have not signed, by leaving that to apt.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{cluster::prereq::DEBIAN_KEYS, sh};

/// Where this machine's own apt gets Debian from.
pub fn mirror() -> Result<String> {
    let mut targets = sh::command(
        "apt-get",
        ["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages", "Component: main"],
    );
    main_archive(&sh::output(&mut targets)?).context("this machine's apt knows no mirror of Debian")
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

/// An empty directory to work in.
fn fresh(work: &Path) -> Result<()> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("can't remove {}", work.display()))?;
    }
    fs::create_dir_all(work).with_context(|| format!("can't make {}", work.display()))
}

/// A release of Debian, whichever this machine's own is, with its lists in a directory.
pub struct Suite<'a> {
    work: &'a Path,
}

impl<'a> Suite<'a> {
    /// Reads the release's lists; `work` is made anew.
    pub fn open(suite: &str, mirror: &str, work: &'a Path) -> Result<Self> {
        fresh(work)?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = work.join(part);
            fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
        }
        let source = format!("deb [signed-by={DEBIAN_KEYS}] {mirror} {suite} main\n");
        fs::write(work.join("sources.list"), source).context("can't write a list of sources")?;
        let this = Self { work };
        sh::output(this.apt("apt-get").args(["-qq", "update"]))?;
        Ok(this)
    }

    /// A program of apt's with everything of its own in the directory.
    pub fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let set = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        for option in [
            set("Dir::Etc::sourcelist", self.work.join("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            set("Dir::State::lists", self.work.join("lists")),
            "Dir::State::status=/dev/null".to_owned(),
            set("Dir::Cache", self.work.join("cache")),
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

    /// Fetches packages and unpacks them; where they are then.
    pub fn fetch(&self, packages: &[String]) -> Result<PathBuf> {
        let mut download = self.apt("apt-get");
        sh::output(download.args(["-qq", "download"]).args(packages).current_dir(self.work))?;
        unpack(self.work)
    }
}

/// Fetches a package of this machine's own release into `work`, made anew, and unpacks it; where it is then.
pub fn fetch(package: &str, work: &Path) -> Result<PathBuf> {
    fresh(work)?;
    let download = || {
        let mut command = Command::new("apt-get");
        sh::output(command.args(["-qq", "download", package]).current_dir(work))
    };
    if download().is_err() {
        sh::output(Command::new("apt-get").args(["-qq", "update"])).context("can't refresh apt's lists")?;
        download()?;
    }
    unpack(work)
}

/// Unpacks every package in `work` into one tree.
fn unpack(work: &Path) -> Result<PathBuf> {
    let tree = work.join("tree");
    for entry in fs::read_dir(work).context("can't look at what was fetched")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            // dpkg-deb unpacks to files of whoever calls it, scripts are not run.
            sh::output(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&tree))?;
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_told_from_updates_and_other_archives() {
        let targets = "nodistro https://a.example/node\nbookworm-security http://m.example/debian-security/\n\
                       bookworm-updates http://u.example/debian/\nbookworm http://m.example/debian/\n";
        assert_eq!(main_archive(targets).as_deref(), Some("http://m.example/debian"));
        assert_eq!(main_archive("noble http://m.example/ubuntu/\n"), None);
    }
}
