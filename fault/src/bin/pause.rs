//! `pause`: sleeps until it is told to stop, and reaps what is left to it.
//!
//! It is the image that stands in for a container under pod-failure with style `pause`, and the sandbox
//! process of the local cluster. It opens nothing, writes nothing and allocates nothing after its start.
//! With the one argument `--squall-image-present` it exits with 0 at once: so the DaemonSet has the image pulled.

use std::ptr;

/// A handler that does nothing: it is there so that SIGCHLD interrupts `sigsuspend`.
extern "C" fn woken(_signal: libc::c_int) {}

fn main() {
    if std::env::args().skip(1).eq(["--squall-image-present"]) {
        return;
    }
    // SAFETY: plain libc calls on a single thread; every pointer is to a local that outlives its call, and
    // the handler touches nothing.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, ptr::null_mut());
        libc::signal(libc::SIGCHLD, woken as extern "C" fn(libc::c_int) as libc::sighandler_t);
        loop {
            let mut signal = 0;
            if libc::sigwait(&all, &mut signal) != 0 {
                continue;
            }
            match signal {
                libc::SIGTERM | libc::SIGINT => libc::_exit(0),
                libc::SIGCHLD => while libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) > 0 {},
                _ => {}
            }
        }
    }
}
