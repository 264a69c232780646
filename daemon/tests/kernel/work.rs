//! What targets of triggers do: something that can be waited for, once they are let go, and a report of each step.
//!
//! A step is reported before and after it, each by one write to a file: what stands there was done.

use std::{
    env,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write,
    net::TcpStream,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use super::target::DUTY;

/// A place for one target's files.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// The duty of a target that does `work` here.
    pub fn duty(&self, work: &str) -> String {
        format!("work:{}:{work}", self.0.path().display())
    }

    /// Lets the target begin.
    pub fn go(&self) {
        Self::go_in(self.path());
    }

    /// The same, for who knows only the directory.
    pub fn go_in(dir: &Path) {
        fs::write(dir.join("go"), "").expect("letting it go");
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// What it has reported so far.
    pub fn report(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.path().join("report")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// `DIR:WORK`, where WORK is `fsync COUNT`, `call NUMBER COUNT`, `exec PATH` or `connect PORT…`, then waits for ever; `mark` is what is executed.
pub fn run(work: &str) -> ! {
    let (dir, work) = work.split_once(':').expect("a directory and work");
    let dir = PathBuf::from(dir);
    let words: Vec<&str> = work.split(' ').collect();
    if words[0] == "mark" {
        report(&dir, "marked");
        process::exit(0);
    }
    println!("ready");
    while !dir.join("go").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    match words.as_slice() {
        ["fsync", count] => {
            let mut file = File::create(dir.join("data")).expect("a file");
            for number in 1..=count.parse().expect("a number") {
                writeln!(file, "{number}").expect("writing");
                step(&dir, &format!("fsync {number}"), || {
                    // SAFETY: a descriptor of our own.
                    unsafe { libc::fsync(file.as_raw_fd()) };
                });
            }
        }
        ["exec", path] => {
            // SAFETY: nothing else runs in this process.
            unsafe { env::set_var(DUTY, format!("work:{}:mark", dir.display())) };
            report(&dir, "exec");
            let path = CString::new(Path::new(path).as_os_str().as_bytes()).expect("a path");
            // SAFETY: both end with a null.
            unsafe { libc::execv(path.as_ptr(), [path.as_ptr(), std::ptr::null()].as_ptr()) };
            report(&dir, "not executed");
        }
        ["connect", ports @ ..] => {
            for port in ports {
                step(&dir, &format!("connect {port}"), || {
                    // Whoever listens: only the call matters.
                    let _ = TcpStream::connect(("127.0.0.1", port.parse().expect("a port")));
                });
            }
        }
        ["call", number, count] => step(&dir, "calls", || {
            for _ in 0..count.parse().expect("a number") {
                // SAFETY: whoever asks for it names a call without arguments, or one that takes any.
                unsafe { libc::syscall(number.parse().expect("a number"), 0) };
            }
        }),
        other => panic!("no such work: {other:?}"),
    }
    loop {
        // SAFETY: no argument.
        unsafe { libc::pause() };
    }
}

fn step(dir: &Path, what: &str, work: impl FnOnce()) {
    report(dir, &format!("enter {what}"));
    work();
    report(dir, &format!("done {what}"));
}

fn report(dir: &Path, what: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("report")).expect("the report");
    file.write_all(format!("{what}\n").as_bytes()).expect("reporting");
}
