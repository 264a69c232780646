//! The way in: passes connections from the host's loopback device on to an address in the cluster's network namespace.
//!
//! It runs from a copy of xtask in the state directory, so that building xtask anew does not disturb it.

use std::{
    fs::File,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long the other side may take to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// Listens at that address or at the next free port, prints which (one line), and serves until it is killed.
pub fn run(listen: SocketAddr, pid: i32, target: SocketAddr) -> Result<()> {
    let listener = bind(listen)?;
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("can't open {path}"))?;
    // The listener stays where it was made; the threads started from here on dial from within.
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("can't enter {path}"))?;
    println!("{}", listener.local_addr()?);
    for incoming in listener.incoming() {
        let incoming = incoming.context("can't accept")?;
        thread::spawn(move || {
            if let Err(error) = pass(&incoming, target) {
                eprintln!("{target}: {error}");
            }
        });
    }
    Ok(())
}

fn bind(mut address: SocketAddr) -> Result<TcpListener> {
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() < u16::MAX => {
                address.set_port(address.port() + 1);
            }
            Err(error) => bail!("can't listen at {address}: {error}"),
        }
    }
}

/// Copies both ways until both have ended.
fn pass(near: &TcpStream, target: SocketAddr) -> io::Result<()> {
    let far = TcpStream::connect_timeout(&target, CONNECT)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(|| one_way(&far, near));
        one_way(near, &far);
    });
    Ok(())
}

/// An error on one way ends that way only; the other side learns of it by the end of its stream.
fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    let copied = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    if copied.is_err() {
        let _ = from.shutdown(Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_taken_port_means_the_next_one() {
        let taken = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().local_addr().unwrap();
        let held = bind(taken).unwrap();
        let next = bind(taken).unwrap();
        assert!(next.local_addr().unwrap().port() > held.local_addr().unwrap().port());
    }

    #[test]
    fn a_half_closed_connection_still_brings_the_answer() {
        let far = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let near = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let (target, entrance) = (far.local_addr().unwrap(), near.local_addr().unwrap());
        thread::spawn(move || {
            let mut connection = far.accept().unwrap().0;
            let mut said = String::new();
            connection.read_to_string(&mut said).unwrap();
            write!(connection, "heard {said}").unwrap();
        });
        thread::spawn(move || pass(&near.accept().unwrap().0, target));
        let mut client = TcpStream::connect(entrance).unwrap();
        client.write_all(b"this").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "heard this");
    }
}
