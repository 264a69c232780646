//! A squeeze in terms of the node's cgroup files: which values to lower, and to what.
//!
//! Refuses what this node has no file for, by the field that asks for it. Changes nothing.

use std::{fs, path::Path};

use crate::{
    cgroup::{Place, Target},
    lasting::LastingError,
    order::stress::{Device, IoLimit, Squeeze},
    report::Reason,
    setting::{Setting, Value, Wanted, whole_pages},
};

/// The kernel takes no shorter quota.
const LEAST_QUOTA: u64 = 1000;
/// Where block devices are listed by name.
const BLOCK: &str = "/sys/class/block";

/// What to lower for `squeeze`.
pub fn wanted(target: &Target, squeeze: &Squeeze) -> Result<Vec<Wanted>, LastingError> {
    let Squeeze { cpu_millis, memory, memory_hard, pids, io } = squeeze;
    let mut wanted = Vec::new();
    if let Some(millis) = cpu_millis {
        wanted.push(cpu(&place(target, "cpu", "cpu.max", "squeeze.cpu")?, u64::from(*millis))?);
    }
    if let Some(bytes) = memory {
        let place = place(target, "memory", "memory.high", "squeeze.memory")?;
        let file = match (place.v2, memory_hard) {
            (true, _) => "memory.high",
            (false, true) => "memory.limit_in_bytes",
            (false, false) => {
                return Err(unsupported(
                    "squeeze.memory: this node has only version 1 of the memory controller, which has no soft \
                     limit that holds; squeeze.memoryHard: true lowers the hard limit instead",
                ));
            }
        };
        let setting = Setting::new(place.dir.join(file), Value::Number);
        wanted.push(Wanted { setting, limit: whole_pages(*bytes) });
    }
    if let Some(limit) = pids {
        let place = place(target, "pids", "pids.max", "squeeze.pids")?;
        wanted
            .push(Wanted { setting: Setting::new(place.dir.join("pids.max"), Value::Number), limit: *limit });
    }
    for limit in io {
        wanted.extend(self::io(&place(target, "blkio", "io.max", "squeeze.io")?, limit)?);
    }
    Ok(wanted)
}

fn place(target: &Target, controller: &str, file: &str, field: &str) -> Result<Place, LastingError> {
    target.place(controller, file).ok_or_else(|| {
        unsupported(format!("{field}: the container has no cgroup with the controller {controller}"))
    })
}

fn cpu(place: &Place, millis: u64) -> Result<Wanted, LastingError> {
    let (file, value) =
        if place.v2 { ("cpu.max", Value::CpuMax) } else { ("cpu.cfs_quota_us", Value::CfsQuota) };
    let file = place.dir.join(file);
    let text = if place.v2 {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.trim().split(' ').nth(1).unwrap_or_default().to_owned()
    } else {
        fs::read_to_string(place.dir.join("cpu.cfs_period_us")).unwrap_or_default()
    };
    let period: u64 = text.trim().parse().map_err(|_| {
        LastingError::because(Reason::Internal, format!("no period is told beside {}", file.display()))
    })?;
    let quota = millis * period / 1000;
    if quota < LEAST_QUOTA {
        let least = (LEAST_QUOTA * 1000).div_ceil(period);
        return Err(unsupported(format!("squeeze.cpu: {millis}m is less than {least}m, the kernel's least")));
    }
    Ok(Wanted { setting: Setting::new(file, value), limit: quota })
}

fn io(place: &Place, limit: &IoLimit) -> Result<Vec<Wanted>, LastingError> {
    let IoLimit { device, read_bps, write_bps, read_iops, write_iops } = limit;
    let device = number(Path::new(BLOCK), device)?;
    let values = [
        ("rbps", "blkio.throttle.read_bps_device", read_bps),
        ("wbps", "blkio.throttle.write_bps_device", write_bps),
        ("riops", "blkio.throttle.read_iops_device", read_iops),
        ("wiops", "blkio.throttle.write_iops_device", write_iops),
    ];
    let wanted = values.into_iter().filter_map(|(key, v1, limit)| {
        let device = device.clone();
        let setting = if place.v2 {
            Setting::new(place.dir.join("io.max"), Value::IoMax { device, key: key.to_owned() })
        } else {
            Setting::new(place.dir.join(v1), Value::Throttle { device })
        };
        Some(Wanted { setting, limit: (*limit)? })
    });
    Ok(wanted.collect())
}

/// A device's numbers. Its name is looked up where the kernel lists all of them: the node's `/dev` is not ours.
fn number(block: &Path, device: &Device) -> Result<String, LastingError> {
    let path = match device {
        Device::Number(major, minor) => return Ok(format!("{major}:{minor}")),
        Device::Path(path) => path,
    };
    let name = path.strip_prefix("/dev/").filter(|name| !name.contains('/') && !name.starts_with('.'));
    let text = name.and_then(|name| fs::read_to_string(block.join(name).join("dev")).ok());
    text.map(|text| text.trim().to_owned()).ok_or_else(|| {
        unsupported(format!(
            "squeeze.io.device: {path} is no block device of this node by that name; /dev/NAME and MAJOR:MINOR are \
             known"
        ))
    })
}

fn unsupported(message: impl Into<String>) -> LastingError {
    LastingError::because(Reason::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_name_and_by_number() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sda")).unwrap();
        fs::write(dir.path().join("sda/dev"), "8:0\n").unwrap();
        let of = |device| number(dir.path(), &device);
        assert_eq!(of(Device::Path("/dev/sda".into())).unwrap(), "8:0");
        assert_eq!(of(Device::Number(9, 1)).unwrap(), "9:1");
        for path in ["/dev/sdb", "/sda", "/dev/../sda", "/dev/"] {
            assert!(of(Device::Path(path.into())).is_err(), "{path}");
        }
    }
}
