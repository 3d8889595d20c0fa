//! A Redis that a test can do anything to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use tokio::net::{TcpListener, TcpStream};

use crate::eventually;

/// A Redis of the test's own. It is removed on drop.
pub struct PrivateRedis {
    /// Where it is.
    pub url: String,
    port: u16,
    folder: PathBuf,
    process: Child,
}

impl PrivateRedis {
    /// An empty one.
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let folder = std::env::temp_dir().join(format!("redis-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let process = launch(port, &folder).await;
        Self { url: format!("redis://127.0.0.1:{port}/0"), port, folder, process }
    }

    /// Saves all that it holds now, for [`Self::restart`].
    pub async fn save(&self) {
        self.command::<()>(&["SAVE"]).await;
    }

    /// Kills it and starts it again at the same address, with what was saved last, or with nothing.
    pub async fn restart(&mut self, saved: bool) {
        self.kill();
        if !saved {
            let _ = std::fs::remove_file(self.folder.join("dump.rdb"));
        }
        self.process = launch(self.port, &self.folder).await;
    }

    /// kill -9
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Runs one command.
    pub async fn command<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut connection = self.connection().await;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.expect("redis answers")
    }

    /// A connection.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url.as_str()).unwrap();
        client.get_multiplexed_async_connection().await.expect("redis answers")
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn launch(port: u16, folder: &Path) -> Child {
    let process = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir"])
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server on the PATH; dev/services start installs it");
    eventually("redis answers", || async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
    process
}
