//! An order for stress, parsed: hungry processes in a container's cgroup, and lower limits for it.
//!
//! Refuses what makes no sense whatever the container; what this container or this node can't do is found out later.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use squall_api::grpc::{self, MAX_TTL};

use super::{OrderError, wrong};

/// More workers of one kind than this are a mistake.
pub const MAX_WORKERS: u32 = 1024;
/// More tasks than any kernel has.
pub const MAX_PIDS: u32 = 4_194_304;

/// What a container is to suffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Stress {
    /// Workers that use CPU time.
    pub cpu: Option<Cpu>,
    /// Workers that hold memory.
    pub memory: Option<Memory>,
    /// Workers that write and read files.
    pub io: Option<Io>,
    /// So many tasks that do nothing.
    pub pids: Option<u32>,
    /// Lower limits.
    pub squeeze: Squeeze,
    /// A size above the container's own limit is meant.
    pub allow_oom: bool,
    /// What follows when the kernel ends a stressor for want of memory.
    pub on_oom: OnOom,
}

/// Workers that use CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// How many.
    pub workers: u32,
    /// Percent of one CPU for each, 1 to 100.
    pub load: u32,
}

/// Workers that hold memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How many.
    pub workers: u32,
    /// For all of them together.
    pub size: Size,
    /// From nothing to the whole size.
    pub ramp: Duration,
    /// How eagerly the kernel ends them for want of memory; unset: before all others.
    pub oom_score_adj: Option<i32>,
}

/// How much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// Percent of the container's limit, or of the node's memory where there is none.
    Percent(u32),
}

/// Workers that write and read files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Io {
    /// How many.
    pub workers: u32,
    /// What each writes and reads again and again.
    pub bytes: u64,
    /// A directory inside the container.
    pub path: String,
}

/// Lower limits; `None` and empty: not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Squeeze {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// The hard limit of memory, where there is no other.
    pub memory_hard: bool,
    /// Tasks.
    pub pids: Option<u64>,
    /// By device.
    pub io: Vec<IoLimit>,
}

impl Squeeze {
    fn is_empty(&self) -> bool {
        let Self { cpu_millis, memory, memory_hard: _, pids, io } = self;
        cpu_millis.is_none() && memory.is_none() && pids.is_none() && io.is_empty()
    }
}

/// Limits for one device; `None`: not touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoLimit {
    /// Which.
    pub device: Device,
    /// Bytes read in a second.
    pub read_bps: Option<u64>,
    /// Bytes written in a second.
    pub write_bps: Option<u64>,
    /// Reads in a second.
    pub read_iops: Option<u64>,
    /// Writes in a second.
    pub write_iops: Option<u64>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// By its path on the node.
    Path(String),
    /// By its numbers.
    Number(u32, u32),
}

/// What follows when the kernel ends a stressor for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOom {
    /// The fault ends.
    Stop,
    /// The stressor is started again.
    Restart,
}

pub(super) fn parse(
    field: &impl Fn(&str) -> String,
    stress: grpc::Stress,
) -> Result<Option<Stress>, OrderError> {
    let grpc::Stress { cpu, memory, io, pids, squeeze, allow_oom, on_oom } = stress;
    let cpu = cpu.map(|cpu| self::cpu(field, cpu)).transpose()?;
    let memory = memory.map(|memory| self::memory(field, memory)).transpose()?;
    let io = io.map(|io| self::io(field, io)).transpose()?;
    let pids = pids
        .map(|grpc::PidsStressor { count }| within(&field("stress.pids.count"), count, 1, MAX_PIDS))
        .transpose()?;
    let squeeze = self::squeeze(field, squeeze.unwrap_or_default())?;
    let on_oom = match grpc::OnOom::try_from(on_oom) {
        Ok(grpc::OnOom::Stop) => OnOom::Stop,
        Ok(grpc::OnOom::Restart) => OnOom::Restart,
        Err(_) => return Err(wrong(&field("stress.on_oom"), "is none that is known")),
    };
    // A newer controller may ask for a kind of stress that this daemon has no field for: to the daemon that is nothing.
    if cpu.is_none() && memory.is_none() && io.is_none() && pids.is_none() && squeeze.is_empty() {
        return Ok(None);
    }
    Ok(Some(Stress { cpu, memory, io, pids, squeeze, allow_oom, on_oom }))
}

fn within(field: &str, found: u32, least: u32, most: u32) -> Result<u32, OrderError> {
    if (least..=most).contains(&found) {
        Ok(found)
    } else {
        Err(wrong(field, &format!("is {found}, not {least} to {most}")))
    }
}

fn cpu(field: &impl Fn(&str) -> String, cpu: grpc::CpuStressor) -> Result<Cpu, OrderError> {
    let grpc::CpuStressor { workers, load } = cpu;
    Ok(Cpu {
        workers: within(&field("stress.cpu.workers"), workers, 1, MAX_WORKERS)?,
        load: within(&field("stress.cpu.load"), load, 1, 100)?,
    })
}

fn memory(field: &impl Fn(&str) -> String, memory: grpc::MemoryStressor) -> Result<Memory, OrderError> {
    let grpc::MemoryStressor { workers, ramp, oom_score_adj, size } = memory;
    use grpc::memory_stressor::Size as Wire;
    let size = match size {
        None => return Err(wrong(&field("stress.memory.size"), "is missing")),
        Some(Wire::Bytes(0)) => return Err(wrong(&field("stress.memory.bytes"), "is 0")),
        Some(Wire::Bytes(bytes)) => Size::Bytes(bytes),
        Some(Wire::Percent(percent)) => {
            // Above 100 runs out of memory on purpose.
            Size::Percent(within(&field("stress.memory.percent"), percent, 1, 1000)?)
        }
    };
    let ramp = match ramp {
        None => Duration::ZERO,
        Some(ramp) => Duration::try_from(ramp)
            .ok()
            .filter(|ramp| *ramp <= MAX_TTL)
            .ok_or_else(|| wrong(&field("stress.memory.ramp"), "is negative or longer than 31 days"))?,
    };
    if let Some(adj) = oom_score_adj
        && !(-1000..=1000).contains(&adj)
    {
        return Err(wrong(&field("stress.memory.oom_score_adj"), &format!("is {adj}, not -1000 to 1000")));
    }
    let workers = within(&field("stress.memory.workers"), workers, 1, MAX_WORKERS)?;
    Ok(Memory { workers, size, ramp, oom_score_adj })
}

fn io(field: &impl Fn(&str) -> String, io: grpc::IoStressor) -> Result<Io, OrderError> {
    let grpc::IoStressor { workers, bytes, path } = io;
    if bytes == 0 {
        return Err(wrong(&field("stress.io.bytes"), "is 0"));
    }
    if !path.starts_with('/') {
        return Err(wrong(&field("stress.io.path"), &format!("is {path:?}, not an absolute path")));
    }
    Ok(Io { workers: within(&field("stress.io.workers"), workers, 1, MAX_WORKERS)?, bytes, path })
}

fn squeeze(field: &impl Fn(&str) -> String, squeeze: grpc::Squeeze) -> Result<Squeeze, OrderError> {
    let grpc::Squeeze { cpu_millis, memory_bytes, memory_hard, pids, io } = squeeze;
    let io = io
        .into_iter()
        .enumerate()
        .map(|(index, limit)| io_limit(&field(&format!("stress.squeeze.io[{index}]")), limit))
        .collect::<Result<_, _>>()?;
    Ok(Squeeze {
        cpu_millis: (cpu_millis > 0).then_some(cpu_millis),
        memory: (memory_bytes > 0).then_some(memory_bytes),
        memory_hard,
        pids: (pids > 0).then_some(pids),
        io,
    })
}

fn io_limit(field: &str, limit: grpc::IoLimit) -> Result<IoLimit, OrderError> {
    let grpc::IoLimit { device, read_bps, write_bps, read_iops, write_iops } = limit;
    let device = match device.split_once(':') {
        _ if device.starts_with('/') => Some(Device::Path(device.clone())),
        Some((major, minor)) => major.parse().ok().zip(minor.parse().ok()).map(|(a, b)| Device::Number(a, b)),
        None => None,
    };
    let device = device
        .ok_or_else(|| wrong(&format!("{field}.device"), "is neither an absolute path nor MAJOR:MINOR"))?;
    let set = |value: u64| (value > 0).then_some(value);
    let limit = IoLimit {
        device,
        read_bps: set(read_bps),
        write_bps: set(write_bps),
        read_iops: set(read_iops),
        write_iops: set(write_iops),
    };
    if [limit.read_bps, limit.write_bps, limit.read_iops, limit.write_iops].iter().all(Option::is_none) {
        return Err(wrong(field, "limits nothing"));
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str) -> String {
        format!("f.{name}")
    }

    fn refused(stress: grpc::Stress) -> String {
        parse(&field, stress).unwrap_err().field
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cpu = |workers, load| grpc::Stress {
            cpu: Some(grpc::CpuStressor { workers, load }),
            ..grpc::Stress::default()
        };
        assert_eq!(refused(cpu(0, 50)), "f.stress.cpu.workers");
        assert_eq!(refused(cpu(MAX_WORKERS + 1, 50)), "f.stress.cpu.workers");
        assert_eq!(refused(cpu(1, 0)), "f.stress.cpu.load");
        assert_eq!(refused(cpu(1, 101)), "f.stress.cpu.load");
        let memory = |change: fn(&mut grpc::MemoryStressor)| {
            let mut memory = grpc::MemoryStressor {
                workers: 1,
                size: Some(grpc::memory_stressor::Size::Bytes(1)),
                ..grpc::MemoryStressor::default()
            };
            change(&mut memory);
            grpc::Stress { memory: Some(memory), ..grpc::Stress::default() }
        };
        use grpc::memory_stressor::Size as Wire;
        assert!(parse(&field, memory(|_| ())).is_ok());
        assert_eq!(refused(memory(|memory| memory.workers = 0)), "f.stress.memory.workers");
        assert_eq!(refused(memory(|memory| memory.size = None)), "f.stress.memory.size");
        assert_eq!(refused(memory(|memory| memory.size = Some(Wire::Bytes(0)))), "f.stress.memory.bytes");
        assert_eq!(refused(memory(|memory| memory.size = Some(Wire::Percent(0)))), "f.stress.memory.percent");
        assert_eq!(
            refused(memory(|memory| memory.oom_score_adj = Some(1001))),
            "f.stress.memory.oom_score_adj"
        );
        let io = |workers, bytes, path: &str| grpc::Stress {
            io: Some(grpc::IoStressor { workers, bytes, path: path.into() }),
            ..grpc::Stress::default()
        };
        assert_eq!(refused(io(0, 1, "/")), "f.stress.io.workers");
        assert_eq!(refused(io(1, 0, "/")), "f.stress.io.bytes");
        assert_eq!(refused(io(1, 1, "tmp")), "f.stress.io.path");
        let limit = |device: &str, read_bps| grpc::Stress {
            squeeze: Some(grpc::Squeeze {
                io: vec![grpc::IoLimit { device: device.into(), read_bps, ..grpc::IoLimit::default() }],
                ..grpc::Squeeze::default()
            }),
            ..grpc::Stress::default()
        };
        for device in ["", "sda", "8", "8:x", ":", "-1:0"] {
            assert_eq!(refused(limit(device, 1)), "f.stress.squeeze.io[0].device", "{device}");
        }
        assert_eq!(refused(limit("8:0", 0)), "f.stress.squeeze.io[0]");
        assert!(parse(&field, limit("/dev/sda", 1)).is_ok());
    }

    #[test]
    fn nothing_is_no_stress() {
        assert_eq!(parse(&field, grpc::Stress::default()), Ok(None));
    }
}
