//! The unix workload attestor: what the process is that calls.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::domain::digest::Hasher;
use crate::domain::selector::Selector;
use crate::domain::time::Clock as _;
use crate::net::process::PeerProcess;
use crate::store::clock::SystemClock;

/// Executables whose digests are remembered.
const MAX_DIGESTS: usize = 1024;

/// Why a process is not attested.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AttestError {
    #[error("the process that called has ended")]
    Gone,
    #[error("the process has changed its user since it connected")]
    Changed,
    #[error("what the process is cannot be read from /proc: the agent needs to run as root or as the same user")]
    Unreadable,
}

/// Executables beyond this size get no digest: hashing one keeps a thread busy.
const MAX_EXECUTABLE: u64 = 1 << 30;
/// A file that changed more recently may change again within the clock's tick: its digest is not remembered.
const SETTLED: i64 = 2;

/// Device, inode, size, and the times of the last change: a file that shares all of them was not written since.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct FileIdentity {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(about: &Metadata) -> Self {
        Self {
            place: (about.dev(), about.ino()),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

/// Attests processes.
#[derive(Default)]
pub struct UnixAttestor {
    digests: Mutex<HashMap<FileIdentity, String>>,
}

impl UnixAttestor {
    /// The facts about a process. It is held to be alive before they are read and after, so that they are of this process
    /// and not of one that got its number meanwhile. The executable is hashed where `digest` is wanted.
    pub fn attest(&self, process: &PeerProcess, digest: bool) -> Result<BTreeSet<Selector>, AttestError> {
        if !process.lives() {
            return Err(AttestError::Gone);
        }
        let found = self.read(process, digest);
        if process.lives() { found } else { Err(AttestError::Gone) }
    }

    fn read(&self, process: &PeerProcess, digest: bool) -> Result<BTreeSet<Selector>, AttestError> {
        let proc = format!("/proc/{}", process.pid);
        let status = fs::read_to_string(format!("{proc}/status")).map_err(|_| AttestError::Unreadable)?;
        let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        // Who connected and who calls may differ, where a process gave its socket away.
        if line("Uid:").split_whitespace().nth(1) != Some(process.uid.to_string().as_str()) {
            return Err(AttestError::Changed);
        }
        let mut facts = vec![("unix", format!("uid:{}", process.uid)), ("unix", format!("gid:{}", process.gid))];
        facts.extend(line("Groups:").split_whitespace().map(|g| ("unix", format!("supplementary_gid:{g}"))));
        if let Ok(Some(user)) = nix::unistd::User::from_uid(process.uid.into()) {
            facts.push(("unix", format!("user:{}", user.name)));
        }
        if let Ok(Some(group)) = nix::unistd::Group::from_gid(process.gid.into()) {
            facts.push(("unix", format!("group:{}", group.name)));
        }
        facts.extend(self.executable(&format!("{proc}/exe"), digest).into_iter().map(|fact| ("unix", fact)));
        let cgroup = fs::read_to_string(format!("{proc}/cgroup")).unwrap_or_default();
        facts.extend(systemd_unit(&cgroup).map(|unit| ("systemd", format!("id:{unit}"))));
        Ok(facts.iter().filter_map(|(kind, value)| Selector::found(kind, value)).collect())
    }

    /// Facts about the running executable, through the link: the file may have been replaced at its path. What cannot be
    /// read is left out, and an entry that wants it does not match.
    fn executable(&self, exe: &str, digest: bool) -> Vec<String> {
        let mut facts = Vec::new();
        let Ok(file) = File::open(exe) else { return facts };
        let Ok(about) = file.metadata() else { return facts };
        // A mount namespace of the process's own may show any path: it counts if the agent sees the same file there.
        let same = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (about.dev(), about.ino()));
        if let Some(path) = fs::read_link(exe).ok().filter(same) {
            facts.push(format!("path:{}", path.display()));
        }
        if digest {
            facts.extend(self.digest(file, &about).map(|digest| format!("sha256:{digest}")));
        }
        facts
    }

    fn digest(&self, mut file: File, about: &Metadata) -> Option<String> {
        let identity = FileIdentity::of(about);
        let digests = || self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = digests().get(&identity) {
            return Some(known.clone());
        }
        if about.size() > MAX_EXECUTABLE {
            return None;
        }
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 64 * 1024]);
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let digest = hasher.finish().to_string();
        let after = file.metadata().ok()?;
        if FileIdentity::of(&after) != identity {
            return None;
        }
        let now = i64::try_from(SystemClock.now().unix()).unwrap_or(0);
        if now - about.ctime() > SETTLED {
            let mut known = digests();
            if known.len() >= MAX_DIGESTS {
                known.clear();
            }
            known.insert(identity, digest.clone());
        }
        Some(digest)
    }
}

/// The outermost unit of a cgroup file (cgroups(7)): of the unified hierarchy, else of systemd's own. What lies inside a
/// unit is delegated: its user may make groups there by any name.
fn systemd_unit(cgroup: &str) -> Option<&str> {
    let path = |prefix: &str| cgroup.lines().find_map(|l| l.split_once(':')?.1.strip_prefix(prefix));
    let path = path(":").filter(|p| *p != "/").or_else(|| path("name=systemd:"))?;
    path.split('/').find(|part| [".service", ".scope"].iter().any(|end| part.ends_with(end) && part.len() > end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a2_the_unit_is_the_outermost_service_or_scope_for_what_lies_inside_is_its_users() {
        let rows = [
            ("0::/system.slice/web.service\n", Some("web.service")),
            ("0::/system.slice/web.service/worker\n", Some("web.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service\n", Some("user@1000.service")),
            ("0::/user.slice/user-1000.slice/session-3.scope/db.service\n", Some("session-3.scope")),
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
        let found = attestor.attest(&process, true).expect("attests");
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
        assert_eq!(attestor.attest(&process, true), Ok(found.clone()), "the digest is remembered");
        let cheap = attestor.attest(&process, false).expect("attests");
        assert_eq!(cheap.len() + 1, found.len(), "nothing is hashed that nobody asks for");
        drop(theirs);
    }
}
