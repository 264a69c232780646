//! The checked-in eBPF object is the one that was built from the sources that lie beside it.

use std::{fmt::Write, fs, path::Path};

use sha2::{Digest, Sha256};

#[test]
fn the_object_was_built_from_these_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let recorded =
        fs::read_to_string(root.join("daemon-ebpf/squall.bpf.o.sources")).expect("the list of sources");
    let mut checked = 0;
    for line in recorded.lines() {
        let Some((hash, path)) = line.strip_prefix("sha256 ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let bytes = fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let found = Sha256::digest(&bytes).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a string");
            hex
        });
        assert_eq!(found, hash, "{path} has changed since the eBPF object was built: run `cargo xtask gen`");
        checked += 1;
    }
    assert_eq!(checked, 4, "the list of sources is not whole: run `cargo xtask gen`");
}
