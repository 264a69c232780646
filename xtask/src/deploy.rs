//! `cargo xtask deploy`: installs Squall from this tree, and removes it.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask deploy`.
#[derive(clap::Args)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
    /// Take the images from this registry (and path).
    #[arg(long)]
    pub registry: Option<String>,
}

/// Does it.
pub fn run(_args: Args) -> Result<()> {
    bail!("`cargo xtask deploy` is not there yet")
}

/// Arguments of `cargo xtask undeploy`.
#[derive(clap::Args)]
pub struct UndeployArgs {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
}

/// Removes Squall.
pub fn undeploy(_args: UndeployArgs) -> Result<()> {
    bail!("`cargo xtask undeploy` is not there yet")
}
