//! That stress has the effect that was asked for, or is a failure with its reason; and throttles on a real device.

use std::{
    fs::{File, OpenOptions},
    os::fd::AsRawFd,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use squall_daemon::{
    order::{
        Order, Stage, Stress,
        stress::{Device, IoLimit, Memory, Size, Squeeze},
    },
    report::{Reason, State},
};

use super::{
    sandbox::{Sandbox, not_here, until},
    stress::{cpu, fault, injected, memory_limit, memory_used, none, one, squeeze, stressors},
};

crate::cases![
    what_shows_no_effect_is_a_failure_with_its_reason,
    what_the_containers_limit_does_not_permit_is_not_missed,
    memory_grows_over_its_ramp_to_its_share_of_the_limit,
    writes_to_a_device_are_throttled_and_then_free,
];

async fn what_shows_no_effect_is_a_failure_with_its_reason() {
    let (sandbox, mut target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(1, 80))]);
    injected(&mut rig).await;
    // It is there, and does nothing: as if the node had no time for it.
    let stopped = Pid::from_raw(stressors(&sandbox)[0]).expect("a PID");
    kill_process(stopped, Signal::STOP).expect("stopping it");
    let ended = rig.outcome().await;
    assert_eq!(ended.state, State::Failed(Reason::NoEffect), "{ended:?}");
    for part in ["cpu: ", "m were asked for", "after 5 s", "its limit is"] {
        assert!(ended.message.contains(part), "{part}: {}", ended.message);
    }
    // What shows none is not left there.
    until(Duration::from_secs(2), "it is gone", || stressors(&sandbox).is_empty()).await;
    assert!(target.runs());
}

async fn what_the_containers_limit_does_not_permit_is_not_missed() {
    let (sandbox, _target, mut rig) = one();
    let quota = if sandbox.find("cpu.max").is_some() { "cpu.max" } else { "cpu.cfs_quota_us" };
    sandbox.set(quota, "10000");
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(4, 100))]);
    injected(&mut rig).await;
    // Judged after five seconds: a tenth of a CPU is all that may be had, and counts as all.
    let judged = injected(&mut rig).await;
    assert!(judged.lasting.effect.expect("an effect").during.is_some());
}

async fn memory_grows_over_its_ramp_to_its_share_of_the_limit() {
    let (sandbox, _target, mut rig) = one();
    let (limit, half) = (256_u64 << 20, 128_u64 << 20);
    sandbox.set(memory_limit(&sandbox), &limit.to_string());
    let before = memory_used(&sandbox);
    let ramp = Duration::from_secs(4);
    let memory = Memory { workers: 1, size: Size::Percent(50), ramp, oom_score_adj: None };
    let start = Instant::now();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &Stress { memory: Some(memory), ..none() })]);
    injected(&mut rig).await;
    let grown = || memory_used(&sandbox).saturating_sub(before);
    until(Duration::from_secs(4), "it grows", || grown() > half / 8).await;
    // Never ahead of its time: a ramp that is none would have all of it at once.
    while start.elapsed() < ramp / 2 {
        let (due, is) = (half as f64 * start.elapsed().as_secs_f64() / ramp.as_secs_f64(), grown() as f64);
        assert!(is < due + half as f64 / 8.0, "{is} after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until(Duration::from_secs(6), "all of it is there", || grown() >= half - (2 << 20)).await;
    assert!(grown() < half + (16 << 20), "{}", grown());
}

/// A device that is a file.
struct Loop {
    device: File,
    number: i32,
    _backing: tempfile::NamedTempFile,
}

const LOOP_SET_FD: libc::c_ulong = 0x4C00;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

impl Loop {
    /// `None` where the kernel has none.
    fn new() -> Option<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").ok()?;
        let backing = tempfile::NamedTempFile::new_in(".").expect("a file on a disk");
        backing.as_file().set_len(16 << 20).expect("its size");
        // Another may take the free one in between.
        for _ in 0..20 {
            // SAFETY: takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
            assert!(number >= 0, "no free loop device");
            let device = OpenOptions::new().read(true).write(true).open(format!("/dev/loop{number}"));
            let device = device.expect("a loop device");
            // SAFETY: both descriptors are open.
            let set =
                unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD as _, backing.as_file().as_raw_fd()) };
            if set == 0 {
                return Some(Self { device, number, _backing: backing });
            }
        }
        panic!("no loop device could be had");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD as _, 0) };
    }
}

/// How long a process in the sandbox takes to write two MiB, past every cache.
fn write_two_mebibytes(sandbox: &Sandbox, device: &str) -> Duration {
    let start = Instant::now();
    let script = r#"for dir in $DIRS; do echo $$ > $dir/cgroup.procs || exit 9; done
        exec dd if=/dev/zero of=$DEVICE bs=64k count=32 oflag=direct"#;
    let dirs: Vec<String> = sandbox.dirs().iter().map(|dir| dir.display().to_string()).collect();
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("DIRS", dirs.join(" ")).env("DEVICE", device);
    let output = command.output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    start.elapsed()
}

async fn writes_to_a_device_are_throttled_and_then_free() {
    let (sandbox, _target, mut rig) = one();
    let Some(device) = Loop::new() else {
        not_here("this kernel has no loop devices");
    };
    let path = format!("/dev/loop{}", device.number);
    let throttle = |name, write_bps| {
        let io = IoLimit {
            device: Device::Path(path.clone()),
            read_bps: None,
            write_bps: Some(write_bps),
            read_iops: None,
            write_iops: None,
        };
        fault(&sandbox, name, Stage::Fire, &squeeze(Squeeze { io: vec![io], ..Squeeze::default() }))
    };
    let file = if sandbox.find("io.max").is_some() { "io.max" } else { "blkio.throttle.write_bps_device" };
    let before = sandbox.get(file);
    let (lax, strict) = (throttle("a", 8 << 20), throttle("b", 1 << 20));
    rig.order(vec![lax.clone(), strict.clone()]);
    injected(&mut rig).await;
    injected(&mut rig).await;
    let throttled = write_two_mebibytes(&sandbox, &path);
    assert!(throttled > Duration::from_millis(1500), "two MiB at one a second took {throttled:?}");
    // The laxer of the two holds when the stricter has ended.
    let recover = |order: &Order| Order { stage: Stage::Recover, ..order.clone() };
    rig.order(vec![lax.clone(), recover(&strict)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert!(sandbox.get(file).contains(&(8 << 20).to_string()), "{}", sandbox.get(file));
    rig.order(vec![recover(&lax)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert_eq!(sandbox.get(file), before);
    let free = write_two_mebibytes(&sandbox, &path);
    assert!(free * 2 < throttled, "{free:?} when free, {throttled:?} when throttled");
}
