//! Where a container's processes are: `/proc/PID/cgroup` in its three forms (v1, v2, hybrid), the mounts of the
//! cgroup file systems, and the processes of a cgroup with its sub-cgroups.
//!
//! Reads only. Nothing here is assumed of where pods have their cgroups: the path always comes from a process.

pub mod hierarchy;
mod name;
pub mod namespace;
mod place;
pub mod pods;
#[cfg(test)]
mod scoping;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use crate::text;
use hierarchy::HostHierarchy;
pub use place::{Home, Place};

/// What can go wrong when cgroups are looked at.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of `/proc` or of a cgroup could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of `/proc/PID/cgroup` has none of the known forms.
    #[error("cannot make sense of the line {line:?} of {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line.
        line: String,
    },
    /// No cgroup file system is mounted where it was looked for.
    #[error("no cgroup file system is mounted under {}: mount the host's there", mount.display())]
    NotMounted {
        /// Where it was looked for.
        mount: PathBuf,
    },
    /// The directory of a process' cgroup was not found under the mount.
    #[error("the cgroup {cgroup} of process {pid} is not to be found under {}", mount.display())]
    NotFound {
        /// The process.
        pid: i32,
        /// The path as `/proc` shows it.
        cgroup: String,
        /// Where it was looked for.
        mount: PathBuf,
    },
}

/// One line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// v1: the hierarchy's subsystems (`name=systemd` among them); v2: empty.
    pub subsystems: Vec<String>,
    /// The path of the cgroup, as seen from the reader's cgroup namespace.
    pub path: String,
}

/// The cgroups of one process, one for each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memberships(pub Vec<Membership>);

impl Memberships {
    /// Reads the text of `/proc/PID/cgroup`; `Err` holds the line that it can't make sense of.
    pub fn parse(text: &str) -> Result<Self, String> {
        let line = |line: &str| {
            let mut parts = line.splitn(3, ':');
            let (hierarchy, subsystems, path) = (parts.next()?, parts.next()?, parts.next()?);
            let hierarchy: u32 = hierarchy.parse().ok()?;
            if !path.starts_with('/') || (hierarchy == 0) != subsystems.is_empty() {
                return None;
            }
            let subsystems =
                subsystems.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            // A process whose cgroup was removed under it is shown with this mark behind the path.
            let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
            Some(Membership { subsystems, path })
        };
        text.lines().map(|text| line(text).ok_or_else(|| text.to_owned())).collect::<Result<_, _>>().map(Self)
    }

    /// Reads the memberships of `pid`.
    pub fn of(proc: &Path, pid: i32) -> Result<Self, CgroupError> {
        let path = proc.join(pid.to_string()).join("cgroup");
        let text = text::read(&path).map_err(|source| CgroupError::Read { path: path.clone(), source })?;
        Self::parse(&text).map_err(|line| CgroupError::Parse { path, line })
    }

    /// The path in the v2 hierarchy.
    pub fn v2(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|membership| membership.subsystems.is_empty())
            .map(|membership| membership.path.as_str())
    }

    /// The path in the v1 hierarchy that has `subsystem`.
    pub fn v1(&self, subsystem: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|membership| membership.subsystems.iter().any(|name| name == subsystem))
            .map(|membership| membership.path.as_str())
    }

    /// Only what names the container `id`, and each path of that ends with the component that does: a container with an
    /// init system of its own has its first process in a cgroup below the container's. A hierarchy in which the runtime
    /// made no cgroup for it shows the one that the runtime itself is in, or the root: that is not the container's.
    fn naming(&self, id: &str) -> Self {
        let cut = |path: &str| {
            let mut end = 0;
            for part in path.split('/') {
                end += part.len();
                if name::is_of(part, id) {
                    return Some(path[..end].to_owned());
                }
                end += 1;
            }
            None
        };
        let memberships = self.0.iter().filter_map(|Membership { subsystems, path }| {
            Some(Membership { subsystems: subsystems.clone(), path: cut(path)? })
        });
        Self(memberships.collect())
    }

    /// Whether a path component of any hierarchy is the name of the container `id`'s cgroup.
    pub fn mention(&self, id: &str) -> bool {
        self.0.iter().any(|membership| membership.path.split('/').any(|part| name::is_of(part, id)))
    }
}

/// How the cgroups of this machine are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Only version 1.
    V1,
    /// Only version 2.
    V2,
    /// Controllers on version 1, and a version 2 tree beside them.
    Hybrid,
}

impl Layout {
    /// The word for it in the readiness report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
        }
    }
}

/// The host's cgroup file systems, as mounted here.
#[derive(Clone, Debug)]
pub struct CgroupRoot {
    proc: PathBuf,
    mount: PathBuf,
    v2: Option<PathBuf>,
    /// Mount points of v1 hierarchies, with their subsystems.
    v1: Vec<(Vec<String>, PathBuf)>,
}

/// The cgroup of a container.
#[derive(Clone, Debug)]
pub struct Target {
    /// The memberships of the process that it was found by.
    pub memberships: Memberships,
    /// The v2 directory.
    pub v2: Option<V2Cgroup>,
    /// The directory that scopes a perf event: in the v1 hierarchy of perf_event where there is one, else in v2.
    pub perf: Option<PathBuf>,
    root: CgroupRoot,
}

/// A cgroup of the v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V2Cgroup {
    /// Its directory.
    pub dir: PathBuf,
    /// Its id: the inode number of the directory.
    pub id: u64,
    /// How deep it is; the root has 0.
    pub level: u32,
}

impl CgroupRoot {
    /// Finds what is mounted at or under `mount` (normally `/sys/fs/cgroup`), reading `mountinfo` in `proc`.
    pub fn discover(mount: &Path, proc: &Path) -> Result<Self, CgroupError> {
        let path = proc.join("self/mountinfo");
        let text = text::read(&path).map_err(|source| CgroupError::Read { path, source })?;
        let (v2, v1) = mounts(&text, mount);
        // Every cgroup but the root has a type: a container's own tree, which it sees as a whole, is none of the host's.
        let v2 = v2.filter(|root| !root.join("cgroup.type").exists());
        if v2.is_none() && v1.is_empty() {
            return Err(CgroupError::NotMounted { mount: mount.to_owned() });
        }
        Ok(Self { proc: proc.to_owned(), mount: mount.to_owned(), v2, v1 })
    }

    /// How they are mounted.
    pub fn layout(&self) -> Layout {
        match (&self.v2, self.v1.is_empty()) {
            (Some(_), true) => Layout::V2,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::V1,
        }
    }

    /// Where `/proc` is.
    pub fn proc(&self) -> &Path {
        &self.proc
    }

    /// Finds the cgroup of the container `id` below the kubelet's, in the first hierarchy that has one.
    pub fn pods_container(&self, id: &str) -> Option<pods::PodsContainer> {
        let mounts = self.v2.iter().chain(self.v1.iter().map(|(_, mount)| mount));
        mounts.into_iter().find_map(|mount| pods::find(mount, id))
    }

    /// Finds the cgroup of `pid` on the host.
    pub fn target(&self, pid: i32) -> Result<Target, CgroupError> {
        let whole = Memberships::of(&self.proc, pid)?;
        self.resolve(pid, &whole, whole.clone())
    }

    /// Finds the cgroup of the container `id`, whose process is `pid`. Hierarchies whose path does not name the
    /// container are left out, so a target without memberships is that of a process which is not the container's.
    pub fn container(&self, pid: i32, id: &str) -> Result<Target, CgroupError> {
        let whole = Memberships::of(&self.proc, pid)?;
        self.resolve(pid, &whole, whole.naming(id))
    }

    /// `memberships` are what of `whole` counts.
    fn resolve(
        &self,
        pid: i32,
        whole: &Memberships,
        memberships: Memberships,
    ) -> Result<Target, CgroupError> {
        let v2 = match (&self.v2, whole.v2(), memberships.v2()) {
            (Some(root), Some(path), Some(cut)) => {
                let depth = |path: &str| path.split('/').filter(|part| !part.is_empty()).count();
                Some(self.v2_cgroup(root, path, pid, depth(path) - depth(cut))?)
            }
            (None, _, _) | (_, None, _) | (_, _, None) => None,
        };
        let perf =
            match self.v1.iter().find(|(subsystems, _)| subsystems.iter().any(|name| name == "perf_event")) {
                // The root of that hierarchy would be the whole machine.
                Some((_, mount)) => {
                    memberships.v1("perf_event").filter(|path| *path != "/").map(|path| join(mount, path))
                }
                None => v2.as_ref().map(|cgroup| cgroup.dir.clone()),
            };
        Ok(Target { memberships, v2, perf, root: self.clone() })
    }

    /// The directory that holds `pid`, or the one so many levels above it.
    fn v2_cgroup(&self, root: &Path, path: &str, pid: i32, above: usize) -> Result<V2Cgroup, CgroupError> {
        // A container names the cgroups below its own as it likes; what is no text leads to no directory.
        let holds = |dir: &Path| match above {
            0 => procs_of(dir).contains(&pid),
            _ => dir.ancestors().nth(above).is_some_and(|own| find_holder(own, pid, 0).is_some()),
        };
        let mut dir = join(root, path);
        if !holds(&dir) {
            // In a cgroup namespace of our own `/proc` shows paths that start from our own cgroup.
            let own = find_holder(root, std::process::id() as i32, 0);
            let resolved =
                own.map(|own| normalise(&own, path)).filter(|dir| dir.starts_with(root) && holds(dir));
            dir = resolved.ok_or_else(|| CgroupError::NotFound {
                pid,
                cgroup: path.to_owned(),
                mount: self.mount.clone(),
            })?;
        }
        for _ in 0..above {
            dir.pop();
        }
        let id = fs::metadata(&dir).map_err(|source| CgroupError::Read { path: dir.clone(), source })?.ino();
        let below = dir.strip_prefix(root).unwrap_or(Path::new(""));
        let level = below.components().count() as u32;
        Ok(V2Cgroup { dir, id, level })
    }
}

impl Target {
    /// Where `/proc` is.
    pub fn proc(&self) -> &Path {
        self.root.proc()
    }

    /// Every process of the cgroup and of its sub-cgroups, as seen from our PID namespace.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        match &self.v2 {
            Some(cgroup) => collect(&self.root, &cgroup.dir, &mut pids),
            None => {
                // Any hierarchy of v1 would do; the union stands even when one of them was left out by the runtime.
                for (subsystems, mount) in &self.root.v1 {
                    let path = subsystems.first().and_then(|name| self.memberships.v1(name));
                    // The root of a hierarchy holds strangers.
                    if let Some(path) = path.filter(|path| *path != "/") {
                        collect(&self.root, &join(mount, path), &mut pids);
                    }
                }
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether a process with these memberships is in this cgroup or in one below.
    pub fn holds(&self, other: &Memberships) -> bool {
        let within = |ours: &str, theirs: &str| {
            ours != "/"
                && theirs.strip_prefix(ours).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match (self.memberships.v2(), other.v2()) {
            (Some(ours), Some(theirs)) if self.v2.is_some() => within(ours, theirs),
            _ => self.memberships.0.iter().any(|membership| {
                membership
                    .subsystems
                    .first()
                    .and_then(|name| other.v1(name))
                    .is_some_and(|theirs| within(&membership.path, theirs))
            }),
        }
    }
}

/// Finds the cgroup mounts in the text of `mountinfo`; only whole trees count.
fn mounts(mountinfo: &str, under: &Path) -> (Option<PathBuf>, Vec<(Vec<String>, PathBuf)>) {
    let mut v2 = None;
    let mut v1 = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(point), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let point = PathBuf::from(point.replace("\\040", " "));
        // In a cgroup namespace of our own the whole tree is shown as so many levels above it; anything else is a part.
        let whole = root.split('/').all(|part| part.is_empty() || part == "..");
        if !point.starts_with(under) || !whole {
            continue;
        }
        match *kind {
            "cgroup2" => v2 = Some(point),
            "cgroup" => {
                let flags = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
                let subsystems = right.get(2).unwrap_or(&"").split(',');
                let subsystems: Vec<_> =
                    subsystems.filter(|name| !flags.contains(name)).map(str::to_owned).collect();
                if !subsystems.is_empty() {
                    v1.push((subsystems, point));
                }
            }
            _ => {}
        }
    }
    (v2, v1)
}

fn join(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// `base` and `path` put together, with each `..` taking one component away.
fn normalise(base: &Path, path: &str) -> PathBuf {
    let mut whole = base.to_owned();
    for component in Path::new(path.trim_start_matches('/')).components() {
        match component {
            Component::ParentDir => {
                whole.pop();
            }
            Component::Normal(part) => whole.push(part),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    whole
}

fn collect(root: &CgroupRoot, dir: &Path, pids: &mut Vec<i32>) {
    pids.extend(HostHierarchy::at(root, dir).processes());
    for below in subdirs(dir) {
        collect(root, &below, pids);
    }
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn procs_of(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // Processes of PID namespaces that are not below ours are shown as 0.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn find_holder(dir: &Path, pid: i32, depth: u32) -> Option<PathBuf> {
    if procs_of(dir).contains(&pid) {
        return Some(dir.to_owned());
    }
    if depth > 16 {
        return None;
    }
    subdirs(dir).iter().find_map(|below| find_holder(below, pid, depth + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "9:name=systemd:/kube/pod1/abc\n8:pids:/kube/pod1/abc\n2:cpu,cpuacct:/kube/pod1/abc\n\
                          0::/kube/pod1/abc\n";

    #[test]
    fn a_hybrid_machine_is_read() {
        let memberships = Memberships::parse(HYBRID).unwrap();
        assert_eq!(memberships.v2(), Some("/kube/pod1/abc"));
        assert_eq!(memberships.v1("cpuacct"), Some("/kube/pod1/abc"));
        assert_eq!(memberships.v1("name=systemd"), Some("/kube/pod1/abc"));
        assert_eq!(memberships.v1("memory"), None);
        assert!(memberships.mention("abc") && !memberships.mention("abd") && !memberships.mention(""));
    }

    #[test]
    fn pure_v1_and_pure_v2_are_read() {
        let v1 = Memberships::parse("4:memory:/docker/x:y\n").unwrap();
        assert_eq!((v1.v2(), v1.v1("memory")), (None, Some("/docker/x:y")));
        let v2 = Memberships::parse("0::/../../kubepods.slice/cri-containerd-abc.scope (deleted)\n").unwrap();
        assert_eq!(v2.v2(), Some("/../../kubepods.slice/cri-containerd-abc.scope"));
        assert!(v2.mention("abc"));
    }

    #[test]
    fn a_containers_cgroup_is_the_one_that_bears_its_id() {
        let text =
            "3:pids:/kube/cri-abc.scope/init.scope\n2:cpu:/elsewhere\n0::/kube/cri-abc.scope/init.scope\n";
        let cut = Memberships::parse(text).unwrap().naming("abc");
        assert_eq!((cut.v2(), cut.v1("pids")), (Some("/kube/cri-abc.scope"), Some("/kube/cri-abc.scope")));
        assert_eq!(cut.v1("cpu"), None);
    }

    #[test]
    fn nonsense_is_named() {
        for line in ["", "x", "1:cpu", "a:cpu:/", "1:cpu:relative", "0:cpu:/", "3::/x"] {
            let text = format!("0::/ok\n{line}\n");
            assert_eq!(Memberships::parse(&text), Err(line.to_owned()));
        }
    }

    #[test]
    fn mounts_are_found_below_the_given_point() {
        let text = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                    33 30 0:29 / /elsewhere rw - cgroup2 cgroup2 rw\n";
        let (v2, v1) = mounts(text, Path::new("/sys/fs/cgroup"));
        assert_eq!(v2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(v1, [(vec!["cpu".to_owned(), "cpuacct".to_owned()], "/sys/fs/cgroup/cpu".into())]);
        assert_eq!(mounts(text, Path::new("/elsewhere")), (Some("/elsewhere".into()), vec![]));
    }

    #[test]
    fn the_whole_tree_is_known_from_a_cgroup_namespace_and_a_part_of_it_is_not_taken_for_it() {
        let of = |root: &str| format!("32 30 0:28 {root} /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n");
        let found = |root: &str| mounts(&of(root), Path::new("/sys/fs/cgroup")).0;
        assert_eq!(found("/../../.."), Some("/sys/fs/cgroup".into()));
        assert_eq!((found("/../../other"), found("/kubepods/pod1/x")), (None, None));
    }

    #[test]
    fn a_path_of_another_cgroup_namespace_is_resolved_from_our_own() {
        let own = Path::new("/cg/kubepods/pod-a/ours");
        assert_eq!(normalise(own, "/../../pod-b/theirs"), Path::new("/cg/kubepods/pod-b/theirs"));
        assert_eq!(normalise(own, "/"), own);
    }

    fn held(ours: &str, theirs: &str) -> bool {
        let root = CgroupRoot { proc: "/proc".into(), mount: "/".into(), v2: None, v1: vec![] };
        let one =
            |path: &str| Memberships(vec![Membership { subsystems: vec!["pids".into()], path: path.into() }]);
        Target { memberships: one(ours), v2: None, perf: None, root }.holds(&one(theirs))
    }

    #[test]
    fn only_the_cgroup_itself_and_those_below_count() {
        assert!(held("/a/b", "/a/b") && held("/a/b", "/a/b/c"));
        assert!(!held("/a/b", "/a/bc") && !held("/a/b", "/a") && !held("/", "/a"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            lines in prop::collection::vec((1u32..99, prop::collection::vec("[a-z_=]{1,8}", 1..4), "(/[a-zA-Z0-9:._-]{1,20}){1,6}"), 0..12),
            v2 in prop::option::of("(/[a-zA-Z0-9:._-]{1,20}){1,6}"),
        ) {
            let mut text: String =
                lines.iter().map(|(id, subsystems, path)| format!("{id}:{}:{path}\n", subsystems.join(","))).collect();
            if let Some(path) = &v2 {
                text.push_str(&format!("0::{path}\n"));
            }
            let parsed = Memberships::parse(&text).unwrap();
            prop_assert_eq!(parsed.v2(), v2.as_deref());
            for (membership, (_, subsystems, path)) in parsed.0.iter().zip(&lines) {
                prop_assert_eq!(&membership.subsystems, subsystems);
                prop_assert_eq!(&membership.path, path);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            let _ = Memberships::parse(&text);
        }
    }
}
