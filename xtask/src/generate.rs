//! `cargo xtask gen`: writes what is generated and checked in.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask gen`.
#[derive(clap::Args)]
pub struct Args {
    /// Only compare, and fail when something is out of date.
    #[arg(long)]
    pub check: bool,
}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask gen` is not there yet")
}
