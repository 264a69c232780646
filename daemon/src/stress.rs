//! Stress on one container: stressors, which are processes of ours in its cgroups, and squeezes, which are lower limits
//! of them. A [`Lasting`] fault.
//!
//! It refuses what the container's limits don't allow, and what would leave the node without memory, tasks or disk; it
//! reports as failed what has no effect. The stressors end with the daemon, with the container, and when they are told
//! to; see `stressor.rs` for what keeps that promise.

mod files;
mod limits;
pub mod message;
pub mod spawn;
mod squeeze;
pub mod stressor;
mod work;

use std::{
    collections::VecDeque,
    mem,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::ExitStatus,
    time::Duration,
};

use async_trait::async_trait;
use futures::future::{join_all, select_all};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::{Instant, sleep_until};

use crate::{
    cgroup::{Home, Target},
    container::Container,
    lasting::{Event, Lasting, LastingError, Measured},
    order::{
        Stress,
        stress::{Cpu, Io, Memory, OnOom, Size},
    },
    report::Reason,
    setting::Wanted,
    usage::Meter,
};
use files::Unnamed;
use limits::{Limits, MemoryLimit, NodeMemory, NodePids};
use message::{Said, Task};
use spawn::{Heard, SpawnError, Stressor};

/// The effect shows after this long, beside what the order itself takes.
const SHOWS_WITHIN: Duration = Duration::from_secs(5);
/// A stressor that was ended for want of memory is started again after this long, then after twice as long.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A share of the container's limit is kept to when the limit changes, after this long.
const LIMITS_AGAIN: Duration = Duration::from_secs(1);
/// Effects below these are not judged: they drown in what the container does itself.
const LEAST: (u64, u64) = (20, 8 * 1024 * 1024);
/// What stressors are for the kernel unless the order says otherwise: the first that it ends for want of memory.
const FIRST_TO_GO: i32 = 1000;
/// Memory for a task that does nothing, its kernel stack and all. Some 33 KiB on Linux 6.18 (x86-64), 24 of them the
/// kernel's; kernels differ.
const TASK_BYTES: u64 = 40 * 1024;

/// Stress on one container.
pub struct Starving {
    proc: PathBuf,
    id: String,
    stress: Stress,
    began: Instant,
    limits: Option<Limits>,
    /// Known once it is injected.
    site: Option<Site>,
    running: Vec<Running>,
    /// Started beforehand, without a task, and not in the container yet.
    idle: Vec<Stressor>,
    /// For the IO stressor, until it has them.
    files: Unnamed,
    /// A stressor to start again, and when.
    again: Option<(Instant, Duration, Vec<Work>)>,
    to_say: VecDeque<Event>,
}

struct Site {
    target: Target,
    homes: Vec<Home>,
    init: OwnedFd,
    init_pid: i32,
    meter: Meter,
    oom_kills: Option<u64>,
}

struct Work {
    what: &'static str,
    task: Task,
    files: Vec<OwnedFd>,
}

struct Running {
    work: Work,
    stressor: Stressor,
}

impl Starving {
    /// Nothing yet.
    pub fn new(proc: PathBuf, id: &str, stress: Stress) -> Self {
        Self {
            proc,
            id: id.to_owned(),
            stress,
            began: Instant::now(),
            limits: None,
            site: None,
            running: Vec::new(),
            idle: Vec::new(),
            files: Unnamed::default(),
            again: None,
            to_say: VecDeque::new(),
        }
    }

    fn works(&mut self, limits: &Limits) -> Vec<Work> {
        let Stress { cpu, memory, io, pids, squeeze: _, allow_oom, on_oom: _ } = &self.stress;
        let mut works = Vec::new();
        if let Some(cpu) = cpu {
            works.push(Work { what: "cpu", task: cpu_task(cpu, limits), files: vec![] });
        }
        if let Some(memory) = memory {
            let task = Task::Memory {
                workers: memory.workers,
                bytes: bytes(memory, limits),
                ramp: memory.ramp,
                oom_score_adj: memory.oom_score_adj.unwrap_or(FIRST_TO_GO),
                leaves_room: !allow_oom,
            };
            works.push(Work { what: "memory", task, files: vec![] });
        }
        if let Some(Io { workers: _, bytes, path: _ }) = io {
            let files = mem::take(&mut self.files.files);
            works.push(Work { what: "io", task: Task::Io { bytes: *bytes }, files });
        }
        if let Some(count) = pids {
            works.push(Work { what: "pids", task: Task::Pids { count: *count }, files: vec![] });
        }
        works
    }

    fn failed(&self, what: &str, error: &SpawnError) -> LastingError {
        let oom = error.was_killed() && self.oom_killed();
        let reason = match error {
            _ if oom => Reason::OutOfMemory,
            SpawnError::Failed(_) => Reason::Unsupported,
            SpawnError::Start(_)
            | SpawnError::Process(_)
            | SpawnError::Place { .. }
            | SpawnError::Cgroup(_)
            | SpawnError::Elsewhere { .. }
            | SpawnError::Tell(_)
            | SpawnError::Ended(_)
            | SpawnError::Late => Reason::Internal,
        };
        let why = if oom { "the kernel ended it for want of memory".to_owned() } else { error.to_string() };
        LastingError::because(reason, format!("{what} stressor: {why}"))
    }

    /// Whether the kernel has ended a process of the container for want of memory since this was last known.
    fn oom_killed(&self) -> bool {
        self.site.as_ref().is_some_and(|site| site.meter.oom_kills() > site.oom_kills)
    }

    /// What a stressor's end means; `None`: nothing, for the container ends, too.
    fn ended(&mut self, work: Work, status: ExitStatus) -> Option<Event> {
        if self.site.as_ref().is_none_or(|site| has_ended(&site.init)) {
            return None;
        }
        let what = work.what;
        if status.signal() != Some(libc::SIGKILL) || !self.oom_killed() {
            let message = format!("the {what} stressor was ended from outside: {status}");
            return Some(Event::Ended(LastingError::because(Reason::NoEffect, message)));
        }
        // Its files were in memory, and went with it.
        let lost = matches!(work.task, Task::Io { .. }) && work.files.is_empty();
        match if lost { OnOom::Stop } else { self.stress.on_oom } {
            OnOom::Stop => {
                let message = format!("the kernel ended the {what} stressor for want of memory");
                Some(Event::Ended(LastingError::because(Reason::OutOfMemory, message)))
            }
            OnOom::Restart => {
                let (at, wait, mut works) =
                    self.again.take().unwrap_or_else(|| (Instant::now() + RESTART.0, RESTART.0, Vec::new()));
                let at = if works.is_empty() { Instant::now() + wait } else { at };
                works.push(work);
                self.again = Some((at, wait, works));
                if let Some(site) = &mut self.site {
                    site.oom_kills = site.meter.oom_kills();
                }
                let message = format!(
                    "the kernel ended the {what} stressor for want of memory; it is started again, as onOOM says"
                );
                Some(Event::Warning(message))
            }
        }
    }

    /// Someone else's squeeze, or a resize of the pod, changes what a share of the limit is.
    fn follow_the_limit(&mut self) {
        let (Some(cpu), Some(site), Some(limits)) = (self.stress.cpu, &self.site, &mut self.limits) else {
            return;
        };
        let now = Limits::at(&site.target, site.init_pid);
        if now.cpu_millis == limits.cpu_millis {
            return;
        }
        limits.cpu_millis = now.cpu_millis;
        let task = cpu_task(&cpu, limits);
        for one in self.running.iter_mut().filter(|one| matches!(one.work.task, Task::Cpu { .. })) {
            one.work.task = task.clone();
            // If it has ended, that is heard of.
            let _ = one.stressor.tell_more(&task);
        }
    }

    /// Starts again what was ended for want of memory.
    fn restart(&mut self) {
        let Some((_, wait, works)) = self.again.take() else { return };
        let wait = (wait * 2).min(RESTART.1);
        self.again = Some((Instant::now() + wait, wait, Vec::new()));
        for work in works {
            let begun = self.begin(&work);
            match begun {
                Ok(stressor) => self.running.push(Running { work, stressor }),
                Err(error) => self.to_say.push_back(Event::Ended(self.failed(work.what, &error))),
            }
        }
    }

    /// A stressor that was told what to do, but has not said that it does.
    fn begin(&mut self, work: &Work) -> Result<Stressor, SpawnError> {
        let stressor = match self.idle.pop() {
            Some(stressor) => stressor,
            None => Stressor::start(&self.proc, &self.id)?,
        };
        if let Some(site) = &self.site {
            stressor.place(&self.proc, &site.homes)?;
            stressor.tell(&work.task, site.init.as_fd(), &work.files)?;
        }
        Ok(stressor)
    }

    fn judge_cpu(&self, cpu: &Cpu, limits: &Limits, measured: &Measured) -> Result<(), LastingError> {
        let before = measured.before.cpu_millis.unwrap_or(0);
        let asked = asked_millis(cpu, limits);
        let permitted = asked.min(limits.cpu_millis.saturating_sub(before));
        let own: Duration = self.running.iter().filter_map(|one| one.stressor.cpu_time()).sum();
        let own = own.as_millis() as u64 * 1000 / (self.began.elapsed().as_millis() as u64).max(1);
        let during = measured.during.cpu_millis.unwrap_or(0);
        // The container may have done less itself, because of us: then our own share is the effect.
        let effect = during.saturating_sub(before).max(own);
        if permitted < LEAST.0 || effect * 2 >= permitted {
            return Ok(());
        }
        let message = format!(
            "cpu: {asked}m were asked for, but after {} s the container uses {during}m (before: {before}m), of which \
             {own}m are the stressor's; its limit is {}m, and the rest is what the node's other work left",
            SHOWS_WITHIN.as_secs(),
            limits.cpu_millis
        );
        Err(LastingError::because(Reason::NoEffect, message))
    }

    fn judge_memory(
        &self,
        memory: &Memory,
        limits: &Limits,
        measured: &Measured,
    ) -> Result<(), LastingError> {
        let Some(during) = measured.during.memory_bytes else { return Ok(()) };
        let before = measured.before.memory_bytes.unwrap_or(0);
        let asked = bytes(memory, limits);
        let permitted = asked.min(limits.memory.map_or(u64::MAX, |limit| limit.saturating_sub(before)));
        let own: u64 = self.running.iter().filter_map(|one| one.stressor.resident()).sum();
        let effect = during.saturating_sub(before).max(own);
        if permitted < LEAST.1 || effect * 2 >= permitted {
            return Ok(());
        }
        let message = format!(
            "memory: {asked} bytes were asked for, but the container holds {during} (before: {before}), of which \
             {own} are the stressor's"
        );
        Err(LastingError::because(Reason::NoEffect, message))
    }

    fn judge_pids(&self, count: u32, limits: &Limits, measured: &Measured) -> Result<(), LastingError> {
        let (Some(before), Some(during)) = (measured.before.pids, measured.during.pids) else {
            return Ok(());
        };
        let permitted =
            u64::from(count).min(limits.pids.map_or(u64::MAX, |limit| limit.saturating_sub(before)));
        if during.saturating_sub(before) * 2 >= permitted {
            return Ok(());
        }
        let message =
            format!("pids: {count} tasks were asked for, but the container has {during} (before: {before})");
        Err(LastingError::because(Reason::NoEffect, message))
    }

    /// Whether there is memory for all that takes some, if there has to be.
    fn check_memory(&self, container: &Container, limits: &Limits) -> Result<(), LastingError> {
        let squeezed = self.stress.squeeze.memory.filter(|_| self.stress.squeeze.memory_hard);
        let limit = MemoryLimit::tightest(&container.target, squeezed);
        let room = limit.map_or(u64::MAX, |limit| limit.room()).min(limits.node.room());
        let mut left = room;
        for (what, bytes, advice) in self.memory_asked_for(limits) {
            if let Some(less) = left.checked_sub(bytes) {
                left = less;
                continue;
            }
            let whose = match limit {
                Some(limit) if limit.room() == room => limit.to_string(),
                _ => {
                    let NodeMemory { whole, available } = limits.node;
                    format!(
                        "of the node's {whole} {available} are available, and some are kept for everybody else"
                    )
                }
            };
            let beside = match room - left {
                0 => String::new(),
                others => format!(" beside the {others} of other stressors"),
            };
            let message = format!("{what} are more than the {left} that are left{beside}: {whose}{advice}");
            return Err(LastingError::because(Reason::OutOfMemory, message));
        }
        Ok(())
    }

    /// Each stressor that has to fit into memory: itself in words, its bytes, and what else could be done.
    fn memory_asked_for(&self, limits: &Limits) -> Vec<(String, u64, &'static str)> {
        let mut all = Vec::new();
        if let Some(memory) = self.stress.memory.filter(|_| !self.stress.allow_oom) {
            let size = bytes(&memory, limits);
            all.push((format!("memory.size: {size} bytes"), size, "; allowOOM: true does it all the same"));
        }
        if let Some(count) = self.tasks(limits) {
            let size = count.saturating_mul(TASK_BYTES);
            let what = format!("pids.count: {count} tasks, {size} bytes of memory with their stacks,");
            all.push((what, size, ""));
        }
        if let Some(Io { workers, bytes, path }) = self.stress.io.as_ref().filter(|_| self.files.in_memory) {
            let size = u64::from(*workers).saturating_mul(*bytes);
            let what = format!("io.size: {workers} times {bytes} bytes, in memory because {path} is,");
            all.push((what, size, ""));
        }
        all
    }

    /// As many tasks as are asked for, and the container's limit lets through.
    fn tasks(&self, limits: &Limits) -> Option<u64> {
        let count = u64::from(self.stress.pids?);
        Some([limits.pids, self.stress.squeeze.pids].into_iter().flatten().fold(count, u64::min))
    }

    /// Whether the node has room for as many tasks as the container's limit lets through.
    fn check_pids(&self, container: &Container, limits: &Limits) -> Result<(), LastingError> {
        let Some(count) = self.tasks(limits) else { return Ok(()) };
        let node = NodePids::of(container.target.proc());
        let (room, NodePids { most, there }) = (node.room(), node);
        if count <= room {
            return Ok(());
        }
        let message = format!(
            "pids.count: {count} tasks are more than the {room} that are left: by kernel.pid_max and \
             kernel.threads-max the node takes {most}, it has {there}, and a quarter is kept for everybody else"
        );
        Err(LastingError::because(Reason::Unsupported, message))
    }
}

#[async_trait]
impl Lasting for Starving {
    fn arm(&mut self) {
        let Stress { cpu, memory, io, pids, squeeze: _, allow_oom: _, on_oom: _ } = &self.stress;
        let kinds = [cpu.is_some(), memory.is_some(), io.is_some(), pids.is_some()];
        // One that can't be started now is started later, or that is told then.
        let idle =
            kinds.iter().filter(|kind| **kind).map_while(|_| Stressor::start(&self.proc, &self.id).ok());
        self.idle = idle.collect();
    }

    async fn intend(&mut self, container: &Container) -> Result<Vec<Wanted>, LastingError> {
        let wanted = squeeze::wanted(&container.target, &self.stress.squeeze)?;
        let limits = Limits::of(container);
        self.check_pids(container, &limits)?;
        if let Some(io) = &self.stress.io {
            self.files = files::unnamed(&self.proc, container, io).await?;
        }
        self.check_memory(container, &limits)?;
        Ok(wanted)
    }

    async fn inject(&mut self, container: &Container) -> Result<(), LastingError> {
        let internal = |error: String| LastingError::because(Reason::Internal, error);
        let now = container.init.memberships().map_err(|error| internal(error.to_string()))?;
        let init =
            container.init.pidfd().try_clone_to_owned().map_err(|error| internal(error.to_string()))?;
        let meter = Meter::new(&container.target);
        let oom_kills = meter.oom_kills();
        let site = Site {
            target: container.target.clone(),
            homes: container.target.homes(&now),
            init,
            init_pid: container.init.pid(),
            meter,
            oom_kills,
        };
        // As they are now that they are squeezed.
        let limits = Limits::of(container);
        let works = self.works(&limits);
        self.began = Instant::now();
        self.limits = Some(limits);
        let takes_memory = self.stress.memory.is_some() || self.stress.pids.is_some() || self.files.in_memory;
        if takes_memory && site.meter.oom_takes_all() {
            let warning = "memory.oom.group is set, as the kubelet does: if the kernel ends the stressor for want of \
                           memory, it ends the container with it";
            self.to_say.push_back(Event::Warning(warning.into()));
        }
        self.site = Some(site);
        for mut work in works {
            let stressor = self.begin(&work).map_err(|error| self.failed(work.what, &error))?;
            if self.files.in_memory {
                // What is in memory is free when the kernel has ended the stressor, unless somebody else has it open.
                work.files.clear();
            }
            self.running.push(Running { work, stressor });
        }
        let ready = self.running.iter_mut().map(|one| async { (one.work.what, one.stressor.ready().await) });
        for (what, ready) in join_all(ready).await {
            match ready {
                Ok(None) => {}
                Ok(Some(short)) => self.to_say.push_back(Event::Warning(format!("{what}: {short}"))),
                Err(error) => return Err(self.failed(what, &error)),
            }
        }
        Ok(())
    }

    async fn watch(&mut self) -> Event {
        loop {
            if let Some(event) = self.to_say.pop_front() {
                return event;
            }
            let again = self.again.as_ref().filter(|(.., works)| !works.is_empty()).map(|(at, ..)| *at);
            let heard = async {
                if self.running.is_empty() {
                    return std::future::pending().await;
                }
                let listening = self.running.iter_mut().map(|one| Box::pin(one.stressor.listen()));
                let (heard, index, _) = select_all(listening).await;
                (heard, index)
            };
            let shares = self.stress.cpu.is_some();
            let (heard, index) = tokio::select! {
                heard = heard => heard,
                () = tokio::time::sleep(LIMITS_AGAIN), if shares => {
                    self.follow_the_limit();
                    continue;
                }
                () = async { match again { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {
                    self.restart();
                    continue;
                }
            };
            let event = match heard {
                Heard::Said(Said::Ready) => None,
                Heard::Said(Said::Short(what)) => Some(Event::Warning(what)),
                Heard::Said(Said::Failed(why)) => {
                    let what = self.running[index].work.what;
                    let message = format!("{what} stressor: {why}");
                    Some(Event::Ended(LastingError::because(Reason::NoEffect, message)))
                }
                Heard::Ended(status) => {
                    let Running { work, stressor } = self.running.remove(index);
                    drop(stressor);
                    self.ended(work, status)
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn shows_within(&self) -> Option<Duration> {
        Some(SHOWS_WITHIN + self.stress.memory.map_or(Duration::ZERO, |memory| memory.ramp))
    }

    fn judge(&self, measured: &Measured) -> Result<(), LastingError> {
        let Some(limits) = &self.limits else { return Ok(()) };
        let Stress { cpu, memory, io: _, pids, squeeze: _, allow_oom: _, on_oom: _ } = &self.stress;
        if let Some(cpu) = cpu {
            self.judge_cpu(cpu, limits, measured)?;
        }
        // While one waits to be started again there is nothing to judge.
        let whole = self.again.as_ref().is_none_or(|(.., works)| works.is_empty());
        if let Some(memory) = memory.as_ref().filter(|_| whole) {
            self.judge_memory(memory, limits, measured)?;
        }
        if let Some(count) = pids {
            self.judge_pids(*count, limits, measured)?;
        }
        Ok(())
    }

    async fn revert(&mut self) -> Vec<String> {
        self.again = None;
        self.idle.clear();
        self.files.files.clear();
        for one in &self.running {
            one.stressor.ask_to_end();
        }
        let ends = self.running.drain(..).map(|Running { work, stressor }| async move {
            (!stressor.end().await).then(|| {
                let what = work.what;
                format!("the {what} stressor is killed, but has not ended yet: the container is frozen, or hangs in IO")
            })
        });
        join_all(ends).await.into_iter().flatten().collect()
    }
}

fn asked_millis(cpu: &Cpu, limits: &Limits) -> u64 {
    (u64::from(cpu.workers) * 1000).min(limits.cpu_millis) * u64::from(cpu.load) / 100
}

fn cpu_task(cpu: &Cpu, limits: &Limits) -> Task {
    let share = asked_millis(cpu, limits) * 1000 / u64::from(cpu.workers);
    Task::Cpu { workers: cpu.workers, share: share as u32 }
}

fn bytes(memory: &Memory, limits: &Limits) -> u64 {
    match memory.size {
        Size::Bytes(bytes) => bytes,
        Size::Percent(percent) => {
            let whole = u128::from(limits.memory.unwrap_or(limits.node.whole));
            (whole * u128::from(percent) / 100) as u64
        }
    }
}

/// Whether the process has ended, or is just about to.
fn has_ended(init: &OwnedFd) -> bool {
    let soon = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    matches!(poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&soon)), Ok(1..))
}
