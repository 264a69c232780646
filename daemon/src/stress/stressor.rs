//! The stressor's side: this same binary, started again under another name. It waits for its task, gives everything
//! away that it does not need, and works until one of its ends comes.
//!
//! It ends with the daemon (the kernel kills it, and the socket closes), with the target's first process, and on any
//! signal. It has no capability, no file but the socket, the target's pidfd and the files of its task, no environment,
//! nothing that others may see of it through `/proc`, and starts nothing. It refuses to work for anybody but the process
//! that started it.

use std::{
    env, fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{DumpableBehavior, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_name, set_no_new_privs},
};

use super::{
    FIRST_TO_GO,
    message::{Said, Task, receive, send},
    work::{self, Knobs},
};

/// The name that a stressor is started under, and by which it is found: also the kernel's name of the process.
pub const MARK: &str = "squall-stressor";

/// Takes over when this process was started as a stressor; to be called before anything else.
pub fn run_if_asked() {
    let mut arguments = env::args();
    if arguments.next().as_deref() != Some(MARK) {
        return;
    }
    let parent = arguments.next().and_then(|owner| owner.split(':').next()?.parse().ok());
    // For as long as this process is.
    let socket: &'static io::Stdin = Box::leak(Box::new(io::stdin()));
    let socket = socket.as_fd();
    match parent.ok_or("its owner is not told".to_owned()).and_then(|parent| run(parent, socket)) {
        Ok(()) => process::exit(0),
        Err(problem) => {
            // Nobody listens any more: it ends all the same.
            let _ = send(socket, &Said::Failed(problem), &[]);
            process::exit(1)
        }
    }
}

fn run(parent: i32, socket: BorrowedFd<'static>) -> Result<(), String> {
    let failed = |what: &'static str| move |errno: rustix::io::Errno| format!("{what}: {errno}");
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("asking to die with the daemon"))?;
    if getppid().is_none_or(|found| found.as_raw_nonzero().get() != parent) {
        return Err("the daemon is gone".into());
    }
    let _ = set_name(c"squall-stressor");
    close_all_but_the_socket()?;
    let Some((task, mut descriptors)) = receive::<Task>(socket).map_err(|error| error.to_string())? else {
        return Ok(());
    };
    // It has the daemon's, which is one of the last that the kernel ends.
    set_oom_score_adj(match &task {
        Task::Memory { oom_score_adj, .. } => *oom_score_adj,
        Task::Cpu { .. } | Task::Io { .. } | Task::Pids { .. } => FIRST_TO_GO,
    })?;
    set_no_new_privs(true).map_err(failed("giving up privileges"))?;
    // Without capabilities it is like any process of root, of which others, in a pod with `hostPID` too, may see the root
    // directory; and that is the daemon's, with the runtime's socket in it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("closing itself to others"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // The bounding set does not matter any more: no new privileges can be had.
    set_capabilities(None, none).map_err(failed("giving up capabilities"))?;
    if descriptors.is_empty() {
        return Err("the target's pidfd is missing".into());
    }
    let init = descriptors.remove(0);
    let knobs = work::start(task, descriptors, socket)?;
    send(socket, &Said::Ready, &[]).map_err(|error| error.to_string())?;
    until_the_end(socket, &init, &knobs);
    Ok(())
}

/// The kernel's default name of the process is that of the link it was started by; its files may be inherited.
fn close_all_but_the_socket() -> Result<(), String> {
    // SAFETY: nothing in this process uses a descriptor but the first three, which are the socket.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(format!("closing files: {}", io::Error::last_os_error())) }
}

fn set_oom_score_adj(adj: i32) -> Result<(), String> {
    fs::write("/proc/self/oom_score_adj", adj.to_string()).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            let found = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
            format!(
                "memory.oomScoreAdj {adj} can't be set: the daemon may not go below its own, {}",
                found.trim()
            )
        }
        _ => format!("setting oom_score_adj to {adj}: {error}"),
    })
}

fn until_the_end(socket: BorrowedFd<'_>, init: &OwnedFd, knobs: &Knobs) {
    loop {
        let mut events =
            [PollFd::new(&socket, PollFlags::IN), PollFd::from_borrowed_fd(init.as_fd(), PollFlags::IN)];
        match poll(&mut events, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !events[1].revents().is_empty() {
            return;
        }
        if !events[0].revents().is_empty() {
            // What can't be understood is an end, too.
            match receive::<Task>(socket) {
                Ok(Some((task, _))) => knobs.turn(&task),
                Ok(None) | Err(_) => return,
            }
        }
    }
}
