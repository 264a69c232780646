//! An order for a signal, parsed: which signal, and who gets it.
//!
//! Refuses what makes no sense whatever the container. Whether the kernel knows a system call, or the container a path,
//! is found out later.

use std::path::PathBuf;

use squall_api::grpc;

use super::{OrderError, wrong};

/// A signal to processes of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The signal.
    pub signal: i32,
    /// Who gets it, and when.
    pub whom: Whom,
}

/// Who gets a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Now: processes that are there, or are forked meanwhile.
    Processes(Processes),
    /// Later: the process that does something.
    Trigger(Trigger),
}

/// Which processes of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// Whom at most.
    pub scope: Scope,
    /// Of those, only who has this name.
    pub comm: Option<Comm>,
    /// Of those, only who runs this executable, as a path inside the container.
    pub exe: Option<PathBuf>,
}

/// Whom a kill hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The container's first process.
    Init,
    /// Each of its processes.
    All,
}

/// What a process does to be signalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Only a process with this name.
    pub comm: Option<Comm>,
    /// What it does.
    pub on: On,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// It makes the container's nth call of a system call.
    Syscall {
        /// The system call's name.
        name: String,
        /// From 1.
        nth: u32,
    },
    /// It executes this path.
    Exec {
        /// Absolute, inside the container.
        path: String,
    },
    /// It connects to this port.
    Connect {
        /// From 1.
        port: u16,
    },
}

/// The name of a process in the kernel: 1 to 15 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comm([u8; 16]);

/// The longest name.
const COMM_BYTES: usize = 15;
/// The longest path that the programs compare.
const TRIGGER_PATH_BYTES: usize = squall_daemon_ebpf::PATH_BYTES - 1;
/// No path of Linux is longer.
const PATH_BYTES: usize = 4095;
/// No system call's name is longer.
const SYSCALL_BYTES: usize = 64;

impl Kill {
    /// A signal to the processes in `scope`, whatever their name.
    pub fn now(signal: i32, scope: Scope) -> Self {
        Self { signal, whom: Whom::Processes(Processes { scope, comm: None, exe: None }) }
    }

    /// A signal to the first who does `on`.
    pub fn when(signal: i32, on: On) -> Self {
        Self { signal, whom: Whom::Trigger(Trigger { comm: None, on }) }
    }

    /// `None`: a trigger of a kind that this daemon does not know.
    pub(super) fn parse(
        field: &impl Fn(&str) -> String,
        order: grpc::Kill,
    ) -> Result<Option<Self>, OrderError> {
        let grpc::Kill { signal, scope, comm, exe, trigger } = order;
        if !(1..=64).contains(&signal) {
            return Err(wrong(&field("kill.signal"), &format!("is {signal}, not 1 to 64")));
        }
        let whom = match trigger {
            Some(trigger) => {
                for (name, set) in [("comm", !comm.is_empty()), ("exe", !exe.is_empty())] {
                    if set {
                        let problem =
                            "can't be together with a trigger: the signal goes to the process that does it";
                        return Err(wrong(&field(&format!("kill.{name}")), problem));
                    }
                }
                match Trigger::parse(field, trigger)? {
                    Some(trigger) => Whom::Trigger(trigger),
                    None => return Ok(None),
                }
            }
            None => {
                let scope = match grpc::Scope::try_from(scope) {
                    Ok(grpc::Scope::Init) => Scope::Init,
                    Ok(grpc::Scope::All) => Scope::All,
                    Ok(grpc::Scope::Unspecified) => {
                        return Err(wrong(&field("kill.scope"), "is missing"));
                    }
                    // A later controller's.
                    Err(_) => return Ok(None),
                };
                let comm = Comm::parse(&field("kill.comm"), &comm)?;
                let exe = match exe.as_str() {
                    "" => None,
                    path => Some(PathBuf::from(absolute(&field("kill.exe"), path, PATH_BYTES)?)),
                };
                Whom::Processes(Processes { scope, comm, exe })
            }
        };
        Ok(Some(Self { signal, whom }))
    }
}

impl Trigger {
    fn parse(field: &impl Fn(&str) -> String, order: grpc::Trigger) -> Result<Option<Self>, OrderError> {
        use grpc::trigger::On as Wire;
        let grpc::Trigger { comm, on } = order;
        let comm = Comm::parse(&field("kill.trigger.comm"), &comm)?;
        let on = match on {
            None => return Ok(None),
            Some(Wire::Syscall(grpc::SyscallTrigger { name, nth })) => {
                // It becomes part of a path under tracefs.
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
                if name.is_empty() || name.len() > SYSCALL_BYTES || !name.bytes().all(plain) {
                    let problem = format!("{name:?} is no name of a system call");
                    return Err(wrong(&field("kill.trigger.syscall.name"), &problem));
                }
                if nth == 0 {
                    return Err(wrong(&field("kill.trigger.syscall.nth"), "is 0; the first call is 1"));
                }
                On::Syscall { name, nth }
            }
            Some(Wire::Exec(grpc::ExecTrigger { path })) => {
                On::Exec { path: absolute(&field("kill.trigger.exec.path"), &path, TRIGGER_PATH_BYTES)? }
            }
            Some(Wire::Connect(grpc::ConnectTrigger { port })) => {
                let valid = u16::try_from(port).ok().filter(|port| *port > 0);
                let problem = format!("is {port}, not 1 to 65535");
                On::Connect {
                    port: valid.ok_or_else(|| wrong(&field("kill.trigger.connect.port"), &problem))?,
                }
            }
        };
        Ok(Some(Self { comm, on }))
    }
}

impl Comm {
    /// The name that `text` is; `None` if it is too long, empty, or has a zero in it.
    pub fn new(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > COMM_BYTES || text.bytes().any(|byte| byte == 0) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(Self(bytes))
    }

    /// As the kernel keeps it: ended by a zero.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        // It was made from text.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }

    fn parse(field: &str, text: &str) -> Result<Option<Self>, OrderError> {
        if text.is_empty() {
            return Ok(None);
        }
        let problem =
            || wrong(field, &format!("{text:?} is longer than {COMM_BYTES} bytes, or has a zero in it"));
        Self::new(text).ok_or_else(problem).map(Some)
    }
}

impl On {
    /// What is waited for, in words that follow "until a process of the container".
    pub fn describe(&self) -> String {
        match self {
            Self::Syscall { name, nth: 1 } => format!("calls {name}"),
            Self::Syscall { name, nth } => format!("calls {name} for the {nth}. time"),
            Self::Exec { path } => format!("executes {path}"),
            Self::Connect { port } => format!("connects to port {port}"),
        }
    }
}

fn absolute(field: &str, path: &str, longest: usize) -> Result<String, OrderError> {
    if !path.starts_with('/') || path.len() > longest || path.bytes().any(|byte| byte == 0) {
        return Err(wrong(field, &format!("is no absolute path of at most {longest} bytes")));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(order: grpc::Kill) -> Result<Kill, String> {
        let parsed = Kill::parse(&|name| name.to_owned(), order).map_err(|error| error.field)?;
        Ok(parsed.expect("a kind that is known"))
    }

    fn base() -> grpc::Kill {
        grpc::Kill { signal: 9, scope: grpc::Scope::All.into(), ..grpc::Kill::default() }
    }

    fn triggered(on: grpc::trigger::On) -> grpc::Kill {
        let trigger = Some(grpc::Trigger { comm: String::new(), on: Some(on) });
        grpc::Kill { signal: 9, trigger, ..grpc::Kill::default() }
    }

    fn syscall(name: &str, nth: u32) -> grpc::Kill {
        triggered(grpc::trigger::On::Syscall(grpc::SyscallTrigger { name: name.into(), nth }))
    }

    #[test]
    fn processes_are_narrowed() {
        let kill = parse(grpc::Kill { comm: "a name".into(), exe: "/bin/x".into(), ..base() }).unwrap();
        let Whom::Processes(Processes { scope, comm, exe }) = kill.whom else { panic!("{kill:?}") };
        assert_eq!((scope, comm.unwrap().as_str(), exe), (Scope::All, "a name", Some("/bin/x".into())));
        assert_eq!(parse(base()), Ok(Kill::now(9, Scope::All)));
    }

    #[test]
    fn triggers_are_taken() {
        let nth = On::Syscall { name: "fsync".into(), nth: 3 };
        assert_eq!(parse(syscall("fsync", 3)), Ok(Kill::when(9, nth)));
        let exec = grpc::trigger::On::Exec(grpc::ExecTrigger { path: "/bin/x".into() });
        assert_eq!(parse(triggered(exec)), Ok(Kill::when(9, On::Exec { path: "/bin/x".into() })));
        let connect = grpc::trigger::On::Connect(grpc::ConnectTrigger { port: 5432 });
        assert_eq!(parse(triggered(connect)), Ok(Kill::when(9, On::Connect { port: 5432 })));
    }

    #[test]
    fn a_trigger_of_an_unknown_kind_is_no_error() {
        let unknown = grpc::Kill { trigger: Some(grpc::Trigger::default()), ..base() };
        assert_eq!(Kill::parse(&|name| name.to_owned(), unknown), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(16);
        assert_eq!(parse(grpc::Kill { comm: long.clone(), ..base() }), Err("kill.comm".into()));
        assert_eq!(parse(grpc::Kill { comm: "a\0b".into(), ..base() }), Err("kill.comm".into()));
        assert_eq!(parse(grpc::Kill { exe: "bin/x".into(), ..base() }), Err("kill.exe".into()));
        assert_eq!(parse(grpc::Kill { scope: 0, ..base() }), Err("kill.scope".into()));
        for name in ["", "../../x", "Fsync", "a b"] {
            assert_eq!(parse(syscall(name, 1)), Err("kill.trigger.syscall.name".into()), "{name}");
        }
        assert_eq!(parse(syscall("fsync", 0)), Err("kill.trigger.syscall.nth".into()));
        let path = |path: &str| grpc::trigger::On::Exec(grpc::ExecTrigger { path: path.into() });
        for wrong in ["x", "", "/a\0", &format!("/{}", "x".repeat(255))] {
            assert_eq!(parse(triggered(path(wrong))), Err("kill.trigger.exec.path".into()), "{wrong}");
        }
        for port in [0, 65536, u32::MAX] {
            let connect = grpc::trigger::On::Connect(grpc::ConnectTrigger { port });
            assert_eq!(parse(triggered(connect)), Err("kill.trigger.connect.port".into()));
        }
        let both = grpc::Kill { comm: "x".into(), ..syscall("fsync", 1) };
        assert_eq!(parse(both), Err("kill.comm".into()));
        let named = grpc::Kill { trigger: Some(grpc::Trigger { comm: long, on: None }), ..base() };
        assert_eq!(parse(named), Err("kill.trigger.comm".into()));
    }
}
