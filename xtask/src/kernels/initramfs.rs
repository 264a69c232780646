//! What the machine boots into: a static busybox, the test program, and a few lines of shell. In memory, no disk.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{cluster::prereq, sh};

/// Before the lines of the tests; what comes before it is the kernel's.
pub const BEGIN: &str = "squall: the tests begin";
/// Behind the last of them, with how the program ended.
pub const END: &str = "squall: the tests ended with";

/// What the first process does. The daemon gets what its pod has: a cgroup of its own, a private namespace of it, and
/// the host's tree at the usual place. (The test program makes the namespace itself: busybox can't.)
const INIT: &str = r#"#!/bin/busybox sh
set -e
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
ip link set lo up
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo +$controller > /sys/fs/cgroup/cgroup.subtree_control || true
done
daemon=/sys/fs/cgroup/kubepods/pod0/daemon
mkdir -p $daemon
echo 1 > /proc/sys/kernel/panic
ulimit -n 65536
set +e
echo "BEGIN"
SQUALL_TEST_SLACK=SLACK SQUALL_TEST_DUTY=private-cgroup-namespace SQUALL_TEST_CGROUPS=$daemon/cgroup.procs \
    /bin/kernel-tests FILTER
echo "END $?"
poweroff -f
"#;

/// Writes the archive, and says where it is.
pub fn write(directory: &Path, tests: &Path, slack: u32, filter: Option<&str>) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    let path = directory.join("initramfs.cpio");
    let busybox = prereq::busybox().context("there is no static busybox")?;
    let applets = sh::output(&mut sh::command(&busybox, ["--list"]))?;
    let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), next: 1 };
    for directory in ["bin", "dev", "proc", "run", "sys", "tmp"] {
        archive.add(directory, DIRECTORY | 0o755, &[])?;
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("can't read {}", path.display()));
    archive.add("bin/busybox", REGULAR | 0o755, &read(&busybox)?)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        archive.add(&format!("bin/{applet}"), LINK | 0o777, b"busybox")?;
    }
    archive.add("bin/kernel-tests", REGULAR | 0o755, &read(tests)?)?;
    let filter = filter.map(|filter| format!("'{}'", filter.replace('\'', r"'\''"))).unwrap_or_default();
    let init = INIT
        .replace("SLACK=SLACK", &format!("SLACK={slack}"))
        .replace("BEGIN", BEGIN)
        .replace("END", END)
        .replace("FILTER", &filter);
    archive.add("init", REGULAR | 0o755, init.as_bytes())?;
    archive.finish().with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The kernel's own archive format ("newc"): headers of hexadecimal numbers, everything aligned to four bytes.
struct Archive<W> {
    out: W,
    next: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut header = String::from("070701");
        // inode, mode, owner, group, links, time, size, four device numbers, length of the name, checksum
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        for field in [self.next, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            write!(header, "{field:08x}").map_err(io::Error::other)?;
        }
        self.next += 1;
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }

    fn finish(mut self) -> io::Result<()> {
        self.add("TRAILER!!!", 0, &[])?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_format_says() {
        let mut bytes = Vec::new();
        let mut archive = Archive { out: &mut bytes, next: 1 };
        archive.add("init", REGULAR | 0o755, b"hello").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701\u{30}0000001000081ed"), "{text}");
        // 110 bytes of header and five of the name, up to the next multiple of four.
        assert_eq!(&bytes[116..121], b"hello");
        assert!(text.contains("TRAILER!!!"), "{text}");
    }
}
