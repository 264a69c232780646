//! `cargo xtask demo`: the three faults on real pods, with a timeline.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask demo` is not there yet")
}
