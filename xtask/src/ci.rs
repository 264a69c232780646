//! `cargo xtask ci`: what a commit has to pass.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Args {
    /// Everything, the cluster tests and the figures too.
    #[arg(long)]
    pub full: bool,
}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask ci` is not there yet")
}
