//! `cargo xtask bench`: the figures, on the local cluster.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask bench` is not there yet")
}
