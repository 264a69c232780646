//! `pause`: sleeps until it is told to stop, and reaps what is left to it.
//!
//! It is the image that stands in for a container under pod-failure with style `pause`, and the sandbox process of the
//! local cluster. As the first process of a PID namespace it inherits orphans; nobody else would reap them. It opens
//! nothing, writes nothing and allocates nothing after its start.
//! With the one argument `--squall-image-present` it exits with 0 at once: so the DaemonSet has the image pulled.

use std::ptr;

fn main() {
    if std::env::args().skip(1).eq(["--squall-image-present"]) {
        return;
    }
    // SAFETY: plain libc calls on a single thread; every pointer is null or to a local that outlives its call.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        // Blocked signals wait for us even where the default would ignore them, as it does for a first process.
        libc::sigprocmask(libc::SIG_BLOCK, &all, ptr::null_mut());
        loop {
            // Before the first wait too: children may have ended before the mask was set.
            while libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) > 0 {}
            match libc::sigwaitinfo(&all, ptr::null_mut()) {
                libc::SIGTERM | libc::SIGINT => libc::_exit(0),
                // SIGCHLD: reap. Anything else, an interruption included: carry on.
                _ => {}
            }
        }
    }
}
