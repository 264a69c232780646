//! `cargo xtask bench`: the figures, on the local cluster. What is measured, and how, is in `squall-tests`; what eBPF costs
//! is measured without a cluster, by the daemon's kernel tests.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{build, deploy, images, kubectl::Kubectl, kwok::Kwok, sh};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these; unset: all.
    #[arg(value_enum)]
    only: Option<Only>,
    /// Fail only when a figure is above so many times its limit; CI gives 2, since it shares its machine.
    #[arg(long, default_value_t = 1.0)]
    slack: f64,
    /// How often the small cases are measured; the large ones half as often.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
}

/// A part of the figures.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Those of pod-kill, pod-failure, container-kill and the webhook.
    Pods,
    /// Those of stress.
    Stress,
    /// Those of a large cluster, whose other nodes and pods are kwok's; only when asked for.
    Scale,
    /// What the eBPF programs cost each system call and each fork, as ratios; without a cluster, and only when asked for.
    Ebpf,
}

/// Brings the cluster up, installs Squall, and measures.
pub fn run(args: Args) -> Result<()> {
    match args.only {
        Some(Only::Ebpf) => return ebpf(),
        Some(Only::Pods | Only::Stress | Only::Scale) | None => {}
    }
    // With the packages of the images, whose dependencies would be built anew for other features.
    let mut packages = images::packages();
    packages.push("squall-tests");
    let binaries = build::static_binaries(&packages, &["squall-webhook/bench"])?;
    let program = |name: &str| {
        binaries.get(name).map(Command::new).with_context(|| format!("there is no program {name}"))
    };
    // Before there is a cluster to disturb it.
    let handling = match args.only {
        Some(Only::Pods) | None => sh::run(program("bench-webhook")?.arg(args.slack.to_string())),
        Some(_) => Ok(()),
    };
    let kubectl = Kubectl::up(None)?;
    deploy::install(&kubectl, None)?;
    let measure = |name: &str| {
        let mut command = program(name)?;
        command.args(["--slack", &args.slack.to_string(), "--rounds", &args.rounds.to_string()]);
        kubectl.export(&mut command)?;
        sh::run(&mut command)
    };
    if args.only == Some(Only::Scale) {
        let cluster = kubectl.cluster().context("scale is measured on the local cluster")?;
        let _nodes = Kwok::start(&cluster.kubeconfig(), &cluster.state_dir().join("log"))?;
        return measure("bench_scale");
    }
    let stress = if args.only == Some(Only::Pods) { Ok(()) } else { measure("bench_stress") };
    if args.only == Some(Only::Stress) {
        return stress;
    }
    handling.and(stress).and(measure("bench"))
}

/// Statically built, as the daemon is; needs root.
fn ebpf() -> Result<()> {
    sh::run(Command::new(build::static_test("squall-daemon", "kernel")?).arg("--cost"))
}
