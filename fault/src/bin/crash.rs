//! `crash`: exits with 1 at once, so that the kubelet reports the container as failing.
//! With the one argument `--squall-image-present` it exits with 0: so the DaemonSet has the image pulled.

fn main() {
    let pulled = std::env::args().skip(1).eq(["--squall-image-present"]);
    std::process::exit(i32::from(!pulled));
}
