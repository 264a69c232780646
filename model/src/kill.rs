//! Who gets the signal of a container-kill, and when: parsed once from what users write.
//!
//! Refuses what makes no sense whatever the container. Whether a node's kernel knows a system call is its daemon's to say.

use squall_api::podchaos::{Processes, Scope, Trigger as Written};

use crate::error::FieldError;

/// Who gets the signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// At once: processes of the container.
    Processes {
        /// Whom at most.
        scope: Scope,
        /// Of those, only who has this name.
        comm: Option<String>,
        /// Of those, only who runs this executable.
        exe: Option<String>,
    },
    /// Whoever does something, when it does.
    Trigger(Trigger),
}

/// What a process does to be signalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Only a process with this name.
    pub comm: Option<String>,
    /// What it does.
    pub on: On,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// It makes the container's nth call of a system call.
    Syscall {
        /// Its name.
        name: String,
        /// From 1.
        nth: u32,
    },
    /// It executes a path.
    Exec {
        /// Absolute, inside the container.
        path: String,
    },
    /// It connects to a port.
    Connect {
        /// From 1.
        port: u16,
    },
}

/// The longest name that the kernel keeps of a process.
const COMM_BYTES: usize = 15;
/// The longest path that is compared when it is executed.
const EXEC_BYTES: usize = 255;
/// No path of Linux is longer.
const PATH_BYTES: usize = 4095;
/// No system call's name is longer.
const SYSCALL_BYTES: usize = 64;

impl Default for Whom {
    fn default() -> Self {
        Self::Processes { scope: Scope::default(), comm: None, exe: None }
    }
}

impl Whom {
    /// Every error at once.
    pub(crate) fn parse(
        processes: Option<&Processes>,
        trigger: Option<&Written>,
        errors: &mut Vec<FieldError>,
    ) -> Self {
        match trigger {
            None => {
                let Some(Processes { scope, comm, exe }) = processes else { return Self::default() };
                if let Some(comm) = comm {
                    check_comm("spec.processes.comm", comm, errors);
                }
                if let Some(exe) = exe {
                    check_path("spec.processes.exe", exe, PATH_BYTES, errors);
                }
                Self::Processes { scope: *scope, comm: comm.clone(), exe: exe.clone() }
            }
            Some(trigger) => {
                if processes.is_some() {
                    let allowed = "processes can't be together with trigger: the signal goes to the process that does \
                                   it; narrow it by trigger.comm";
                    errors.push(FieldError::new("spec.processes", "set", allowed));
                }
                Trigger::parse(trigger, errors).map_or_else(Self::default, Self::Trigger)
            }
        }
    }

    /// Whether it waits for something.
    pub fn waits(&self) -> bool {
        match self {
            Self::Processes { .. } => false,
            Self::Trigger(_) => true,
        }
    }
}

impl Trigger {
    fn parse(written: &Written, errors: &mut Vec<FieldError>) -> Option<Self> {
        let Written { syscall, nth, exec, connect, comm } = written;
        if let Some(comm) = comm {
            check_comm("spec.trigger.comm", comm, errors);
        }
        if nth.is_some() && syscall.is_none() {
            let allowed = "nth belongs to syscall only: remove it";
            errors.push(FieldError::new("spec.trigger.nth", "set", allowed));
        }
        let on = match (syscall, exec, connect) {
            (Some(name), None, None) => {
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
                if name.is_empty() || name.len() > SYSCALL_BYTES || !name.bytes().all(plain) {
                    let allowed = "write the name of a system call, such as fsync; see syscalls(2)";
                    errors.push(FieldError::new("spec.trigger.syscall", name, allowed));
                }
                let nth = nth.unwrap_or(1);
                let valid = u32::try_from(nth).ok().filter(|nth| (1..=MOST_CALLS).contains(nth));
                if valid.is_none() {
                    let allowed = format!("write at which call, 1 to {MOST_CALLS}");
                    errors.push(FieldError::new("spec.trigger.nth", nth, allowed));
                }
                On::Syscall { name: name.clone(), nth: valid? }
            }
            (None, Some(path), None) => {
                check_path("spec.trigger.exec", path, EXEC_BYTES, errors);
                On::Exec { path: path.clone() }
            }
            (None, None, Some(connect)) => {
                let port = u16::try_from(connect.port).ok().filter(|port| *port > 0);
                if port.is_none() {
                    errors.push(FieldError::new(
                        "spec.trigger.connect.port",
                        connect.port,
                        "write a port, 1 to 65535",
                    ));
                }
                On::Connect { port: port? }
            }
            _ => {
                let allowed = "say exactly one of syscall, exec and connect";
                errors.push(FieldError::new("spec.trigger", "not exactly one", allowed));
                return None;
            }
        };
        Some(Self { comm: comm.clone(), on })
    }
}

/// Nobody waits for more calls than this.
const MOST_CALLS: u32 = 1_000_000_000;

fn check_comm(field: &str, comm: &str, errors: &mut Vec<FieldError>) {
    if comm.is_empty() || comm.len() > COMM_BYTES || comm.contains('\0') {
        let allowed = "write the name of a process as the kernel keeps it, 1 to 15 bytes; see ps -o comm";
        errors.push(FieldError::new(field, comm, allowed));
    }
}

fn check_path(field: &str, path: &str, longest: usize, errors: &mut Vec<FieldError>) {
    if !path.starts_with('/') || path.len() > longest || path.contains('\0') {
        let allowed = format!("write an absolute path inside the container, at most {longest} bytes");
        errors.push(FieldError::new(field, path, allowed));
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use squall_api::podchaos::ConnectTrigger;

    use super::*;

    fn parse(processes: Option<Processes>, trigger: Option<Written>) -> Result<Whom, Vec<String>> {
        let mut errors = Vec::new();
        let whom = Whom::parse(processes.as_ref(), trigger.as_ref(), &mut errors);
        if errors.is_empty() { Ok(whom) } else { Err(errors.into_iter().map(|error| error.field).collect()) }
    }

    fn syscall(name: &str, nth: Option<i64>) -> Written {
        Written { syscall: Some(name.into()), nth, ..Written::default() }
    }

    fn exec(path: &str) -> Written {
        Written { exec: Some(path.into()), ..Written::default() }
    }

    fn connect(port: i32) -> Written {
        Written { connect: Some(ConnectTrigger { port }), ..Written::default() }
    }

    #[test]
    fn triggers_are_understood() {
        let on = |trigger| match parse(None, Some(trigger)) {
            Ok(Whom::Trigger(Trigger { comm: None, on })) => on,
            other => panic!("{other:?}"),
        };
        assert_eq!(on(syscall("fsync", Some(3))), On::Syscall { name: "fsync".into(), nth: 3 });
        assert_eq!(on(syscall("pwrite64", None)), On::Syscall { name: "pwrite64".into(), nth: 1 });
        assert_eq!(on(exec("/bin/pg_dump")), On::Exec { path: "/bin/pg_dump".into() });
        assert_eq!(on(connect(5432)), On::Connect { port: 5432 });
        assert_eq!(parse(None, None), Ok(Whom::default()));
    }

    #[rstest]
    #[case(syscall("", None), "spec.trigger.syscall")]
    #[case(syscall("../x", None), "spec.trigger.syscall")]
    #[case(syscall("fsync", Some(0)), "spec.trigger.nth")]
    #[case(syscall("fsync", Some(-1)), "spec.trigger.nth")]
    #[case(syscall("fsync", Some(i64::MAX)), "spec.trigger.nth")]
    #[case(Written { nth: Some(1), ..exec("/x") }, "spec.trigger.nth")]
    #[case(exec("x"), "spec.trigger.exec")]
    #[case(exec(&"/x".repeat(128)), "spec.trigger.exec")]
    #[case(connect(0), "spec.trigger.connect.port")]
    #[case(connect(65536), "spec.trigger.connect.port")]
    #[case(Written::default(), "spec.trigger")]
    #[case(Written { exec: Some("/x".into()), ..syscall("fsync", None) }, "spec.trigger")]
    #[case(Written { comm: Some("sixteen bytes!!!".into()), ..exec("/x") }, "spec.trigger.comm")]
    fn nonsense_is_refused_by_field(#[case] trigger: Written, #[case] field: &str) {
        assert_eq!(parse(None, Some(trigger)), Err(vec![field.to_owned()]));
    }

    #[test]
    fn processes_are_narrowed_by_bytes_not_by_letters() {
        let comm = |comm: &str| Some(Processes { comm: Some(comm.into()), ..Processes::default() });
        assert!(parse(comm("fifteen letters"), None).is_ok());
        assert_eq!(parse(comm("fünfzehn Zeichen"), None), Err(vec!["spec.processes.comm".to_owned()]));
        assert_eq!(parse(comm("üüüüüüüü"), None), Err(vec!["spec.processes.comm".to_owned()]));
        let exe = Some(Processes { exe: Some("bin/x".into()), ..Processes::default() });
        assert_eq!(parse(exe, None), Err(vec!["spec.processes.exe".to_owned()]));
        let both = parse(Some(Processes::default()), Some(exec("/x")));
        assert_eq!(both, Err(vec!["spec.processes".to_owned()]));
    }
}
