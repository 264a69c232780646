//! `crash`: exits with 1 at once, so that the kubelet reports the container as failing.

fn main() {
    std::process::exit(1);
}
