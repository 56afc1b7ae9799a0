//! Servers started for a benchmark: their processes, memory and CPU time as `/proc` tells them.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer at first.
pub const START_PATIENCE: Duration = Duration::from_secs(30);

/// A process of ours; ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: std::path::PathBuf,
}

/// What the kernel says of a process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub resident_bytes: u64,
    /// The most since the start or the last `forget_peak`.
    pub peak_resident_bytes: u64,
}

impl Process {
    /// Starts a program with its output going to `log`.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> std::io::Result<Process> {
        let output = File::create(log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Process {
            child,
            log: log.to_path_buf(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process wrote, if it has ended.
    pub fn last_words(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                Some(format!("ended with {status}: {log}"))
            }
            _ => None,
        }
    }

    pub fn usage(&self) -> Usage {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        Usage::parse(&status.unwrap_or_default())
    }

    /// Makes `peak_resident_bytes` count from now on.
    pub fn forget_peak(&self) {
        // Refused in some containers; then the peak counts from the start, which is never too low.
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5");
    }

    /// Waits until the process listens at `address`.
    pub fn wait_for(&mut self, address: SocketAddr) -> Result<(), String> {
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(words) = self.last_words() {
                return Err(words);
            }
            if began.elapsed() > START_PATIENCE {
                return Err(format!("nothing listens at {address}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Process {
    /// SIGTERM, and SIGKILL for one that has not ended after ten seconds.
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Usage {
    fn parse(status: &str) -> Usage {
        let kilobytes = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            number.unwrap_or(0) * 1024
        };
        Usage {
            resident_bytes: kilobytes("VmRSS:"),
            peak_resident_bytes: kilobytes("VmHWM:"),
        }
    }
}

/// A loopback address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
    listener.local_addr().expect("it was just bound")
}

/// The program of this name on PATH.
pub fn on_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let sleep = on_path("sleep").expect("every system has it");
        let log = dir.path().join("log");
        let mut process = Process::start(&sleep, &["600".to_string()], &log).unwrap();
        let pid = process.pid();
        assert!(process.last_words().is_none());
        let usage = process.usage();
        assert!(usage.peak_resident_bytes >= usage.resident_bytes);
        assert!(usage.peak_resident_bytes > 0);
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
