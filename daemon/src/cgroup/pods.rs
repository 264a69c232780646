//! The kubelet's own cgroups: which of them is a container's, in the names that both of its drivers give.
//!
//! Asked only where no runtime can say which process is a container's first. Reads only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::name;

/// A container's cgroup below the kubelet's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodsContainer {
    /// The pod's UID, out of the name of the cgroup above it.
    pub pod_uid: String,
    /// Its directory in one of the hierarchies.
    pub dir: PathBuf,
}

impl PodsContainer {
    /// Every process in it and below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
            dirs.extend(subdirectories(&dir).into_iter().map(|(_, path)| path));
        }
        pids
    }
}

/// Looks under one mount of a cgroup file system for the container `id`: in the kubelet's root, at most three levels
/// down (`--cgroup-root`), which has pods, or classes of them with pods, each with its containers.
pub fn find(mount: &Path, id: &str) -> Option<PodsContainer> {
    let mut roots = Vec::new();
    kubelet_roots(mount, 0, &mut roots);
    roots.iter().find_map(|root| {
        subdirectories(root).into_iter().find_map(|(name, path)| match pod_uid(&name) {
            Some(uid) => in_pod(&path, uid, id),
            None => {
                subdirectories(&path).into_iter().find_map(|(name, path)| in_pod(&path, pod_uid(&name)?, id))
            }
        })
    })
}

fn kubelet_roots(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    for (name, path) in subdirectories(dir) {
        if name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice") {
            found.push(path);
        } else if depth < 2 {
            kubelet_roots(&path, depth + 1, found);
        }
    }
}

fn in_pod(pod: &Path, pod_uid: String, id: &str) -> Option<PodsContainer> {
    let (_, dir) = subdirectories(pod).into_iter().find(|(name, _)| name::is_of(name, id))?;
    Some(PodsContainer { pod_uid, dir })
}

/// `podUID` of the cgroupfs driver; `kubepods-CLASS-podUID.slice` of systemd's, where dashes in it are underscores.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(unit) => unit.rsplit_once("-pod").map(|(_, uid)| uid.replace('_', "-"))?,
        None => name.strip_prefix("pod")?.to_owned(),
    };
    (!uid.is_empty()).then_some(uid)
}

fn subdirectories(dir: &Path) -> Vec<(String, PathBuf)> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "11111111-2222-3333-4444-555555555555";

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        dir
    }

    #[test]
    fn both_drivers_names_are_known_in_every_class_and_below_a_root_of_its_own() {
        let unit = UID.replace('-', "_");
        for path in [
            format!("kubepods/pod{UID}/{ID}"),
            format!("kubepods/burstable/pod{UID}/{ID}"),
            format!("kubepods/besteffort/pod{UID}/crio-{ID}"),
            format!("kube-a/kubepods/besteffort/pod{UID}/{ID}"),
            format!("kubepods.slice/kubepods-pod{unit}.slice/cri-containerd-{ID}.scope"),
            format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{unit}.slice/crio-{ID}.scope"
            ),
            format!(
                "a.slice/a-kubepods.slice/a-kubepods-besteffort.slice/a-kubepods-besteffort-pod{unit}.slice/docker-{ID}.scope"
            ),
        ] {
            let dir = tree(&["system.slice/other.service", &path]);
            let found = find(dir.path(), ID).unwrap_or_else(|| panic!("{path} was not found"));
            assert_eq!((found.pod_uid.as_str(), found.dir), (UID, dir.path().join(&path)));
            for other in ["another", "", "b", &ID[..8], &ID[8..], &format!("{ID}0")] {
                assert_eq!(find(dir.path(), other), None, "{other}");
            }
        }
    }

    #[test]
    fn what_is_not_below_the_kubelets_root_or_is_no_container_is_not_found() {
        for path in [
            format!("docker/{ID}"),
            format!("kubepods/{ID}"),
            format!("kubepods/burstable/{ID}"),
            format!("elsewhere/pod{UID}/{ID}"),
            format!("kubepods/pod{UID}/crio-conmon-{ID}.scope"),
            format!("kubepods/pod{UID}"),
        ] {
            let dir = tree(&[&path]);
            assert_eq!(find(dir.path(), ID), None, "{path}");
            assert_eq!(find(dir.path(), ""), None, "{path}");
        }
    }
}
