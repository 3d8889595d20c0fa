//! TLS, with a certificate that can be replaced while the service runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{Error as RustlsError, ServerConfig};

/// How often the files are looked at for a change.
const RECHECK: Duration = Duration::from_secs(1);

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One file without the other.
    #[error("http.tls_cert and http.tls_key belong together; set both, or neither to serve without TLS")]
    Half,
    /// A file that is missing or not what it should be.
    #[error("http.{setting} names {path}, which cannot be used: {error}; it must be a PEM file with {content}")]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        error: PemError,
        /// What it should hold.
        content: &'static str,
    },
    /// Files that do not fit each other, or hold what TLS does not know.
    #[error(
        "{cert} and {key} cannot be used: {error}; the first certificate must be the server's own and the key its key"
    )]
    Unfit {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        error: RustlsError,
    },
}

/// What is needed to speak TLS.
pub struct Tls {
    files: Files,
    loaded: Option<Stamp>,
    current: Mutex<TlsAcceptor>,
}

struct Files {
    cert: PathBuf,
    key: PathBuf,
}

/// Tells whether the files have changed.
type Stamp = [(SystemTime, u64); 2];

impl Tls {
    /// Loads the certificate; none if no files are named.
    pub fn new(cert: Option<&Path>, key: Option<&Path>) -> Result<Option<Self>, TlsError> {
        let named = |path: Option<&Path>| path.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
        let files = match (named(cert), named(key)) {
            (Some(cert), Some(key)) => Files { cert, key },
            (None, None) => return Ok(None),
            _ => return Err(TlsError::Half),
        };
        let loaded = files.stamp();
        let current = Mutex::new(files.load()?);
        Ok(Some(Self { files, loaded, current }))
    }

    /// For a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.lock().expect("no holder panics").clone()
    }

    /// Loads the files again whenever they change. It never ends.
    pub async fn reload(&self) {
        let mut loaded = self.loaded;
        loop {
            tokio::time::sleep(RECHECK).await;
            loaded = self.refresh(loaded);
        }
    }

    fn refresh(&self, loaded: Option<Stamp>) -> Option<Stamp> {
        // Before the load: what changes during it is seen the next time.
        let now = self.files.stamp();
        if now != loaded {
            match self.files.load() {
                Ok(acceptor) => {
                    *self.current.lock().expect("no holder panics") = acceptor;
                    tracing::info!(cert = %self.files.cert.display(), "new connections get the new certificate");
                }
                Err(error) => tracing::error!(%error, "the new certificate cannot be used; the old one stays in use"),
            }
        }
        now
    }
}

impl Files {
    fn load(&self) -> Result<TlsAcceptor, TlsError> {
        let certs: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&self.cert).and_then(Iterator::collect);
        let certs = match certs {
            Ok(certs) if certs.is_empty() => Err(PemError::NoItemsFound),
            certs => certs,
        };
        let certs = certs.map_err(|error| bad_file("tls_cert", &self.cert, error, "the certificate chain"))?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| bad_file("tls_key", &self.key, error, "the private key, not encrypted"))?;
        // ring by name: other crates of the process bring other providers.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certs, key))
            .map_err(|error| TlsError::Unfit { cert: self.cert.clone(), key: self.key.clone(), error })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn stamp(&self) -> Option<Stamp> {
        let stamp = |path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Some([stamp(&self.cert)?, stamp(&self.key)?])
    }
}

fn bad_file(setting: &'static str, path: &Path, error: PemError, content: &'static str) -> TlsError {
    TlsError::File { setting, path: path.to_owned(), error, content }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let path = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
            std::fs::create_dir(&path).expect("a directory");
            Self(path)
        }

        /// Times are set, since two writes can share one.
        fn write(&self, name: &str, content: &str, age: u64) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).expect("written");
            let file = std::fs::File::options().write(true).open(&path).expect("opened");
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("a time");
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_bad_new_file_keeps_the_old_certificate() {
        let dir = Dir::new();
        let (cert, key) = pair();
        let (cert, key) = (dir.write("cert", &cert, 9), dir.write("key", &key, 9));
        let tls = Tls::new(Some(&cert), Some(&key)).expect("good").expect("TLS");
        let in_use = || Arc::as_ptr(tls.acceptor().config());
        let (first, loaded) = (in_use(), tls.refresh(tls.loaded));
        assert_eq!(in_use(), first, "nothing has changed");
        let (other_cert, other_key) = pair();
        dir.write("cert", &other_cert, 8);
        let loaded = tls.refresh(loaded);
        assert_eq!(in_use(), first, "a certificate without its key");
        std::fs::remove_file(&key).expect("removed");
        let loaded = tls.refresh(loaded);
        assert_eq!(in_use(), first, "no key");
        dir.write("key", &other_key, 7);
        tls.refresh(loaded);
        assert_ne!(in_use(), first, "both are there");
    }

    #[test]
    fn a_bad_file_at_the_start_is_told_with_what_to_do() {
        let dir = Dir::new();
        let ((cert, key), (_, other)) = (pair(), pair());
        let (cert, key, other) =
            (dir.write("cert", &cert, 0), dir.write("key", &key, 0), dir.write("other", &other, 0));
        let (none, junk) = (dir.0.join("none"), dir.write("junk", "junk", 0));
        let error = |cert: Option<&PathBuf>, key: Option<&PathBuf>| {
            Tls::new(cert.map(PathBuf::as_path), key.map(PathBuf::as_path)).err().map(|error| error.to_string())
        };
        let says = |error: Option<String>, words: &[&str]| {
            let error = error.expect("an error");
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        assert_eq!(error(None, None), None);
        assert_eq!(error(Some(&PathBuf::new()), Some(&PathBuf::new())), None, "set to nothing");
        assert_eq!(error(Some(&cert), Some(&key)), None);
        says(error(Some(&cert), None), &["http.tls_key", "set both"]);
        says(error(Some(&none), Some(&key)), &["http.tls_cert", "none", "No such file", "PEM"]);
        says(error(Some(&junk), Some(&key)), &["http.tls_cert", "junk", "certificate chain"]);
        says(error(Some(&cert), Some(&junk)), &["http.tls_key", "junk", "private key"]);
        says(error(Some(&cert), Some(&other)), &["cert", "other", "its key"]);
    }
}
