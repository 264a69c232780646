//! `cargo xtask kernels`: the daemon on other kernels, in QEMU.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub struct Args {}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask kernels` is not there yet")
}
