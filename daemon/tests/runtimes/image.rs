//! An image with nothing but busybox, as the archive that both `ctr images import` and `docker load` take.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

/// Its name.
pub const NAME: &str = "localhost/squall-test:dev";

/// Writes it.
pub fn write(path: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(fs::read).into_iter().find_map(Result::ok);
    let layer = tar(&[("busybox", 0o755, busybox.expect("a static busybox"))]);
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": ["/busybox", "sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    let archive = tar(&[
        ("config.json", 0o644, config.to_string().into_bytes()),
        ("layer.tar", 0o644, layer),
        ("manifest.json", 0o644, manifest.to_string().into_bytes()),
    ]);
    fs::write(path, archive).expect("writing the image");
}

fn tar(files: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_slice()).expect("archiving");
    }
    archive.into_inner().expect("an archive")
}
