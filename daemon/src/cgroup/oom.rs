//! How many processes of a container the kernel has killed for want of memory, as its cgroup counts them.
//! Reads only; where nothing counts them the number is 0.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Target, join};

/// The count from a moment on. What was seen stays, also when the cgroup has gone.
#[derive(Debug)]
pub struct OomKills {
    before: u64,
    most: AtomicU64,
}

impl OomKills {
    /// Counts from now on.
    pub fn begin(target: &Target) -> Self {
        let before = count(target).unwrap_or(0);
        Self { before, most: AtomicU64::new(0) }
    }

    /// How many there have been.
    pub fn so_far(&self, target: &Target) -> u64 {
        let now = count(target).map_or(0, |count| count.saturating_sub(self.before));
        self.most.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

fn count(target: &Target) -> Option<u64> {
    let v1 = target.root.v1.iter().find(|(subsystems, _)| subsystems.iter().any(|name| name == "memory"));
    let file = match v1 {
        Some((_, mount)) => join(mount, target.memberships.v1("memory")?).join("memory.oom_control"),
        None => target.v2.as_ref()?.dir.join("memory.events"),
    };
    parse(&fs::read_to_string(file).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn both_versions_are_understood() {
        assert_eq!(parse("low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1\n"), Some(3));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"), Some(4));
        assert_eq!(parse("oom_kill_disable 0\n"), None);
    }
}
