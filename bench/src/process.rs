//! What the kernel knows of a process, and child processes that do not outlive us.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// Ticks per second of the times in /proc: part of Linux's interface, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that a process has used, all its threads together, in seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("process {pid} is gone"))?;
    cpu_ticks(&stat).map(|ticks| ticks as f64 / TICKS_PER_SECOND).with_context(|| format!("cannot read {path}"))
}

/// `utime` and `stime`: unlike the sum over the threads that are left, it has those that have ended too.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?; // the name in brackets may hold blanks
    let mut fields = fields.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Memory of a process that is resident, in MB (10^6 bytes).
pub fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    resident_kib(&status).map(|kib| kib as f64 * 1024.0 / 1e6).with_context(|| format!("process {pid} has ended"))
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// A server that we started; it is killed when this is dropped.
pub struct Server {
    child: Child,
    pid: u32,
    log: String,
}

impl Server {
    /// Starts a program; what it prints goes to a log file.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = command.as_std().get_program().to_owned();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().context("it ended at once")?;
        Ok(Self { child, pid, log: log.display().to_string() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it answers a GET of `path` with 200.
    pub async fn ready(&mut self, address: std::net::SocketAddr, path: &str) -> anyhow::Result<()> {
        for _ in 0..600 {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status} while starting; its log is {}", self.log);
            }
            if answers(address, path).await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("it was not ready within 30 s; its log is {}", self.log)
    }

    /// Ends it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot end it")
    }
}

async fn answers(address: std::net::SocketAddr, path: &str) -> bool {
    let Ok(mut connection) = crate::http::Connection::open(address).await else { return false };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let exchange = tokio::time::timeout(Duration::from_secs(2), connection.exchange(request.as_bytes()));
    matches!(exchange.await, Ok(Ok(response)) if response.status == 200)
}

/// A port of 127.0.0.1 that is free now.
pub fn free_address() -> anyhow::Result<std::net::SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_whatever_a_process_is_called() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0 1 1 1";
        assert_eq!(cpu_ticks(stat), Some(200));
        assert_eq!(cpu_ticks("7 (x"), None);
        assert_eq!(resident_kib("VmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n"), Some(1234));
        let own = std::process::id();
        assert!(resident_mb(own).expect("ours") > 0.1);
        assert!(cpu_seconds(own).is_ok());
    }
}
