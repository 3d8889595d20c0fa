//! An S3 server for tests.

use tidemill_common::config::Connections;

use crate::own::Own;

/// An S3 server with the bucket `warehouse`. It believes any credentials.
pub struct S3 {
    /// Its address.
    pub endpoint: String,
    access_key_id: String,
    secret_access_key: String,
    _own: Option<Own>,
}

impl S3 {
    /// The one that the environment names (`dev/services env s3`), else one of this test's own, which takes seconds.
    pub async fn start() -> Self {
        let own = match std::env::var("S3_ENDPOINT") {
            Ok(_) => None,
            Err(_) => Some(Own::start(&["s3"]).await),
        };
        let value = |name: &str| match &own {
            Some(own) => own.value(name),
            None => std::env::var(name).unwrap_or_else(|_| panic!("{name} belongs to S3_ENDPOINT")),
        };
        Self {
            endpoint: value("S3_ENDPOINT"),
            access_key_id: value("S3_ACCESS_KEY_ID"),
            secret_access_key: value("S3_SECRET_ACCESS_KEY"),
            _own: own,
        }
    }

    /// Lets services reach it. What lies there then begins with `s3://warehouse/`.
    pub fn reach(&self, connections: &mut Connections) {
        let warehouse = &mut connections.warehouse;
        warehouse.s3_endpoint = Some(self.endpoint.clone());
        warehouse.s3_access_key_id = Some(self.access_key_id.clone());
        warehouse.s3_secret_access_key = Some(self.secret_access_key.clone());
    }
}
