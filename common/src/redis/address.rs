//! What `REDIS_URL` says: which of the four modes, where, and as whom.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError};

/// How a Redis of one or more nodes is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `redis://`: one node.
    Standalone,
    /// `redis+sentinel://`: one master, which sentinels name, and its replicas.
    Sentinel,
    /// `redis+cluster://`: masters that share 16384 slots, and their replicas.
    Cluster,
    /// `redis+ring://`: plain nodes that know nothing of each other; clients share the keys out.
    Ring,
}

impl Mode {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Standalone => "standalone",
            Mode::Sentinel => "sentinel",
            Mode::Cluster => "cluster",
            Mode::Ring => "ring",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A URL that was read.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub mode: Mode,
    /// The nodes that are named: sentinels in that mode, some or all nodes in the others.
    pub named: Vec<ConnectionInfo>,
    /// What the sentinels call the master; empty in other modes.
    pub master: String,
}

impl Address {
    /// Reads any of the forms.
    pub fn read(url: &str) -> Result<Self, RedisError> {
        for (prefix, mode) in
            [("+sentinel://", Mode::Sentinel), ("+cluster://", Mode::Cluster), ("+ring://", Mode::Ring)]
        {
            match url.split_once(prefix) {
                Some((scheme @ ("redis" | "rediss"), rest)) => return Self::of_many(mode, scheme, rest),
                _ => continue,
            }
        }
        Ok(Self { mode: Mode::Standalone, named: vec![url.into_connection_info()?], master: String::new() })
    }

    /// `[user:password@]host:port,…[/path]`; each node is read as a URL of its own.
    fn of_many(mode: Mode, scheme: &str, rest: &str) -> Result<Self, RedisError> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if user.is_empty() { "" } else { "@" };
        let (master, database) = match mode {
            Mode::Sentinel => path.split_once('/').unwrap_or((path, "")),
            _ => ("", path),
        };
        if mode == Mode::Sentinel && master.is_empty() {
            return Err(invalid("name the master: redis+sentinel://host:26379,…/<master>"));
        }
        if mode == Mode::Cluster && !matches!(database, "" | "0") {
            return Err(invalid("a cluster has database 0 only: leave it out"));
        }
        let node = |host: &str| format!("{scheme}://{user}{at}{host}/{database}").into_connection_info();
        let named = hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(node);
        let named = named.collect::<Result<Vec<_>, _>>()?;
        if named.is_empty() {
            return Err(invalid("name at least one node: host:port,…"));
        }
        Ok(Self { mode, named, master: master.to_owned() })
    }

    /// A node of the same Redis at `host:port`, as the same user.
    pub fn node(&self, address: &str) -> Result<ConnectionInfo, RedisError> {
        if let Some(named) = self.named.iter().find(|named| named.addr().to_string() == address) {
            return Ok(named.clone());
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(|| invalid("a node without a port"))?;
        let port = port.parse().map_err(|_| invalid("a node without a port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let like = self.named.first().ok_or_else(|| invalid("no node"))?;
        let addr = match like.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        Ok(like.clone().set_addr(addr))
    }

    /// The sentinels as they are asked: they have no databases, and users of their own.
    pub fn sentinels(&self) -> Vec<ConnectionInfo> {
        let plain = |named: &ConnectionInfo| named.clone().set_redis_settings(RedisConnectionInfo::default());
        self.named.iter().map(plain).collect()
    }
}

fn invalid(what: &'static str) -> RedisError {
    RedisError::from((redis::ErrorKind::InvalidClientConfig, "REDIS_URL cannot be read", what.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> (Mode, Vec<String>, String, i64) {
        let address = Address::read(url).expect(url);
        let named = address.named.iter().map(|named| named.addr().to_string()).collect();
        (address.mode, named, address.master, address.named[0].redis_settings().db())
    }

    #[test]
    fn all_forms_are_read() {
        let of = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        assert_eq!(read("redis://h:1/2"), (Mode::Standalone, of(&["h:1"]), String::new(), 2));
        let (sentinels, master) = (of(&["a:1", "b:2", "c:3"]), "m".to_owned());
        assert_eq!(read("redis+sentinel://a:1,b:2,c:3/m"), (Mode::Sentinel, sentinels.clone(), master.clone(), 0));
        assert_eq!(read("redis+sentinel://u:p@a:1,b:2,c:3/m/4"), (Mode::Sentinel, sentinels, master, 4));
        assert_eq!(read("redis+cluster://a:1,b:2"), (Mode::Cluster, of(&["a:1", "b:2"]), String::new(), 0));
        assert_eq!(read("redis+ring://a:1,b/3"), (Mode::Ring, of(&["a:1", "b:6379"]), String::new(), 3));
    }

    #[test]
    fn what_is_missing_is_said() {
        for (url, what) in [
            ("redis+sentinel://a:1", "name the master"),
            ("redis+cluster://a:1/2", "database 0"),
            ("redis+ring://", "at least one node"),
            ("http://a", ""),
        ] {
            let error = Address::read(url).expect_err(url).to_string();
            assert!(error.contains(what), "{url}: {error}");
        }
    }

    #[test]
    fn other_nodes_are_reached_as_the_same_user_and_sentinels_as_nobody() {
        let address = Address::read("redis+sentinel://u:p%40@a:1/m/4").expect("a URL");
        let node = address.node("10.0.0.1:7").expect("an address");
        assert_eq!(node.addr().to_string(), "10.0.0.1:7");
        assert_eq!((node.redis_settings().password(), node.redis_settings().db()), (Some("p@"), 4));
        assert_eq!(address.sentinels()[0].redis_settings().password(), None);
    }
}
