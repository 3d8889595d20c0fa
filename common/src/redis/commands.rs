//! Which keys commands have, and how a pipeline is shared out to nodes. Pure.

use std::collections::BTreeMap;

use redis::{Arg, Cmd, Pipeline};

use super::RedisFailure;
use super::node::failure;

/// Commands without a key: they go to every node that the rest of the pipeline goes to, or to all.
const KEYLESS: [&str; 20] = [
    "ACL", "ASKING", "AUTH", "CLIENT", "CLUSTER", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "INFO", "LATENCY",
    "MEMORY", "PING", "READONLY", "ROLE", "SCAN", "SCRIPT", "SLOWLOG", "TIME",
];
/// Commands all of whose arguments are keys.
const MANY: [&str; 5] = ["DEL", "EXISTS", "MGET", "TOUCH", "UNLINK"];

/// The keys of a command.
pub fn keys(command: &Cmd) -> Vec<&[u8]> {
    let arguments: Vec<&[u8]> = command
        .args_iter()
        .filter_map(|argument| match argument {
            Arg::Simple(bytes) => Some(bytes),
            _ => None,
        })
        .collect();
    let Some((name, rest)) = arguments.split_first() else { return Vec::new() };
    let is_one_of = |names: &[&str]| names.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
    if is_one_of(&KEYLESS) {
        Vec::new()
    } else if is_one_of(&["EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL"]) {
        let count = rest.get(1).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or(0);
        rest.iter().skip(2).take(count).copied().collect()
    } else if is_one_of(&MANY) {
        rest.to_vec()
    } else {
        rest.first().copied().into_iter().collect()
    }
}

/// Where a pipeline's commands go, by their numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shared<'a> {
    /// For each node its commands, in order.
    pub by_node: BTreeMap<&'a str, Vec<usize>>,
    /// Commands that no node takes: their keys have none, or more than one.
    pub homeless: Vec<(usize, Homeless)>,
}

/// Why no node takes a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Homeless {
    /// No node has its key's slot now.
    Nobody,
    /// Its keys are at several nodes, which one command cannot ask.
    Apart,
}

impl Homeless {
    /// The same as an error.
    pub fn failure(self) -> RedisFailure {
        failure(match self {
            Homeless::Nobody => "no node has the slot of this key now",
            Homeless::Apart => "one command or transaction cannot ask for keys of several nodes",
        })
    }
}

/// Shares out the commands of a pipeline. `home` says who has a key, `all` are the nodes that have any.
pub fn share<'a>(pipeline: &Pipeline, all: &[&'a str], home: impl Fn(&[u8]) -> Option<&'a str>) -> Shared<'a> {
    let mut shared = Shared::default();
    let mut keyless = Vec::new();
    for (number, command) in pipeline.cmd_iter().enumerate() {
        let mut homes = keys(command).into_iter().map(&home);
        match homes.next() {
            None => keyless.push(number),
            Some(None) => shared.homeless.push((number, Homeless::Nobody)),
            Some(Some(node)) if homes.all(|other| other == Some(node)) => {
                shared.by_node.entry(node).or_default().push(number);
            }
            Some(Some(_)) => shared.homeless.push((number, Homeless::Apart)),
        }
    }
    if !keyless.is_empty() {
        if shared.by_node.is_empty() {
            shared.by_node.extend(all.iter().map(|node| (*node, Vec::new())));
        }
        for numbers in shared.by_node.values_mut() {
            numbers.extend(&keyless);
            numbers.sort_unstable();
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found() {
        let texts = |command: &Cmd| -> Vec<String> {
            keys(command).into_iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
        };
        assert_eq!(texts(redis::cmd("GET").arg("a")), ["a"]);
        assert_eq!(texts(redis::cmd("set").arg("a").arg("b").arg("NX")), ["a"]);
        assert_eq!(texts(redis::cmd("UNLINK").arg("a").arg("b")), ["a", "b"]);
        assert_eq!(texts(redis::cmd("EVALSHA").arg("s").arg(2).arg("a").arg("b").arg("c")), ["a", "b"]);
        assert_eq!(texts(redis::cmd("EVAL").arg("s").arg(0).arg("c")), Vec::<String>::new());
        assert_eq!(texts(redis::cmd("SCRIPT").arg("LOAD").arg("s")), Vec::<String>::new());
    }

    #[test]
    fn commands_go_where_their_keys_are_and_scripts_are_loaded_there() {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg("s")
            .get("a1")
            .get("b1")
            .get("a2")
            .get("x")
            .cmd("MGET")
            .arg("a1")
            .arg("b1");
        let home = |key: &[u8]| match key[0] {
            b'a' => Some("A"),
            b'b' => Some("B"),
            _ => None,
        };
        let shared = share(&pipeline, &["A", "B", "C"], home);
        assert_eq!(shared.by_node, BTreeMap::from([("A", vec![0, 1, 3]), ("B", vec![0, 2])]));
        assert_eq!(shared.homeless, [(4, Homeless::Nobody), (5, Homeless::Apart)]);
        let everywhere = share(redis::pipe().cmd("PING"), &["A", "B", "C"], home);
        assert_eq!(everywhere.by_node.len(), 3);
    }
}
