//! What is noted of a request's receipt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, header};
use chrono::Utc;

use crate::config::ClientAddress;
use crate::stages::Receipt;

/// Longest user agent that is kept, in characters.
const MAX_USER_AGENT: usize = 512;

impl Receipt {
    /// A receipt now.
    pub fn now(peer: Option<IpAddr>, kept: ClientAddress, headers: &HeaderMap) -> Self {
        let user_agent = headers
            .get(header::USER_AGENT)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_USER_AGENT).collect::<String>());
        Self {
            at: Utc::now().timestamp_micros(),
            client_address: peer.and_then(|peer| keep(peer, kept)),
            user_agent: user_agent.filter(|agent| !agent.is_empty()),
        }
    }
}

fn keep(peer: IpAddr, kept: ClientAddress) -> Option<String> {
    match kept {
        ClientAddress::None => None,
        ClientAddress::Full => Some(peer.to_canonical().to_string()),
        ClientAddress::Truncated => Some(network(peer.to_canonical()).to_string()),
    }
}

fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !((1 << 80) - 1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_as_far_as_is_set() {
        let keep = |peer: &str, kept| keep(peer.parse().expect("address"), kept);
        assert_eq!(keep("203.0.113.77", ClientAddress::Truncated).as_deref(), Some("203.0.113.0"));
        assert_eq!(keep("::ffff:203.0.113.77", ClientAddress::Truncated).as_deref(), Some("203.0.113.0"));
        assert_eq!(keep("2001:db8:7:8:9::1", ClientAddress::Truncated).as_deref(), Some("2001:db8:7::"));
        assert_eq!(keep("203.0.113.77", ClientAddress::Full).as_deref(), Some("203.0.113.77"));
        assert_eq!(keep("203.0.113.77", ClientAddress::None), None);
    }
}
