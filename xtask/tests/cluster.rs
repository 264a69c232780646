//! The local cluster, really: brought up, broken, repaired, broken half-way, and removed without a trace.
//!
//! It runs beside whatever cluster the checkout has, under a name of its own. It never skips: asked for without what it
//! needs, it fails.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Set by `cargo xtask test`: this machine may be used.
const GATE: &str = "SQUALL_CLUSTER_TESTS";

/// What a cluster must leave as it was.
#[derive(Debug, PartialEq)]
struct Host {
    links: BTreeSet<String>,
    mounts: Vec<String>,
    rules: String,
    sysctls: Vec<String>,
}

impl Host {
    fn look() -> Self {
        let names = fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().file_name());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let sysctls = [
            "vm/overcommit_memory",
            "vm/panic_on_oom",
            "kernel/panic",
            "kernel/panic_on_oops",
            "kernel/keys/root_maxkeys",
            "kernel/keys/root_maxbytes",
            "net/ipv4/ip_forward",
        ];
        Self {
            links: names.map(|name| name.to_string_lossy().into_owned()).collect(),
            mounts: mounts.lines().map(str::to_owned).collect(),
            rules: text(&Command::new("nft").args(["list", "ruleset"]).output().expect("nft")),
            sysctls: sysctls
                .map(|name| {
                    format!(
                        "{name}={}",
                        fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default()
                    )
                })
                .into(),
        }
    }
}

struct Cluster {
    name: String,
}

impl Cluster {
    fn new(suffix: &str) -> Self {
        assert!(env::var_os(GATE).is_some(), "this test starts clusters on this machine; {GATE}=1 allows it");
        Self { name: format!("squall-t{}{suffix}", std::process::id()) }
    }

    fn state(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("cluster").args(args).env("SQUALL_CLUSTER", &self.name);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("xtask")
    }

    fn undeploy(&self) -> Output {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask.arg("undeploy").env("SQUALL_CLUSTER", &self.name).output().expect("xtask")
    }

    #[track_caller]
    fn succeeds(&self, args: &[&str]) -> Duration {
        let began = Instant::now();
        let output = self.run(args);
        assert!(output.status.success(), "cluster {args:?}: {}", text(&output));
        began.elapsed()
    }

    #[track_caller]
    fn kubectl(&self, args: &[&str]) -> String {
        let mut command = Command::new(self.state().join("bin/kubectl"));
        let output =
            command.env("KUBECONFIG", self.state().join("admin.conf")).args(args).output().expect("kubectl");
        assert!(output.status.success(), "kubectl {args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn reaches(&self, pod: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut command = Command::new(self.state().join("bin/kubectl"));
            command.env("KUBECONFIG", self.state().join("admin.conf")).args(["exec", pod, "--", "true"]);
            let output = command.output().expect("kubectl");
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < end, "pod {pod} can't be reached: {}", text(&output));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn pid(&self, component: &str) -> Pid {
        let pid = fs::read_to_string(self.state().join("pid").join(component)).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    /// Kills it, and waits until it is gone.
    fn kill(&self, component: &str) {
        let pid = self.pid(component);
        kill_process(pid, Signal::KILL).unwrap();
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        let end = Instant::now() + Duration::from_secs(5);
        while fs::read(&path).is_ok_and(|arguments| !arguments.is_empty()) {
            assert!(Instant::now() < end, "{component} does not die");
            std::thread::yield_now();
        }
    }

    /// The cgroups of all its pods, one in each hierarchy.
    fn cgroup_roots(&self) -> BTreeSet<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let points = hierarchies.map(|line| line.split(' ').nth(4).unwrap());
        points
            .map(|point| Path::new(point).join(format!("kube-{}", self.name)))
            .filter(|cgroup| cgroup.exists())
            .collect()
    }

    /// Everything of it that is still there.
    fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let state = format!("{}/", self.state().display());
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            if stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")) {
                // Dead: only whoever inherited it has not looked yet.
                continue;
            }
            for file in ["cmdline", "mountinfo", "cgroup"] {
                let found = String::from_utf8_lossy(&read(file)).into_owned();
                if found.contains(&state) || found.contains(&format!("/kube-{}", self.name)) {
                    left.push(format!("process {}: its {file}", entry.path().display()));
                }
            }
        }
        left.extend(self.cgroup_roots().iter().map(|cgroup| cgroup.display().to_string()));
        if self.state().exists() {
            left.push(self.state().display().to_string());
        }
        left
    }

    #[track_caller]
    fn goes_without_a_trace(&self, before: &Host) {
        self.succeeds(&["down"]);
        assert_eq!(self.leftovers(), Vec::<String>::new());
        assert_eq!(Host::look(), *before);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.state().exists() {
            if std::thread::panicking() {
                eprintln!("{}", text(&self.run(&["status"])));
            }
            eprintln!("{}", text(&self.run(&["down"])));
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: \"localhost/busybox:1\", command: [httpd, -f, -p, \"80\"], readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]
";

#[test]
#[ignore = "starts a Kubernetes cluster on this machine; `cargo xtask test` runs it"]
fn up_is_idempotent_repairs_what_died_and_down_leaves_nothing() {
    let cluster = Cluster::new("a");
    let before = Host::look();
    assert!(!cluster.run(&["status"]).status.success(), "a cluster that is not there has no good status");
    let none = cluster.undeploy();
    assert!(none.status.success() && text(&none).contains("nothing to remove"), "{}", text(&none));
    assert_eq!(cluster.leftovers(), Vec::<String>::new(), "asking makes nothing");
    cluster.succeeds(&["up"]);
    cluster.succeeds(&["status"]);
    let printed = cluster.run(&["kubeconfig"]);
    assert_eq!(
        String::from_utf8(printed.stdout).unwrap(),
        format!("{}\n", cluster.state().join("admin.conf").display())
    );

    let holder = cluster.pid("node");
    let again = cluster.succeeds(&["up"]);
    assert!(again < Duration::from_secs(15), "a second up took {again:?}");
    assert_eq!(cluster.pid("node"), holder, "a second up must not start anything anew");

    let manifest = cluster.state().join("pod.yaml");
    fs::write(&manifest, POD).unwrap();
    cluster.kubectl(&["apply", "-f", manifest.to_str().unwrap()]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);

    for victims in [&["etcd", "kubelet"][..], &["containerd"], &["kube-apiserver", "forward"], &["node"]] {
        for victim in victims {
            cluster.kill(victim);
        }
        assert!(!cluster.run(&["status"]).status.success(), "with {victims:?} dead the status can't be good");
        let undeploy = cluster.undeploy();
        let said = text(&undeploy);
        assert!(!undeploy.status.success() && said.contains("is not up"), "with {victims:?} dead: {said}");
        let repair = cluster.succeeds(&["up"]);
        assert!(repair < Duration::from_secs(40), "the repair of {victims:?} took {repair:?}");
        cluster.succeeds(&["status"]);
        // The pod may still be Ready only as it was: asking it something tells.
        cluster.reaches("web");
    }
    cluster.goes_without_a_trace(&before);
    cluster.succeeds(&["down"]);
    assert_eq!(cluster.leftovers(), Vec::<String>::new(), "down of nothing leaves nothing");
    // Kubernetes is built by now.
    let later = cluster.succeeds(&["up"]);
    assert!(later < Duration::from_secs(15), "from nothing a later up took {later:?}");
    cluster.goes_without_a_trace(&before);
}

#[test]
#[ignore = "starts two Kubernetes clusters on this machine; `cargo xtask test` runs it"]
fn two_clusters_share_nothing_and_one_outlives_the_other() {
    let (first, second) = (Cluster::new("d"), Cluster::new("e"));
    let before = Host::look();
    first.succeeds(&["up"]);
    let first_alone = Host::look();
    second.succeeds(&["up"]);
    let server = |cluster: &Cluster| {
        cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])
    };
    assert_ne!(server(&first), server(&second), "one port for both");
    assert!(first.state().exists() && second.state().exists(), "one state directory for both");
    let uid = |cluster: &Cluster| {
        cluster.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"])
    };
    assert_ne!(uid(&first), uid(&second), "both lead to one API server");
    let roots = [&first, &second].map(Cluster::cgroup_roots);
    assert!(roots.iter().all(|roots| !roots.is_empty()), "one cgroup for the pods of both: {roots:?}");
    let holder = first.pid("node");
    second.goes_without_a_trace(&first_alone);
    first.succeeds(&["status"]);
    assert_eq!(first.pid("node"), holder, "the first was not left alone");
    first.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=10s"]);
    first.goes_without_a_trace(&before);
}

#[test]
#[ignore = "starts a Kubernetes cluster on this machine; `cargo xtask test` runs it"]
fn a_half_failed_up_names_the_log_and_down_leaves_nothing() {
    let cluster = Cluster::new("b");
    let before = Host::look();
    let directory = env::temp_dir().join(&cluster.name);
    fs::create_dir_all(&directory).unwrap();
    let fake = directory.join("containerd");
    fs::write(&fake, "#!/bin/sh\necho this one does not start\nexit 1\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.display(), env::var("PATH").unwrap());
    let output = cluster.command(&["up"]).env("PATH", path).output().unwrap();
    fs::remove_dir_all(&directory).unwrap();
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("log/containerd.log") && said.contains("this one does not start"), "{said}");
    cluster.goes_without_a_trace(&before);
}

#[test]
#[ignore = "touches /var/lib; `cargo xtask test` runs it"]
fn a_directory_that_is_not_a_clusters_is_left_alone() {
    let cluster = Cluster::new("c");
    fs::create_dir(cluster.state()).unwrap();
    fs::write(cluster.state().join("mine"), "keep").unwrap();
    for command in ["up", "down"] {
        let output = cluster.run(&[command]);
        assert!(!output.status.success() && text(&output).contains("leaving it alone"), "{}", text(&output));
    }
    assert_eq!(fs::read_to_string(cluster.state().join("mine")).unwrap(), "keep");
    fs::remove_dir_all(cluster.state()).unwrap();
}
