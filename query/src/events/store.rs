//! The files of one snapshot, for the planner to read. It knows no other file, no folder and no way to write.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::execution::object_store::ObjectStoreRegistry;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use iceberg::io::FileIO;
use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::Url;
use xxhash_rust::xxh3::xxh3_128;

const NAME: &str = "archive";
/// Over a network a gap of so many bytes is read with what lies around it: one read is sooner there than two.
const READ_THROUGH: u64 = 512 * 1024;

/// Files by the paths that the planner knows them by.
pub struct Files {
    io: FileIO,
    disk: LocalFileSystem,
    /// Where each file is, and its size in bytes.
    places: HashMap<Path, (Place, u64)>,
}

/// Where a file is.
enum Place {
    /// On a disk of this machine, at this absolute path. All that is wanted of it is read by one thread in one go, where
    /// `FileIO` goes to another thread for each step of each read.
    Disk(Path),
    /// Anywhere, by URL.
    Url(String),
}

impl Place {
    fn of(url: &str) -> Self {
        let disk = url.strip_prefix("file://").and_then(|path| Path::from_absolute_path(path).ok());
        disk.map_or_else(|| Self::Url(url.to_owned()), Self::Disk)
    }
}

/// The planner's path of a file of a table: within the table's folder, behind the table's own id. It is no other
/// file's, and what plans and errors show of it says nothing of where the warehouse lies.
pub fn path(table: &TableMetadata, place: &str) -> Path {
    let within = place.strip_prefix(table.location()).map(|rest| rest.trim_start_matches('/').to_owned());
    let within = within.unwrap_or_else(|| format!("{:032x}.parquet", xxh3_128(place.as_bytes())));
    Path::from(format!("{}/{within}", table.uuid()))
}

impl Files {
    /// These files of a table: places, and sizes in bytes.
    pub fn new<'a>(table: &Table, files: impl Iterator<Item = (&'a str, u64)>) -> Self {
        let known = files.map(|(place, size)| (path(table.metadata(), place), (Place::of(place), size)));
        Self { io: table.file_io().clone(), disk: LocalFileSystem::new(), places: known.collect() }
    }

    fn place(&self, path: &Path) -> Result<&(Place, u64)> {
        let missing = || Error::NotFound { path: path.to_string(), source: "no file of this snapshot".into() };
        self.places.get(path).ok_or_else(missing)
    }
}

#[async_trait]
impl ObjectStore for Files {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let size = self.place(location)?.1;
        let wrong = |error| Error::Generic { store: NAME, source: Box::new(error) };
        let range = options.range.as_ref().map_or(Ok(0..size), |range| range.as_range(size)).map_err(wrong)?;
        let bytes = match options.head {
            true => Bytes::new(),
            false => self.get_ranges(location, std::slice::from_ref(&range)).await?.swap_remove(0),
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
            meta: meta(location.clone(), size),
            range,
            attributes: Attributes::new(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        match &self.place(location)?.0 {
            Place::Disk(place) => self.disk.get_ranges(place, ranges).await.map_err(unread),
            Place::Url(place) => {
                let read = |range| async move {
                    let read = async { self.io.new_input(place)?.reader().await?.read(range).await };
                    read.await.map_err(|error: iceberg::Error| unread(error))
                };
                // Neighbours in one go; the parts at the same time.
                object_store::coalesce_ranges(ranges, read, READ_THROUGH).await
            }
        }
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(Error::NotImplemented { operation: "put".to_owned(), implementer: NAME.to_owned() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put".to_owned(), implementer: NAME.to_owned() })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let refuse =
            |_| async { Err(Error::NotImplemented { operation: "delete".to_owned(), implementer: NAME.to_owned() }) };
        paths.and_then(refuse).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::empty().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Ok(ListResult { common_prefixes: Vec::new(), objects: Vec::new() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".to_owned(), implementer: NAME.to_owned() })
    }
}

fn unread(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: NAME, source: Box::new(error) }
}

/// What the planner wants to know of a file. Files never change, so they have no age.
pub fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta { location, last_modified: chrono::DateTime::UNIX_EPOCH, size, e_tag: None, version: None }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files", self.places.len())
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A registry with these files alone: to whatever URL, they are the answer, and by themselves they know what is
/// theirs.
#[derive(Debug)]
pub struct Only(pub Option<Arc<Files>>);

impl ObjectStoreRegistry for Only {
    fn register_store(&self, _: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        Some(store)
    }

    fn get_store(&self, url: &Url) -> PlanResult<Arc<dyn ObjectStore>> {
        let none = || DataFusionError::Plan(format!("there is nothing at {url}"));
        self.0.clone().map(|files| files as Arc<dyn ObjectStore>).ok_or_else(none)
    }
}
