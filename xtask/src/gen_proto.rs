//! The Rust code of the gRPC contract, from `api/proto`. No `protoc` is needed: protox parses the files.

use std::path::Path;

use anyhow::{Context, Result};

/// Write the generated code of every proto file below `root/api/proto` into `out`.
pub fn generate(root: &Path, out: &Path) -> Result<()> {
    let include = root.join("api/proto");
    let file = include.join("squall/v1alpha1/node.proto");
    let descriptors =
        protox::compile([&file], [&include]).with_context(|| format!("parsing {}", file.display()))?;
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    tonic_prost_build::configure()
        .out_dir(out)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .context("generating the gRPC code")
}
