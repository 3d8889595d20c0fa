//! Replicas against their masters: a copy on a replica may lag a moment behind, not longer.

use std::collections::BTreeMap;

use tidemill_common::redis::{Redis, RedisFailure};

use super::scan::{Found, Scan, parse};
use super::{Cache, Kind, Node};
use crate::fold::rollups::RollupKey;
use crate::live_session::Stamp;
use crate::project::ProjectError;
use crate::project::compare::GRACE;
use crate::project::copies::{Copy, held};
use crate::project::list;
use crate::project::pending::Key;

/// Copies of one node, by their keys in Redis.
type Copies = BTreeMap<Key, Option<Copy>>;

impl Cache {
    /// What replicas show that is older than what their masters showed some seconds before, or something else: its kind,
    /// its key and what is wrong. `ours` says which keys are looked at.
    pub(super) async fn stale_replicas(
        &self,
        nodes: &[Node],
        ours: impl Fn(&Found<'_>) -> bool,
    ) -> Result<Vec<(Kind, Option<Key>, String)>, ProjectError> {
        let mut stale = Vec::new();
        for replica in nodes {
            let Some(master) = nodes.iter().find(|node| Some(&node.at.address) == replica.at.master.as_ref()) else {
                continue;
            };
            let mut suspects = BTreeMap::new();
            let mut scan = Scan::copies(&master.client);
            while let Some(names) = scan.next().await? {
                let keys = self.keys(&names, &ours).await?;
                let keys: Vec<&Key> = keys.iter().collect();
                // The replica first, so that it can only be behind.
                let (shown, mut written) =
                    (copies(&replica.client, &keys).await?, copies(&master.client, &keys).await?);
                for key in keys {
                    let Some(Some(written)) = written.remove(key) else { continue };
                    if shown.get(key).and_then(Option::as_ref) != Some(&written) {
                        suspects.insert(key.clone(), written.stamp);
                    }
                }
            }
            for (key, stamp) in still(&replica.client, &master.client, suspects).await? {
                let text = format!(
                    "{}: {} shows less than version {} of its master",
                    key.name(),
                    replica.at.address,
                    stamp.version
                );
                stale.push((Kind::of(&key), Some(key), text));
            }
        }
        Ok(stale)
    }

    /// The copies that these names stand for.
    async fn keys(&self, names: &[String], ours: impl Fn(&Found<'_>) -> bool) -> Result<Vec<Key>, ProjectError> {
        let (mut keys, mut windows) = (Vec::new(), Vec::new());
        for found in names.iter().filter_map(|name| parse(name)).filter(|found| ours(found)) {
            match found {
                Found::Session(project, id) => keys.push(Key::Session((project.to_owned(), id.to_owned()))),
                Found::Cart(project, id) => keys.push(Key::Cart((project.to_owned(), id.to_owned()))),
                Found::Window(project, asked, granularity, start) => windows.push((project, asked, granularity, start)),
                Found::Users(_) => {} // a set has no version
            }
        }
        let known = list::identify(&self.writer.pool, &windows).await?;
        let definitions = self.writer.definitions.current().await?;
        let copied = |known: Vec<RollupKey>| known.into_iter().find(|key| key.has_copy(&definitions));
        keys.extend(known.into_iter().filter_map(copied).map(Key::Window));
        Ok(keys)
    }
}

/// Those that a replica has not come to some seconds later either.
async fn still(
    replica: &Redis,
    master: &Redis,
    suspects: BTreeMap<Key, Stamp>,
) -> Result<BTreeMap<Key, Stamp>, RedisFailure> {
    if suspects.is_empty() {
        return Ok(suspects);
    }
    tokio::time::sleep(GRACE).await;
    let keys: Vec<&Key> = suspects.keys().collect();
    let (shown, written) = (copies(replica, &keys).await?, copies(master, &keys).await?);
    let mut still = BTreeMap::new();
    for (key, stamp) in suspects {
        let (shown, written) = (shown.get(&key), written.get(&key).and_then(Option::as_ref));
        let Some(written) = written else { continue }; // it has gone
        let level = shown
            .and_then(Option::as_ref)
            .is_some_and(|shown| if shown.stamp == written.stamp { shown == written } else { shown.stamp >= stamp });
        if !level {
            still.insert(key, stamp);
        }
    }
    Ok(still)
}

async fn copies(node: &Redis, keys: &[&Key]) -> Result<Copies, RedisFailure> {
    let held = held(node, keys).await;
    held.why.map_or(Ok(held.copies), Err)
}
