//! What daemon and stressor say to each other, over the one socket between them: first the task, with the descriptors
//! that it needs, then what comes of it. One message a datagram. The stressor ends when the daemon's end is closed.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Larger ones are not sent.
const BYTES: usize = 4096;
/// Descriptors in one message; the kernel takes 253.
pub const DESCRIPTORS: usize = 128;

/// What a stressor is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Task {
    /// Use CPU time.
    Cpu {
        /// Threads.
        workers: u32,
        /// Millionths of one CPU, for each.
        share: u32,
    },
    /// Hold memory.
    Memory {
        /// Threads that fill it.
        workers: u32,
        /// For all of them together.
        bytes: u64,
        /// From nothing to all of it.
        ramp: Duration,
        /// How eagerly the kernel ends it.
        oom_score_adj: i32,
        /// It ends rather than take the node's last memory.
        leaves_room: bool,
    },
    /// Write and read files: the descriptors that come with it, one a worker.
    Io {
        /// In each file.
        bytes: u64,
    },
    /// Be so many tasks.
    Pids {
        /// This many.
        count: u32,
    },
}

/// What a stressor says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// Its workers run.
    Ready,
    /// It could not do what it should, and ends.
    Failed(String),
    /// It does less than it should.
    Short(String),
}

/// Sends `message`, and copies of `descriptors`.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > BYTES || descriptors.len() > DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes the next message; `None` when the other end is closed.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_task_arrives_with_its_descriptors_and_the_end_is_seen() {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let ramp = Duration::from_millis(3);
        let task = Task::Memory { workers: 2, bytes: 7, ramp, oom_score_adj: -5, leaves_room: true };
        send(one.as_fd(), &task, &[one.as_fd(), other.as_fd()]).unwrap();
        let (received, descriptors) = receive::<Task>(&other).unwrap().unwrap();
        assert_eq!((received, descriptors.len()), (task, 2));
        drop((one, descriptors));
        assert!(receive::<Task>(&other).unwrap().is_none());
    }
}
