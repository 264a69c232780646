//! Which eBPF object goes into the daemon: the checked-in one; with `SQUALL_BPF_OBJECT` another, so that CI can run the
//! kernel tests on one that was built from source a moment ago.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-env-changed=SQUALL_BPF_OBJECT");
    let checked_in = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon-ebpf/squall.bpf.o");
    let object = env::var_os("SQUALL_BPF_OBJECT").map_or_else(checked_in, Into::into);
    println!("cargo::rustc-env=SQUALL_BPF_OBJECT={}", object.display());
}
