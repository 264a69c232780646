//! One emulated machine: boots, runs, powers itself off. Its only device is a serial port, which is our log.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{cluster::prereq, sh};

/// Boots `kernel`, and gives back what the machine wrote, which is in `log` too; and, if it did not come to its own end,
/// why.
pub fn run(kernel: &Path, initramfs: &Path, log: &Path, limit: Duration) -> Result<(String, Option<String>)> {
    let output = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let mut command = Command::new(prereq::emulator().context("there is no QEMU")?);
    command
        // Two processors, since races between them are what half of the tests are about; emulated in turns, because of two
        // threads one now and then still runs the breakpoint under which the other has just patched the kernel (6.12 died
        // of it). Without CX16, because QEMU 7.2 leaves garbage in the flags behind `cmpxchg16b`.
        .args(["-accel", "tcg,thread=single", "-cpu", "max,-cx16", "-smp", "2", "-m", "768", "-nodefaults"])
        .args(["-no-reboot"])
        // The kernel says nothing but its last words: its lines would come into the middle of the tests' own.
        .args(["-display", "none", "-serial", "stdio", "-append", "console=ttyS0 loglevel=1 panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("can't write the log")?)
        .stderr(output);
    let child = command.spawn().with_context(|| format!("can't start {}", sh::show(&command)))?;
    let ended = wait(Machine(child), limit);
    let text = fs::read(log).with_context(|| format!("can't read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    let cut = if !ended? {
        Some(format!("not done within {} s; the last it said:\n{}", limit.as_secs(), tail(&text)))
    } else if !text.contains(super::initramfs::END) {
        Some(format!("the machine ended before its tests did; the last it said:\n{}", tail(&text)))
    } else {
        None
    };
    Ok((text, cut))
}

/// Ours to end, whatever happens.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Ended already, most of the time.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether it ended in time.
fn wait(mut machine: Machine, limit: Duration) -> Result<bool> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = machine.0.try_wait().context("can't wait for QEMU")? {
            if !status.success() {
                bail!("QEMU ended with {status}");
            }
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
