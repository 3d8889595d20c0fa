//! What the kernel knows of a process, and child processes that do not outlive us.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// Ticks per second of the times in /proc: part of Linux's interface, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// So many lines of a log tell what was wrong.
const LAST_WORDS: usize = 20;

/// CPU time that a process has used, all its threads together, in seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    of_stat(pid, cpu_ticks)
}

fn of_stat(pid: u32, read: impl Fn(&str) -> Option<u64>) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("process {pid} is gone"))?;
    read(&stat).map(|ticks| ticks as f64 / TICKS_PER_SECOND).with_context(|| format!("cannot read {path}"))
}

/// `utime` and `stime`: unlike the sum over the threads that are left, it has those that have ended too.
fn cpu_ticks(stat: &str) -> Option<u64> {
    ticks(stat, 11)
}

/// Two neighbouring fields of `stat`, counted behind the name, together: user and system time.
fn ticks(stat: &str, field: usize) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?; // the name in brackets may hold blanks
    let mut fields = fields.split(' ').skip(field);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// CPU time of those of our children that have ended, in seconds.
pub fn ended_cpu_seconds() -> anyhow::Result<f64> {
    of_stat(std::process::id(), |stat| ticks(stat, 13))
}

/// CPU time of a process, of its children that run and of those that have ended, in seconds. Of Postgres' first process:
/// of all of Postgres.
pub fn tree_cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let ended = |stat: &str| ticks(stat, 13);
    let mut seconds = cpu_seconds(pid)? + of_stat(pid, ended)?;
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    for child in children.split_whitespace() {
        // One that ends just now has gone over to its parent, which was read before: that is lost until the next look.
        seconds += child.parse().ok().and_then(|child| cpu_seconds(child).ok()).unwrap_or(0.0);
    }
    Ok(seconds)
}

/// Memory of a process that is resident, in MB (10^6 bytes).
pub fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    memory_mb(pid, "VmRSS:")
}

/// The most memory of a process that ever was resident, in MB.
pub fn peak_mb(pid: u32) -> anyhow::Result<f64> {
    memory_mb(pid, "VmHWM:")
}

fn memory_mb(pid: u32, name: &str) -> anyhow::Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    kib(&status, name).map(|kib| kib as f64 * 1024.0 / 1e6).with_context(|| format!("process {pid} has ended"))
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Waits until what was measured before is on the disk. The kernel would write it half a minute later, hundreds of
/// megabytes at once, and the broker's appends would wait for tens of milliseconds.
pub async fn written_back() -> anyhow::Result<()> {
    let status = tokio::process::Command::new("sync").status().await.context("cannot run sync")?;
    anyhow::ensure!(status.success(), "sync failed: {status}");
    Ok(())
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

    /// The end of what it has printed, without stack traces.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(['\t', ' '])).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
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

    /// Tells it to end, and waits until it has.
    pub async fn terminate(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.pid.to_string()).status().await.context("cannot run kill")?;
        let status = self.child.wait().await?;
        anyhow::ensure!(status.success(), "it ended with {status} when it was told to; its log is {}", self.log);
        Ok(())
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
        assert_eq!(ticks(stat, 13), Some(18), "of children that have ended");
        assert_eq!(kib("VmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        let own = std::process::id();
        assert!(resident_mb(own).expect("ours") > 0.1);
        assert!(peak_mb(own).expect("ours") >= resident_mb(own).expect("ours"));
        assert!(tree_cpu_seconds(own).expect("ours") >= cpu_seconds(own).expect("ours") - 0.1);
    }
}
