//! Images without Docker: a docker archive of one layer, the same bytes for the same input.
//!
//! No base image, no network, no registry: what is not given here is not in the image.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// What stands at a path in the image.
pub enum Content {
    /// A file with its mode.
    File(Vec<u8>, u32),
    /// A symbolic link and where it leads.
    Link(String),
    /// A directory with its mode; those above a file need not be named.
    Directory(u32),
}

/// How a container of the image starts.
#[derive(Default)]
pub struct Config {
    /// The program and the arguments that are always there.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the command when there is no entry point.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// User, `uid:gid`; empty means root.
    pub user: String,
}

/// The files of an image by their paths, without a leading slash.
pub type Files = BTreeMap<String, Content>;

/// A docker archive of an image of that name (`localhost/x:tag`), for this machine's architecture.
pub fn archive(name: &str, files: &Files, config: &Config) -> Result<Vec<u8>> {
    let layer = layer(files).with_context(|| format!("can't write the layer of {name}"))?;
    let mut start = serde_json::Map::new();
    let lists = [("Entrypoint", &config.entrypoint), ("Cmd", &config.cmd), ("Env", &config.env)];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        start.insert(key.to_owned(), json!(list));
    }
    if !config.user.is_empty() {
        start.insert("User".to_owned(), json!(config.user));
    }
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": start,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex_digest(&layer))]},
    }))?;
    let config_path = format!("{}.json", hex_digest(&config));
    let layer_path = format!("{}/layer.tar", hex_digest(&layer));
    let manifest = json!([{"Config": config_path, "RepoTags": [name], "Layers": [layer_path]}]);
    let parts = BTreeMap::from([
        ("manifest.json".to_owned(), Content::File(serde_json::to_vec(&manifest)?, 0o644)),
        (config_path, Content::File(config, 0o644)),
        (layer_path, Content::File(layer, 0o644)),
    ]);
    self::layer(&parts).with_context(|| format!("can't write the archive of {name}"))
}

/// SHA-256 in lower-case hexadecimal.
pub fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer(files: &Files) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut directories = BTreeSet::new();
    for (path, content) in files {
        for (slash, _) in path.match_indices('/') {
            let above = &path[..slash];
            if !files.contains_key(above) && directories.insert(above) {
                append(&mut tar, above, &Content::Directory(0o755))?;
            }
        }
        append(&mut tar, path, content)?;
    }
    tar.into_inner()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &Content) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    match content {
        Content::File(data, mode) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(*mode);
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, path, data.as_slice())
        }
        Content::Link(to) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, to)
        }
        Content::Directory(mode) => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            tar.append_data(&mut header, format!("{path}/"), std::io::empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn example() -> Vec<u8> {
        let files = Files::from([
            ("tmp".to_owned(), Content::Directory(0o1777)),
            ("bin/tool".to_owned(), Content::File(b"program".to_vec(), 0o755)),
            ("bin/alias".to_owned(), Content::Link("tool".to_owned())),
        ]);
        let config = Config { entrypoint: vec!["/bin/tool".to_owned()], ..Config::default() };
        archive("localhost/tool:1", &files, &config).unwrap()
    }

    fn read(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(bytes);
        let mut found = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            found.insert(entry.path().unwrap().to_string_lossy().into_owned(), data);
        }
        found
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(example(), example());
    }

    #[test]
    fn the_manifest_names_what_is_there_and_the_digests_are_right() {
        let outer = read(&example());
        let manifest: serde_json::Value = serde_json::from_slice(&outer["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "localhost/tool:1");
        let config = &outer[manifest[0]["Config"].as_str().unwrap()];
        let layer = &outer[manifest[0]["Layers"][0].as_str().unwrap()];
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex_digest(layer)));
        assert_eq!(config["config"], json!({"Entrypoint": ["/bin/tool"]}));
        let inner = read(layer);
        assert_eq!(
            inner.keys().map(String::as_str).collect::<Vec<_>>(),
            ["bin/", "bin/alias", "bin/tool", "tmp/"]
        );
        assert_eq!(inner["bin/tool"], b"program");
    }
}
