//! A cgroup in every hierarchy with targets in it, removed with everything in it when dropped.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use squall_daemon::{
    cgroup::{CgroupRoot, Memberships},
    ebpf::Engine,
    kill::{Fired, Prepared, Tools, prepare_process, receipt::Collector},
    order::{ContainerRef, Kill, Scope},
    runtime::Runtimes,
};

use super::target::{CGROUPS, DUTY};

/// The environment variable with how many times slower this machine may be than a real one.
const SLACK: &str = "SQUALL_TEST_SLACK";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Why a case can't be on this machine: what it ends with then, neither passed nor failed.
pub struct NotHere(pub &'static str);

/// Ends the case: this machine lacks what it is about.
pub fn not_here(why: &'static str) -> ! {
    // Not a panic of its own: nothing went wrong that a hook should tell.
    panic::resume_unwind(Box::new(NotHere(why)))
}

/// Mounts tracefs where the machine has not, in a mount namespace of this process's own. Before any thread is started.
pub fn see_tracepoints() {
    let place = Path::new("/sys/kernel/tracing");
    if place.join("events").exists() {
        return;
    }
    // SAFETY: only this thread exists, and nothing relies on mounts that come later.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "a mount namespace: {}", std::io::Error::last_os_error());
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("mounts of its own");
    mount("tracefs", place, "tracefs", MountFlags::empty(), None).expect("tracefs");
}

/// A container as far as the kernel is concerned.
pub struct Sandbox {
    /// What stands in for the container's ID: the name of its cgroup.
    pub id: String,
    dirs: Vec<PathBuf>,
    parents: Vec<PathBuf>,
    children: Vec<u32>,
}

/// A started target.
pub struct Target(pub Child);

impl Target {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits for its end, off the runtime's thread.
    pub async fn wait(mut self) -> ExitStatus {
        tokio::task::spawn_blocking(move || self.0.wait().expect("waiting for a child"))
            .await
            .expect("a thread")
    }

    pub fn runs(&mut self) -> bool {
        self.0.try_wait().expect("looking at a child").is_none()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // What a failed case leaves running would run under all later ones. Most have ended already.
        let _ = self.0.kill();
    }
}

impl Sandbox {
    pub fn new() -> Self {
        let sandbox = Self::numbered(NEXT.fetch_add(1, Ordering::Relaxed));
        for (parent, dir) in sandbox.parents.iter().zip(&sandbox.dirs) {
            make(parent.parent().expect("a mount"), parent);
            hand_down(parent);
            make(parent, dir);
        }
        sandbox
    }

    /// Where the cgroups of the one with this number are; nothing is made.
    fn numbered(number: u32) -> Self {
        let id = format!("{number:04x}{:060x}", std::process::id());
        let group = format!("squall-test-{}-{number}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let (mut dirs, mut parents) = (Vec::new(), Vec::new());
        let mounts = if root.join("cgroup.controllers").exists() {
            vec![root.to_owned()]
        } else {
            let entries = fs::read_dir(root).expect("cgroup mounts").flatten();
            let mut mounts: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            // Some hierarchies are there under several names.
            mounts.retain(|path| path.is_dir() && !path.is_symlink() && path.join("cgroup.procs").exists());
            mounts
        };
        for mount in mounts {
            let parent = mount.join(&group);
            dirs.push(parent.join(&id));
            parents.push(parent);
        }
        Self { id, dirs, parents, children: Vec::new() }
    }

    /// Bounds the number of processes.
    pub fn limit(&self, processes: u32) {
        let set = self.dirs.iter().any(|dir| fs::write(dir.join("pids.max"), processes.to_string()).is_ok());
        assert!(set, "no pids controller");
    }

    /// Writes a value into whichever of its cgroups has `file`.
    pub fn set(&self, file: &str, value: &str) {
        fs::write(self.file(file), value)
            .unwrap_or_else(|error| panic!("writing {value} to {file}: {error}"));
    }

    /// The file in whichever of its cgroups has it.
    pub fn file(&self, file: &str) -> PathBuf {
        self.find(file).unwrap_or_else(|| panic!("no controller with {file}"))
    }

    /// As [`Sandbox::file`], if there is one.
    pub fn find(&self, file: &str) -> Option<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(file)).find(|file| file.exists())
    }

    /// Reads a value from whichever of its cgroups has `file`.
    pub fn get(&self, file: &str) -> String {
        fs::read_to_string(self.file(file)).expect("a value").trim().to_owned()
    }

    /// Every process in it, by all hierarchies.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .dirs
            .iter()
            .flat_map(|dir| tree(dir))
            .flat_map(|dir| {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()
            })
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Its cgroups of version 1.
    pub fn v1(&self) -> Vec<PathBuf> {
        self.dirs.iter().filter(|dir| !dir.join("cgroup.controllers").exists()).cloned().collect()
    }

    /// A cgroup within; containers with an init system make such.
    pub fn below(&mut self, name: impl AsRef<Path>) -> Vec<PathBuf> {
        let below: Vec<PathBuf> = self.dirs.iter().map(|dir| dir.join(&name)).collect();
        for (dir, below) in self.dirs.iter().zip(&below) {
            make(dir, below);
        }
        below
    }

    /// Another cgroup in the one that it is in, as a pod's other containers are.
    pub fn beside(&self, name: &str) -> Vec<PathBuf> {
        let beside: Vec<PathBuf> = self.parents.iter().map(|parent| parent.join(name)).collect();
        for (parent, beside) in self.parents.iter().zip(&beside) {
            make(parent, beside);
        }
        beside
    }

    /// Writes a value into whichever of the cgroups that it is in has `file`.
    pub fn set_above(&self, file: &str, value: &str) {
        let file = self.parents.iter().map(|parent| parent.join(file)).find(|file| file.exists());
        fs::write(file.expect("a controller"), value).expect("writing a limit");
    }

    /// Its cgroups.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.dirs.clone()
    }

    pub fn start(&mut self, duty: &str) -> Target {
        let dirs = self.dirs.clone();
        self.start_in(duty, &dirs)
    }

    pub fn start_in(&mut self, duty: &str, dirs: &[PathBuf]) -> Target {
        let program = env::current_exe().expect("own path");
        self.start_program(&program, duty, dirs)
    }

    /// This same program under another path.
    pub fn start_program(&mut self, program: &Path, duty: &str, dirs: &[PathBuf]) -> Target {
        let child = spawn(program, duty, dirs, &[]);
        self.children.push(child.0.id());
        child
    }

    /// Where to write oneself in, for a process that is no target.
    pub fn entrances(&self) -> OsString {
        entrances(&self.dirs)
    }

    /// How many processes are in it, as the kernel counts.
    pub fn population(&self) -> usize {
        let procs =
            |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().count();
        self.dirs.iter().map(procs).max().unwrap_or(0)
    }

    pub fn order(&self) -> ContainerRef {
        order_of(&self.id)
    }

    pub fn prepare(&self, tools: &Tools, init: i32, signal: i32, scope: Scope) -> Prepared {
        self.prepare_kill(tools, init, Kill::now(signal, scope))
    }

    pub fn prepare_kill(&self, tools: &Tools, init: i32, kill: Kill) -> Prepared {
        prepare_process(tools, &self.order(), kill, init).expect("preparing")
    }
}

/// Sends the signal of a kill that does not wait for anything.
pub async fn struck(prepared: Prepared) -> Collector {
    match prepared.fire(SystemTime::now(), |_, _| Ok(())).await.expect("firing") {
        Fired::Struck(collector) => collector,
        Fired::Waiting(waiting) => panic!("{}", waiting.describe()),
    }
}

/// How an order names the container `id`.
pub fn order_of(id: &str) -> ContainerRef {
    ContainerRef {
        namespace: "test".into(),
        pod: "pod".into(),
        pod_uid: "uid".into(),
        name: "container".into(),
        scheme: "test".into(),
        id: id.into(),
    }
}

/// A target outside of any sandbox.
pub fn stranger(duty: &str) -> Target {
    stranger_with(duty, &[])
}

/// As [`stranger`], told more in its environment.
pub fn stranger_with(duty: &str, told: &[(&str, &str)]) -> Target {
    spawn(&env::current_exe().expect("own path"), duty, &[], told)
}

pub fn tools() -> Tools {
    let cgroups = CgroupRoot::discover(Path::new("/sys/fs/cgroup"), Path::new("/proc")).expect("cgroups");
    Tools {
        engine: Arc::new(Engine::new(env::var_os("SQUALL_TEST_LOG").is_some())),
        cgroups,
        runtimes: Runtimes::default(),
    }
}

/// The same for a daemon that has stressors, as the real one does; here the targets' first processes are children of
/// its own, too.
pub fn sparing(tools: &Tools) -> Tools {
    let engine = Engine::new(false).sparing_children_of(std::process::id());
    Tools { engine: Arc::new(engine), ..tools.clone() }
}

/// A limit of time on this machine: an emulated one is given many times as much.
pub fn slack(limit: Duration) -> Duration {
    let slack = env::var(SLACK).ok().map(|slack| slack.parse::<u32>().expect("a number"));
    limit * slack.unwrap_or(1)
}

/// Whether a share of CPU time, in percent, is what was wanted. From an emulated machine the real one takes its time away
/// whenever it likes, so there it is looked at three times less closely.
pub fn about(found: f64, wanted: f64, tolerance: f64) -> bool {
    let times = if env::var_os(SLACK).is_some() { 3.0 } else { 1.0 };
    (found - wanted).abs() <= tolerance * times
}

/// As many as are wanted; on an emulated machine, where each takes its time from the others, `few`.
pub fn crowd(wanted: usize, few: usize) -> usize {
    if env::var_os(SLACK).is_some() { few } else { wanted }
}

/// How often a case is repeated that looks for a race: on an emulated machine each takes seconds.
pub fn rounds(wanted: u64) -> u64 {
    if env::var_os(SLACK).is_some() { wanted.div_ceil(20) } else { wanted }
}

/// Waits for `what`, no longer than `limit`.
pub async fn until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let limit = slack(limit);
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn entrances(dirs: &[PathBuf]) -> OsString {
    env::join_paths(dirs.iter().map(|dir| dir.join("cgroup.procs"))).expect("names without colons")
}

fn spawn(program: &Path, duty: &str, dirs: &[PathBuf], told: &[(&str, &str)]) -> Target {
    let mut child = Command::new(program)
        .env(DUTY, duty)
        .env(CGROUPS, entrances(dirs))
        .envs(told.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting a target");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut line).expect("reading from a target");
    assert_eq!(line, "ready\n", "the target did not get ready");
    Target(child)
}

fn make(parent: &Path, dir: &Path) {
    fs::create_dir(dir).unwrap_or_else(|error| panic!("making {}: {error}", dir.display()));
    // A new v1 cpuset takes nobody before it has been told its CPUs and memory nodes.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(parent.join(file)) {
            let _ = fs::write(dir.join(file), value.trim());
        }
    }
}

/// In version 2 a cgroup has the controllers that its parent hands down.
fn hand_down(parent: &Path) {
    for controller in fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default().split(' ') {
        // One that can't be handed down is one that no case may need.
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{}", controller.trim()));
    }
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
    }
    all.push(dir.to_owned());
    all
}

/// Removes every sandbox that is still there: for a run that is about to end in the middle of a case.
pub fn remove_all() {
    for number in 0..NEXT.load(Ordering::Relaxed) {
        let mut sandbox = Sandbox::numbered(number);
        sandbox.parents.retain(|parent| parent.exists());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A bomb forks faster than it is killed process by process.
        for dir in self.parents.iter().flat_map(|parent| tree(parent)) {
            // Version 1 has it in one hierarchy only, and no root has it.
            let _ = fs::write(dir.join("pids.max"), "0");
        }
        // Only processes of this sandbox, each looked at before it is killed.
        for _ in 0..200 {
            let dirs: Vec<PathBuf> = self.parents.iter().flat_map(|parent| tree(parent)).collect();
            let mut left = false;
            for dir in &dirs {
                for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                    left = true;
                    let pid: i32 = pid.parse().expect("a PID");
                    if Memberships::of(Path::new("/proc"), pid)
                        .is_ok_and(|memberships| memberships.mention(&self.id))
                    {
                        // SAFETY: no pointer.
                        unsafe { libc::kill(pid, libc::SIGKILL) };
                    }
                }
            }
            for child in &self.children {
                // SAFETY: no status is asked for; those that were reaped already give an error.
                unsafe { libc::waitpid(*child as i32, std::ptr::null_mut(), libc::WNOHANG) };
            }
            if !left && dirs.iter().all(|dir| fs::remove_dir(dir).is_ok()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("the sandbox {} could not be removed", self.id);
    }
}
