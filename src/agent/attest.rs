//! The unix workload attestor: what the process is that calls.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};

use crate::domain::digest::Hasher;
use crate::domain::selector::Selector;
use crate::net::process::PeerProcess;

/// Executables whose digests are remembered.
const MAX_DIGESTS: usize = 1024;

/// Why a process is not attested.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AttestError {
    #[error("the process that called has ended")]
    Gone,
    #[error("what the process is cannot be read from /proc: the agent needs to run as root or as the same user")]
    Unreadable,
}

/// Device, inode, size, and the times of the last change: a file that shares all of them was not written since.
type FileIdentity = (u64, u64, u64, i64, i64, i64);

/// Attests processes.
#[derive(Default)]
pub struct UnixAttestor {
    digests: Mutex<HashMap<FileIdentity, String>>,
}

impl UnixAttestor {
    /// The facts about a process. It is held to be alive before they are read and after, so that they are of this process
    /// and not of one that got its number meanwhile.
    pub fn attest(&self, process: &PeerProcess) -> Result<BTreeSet<Selector>, AttestError> {
        if !process.lives() {
            return Err(AttestError::Gone);
        }
        let found = self.read(process);
        if !process.lives() {
            return Err(AttestError::Gone);
        }
        found.ok_or(AttestError::Unreadable)
    }

    fn read(&self, process: &PeerProcess) -> Option<BTreeSet<Selector>> {
        let proc = format!("/proc/{}", process.pid);
        let status = fs::read_to_string(format!("{proc}/status")).ok()?;
        let mut facts = vec![("unix", format!("uid:{}", process.uid)), ("unix", format!("gid:{}", process.gid))];
        let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default();
        facts.extend(groups.split_whitespace().map(|g| ("unix", format!("supplementary_gid:{g}"))));
        if let Ok(Some(user)) = nix::unistd::User::from_uid(process.uid.into()) {
            facts.push(("unix", format!("user:{}", user.name)));
        }
        if let Ok(Some(group)) = nix::unistd::Group::from_gid(process.gid.into()) {
            facts.push(("unix", format!("group:{}", group.name)));
        }
        // An executable that cannot be read leaves its selectors out: an entry that wants them does not match.
        if let Ok(path) = fs::read_link(format!("{proc}/exe")) {
            facts.push(("unix", format!("path:{}", path.display())));
        }
        if let Some(digest) = self.digest(&format!("{proc}/exe")) {
            facts.push(("unix", format!("sha256:{digest}")));
        }
        let cgroup = fs::read_to_string(format!("{proc}/cgroup")).unwrap_or_default();
        facts.extend(systemd_unit(&cgroup).map(|unit| ("systemd", format!("id:{unit}"))));
        Some(facts.iter().filter_map(|(kind, value)| Selector::found(kind, value)).collect())
    }

    /// SHA-256 of the running executable, through the link: the file may have been replaced at its path.
    fn digest(&self, exe: &str) -> Option<String> {
        let mut file = File::open(exe).ok()?;
        let about = file.metadata().ok()?;
        let (seconds, nanos) = (about.mtime(), about.mtime_nsec());
        let identity = (about.dev(), about.ino(), about.size(), seconds, nanos, about.ctime());
        let digests = || self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = digests().get(&identity) {
            return Some(known.clone());
        }
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 64 * 1024]);
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let digest = hasher.finish().to_string();
        let mut known = digests();
        if known.len() >= MAX_DIGESTS {
            known.clear();
        }
        known.insert(identity, digest.clone());
        Some(digest)
    }
}

/// The innermost unit of a cgroup file (cgroups(7)): of the unified hierarchy, else of systemd's own.
fn systemd_unit(cgroup: &str) -> Option<&str> {
    let path = |prefix: &str| cgroup.lines().find_map(|l| l.split_once(':')?.1.strip_prefix(prefix));
    let path = path(":").filter(|p| *p != "/").or_else(|| path("name=systemd:"))?;
    path.rsplit('/').find(|part| [".service", ".scope"].iter().any(|end| part.ends_with(end) && part.len() > end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a2_the_unit_is_the_innermost_service_or_scope() {
        let rows = [
            ("0::/system.slice/web.service\n", Some("web.service")),
            ("0::/system.slice/web.service/worker\n", Some("web.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n", Some("run-1.scope")),
            ("12:pids:/x\n1:name=systemd:/system.slice/db.service\n0::/\n", Some("db.service")),
            ("0::/\n", None),
            ("0::/docker/abc\n", None),
            ("0::/.service\n", None),
            ("", None),
        ];
        for (text, want) in rows {
            assert_eq!(systemd_unit(text), want, "{text:?}");
        }
    }

    #[test]
    fn a2_a_process_is_its_user_its_groups_and_its_executable() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let process = PeerProcess::of(&ours).expect("a peer");
        let attestor = UnixAttestor::default();
        let found = attestor.attest(&process).expect("attests");
        let exe = std::env::current_exe().expect("there");
        let digest = crate::domain::digest::Sha256::of(&fs::read(&exe).expect("reads"));
        for fact in [
            format!("unix:uid:{}", process.uid),
            format!("unix:gid:{}", process.gid),
            format!("unix:path:{}", exe.display()),
            format!("unix:sha256:{digest}"),
        ] {
            assert!(found.iter().any(|s| s.as_str() == fact), "{fact} in {found:?}");
        }
        assert_eq!(attestor.attest(&process), Ok(found), "the digest is remembered");
        drop(theirs);
    }
}
