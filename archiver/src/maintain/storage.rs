//! What lies in a table's folder. The Iceberg library reads and writes files, but does not list them.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};
use iceberg::table::Table;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::services::{Fs, S3};
use opendal::{EntryMode, Operator};

use super::MaintainError;
use super::location::{bucket, path};

/// Files that are asked for, or removed, at a time.
const AT_ONCE: usize = 16;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its address.
    pub url: String,
    /// When it was last written, in milliseconds since 1970.
    pub written_ms: i64,
    /// How long it is.
    pub bytes: u64,
}

/// All files in a table's folder.
pub async fn list(table: &Table) -> Result<Vec<Listed>, MaintainError> {
    let (storage, root, folder) = open(table)?;
    let entries = storage.lister_with(&format!("{}/", folder.trim_end_matches('/'))).recursive(true).await?;
    let listed = entries
        .try_filter(|entry| futures::future::ready(entry.metadata().mode() == EntryMode::FILE))
        .map(|entry| async {
            let entry = entry?;
            let known = entry.metadata();
            let metadata = match known.last_modified() {
                Some(_) => known.clone(),
                None => storage.stat(entry.path()).await?,
            };
            // Without a time it was written just now: it stays.
            let written_ms = metadata.last_modified().map_or(i64::MAX, |at| at.into_inner().as_millisecond());
            let url = format!("{root}{}", entry.path());
            Ok::<_, opendal::Error>(Listed { url, written_ms, bytes: metadata.content_length() })
        })
        .buffer_unordered(AT_ONCE);
    Ok(listed.try_collect().await?)
}

/// Removes files of a table's folder.
pub async fn remove<'a>(table: &Table, urls: impl Iterator<Item = &'a str>) -> Result<(), MaintainError> {
    let (storage, root, _) = open(table)?;
    let paths = urls.filter_map(|url| url.strip_prefix(&root));
    futures::stream::iter(paths)
        .map(|path| storage.delete(path))
        .buffer_unordered(AT_ONCE)
        .try_for_each(|()| futures::future::ready(Ok(())))
        .await?;
    Ok(())
}

/// The storage that a table lies in, what stands before its paths, and the table's folder.
fn open(table: &Table) -> Result<(Operator, String, String), MaintainError> {
    let location = table.metadata().location();
    if let Some((bucket, path)) = bucket(location) {
        let storage = Operator::new(s3(bucket, table.file_io().config().props()))?.finish();
        let patient = storage.layer(TimeoutLayer::new()).layer(RetryLayer::new());
        return Ok((patient, format!("s3://{bucket}/"), path.to_owned()));
    }
    let path = path(location).ok_or_else(|| MaintainError::Location(location.to_owned()))?;
    let storage = Operator::new(Fs::default().root("/"))?.finish();
    Ok((storage, "file:///".to_owned(), path.trim_start_matches('/').to_owned()))
}

fn s3(bucket: &str, settings: &HashMap<String, String>) -> S3 {
    let get = |name: &str| settings.get(name).map(String::as_str);
    let mut s3 = S3::default().bucket(bucket).region(get("s3.region").unwrap_or("us-east-1"));
    if let Some(endpoint) = get("s3.endpoint") {
        s3 = s3.endpoint(endpoint);
    }
    if let (Some(id), Some(secret)) = (get("s3.access-key-id"), get("s3.secret-access-key")) {
        s3 = s3.access_key_id(id).secret_access_key(secret);
    }
    if let Some(token) = get("s3.session-token") {
        s3 = s3.session_token(token);
    }
    if get("s3.path-style-access") != Some("true") {
        s3 = s3.enable_virtual_host_style();
    }
    s3
}
