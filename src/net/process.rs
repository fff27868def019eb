//! The process at the other end of a Unix socket, held so that its number cannot come to mean another.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// A process that connected.
#[derive(Debug)]
pub struct PeerProcess {
    /// Its number.
    pub pid: i32,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
    /// Refers to this very process, where the kernel gives it.
    pidfd: Option<OwnedFd>,
    /// When it began, in ticks since boot: what a recycled number does not share.
    began: Option<u64>,
}

impl PeerProcess {
    /// Asks the kernel who connected (unix(7): SO_PEERCRED, SO_PEERPIDFD).
    pub fn of(stream: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        let pid = credentials.pid();
        // A kernel without it says ENOPROTOOPT; a process that has gone already, ESRCH or EINVAL.
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(fd) => Some(fd),
            Err(nix::errno::Errno::ENOPROTOOPT) => None,
            Err(gone) => return Err(gone.into()),
        };
        Ok(Self { pid, uid: credentials.uid(), gid: credentials.gid(), pidfd, began: began(pid) })
    }

    /// Whether the process that connected still lives and still has its number.
    pub fn lives(&self) -> bool {
        if let Some(fd) = &self.pidfd {
            // Readable once the process has ended (pidfd_open(2)).
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            return poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 0);
        }
        self.began.is_some() && self.began == began(self.pid)
    }

    /// A process of this host that did not connect, by its number: for looking, not for deciding.
    pub fn running(pid: i32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // The second number is the effective one.
        let id = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or(io::ErrorKind::InvalidData)
        };
        Ok(Self { pid, uid: id("Uid:")?, gid: id("Gid:")?, pidfd: None, began: began(pid) })
    }
}

/// Field 22 of proc_pid_stat(5); the second field is in parentheses and may hold any character.
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that connects and then waits for its standard input to close.
    fn connected() -> (PeerProcess, std::process::Child) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("binds");
        let program = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()";
        let mut command = Command::new("python3");
        let child = command.args(["-c", program]).arg(&path).stdin(Stdio::piped()).spawn().expect("python3 runs");
        let (stream, _) = listener.accept().expect("accepts");
        (PeerProcess::of(&stream).expect("a peer"), child)
    }

    #[test]
    fn a2_a_dead_process_is_known_as_dead_with_pidfd_and_without() {
        let (peer, mut child) = connected();
        assert_eq!(peer.pid, i32::try_from(child.id()).expect("a pid"));
        assert!(peer.lives());
        let by_beginning = PeerProcess::running(peer.pid).expect("runs");
        assert!(by_beginning.lives());
        // A number that another process has now: same pid, another beginning.
        let recycled =
            PeerProcess { began: by_beginning.began.map(|b| b + 1), ..PeerProcess::running(peer.pid).expect("runs") };
        assert!(!recycled.lives());
        child.kill().expect("kills");
        child.wait().expect("reaps");
        assert!(!peer.lives() && !by_beginning.lives());
    }
}
