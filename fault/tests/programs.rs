//! The two fault programs, as processes.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

fn until(what: &str, mut ok: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !ok() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// A process that does not outlive a failed test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Started, and waiting for signals.
    fn start(command: &mut Command) -> Self {
        let program = Self(command.spawn().unwrap());
        until("pause sleeps", || {
            let status = program.read("status");
            status.contains("Name:\tpause\n") && status.contains("State:\tS")
        });
        program
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap()
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.0.id()).unwrap();
        // SAFETY: our own child, not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

#[test]
fn pause_ends_well_on_term_and_int_and_ignores_the_rest() {
    for end in [libc::SIGTERM, libc::SIGINT] {
        let mut pause = Program::start(&mut Command::new(env!("CARGO_BIN_EXE_pause")));
        for other in [libc::SIGHUP, libc::SIGUSR1, libc::SIGCHLD] {
            pause.signal(other);
        }
        assert!(pause.0.try_wait().unwrap().is_none());
        pause.signal(end);
        let status = pause.0.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}

#[test]
fn pause_reaps_children_that_end_before_and_after_it_started() {
    // The children are started by the shell that becomes pause, so they are its own.
    let script = format!("true & sleep 0.3 & exec {}", env!("CARGO_BIN_EXE_pause"));
    let mut pause = Program::start(Command::new("sh").args(["-c", &script]));
    let children = format!("task/{}/children", pause.0.id());
    until("its children are gone", || pause.read(&children).trim().is_empty());
    pause.signal(libc::SIGTERM);
    assert!(pause.0.wait().unwrap().success());
}

#[test]
fn crash_fails_at_once() {
    let status = Command::new(env!("CARGO_BIN_EXE_crash")).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn both_end_well_when_they_only_prove_that_the_image_is_there() {
    for program in [env!("CARGO_BIN_EXE_pause"), env!("CARGO_BIN_EXE_crash")] {
        assert!(Command::new(program).arg("--squall-image-present").status().unwrap().success());
    }
}
