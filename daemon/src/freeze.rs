//! container-freeze: no process of the container runs, by the kernel's freezer, in either version of cgroups.
//!
//! Freezing is a value in a cgroup file, so holding it, putting it back exactly, two faults on one container, and the
//! journal are `setting.rs`'s work; here is which value, and whether the kernel has done it. Refuses a container that
//! no freezer knows.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::{
    container::Container,
    lasting::{Event, Lasting, LastingError, Measured},
    report::Reason,
    setting::{Setting, Value, Wanted},
};

/// A task in the kernel freezes when it comes out of it; who does not within this time will not soon.
const FROZEN_WITHIN: Duration = Duration::from_secs(5);
/// How often the kernel is asked: v1 tells nobody of itself.
const LOOKS: Duration = Duration::from_millis(1);

/// A freeze of one container.
#[derive(Debug, Default)]
pub struct Freezing {
    site: Option<Site>,
}

/// Where it shows that the container is frozen.
#[derive(Debug)]
enum Site {
    V1(PathBuf),
    V2(PathBuf),
}

impl Site {
    fn is_frozen(&self) -> bool {
        match self {
            Self::V1(state) => fs::read_to_string(state).is_ok_and(|text| text.trim() == "FROZEN"),
            Self::V2(dir) => all_frozen(dir),
        }
    }
}

/// Whether all tasks in `dir` and below are frozen: of a cgroup that has tasks of its own the kernel tells of those alone.
fn all_frozen(dir: &Path) -> bool {
    let frozen = fs::read_to_string(dir.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "frozen 1"));
    let below = || fs::read_dir(dir).into_iter().flatten().flatten();
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    // One that has gone meanwhile has nobody in it.
    frozen && below().filter(is_dir).all(|entry| all_frozen(&entry.path()) || !entry.path().exists())
}

#[async_trait]
impl Lasting for Freezing {
    async fn intend(&mut self, container: &Container) -> Result<Vec<Wanted>, LastingError> {
        let v2 =
            container.target.v2.as_ref().map(|cgroup| (cgroup.dir.clone(), cgroup.dir.join("cgroup.freeze")));
        let setting = match v2.filter(|(_, file)| file.exists()) {
            Some((dir, file)) => {
                self.site = Some(Site::V2(dir));
                Setting::new(file, Value::CgroupFreeze)
            }
            None => {
                let place = container.target.place("freezer", "cgroup.freeze").ok_or_else(|| {
                    let message = "no freezer knows this container: neither version 2 of cgroups nor v1's freezer \
                                   has a cgroup for it";
                    LastingError::because(Reason::Unsupported, message)
                })?;
                let file = place.dir.join("freezer.state");
                self.site = Some(Site::V1(file.clone()));
                Setting::new(file, Value::FreezerState)
            }
        };
        Ok(vec![Wanted { setting, limit: 0 }])
    }

    async fn inject(&mut self, _: &Container) -> Result<(), LastingError> {
        let end = Instant::now() + FROZEN_WITHIN;
        while !self.site.as_ref().is_some_and(Site::is_frozen) {
            if Instant::now() >= end {
                let message = format!(
                    "a process of the container is busy in the kernel and could not be frozen within {} s",
                    FROZEN_WITHIN.as_secs()
                );
                return Err(LastingError::because(Reason::NoEffect, message));
            }
            sleep(LOOKS).await;
        }
        Ok(())
    }

    async fn watch(&mut self) -> Event {
        // Whoever thaws it from outside has the last word; that is told when it is put back.
        std::future::pending().await
    }

    fn shows_within(&self) -> Option<Duration> {
        None
    }

    fn judge(&self, _: &Measured) -> Result<(), LastingError> {
        Ok(())
    }

    async fn revert(&mut self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_freezers_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("freezer.state");
        for (text, frozen) in [("FROZEN\n", true), ("FREEZING\n", false), ("", false)] {
            fs::write(&state, text).unwrap();
            assert_eq!(Site::V1(state.clone()).is_frozen(), frozen, "{text}");
        }
        let below = dir.path().join("init.scope");
        fs::create_dir(&below).unwrap();
        for (own, others, frozen) in [(1, 1, true), (0, 1, false), (1, 0, false)] {
            for (dir, frozen) in [(dir.path(), own), (&below, others)] {
                fs::write(dir.join("cgroup.events"), format!("populated 1\nfrozen {frozen}\n")).unwrap();
            }
            assert_eq!(Site::V2(dir.path().to_owned()).is_frozen(), frozen, "{own} {others}");
        }
    }
}
