//! `cargo xtask`: every chore of the project. This file only wires; each command is a module of its own.

mod bench;
mod build;
mod ci;
mod cluster;
mod debian;
mod demo;
mod deploy;
mod gen_ebpf;
mod gen_proto;
mod generate;
mod image;
mod images;
mod kernels;
mod kubectl;
mod kwok;
mod progress;
mod prometheus;
mod sh;
mod test;
mod undeploy;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Squall's chores: a local cluster, images, code generation, demo, tests, figures.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up a real cluster, install Squall, and run each fault on real pods, with a timeline.
    Demo(demo::Args),
    /// Run every test: units, the real kernel, the real cluster.
    Test(test::Args),
    /// What a commit has to pass.
    Ci(ci::Args),
    /// Write what is generated and checked in: CRDs, gRPC code, the eBPF object.
    Gen(generate::Args),
    /// Measure the figures on the local cluster: median, p90, n.
    Bench(bench::Args),
    /// Run the daemon's kernel tests on other kernels, in QEMU.
    Kernels(kernels::Args),
    /// The local one-node Kubernetes.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Build the images without Docker, and load or push them.
    Images(images::Args),
    /// Install Squall from this tree.
    Deploy(deploy::Args),
    /// Remove Squall: recover everything, wait, remove, and say what was left.
    Undeploy(undeploy::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => test::run(args),
        Command::Ci(args) => ci::run(args),
        Command::Gen(args) => generate::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Kernels(args) => kernels::run(args),
        Command::Cluster(command) => cluster::run(command),
        Command::Images(args) => images::run(args),
        Command::Deploy(args) => deploy::run(args),
        Command::Undeploy(args) => undeploy::run(args),
    }
}
