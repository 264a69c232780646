//! The files that IO stressors write: unnamed, in a directory of the container.
//!
//! The path is looked up below the container's root, whatever links are in it, and the file never has a name, so nothing
//! is left of it however its stressor ends. A file system whose server is dead answers nobody: it is asked by a thread of
//! its own, which alone then hangs.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::message::DESCRIPTORS;
use crate::{container::Container, lasting::LastingError, report::Reason};

/// How long the file system may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Opens `count` of them in the directory `path` of the container.
pub async fn unnamed(
    proc: &Path,
    container: &Container,
    path: &str,
    count: u32,
) -> Result<Vec<OwnedFd>, LastingError> {
    // One place is the pidfd's.
    if count as usize >= DESCRIPTORS {
        let message = format!("io.workers: {count} are more than {}", DESCRIPTORS - 1);
        return Err(LastingError::because(Reason::Unsupported, message));
    }
    let root = proc.join(container.init.pid().to_string()).join("root");
    let unsupported = |message: String| LastingError::because(Reason::Unsupported, message);
    let failed = |what: String, errno: Errno| {
        unsupported(match errno {
            Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL => format!(
                "io.path: the file system of {path} has no unnamed files; choose the path of a volume, such as an \
                 emptyDir"
            ),
            Errno::NOENT => format!("io.path: the container has no directory {path}"),
            Errno::NOTDIR => format!("io.path: {path} is no directory"),
            _ => format!("io.path: {what}: {errno}"),
        })
    };
    let root = openat(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed("opening the container's root".into(), errno))?;
    // If the container ended meanwhile, that root may be another's.
    container.check_again()?;
    let open = |root: &OwnedFd, path: &str| {
        openat2(
            root,
            path,
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let below = path.to_owned();
    let opening = spawn_blocking(move || (0..count).map(|_| open(&root, &below)).collect::<Result<_, _>>());
    match timeout(ANSWERS_WITHIN, opening).await {
        Ok(Ok(opened)) => opened.map_err(|errno| failed(format!("a file in {path}"), errno)),
        Ok(Err(error)) => Err(LastingError::because(Reason::Internal, error.to_string())),
        Err(_) => Err(unsupported(format!("io.path: {path} does not answer within {ANSWERS_WITHIN:?}"))),
    }
}
