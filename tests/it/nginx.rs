//! nginx in the foreground, on a port of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

/// A running nginx; it ends, with its workers, when dropped.
pub struct Nginx {
    pub address: String,
    child: Child,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its worker behind.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// Starts it in a directory, where its `nginx.pid` will be, with what `http` says for its port; it listens then.
    pub async fn start(binary: &str, dir: &Path, http: impl Fn(u16) -> String) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let at = |name: &str| dir.join(name).display().to_string();
        let temporary: String =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|n| format!("{n}_temp_path {};", at(n))).concat();
        let text = format!(
            "daemon off; worker_processes 1; pid {}; error_log {} warn; events {{}} http {{ access_log off; {temporary} {} }}",
            at("nginx.pid"),
            at("errors"),
            http(port)
        );
        std::fs::write(dir.join("nginx.conf"), text).expect("writes");
        let mut command = Command::new(binary);
        command.args(["-p", &at(""), "-c", &at("nginx.conf")]);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx runs");
        let mut nginx = Self { address: format!("127.0.0.1:{port}"), child };
        while TcpStream::connect(&nginx.address).await.is_err() {
            let ended = nginx.child.try_wait().expect("its status");
            assert!(
                ended.is_none(),
                "nginx ended before it listened ({ended:?}): {}",
                std::fs::read_to_string(at("errors")).unwrap_or_default()
            );
            tokio::task::yield_now().await;
        }
        nginx
    }
}
