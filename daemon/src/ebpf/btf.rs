//! Offsets of kernel structs, from the running kernel's BTF.
//!
//! Reads the types that it needs and nothing else. Refuses to fall back to offsets of another kernel.

use std::{fs, io, path::Path};

use squall_daemon_ebpf::Offsets;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What is wrong with the type information.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error("reading {VMLINUX}: {0}")]
    Read(#[source] io::Error),
    /// The file is no BTF.
    #[error("{VMLINUX} is malformed")]
    Malformed,
    /// A field that the programs need is not there.
    #[error("this kernel has no {structure}.{field}")]
    Missing {
        /// The struct.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// The offsets that the programs need.
pub fn offsets() -> Result<Offsets, BtfError> {
    let bytes = fs::read(Path::new(VMLINUX)).map_err(BtfError::Read)?;
    let btf = Btf::parse(&bytes).ok_or(BtfError::Malformed)?;
    let task = |field| btf.offset("task_struct", field);
    let signal = |field| btf.offset("signal_struct", field);
    Ok(Offsets {
        task_group_leader: task("group_leader")?,
        task_tgid: task("tgid")?,
        task_start_boottime: task("start_boottime").or_else(|_| task("real_start_time"))?,
        task_signal: task("signal")?,
        task_exit_code: task("exit_code")?,
        signal_live: signal("live")?,
        signal_group_exit_code: signal("group_exit_code")?,
        task_comm: task("comm")?,
        task_real_parent: task("real_parent")?,
        binprm_filename: btf.offset("linux_binprm", "filename")?,
    })
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

struct Btf<'a> {
    bytes: &'a [u8],
    strings: usize,
    /// Where each type starts; type 0 is void.
    types: Vec<u32>,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let header = word(4)?;
        let (type_start, type_len) = (header + word(8)?, word(12)?);
        let strings = header + word(16)?;
        let mut types = vec![0];
        let mut at = type_start;
        while at < type_start + type_len {
            types.push(u32::try_from(at).ok()?);
            let info = word(at + 4)?;
            let (kind, members) = ((info >> 24) & 0x1f, info & 0xffff);
            at += 12
                + match kind {
                    // integer, variable, declaration tag
                    1 | 14 | 17 => 4,
                    // array
                    3 => 12,
                    // struct, union, data section, 64-bit enum
                    4 | 5 | 15 | 19 => members * 12,
                    // enum, function prototype
                    6 | 13 => members * 8,
                    // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return None,
                };
        }
        Some(Self { bytes, strings, types })
    }

    fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
        let missing = BtfError::Missing { structure, field };
        let matches = |at: &&u32| {
            let at = **at as usize;
            self.kind(at) == Some(KIND_STRUCT) && self.name(at) == Some(structure.as_bytes())
        };
        // A name may belong to several structs: the right one has the field.
        self.types[1..]
            .iter()
            .filter(matches)
            .find_map(|at| self.member(*at as usize, field, 0))
            .ok_or(missing)
    }

    fn member(&self, at: usize, field: &str, depth: u32) -> Option<u32> {
        let info = self.word(at + 4)?;
        for index in 0..(info & 0xffff) as usize {
            let member = at + 12 + index * 12;
            let bits = self.word(member + 8)?;
            // With the kind flag the upper byte is the size of a bit field.
            let bytes = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits } / 8;
            let name = self.name(member)?;
            if name == field.as_bytes() {
                return Some(bytes);
            }
            // Fields of an anonymous struct (randomised layouts have one) belong to the outer one.
            if name.is_empty() && depth < 4 {
                let inner = *self.types.get(self.word(member + 4)? as usize)? as usize;
                if inner != 0
                    && matches!(self.kind(inner), Some(KIND_STRUCT | KIND_UNION))
                    && let Some(offset) = self.member(inner, field, depth + 1)
                {
                    return Some(bytes + offset);
                }
            }
        }
        None
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some((self.word(at + 4)? >> 24) & 0x1f)
    }

    fn name(&self, at: usize) -> Option<&[u8]> {
        let rest = self.bytes.get(self.strings + self.word(at)? as usize..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_offsets_are_found_and_plausible() {
        let offsets = offsets().unwrap();
        assert!(offsets.task_tgid > 0 && offsets.task_group_leader > offsets.task_tgid);
        assert!(offsets.signal_live > 0);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Btf::parse(b"").is_none());
        assert!(Btf::parse(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]).is_none());
    }
}
