//! `cargo xtask test`: every test, on the real kernel and the real cluster.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask test` is not there yet")
}
