//! `cargo xtask kernels`: the daemon's kernel tests on other kernels, each in a virtual machine of its own.
//!
//! The machine is what most production nodes are: pure cgroup v2 with `nsdelegate`, the daemon in a private cgroup
//! namespace. QEMU emulates it, so neither KVM nor any right beyond reading files is needed, and what is measured here
//! is no speed. Nothing of this machine's kernel is used, and nothing of it is changed.

mod initramfs;
mod packages;
mod results;
mod vm;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, cluster::prereq, progress::Step};
use packages::{KERNELS, Release};
use results::Results;

/// The oldest on which everything has to pass. What older ones can't do is in the table, and the daemon tells it there.
const FLOOR: &str = "6.1";

/// How much slower an emulated machine may be than its tests expect of a real one.
const SLACK: u32 = 10;

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these kernels, by their series (`6.1`, `newest`) or by Debian's name of the release; as often as you like.
    #[arg(long = "kernel", value_name = "KERNEL", value_parser = packages::release)]
    kernels: Vec<Release>,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Machines at the same time; unset: one for each processor, at most four.
    #[arg(long)]
    jobs: Option<usize>,
    /// Give up on a kernel after so many minutes.
    #[arg(long, default_value_t = 9)]
    minutes: u64,
    /// Look for newer packages of the kernels instead of using those in the cache.
    #[arg(long)]
    refresh: bool,
    /// Debian's mirror; unset: the one that this machine's own apt uses.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

/// One kernel, ready to boot.
struct Kernel {
    release: Release,
    version: String,
    image: PathBuf,
}

/// Boots each, runs the tests in it, and prints the table.
pub fn run(args: Args) -> Result<()> {
    let Args { kernels, filter, jobs, minutes, refresh, mirror } = args;
    let began = Instant::now();
    prereq::ensure_emulator()?;
    let chosen = if kernels.is_empty() { KERNELS.to_vec() } else { kernels };
    let mut kernels = packages::fetch(&chosen, mirror.as_deref(), refresh)?;
    // The newest first: on what is older than the floor there is less to wait for, so it makes the shorter end.
    kernels.reverse();
    let tests = build::static_test("squall-daemon", "kernel")?;
    let directory = build::checkout()?.join("target/kernels");
    let initramfs = initramfs::write(&directory, &tests, SLACK, filter.as_deref())?;

    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from).min(4));
    let step = Step::begin(format!("booting {} kernels, {jobs} at a time", kernels.len()));
    let (queue, done) = (Mutex::new(VecDeque::from(kernels)), Mutex::new(Vec::new()));
    let limit = Duration::from_secs(60 * minutes);
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                // Nobody panics while holding it.
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(kernel) = next() {
                    let began = Instant::now();
                    let log = directory.join(format!("{}.log", kernel.release.suite));
                    let ran = vm::run(&kernel.image, &initramfs, &log, limit).map(|(text, cut)| {
                        if let Some(why) = cut {
                            eprintln!("{}: {why}", kernel.version);
                        }
                        Results::read(&text)
                    });
                    eprintln!(
                        "{}: {} s, log in {}",
                        kernel.version,
                        began.elapsed().as_secs(),
                        log.display()
                    );
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, ran));
                }
            });
        }
    });
    step.done();

    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(kernel, _)| KERNELS.iter().position(|known| *known == kernel.release));
    let releases: Vec<Release> = done.iter().map(|(kernel, _)| kernel.release).collect();
    let mut table = Vec::new();
    for (kernel, ran) in done {
        table.push((kernel.version.clone(), ran.with_context(|| format!("kernel {}", kernel.version))?));
    }
    println!("{}", results::table(&table));
    println!("{:.0} s in all", began.elapsed().as_secs_f64());
    let failed: Vec<_> = table
        .iter()
        .zip(&releases)
        .filter(|((_, results), release)| !results.passed() && counts(**release))
        .map(|((version, _), _)| version.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

/// Whether a failure on it is one of ours: it is not older than the floor.
fn counts(release: Release) -> bool {
    let place = |wanted: &dyn Fn(&Release) -> bool| KERNELS.iter().position(wanted);
    place(&|known| *known == release) >= place(&|known| known.series == FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_floor_is_shown_only() {
        let counting: Vec<_> =
            KERNELS.into_iter().filter(|release| counts(*release)).map(|release| release.series).collect();
        assert_eq!(counting, ["6.1", "6.12", "newest"]);
    }
}
