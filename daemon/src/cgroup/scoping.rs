//! Tests: what counts as a container's cgroup where not every hierarchy has one for it. Nobody outside may be held.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::*;

const V1: &str = "9:name=systemd:/kube/pod1/abc\n8:pids:/kube/pod1/abc\n2:cpu,cpuacct:/kube/pod1/abc\n";

/// A machine with `pids` and `cpu` on version 1 and a version 2 tree, whose process 7 has these lines.
fn machine(lines: &str) -> (tempfile::TempDir, CgroupRoot) {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    let write = |path: &str, text: &str| {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), text).unwrap();
    };
    write("proc/7/cgroup", lines);
    write("pids/kube/pod1/abc/cgroup.procs", "7\n8\n");
    write("pids/kube/pod1/abc/init.scope/cgroup.procs", "9\n");
    write("cpu/elsewhere/cgroup.procs", "1\n");
    write("unified/cgroup.procs", "1\n7\n8\n");
    write("unified/system.slice/containerd.service/cgroup.procs", "1\n7\n8\n");
    write("unified/kube/pod1/abc/cgroup.procs", "");
    write("unified/kube/pod1/abc/init.scope/cgroup.procs", "7\n");
    let root = CgroupRoot {
        proc: at("proc"),
        mount: dir.path().to_owned(),
        v2: Some(at("unified")),
        v1: vec![(vec!["pids".into()], at("pids")), (vec!["cpu".into(), "cpuacct".into()], at("cpu"))],
    };
    (dir, root)
}

fn parse(text: &str) -> Memberships {
    Memberships::parse(text).unwrap()
}

#[test]
fn a_v2_path_of_the_runtime_is_not_the_containers() {
    for theirs in ["/system.slice/containerd.service", "/"] {
        let lines = format!("{V1}0::{theirs}\n");
        let (_dir, root) = machine(&lines);
        let target = root.container(7, "abc").unwrap();
        assert_eq!((target.v2.clone(), target.perf.clone()), (None, None), "{theirs}");
        assert_eq!(target.processes(), [7, 8, 9], "{theirs}");
        assert!(target.holds(&parse(&lines)), "{theirs}");
        // containerd itself, and a container beside it.
        let strangers = [
            format!("8:pids:/system.slice/containerd.service\n0::{theirs}\n"),
            format!("8:pids:/kube/pod1/abd\n2:cpu,cpuacct:/kube/pod1/abd\n0::{theirs}\n"),
        ];
        for stranger in strangers {
            assert!(!target.holds(&parse(&stranger)), "{stranger}");
        }
    }
}

#[test]
fn a_v1_path_that_does_not_name_the_container_widens_nothing() {
    let lines = "8:pids:/kube/pod1/abc\n2:cpu,cpuacct:/elsewhere\n";
    let (_dir, root) = machine(lines);
    let target = root.container(7, "abc").unwrap();
    assert_eq!(target.processes(), [7, 8, 9]);
    assert!(!target.holds(&parse("8:pids:/kube/pod1/abd\n2:cpu,cpuacct:/elsewhere\n")));
}

#[test]
fn the_first_process_may_be_in_a_cgroup_below_the_containers() {
    let (_dir, root) = machine("0::/kube/pod1/abc/init.scope\n");
    let target = root.container(7, "abc").unwrap();
    assert_eq!(target.memberships.v2(), Some("/kube/pod1/abc"));
    assert_eq!(target.v2.as_ref().map(|cgroup| cgroup.level), Some(3));
    assert_eq!(target.processes(), [7]);
    assert!(target.holds(&parse("0::/kube/pod1/abc/system.slice/x\n")));
}

#[test]
fn the_name_of_a_cgroup_below_the_containers_may_be_no_text() {
    let (dir, root) = machine("0::/kube/pod1/abc/\u{fffd}\n");
    let own = dir.path().join("unified/kube/pod1/abc");
    fs::rename(own.join("init.scope"), own.join(OsStr::from_bytes(b"\xff"))).unwrap();
    let target = root.container(7, "abc").unwrap();
    assert_eq!(target.v2.as_ref().map(|cgroup| cgroup.dir.as_path()), Some(own.as_path()));
    assert_eq!(target.processes(), [7]);
    // Who is nowhere below it is not the container's, whatever the path says.
    fs::write(dir.path().join("proc/7/cgroup"), "0::/kube/pod1/abc/init.scope\n").unwrap();
    fs::write(own.join(OsStr::from_bytes(b"\xff")).join("cgroup.procs"), "8\n").unwrap();
    assert!(matches!(root.container(7, "abc"), Err(CgroupError::NotFound { pid: 7, .. })));
}

#[test]
fn a_process_that_is_not_the_containers_has_no_target() {
    let (_dir, root) = machine("8:pids:/elsewhere\n0::/system.slice/containerd.service\n");
    for id in ["abc", ""] {
        let target = root.container(7, id).unwrap();
        assert!(target.memberships.0.is_empty() && target.processes().is_empty() && target.v2.is_none());
        assert!(!target.holds(&parse("8:pids:/elsewhere\n0::/system.slice/containerd.service\n")));
    }
}

#[test]
fn a_part_of_its_id_names_no_cgroup_at_all() {
    let (_dir, root) = machine("8:pids:/kube/pod1/abc\n0::/kube/pod1/abc/init.scope\n");
    // Of the pod, of every pod, of the container.
    for id in ["pod", "1", "k", "kub", "ab", "bc"] {
        let target = root.container(7, id).unwrap();
        assert!(
            target.memberships.0.is_empty() && target.processes().is_empty() && target.v2.is_none(),
            "{id}"
        );
    }
}
