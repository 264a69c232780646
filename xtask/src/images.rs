//! `cargo xtask images`: the images, built without Docker.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask images`.
#[derive(clap::Args)]
pub struct Args {
    /// Push to this registry (and path) instead of loading.
    #[arg(long, conflicts_with = "load")]
    pub push: Option<String>,
    /// Load into a cluster of this kind.
    #[arg(long, value_enum, default_value = "local")]
    pub load: Kind,
}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask images` is not there yet")
}

/// Where images are loaded.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// The local cluster of `cargo xtask cluster`.
    Local,
    /// A kind cluster.
    Kind,
    /// A k3d cluster.
    K3d,
}
