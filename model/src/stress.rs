//! What a StressChaos does to a container, parsed once. Values of these types exist only if they make sense.

use std::fmt;
use std::time::Duration;

pub use squall_api::stresschaos::OnOom;

use crate::time::format_duration;

/// What a container is to suffer; at least one part is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stress {
    /// Processes that compute.
    pub cpu: Option<Cpu>,
    /// Processes that hold memory.
    pub memory: Option<Memory>,
    /// Processes that write and read files.
    pub io: Option<Io>,
    /// So many processes that do nothing.
    pub pids: Option<u32>,
    /// Lower limits.
    pub squeeze: Squeeze,
    /// A size above the container's own limit is meant.
    pub allow_oom: bool,
    /// What follows when the kernel ends a stressor for want of memory.
    pub on_oom: OnOom,
}

/// Processes that compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// How many.
    pub workers: u32,
    /// Percent of one CPU for each, 1 to 100.
    pub load: u32,
}

/// Processes that hold memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How many.
    pub workers: u32,
    /// For all of them together.
    pub size: Size,
    /// From nothing to the whole size.
    pub ramp: Option<Duration>,
    /// How readily the kernel ends them.
    pub oom_score_adj: Option<i32>,
}

/// How much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// Percent of the container's limit; without one, of the node's memory.
    Percent(u32),
}

/// Processes that write and read files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Io {
    /// How many.
    pub workers: u32,
    /// What each writes and reads again and again.
    pub bytes: u64,
    /// A directory inside the container.
    pub path: String,
}

/// Lower limits; `None`: not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Squeeze {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// The hard limit of memory, where there is no other.
    pub memory_hard: bool,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// For one block device.
    pub io: Option<IoLimit>,
}

/// Limits for one block device; `None`: not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoLimit {
    /// An absolute path on the node, or `MAJOR:MINOR`.
    pub device: String,
    /// Bytes read in a second.
    pub read_bps: Option<u64>,
    /// Bytes written in a second.
    pub write_bps: Option<u64>,
    /// Reads in a second.
    pub read_iops: Option<u64>,
    /// Writes in a second.
    pub write_iops: Option<u64>,
}

impl Squeeze {
    /// Whether nothing is touched.
    pub fn is_empty(&self) -> bool {
        let Self { cpu_millis, memory, memory_hard: _, pids, io } = self;
        cpu_millis.is_none() && memory.is_none() && pids.is_none() && io.is_none()
    }
}

/// In short: `cpu 2x50%, memory 256Mi over 30s, squeeze cpu 200m`.
impl fmt::Display for Stress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, memory, io, pids, squeeze, allow_oom: _, on_oom: _ } = self;
        let mut parts = Vec::new();
        if let Some(Cpu { workers, load }) = cpu {
            parts.push(format!("cpu {workers}x{load}%"));
        }
        if let Some(Memory { workers: _, size, ramp, oom_score_adj: _ }) = memory {
            let size = match size {
                Size::Bytes(size) => bytes(*size),
                Size::Percent(share) => format!("{share}%"),
            };
            let ramp = ramp.map(|ramp| format!(" over {}", format_duration(ramp))).unwrap_or_default();
            parts.push(format!("memory {size}{ramp}"));
        }
        if let Some(Io { workers, bytes: size, path }) = io {
            parts.push(format!("io {workers}x{} in {path}", bytes(*size)));
        }
        if let Some(count) = pids {
            parts.push(format!("pids {count}"));
        }
        let Squeeze { cpu_millis, memory, memory_hard, pids, io } = squeeze;
        if let Some(millis) = cpu_millis {
            parts.push(format!("squeeze cpu {millis}m"));
        }
        if let Some(limit) = memory {
            let hard = if *memory_hard { " hard" } else { "" };
            parts.push(format!("squeeze memory {}{hard}", bytes(*limit)));
        }
        if let Some(limit) = pids {
            parts.push(format!("squeeze pids {limit}"));
        }
        if let Some(IoLimit { device, .. }) = io {
            parts.push(format!("squeeze io {device}"));
        }
        f.write_str(&parts.join(", "))
    }
}

/// Bytes in the largest unit that needs no fraction, or with one digit after the point.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size {
            let (whole, rest) = (bytes / size, bytes % size);
            let tenth = rest * 10 / size;
            return if tenth == 0 { format!("{whole}{unit}") } else { format!("{whole}.{tenth}{unit}") };
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_in_short() {
        let stress = Stress {
            cpu: Some(Cpu { workers: 2, load: 50 }),
            memory: Some(Memory {
                workers: 1,
                size: Size::Bytes(256_000_000),
                ramp: Some(Duration::from_secs(30)),
                oom_score_adj: None,
            }),
            pids: Some(3),
            squeeze: Squeeze { cpu_millis: Some(200), memory: Some(64 << 20), ..Squeeze::default() },
            ..Stress::default()
        };
        assert_eq!(
            stress.to_string(),
            "cpu 2x50%, memory 244.1Mi over 30s, pids 3, squeeze cpu 200m, squeeze memory 64Mi"
        );
    }
}
