//! StressChaosSpec as written → [`Spec`].

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use squall_api::podchaos::Mode;
use squall_api::stresschaos::{
    self, CpuStressor, IoStressor, MemoryStressor, PidsStressor, StressChaosSpec, Stressors,
};

use super::{common::Common, keep};
use crate::error::FieldError;
use crate::experiment::{ExperimentSpec, Kind};
use crate::spec::{Action, Spec};
use crate::stress::{Cpu, Io, IoLimit, Memory, Size, Squeeze, Stress};
use crate::time::parse_duration;

/// More workers of one kind than this are a mistake.
const MAX_WORKERS: i32 = 1024;
/// More idle processes than this are a mistake.
const MAX_PIDS: i32 = 100_000;
/// As many tasks as a kernel has.
const MOST_PIDS: i64 = 4_194_304;
/// More than ten times its limit no container needs to be asked for.
const MAX_PERCENT: u32 = 1000;
/// The largest size: what fits into a signed number of the API.
const MAX_BYTES: u64 = i64::MAX.unsigned_abs();

const SIZE: &str = "write bytes, such as \"256MB\" or \"1Gi\", above zero";
const SIZE_OR_SHARE: &str = "write bytes, such as \"256MB\" or \"1Gi\", or a share of the container's limit, such as \"50%\", above zero";
const NOTHING: &str = "name at least one of stressors.cpu, stressors.memory, stressors.io, stressors.pids, \
                       squeeze.cpu, squeeze.memory, squeeze.pids and squeeze.io";

impl ExperimentSpec for StressChaosSpec {
    const KIND: Kind = Kind::StressChaos;

    fn parse(&self, namespace: &str) -> Result<Spec, Vec<FieldError>> {
        parse(self, namespace)
    }

    fn fill_in(&mut self) {
        if let Some(Stressors { cpu: Some(cpu), .. }) = &mut self.stressors {
            cpu.load.get_or_insert(100);
        }
    }

    fn action_word(&self) -> &'static str {
        "stress"
    }

    fn mode(&self) -> (Mode, Option<&str>) {
        (self.mode, self.value.as_deref())
    }

    fn differs_freely(&self, old: &Self) -> bool {
        let mut same = old.clone();
        same.duration.clone_from(&self.duration);
        same.on_halt = self.on_halt;
        same == *self
    }

    fn ignored(&self) -> Vec<String> {
        let Some(Stressors { cpu, memory, io: _, pids: _ }) = &self.stressors else { return Vec::new() };
        let cpu = cpu.as_ref().is_some_and(|cpu| !cpu.options.is_empty());
        let memory = memory.as_ref().is_some_and(|memory| !memory.options.is_empty());
        [(cpu, "spec.stressors.cpu.options"), (memory, "spec.stressors.memory.options")]
            .into_iter()
            .filter(|(set, _)| *set)
            .map(|(_, field)| {
                format!("{field} is ignored: Squall has stressors of its own, stress-ng is not used")
            })
            .collect()
    }
}

fn parse(spec: &StressChaosSpec, namespace: &str) -> Result<Spec, Vec<FieldError>> {
    // No `..`: a field that is added must be dealt with here.
    let StressChaosSpec {
        mode,
        value,
        selector,
        container_names,
        duration,
        stressors,
        squeeze,
        allow_oom,
        on_oom,
        seed,
        dry_run,
        steady_state,
        on_halt,
        stressng_stressors,
        remote_cluster,
    } = spec;
    let mut errors = Vec::new();

    if let Some(words) = stressng_stressors.as_ref().filter(|words| !words.is_empty()) {
        let allowed = "stressngStressors is not supported: use stressors or squeeze instead";
        errors.push(FieldError::new("spec.stressngStressors", words, allowed));
    }
    let Stressors { cpu, memory, io, pids } = stressors.clone().unwrap_or_default();
    for (set, field) in [(*allow_oom == Some(true), "allowOOM"), (on_oom.is_some(), "onOOM")] {
        if set && memory.is_none() {
            let allowed = format!("{field} belongs to stressors.memory only: remove it");
            errors.push(FieldError::new(format!("spec.{field}"), "set", allowed));
        }
    }
    let allow_oom = allow_oom.unwrap_or(false);
    let nothing = cpu.is_none() && memory.is_none() && io.is_none() && pids.is_none();
    let stress = Stress {
        cpu: cpu.and_then(|cpu| parse_cpu(&cpu, &mut errors)),
        memory: memory.and_then(|memory| parse_memory(&memory, allow_oom, &mut errors)),
        io: io.and_then(|io| parse_io(&io, &mut errors)),
        pids: pids.and_then(|PidsStressor { count }| {
            keep(within("spec.stressors.pids.count", count, MAX_PIDS), &mut errors)
        }),
        squeeze: squeeze.as_ref().map(|squeeze| parse_squeeze(squeeze, &mut errors)).unwrap_or_default(),
        allow_oom,
        on_oom: on_oom.unwrap_or_default(),
    };
    if nothing && stress.squeeze.is_empty() && errors.is_empty() {
        errors.push(FieldError::new("spec", "nothing", NOTHING));
    }
    let common = Common {
        mode: *mode,
        value: value.as_ref(),
        selector,
        container_names,
        duration: duration.as_ref(),
        seed: *seed,
        dry_run: *dry_run,
        steady_state,
        on_halt: *on_halt,
        remote_cluster: remote_cluster.as_ref(),
    };
    common.parse(namespace, Some(Action::Stress(Box::new(stress))), errors)
}

fn parse_cpu(cpu: &CpuStressor, errors: &mut Vec<FieldError>) -> Option<Cpu> {
    let CpuStressor { workers, load, options: _ } = cpu;
    let workers = keep(within("spec.stressors.cpu.workers", *workers, MAX_WORKERS), errors);
    let load = keep(within("spec.stressors.cpu.load", load.unwrap_or(100), 100), errors);
    Some(Cpu { workers: workers?, load: load? })
}

fn parse_memory(memory: &MemoryStressor, allow_oom: bool, errors: &mut Vec<FieldError>) -> Option<Memory> {
    let MemoryStressor { workers, size, ramp, oom_score_adj, options: _ } = memory;
    let workers = keep(within("spec.stressors.memory.workers", *workers, MAX_WORKERS), errors);
    let field = "spec.stressors.memory.size";
    let parsed = match size.trim().strip_suffix('%') {
        None => parse_bytes(field, size, SIZE_OR_SHARE).map(Size::Bytes),
        Some(share) => decimal(share.trim(), 1)
            .filter(|_| !share.contains('.'))
            .and_then(|share| u32::try_from(share).ok())
            .filter(|share| (1..=MAX_PERCENT).contains(share))
            .map(Size::Percent)
            .ok_or_else(|| FieldError::new(field, size, SIZE_OR_SHARE)),
    };
    let size = keep(
        parsed.and_then(|parsed| match parsed {
            Size::Percent(101..) if !allow_oom => {
                Err(FieldError::new(field, size, "more than the container's limit needs allowOOM: true"))
            }
            Size::Percent(_) | Size::Bytes(_) => Ok(parsed),
        }),
        errors,
    );
    let ramp = match ramp {
        None => Some(None),
        Some(text) => keep(parse_duration("spec.stressors.memory.ramp", text), errors).map(Some),
    };
    let oom_score_adj = match oom_score_adj {
        Some(adj) if !(-1000..=1000).contains(adj) => {
            let field = "spec.stressors.memory.oomScoreAdj";
            errors.push(FieldError::new(field, adj, "write a number, -1000 to 1000"));
            None
        }
        adj => *adj,
    };
    Some(Memory { workers: workers?, size: size?, ramp: ramp?, oom_score_adj })
}

fn parse_io(io: &IoStressor, errors: &mut Vec<FieldError>) -> Option<Io> {
    let IoStressor { workers, size, path } = io;
    let workers = keep(within("spec.stressors.io.workers", *workers, MAX_WORKERS), errors);
    let bytes = keep(parse_bytes("spec.stressors.io.size", size, SIZE), errors);
    let fits = path.starts_with('/') && path.len() <= 4096 && !path.contains('\0');
    if !fits {
        let allowed = "write an absolute path of a directory inside the container, such as \"/data\"";
        errors.push(FieldError::new("spec.stressors.io.path", path, allowed));
    }
    Some(Io { workers: workers?, bytes: bytes?, path: path.clone() })
}

fn parse_squeeze(squeeze: &stresschaos::Squeeze, errors: &mut Vec<FieldError>) -> Squeeze {
    let stresschaos::Squeeze { cpu, memory, memory_hard, pids, io } = squeeze;
    let cpu_millis = cpu.as_ref().and_then(|cpu| keep(parse_millis("spec.squeeze.cpu", cpu), errors));
    if *memory_hard == Some(true) && memory.is_none() {
        let allowed = "memoryHard belongs to squeeze.memory only: remove it";
        errors.push(FieldError::new("spec.squeeze.memoryHard", "true", allowed));
    }
    let memory = memory.as_ref().and_then(|memory| keep(parse_number("spec.squeeze.memory", memory), errors));
    let pids = match pids {
        Some(pids) if !(1..=MOST_PIDS).contains(pids) => {
            errors.push(FieldError::new(
                "spec.squeeze.pids",
                pids,
                format!("write a number, 1 to {MOST_PIDS}"),
            ));
            None
        }
        pids => pids.map(i64::unsigned_abs),
    };
    let io = io.as_ref().and_then(|io| parse_io_limit(io, errors));
    Squeeze { cpu_millis, memory, memory_hard: memory_hard.unwrap_or(false), pids, io }
}

fn parse_io_limit(io: &stresschaos::IoLimit, errors: &mut Vec<FieldError>) -> Option<IoLimit> {
    let stresschaos::IoLimit { device, read_bps, write_bps, read_iops, write_iops } = io;
    let before = errors.len();
    let number = |text: &str| text.parse::<u32>().is_ok() && text.bytes().all(|byte| byte.is_ascii_digit());
    let named = device.len() > 1 && device.starts_with('/') && !device.contains('\0');
    if !named && !device.split_once(':').is_some_and(|(major, minor)| number(major) && number(minor)) {
        let allowed = "write an absolute path on the node, such as \"/dev/sda\", or MAJOR:MINOR";
        errors.push(FieldError::new("spec.squeeze.io.device", device, allowed));
    }
    let mut bps = |field: &str, value: &Option<IntOrString>| {
        value
            .as_ref()
            .and_then(|value| keep(parse_number(&format!("spec.squeeze.io.{field}"), value), errors))
    };
    let (read_bps, write_bps) = (bps("readBps", read_bps), bps("writeBps", write_bps));
    let mut iops = |field: &str, value: Option<i64>| match value {
        Some(value) if value < 1 => {
            let field = format!("spec.squeeze.io.{field}");
            errors.push(FieldError::new(field, value, "write a number, at least 1"));
            None
        }
        value => value.map(i64::unsigned_abs),
    };
    let (read_iops, write_iops) = (iops("readIops", *read_iops), iops("writeIops", *write_iops));
    let limit = IoLimit { device: device.clone(), read_bps, write_bps, read_iops, write_iops };
    let any = [limit.read_bps, limit.write_bps, limit.read_iops, limit.write_iops];
    if errors.len() == before && any.iter().all(Option::is_none) {
        let allowed = "name at least one of readBps, writeBps, readIops and writeIops";
        errors.push(FieldError::new("spec.squeeze.io", device, allowed));
    }
    (errors.len() == before).then_some(limit)
}

/// A whole number of 1 to `most`.
fn within(field: &str, found: i32, most: i32) -> Result<u32, FieldError> {
    u32::try_from(found)
        .ok()
        .filter(|_| (1..=most).contains(&found))
        .ok_or_else(|| FieldError::new(field, found, format!("write a whole number, 1 to {most}")))
}

/// Bytes as a number or as text.
fn parse_number(field: &str, value: &IntOrString) -> Result<u64, FieldError> {
    match value {
        IntOrString::Int(number) => u64::try_from(*number)
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| FieldError::new(field, number, SIZE)),
        IntOrString::String(text) => parse_bytes(field, text, SIZE),
    }
}

/// Thousandths of a CPU, as Kubernetes writes them: `200m`, `1`, `0.5`.
fn parse_millis(field: &str, value: &IntOrString) -> Result<u32, FieldError> {
    let text = match value {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    };
    let millis = match text.strip_suffix('m') {
        Some(millis) => decimal(millis, 1),
        None => decimal(&text, 1000),
    };
    millis
        .filter(|millis| *millis > 0)
        .and_then(|millis| u32::try_from(millis).ok())
        .filter(|millis| *millis <= 1_000_000)
        .ok_or_else(|| FieldError::new(field, &text, "write CPUs above zero, such as \"200m\" or \"1\""))
}

/// Bytes as people write them: Kubernetes' suffixes (`Ki`, `Mi`, …, `k`, `M`, …) and those with a `B` (`MB`, `MiB`).
fn parse_bytes(field: &str, text: &str, allowed: &str) -> Result<u64, FieldError> {
    const UNITS: [(&str, u64); 17] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let trimmed = text.trim();
    let (number, unit) = UNITS
        .into_iter()
        .find_map(|(suffix, unit)| trimmed.strip_suffix(suffix).map(|number| (number, unit)))
        .or_else(|| trimmed.strip_suffix('B').map(|number| (number, 1)))
        .unwrap_or((trimmed, 1));
    decimal(number.trim_end(), unit)
        .filter(|bytes| (1..=MAX_BYTES).contains(bytes))
        .ok_or_else(|| FieldError::new(field, text, allowed))
}

/// A decimal number without sign or exponent, times `unit`, without the fraction of the result.
fn decimal(text: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits =
        |text: &str| !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let number = whole.parse::<u128>().ok()? * scale + fraction.parse::<u128>().ok()?;
    u64::try_from(number * u128::from(unit) / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let bytes = |text| parse_bytes("f", text, SIZE).ok();
        assert_eq!(bytes("256MB"), Some(256_000_000));
        assert_eq!(bytes("64Mi"), Some(64 << 20));
        assert_eq!(bytes("1.5 GiB"), Some(3 << 29));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("4096B"), Some(4096));
        assert_eq!(bytes("2k"), Some(2000));
        for bad in [
            "",
            "0",
            "-1",
            "1e3",
            "MB",
            "1.MB",
            ".5M",
            "1X",
            "99999999999999999999",
            "9999999T",
            "1 2",
            "0.1",
        ] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        let millis = |text: &str| parse_millis("f", &IntOrString::String(text.to_owned())).ok();
        assert_eq!((millis("200m"), millis("1"), millis("0.5")), (Some(200), Some(1000), Some(500)));
        for bad in ["0", "0m", "-1", "m", "1001000m", "1k", ""] {
            assert_eq!(millis(bad), None, "{bad}");
        }
        assert_eq!(parse_millis("f", &IntOrString::Int(2)).ok(), Some(2000));
    }
}
