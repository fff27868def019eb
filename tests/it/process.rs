//! Processes beside the tests. None is waited for without a bound, and none holds the test run's own output open.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

/// How long a process may take before it counts as hung: never reached by one that is only slow.
const HUNG: Duration = Duration::from_mins(2);

/// A command that is ended if it hangs.
pub fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(HUNG.as_secs().to_string()).arg(program).stdin(Stdio::null());
    command
}

/// A process that is killed when dropped.
pub struct Running {
    pub child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts the command, whose standard output tells each line to `line`, the first of which is also given back.
    ///
    /// # Panics
    /// If no line comes: the process is killed then.
    pub fn start(command: &mut Command, line: impl Fn(&str) + Send + 'static) -> (Self, Value) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut running = Self { child };
        let output = BufReader::new(running.child.stdout.take().expect("piped"));
        let (sender, first) = mpsc::channel();
        std::thread::spawn(move || {
            for read in output.lines().map_while(Result::ok) {
                line(&read);
                let _ = sender.send(read);
            }
        });
        let told = first.recv_timeout(HUNG).unwrap_or_default();
        (running, serde_json::from_str(&told).unwrap_or(Value::Null))
    }
}
