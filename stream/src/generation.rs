//! Which generation of a project is live, and how that changes without a batch in between.
//!
//! A batch of live generations holds its projects' locks, shared, from before it looks at the ledger until it is
//! committed; who changes a project's generation holds its lock alone ([`tidemill_common::projects::hold`]). So that waits for the batches that are under
//! way, those that come wait for it, and then find that their generation is not live any more.

use sqlx::PgConnection;
use tidemill_common::projects::LOCK;

/// Holds projects' generations as they are until the transaction ends, and sets what else it needs: not to wait for the
/// disk is safe here, since the ledger is lost or kept together with the data; and rows are better found one by one,
/// wherever they lie, than by reading a table as a whole, which would cost more the more there is.
///
/// It is the first statement of a transaction, and one for all, since each costs a batch a round trip.
const BEGIN: &str = "
    SELECT set_config('synchronous_commit', 'off', true), set_config('random_page_cost', '1', true),
           (SELECT count(pg_advisory_xact_lock_shared($1, hashtext(id))) FROM unnest($2::text[]) AS id)";

/// Begins the transaction of a batch that counts in the live generations of these projects, which are sorted; of a
/// rebuild's there are none.
pub async fn begin(tx: &mut PgConnection, projects: &[&str]) -> Result<(), sqlx::Error> {
    sqlx::query(BEGIN).bind(LOCK).bind(projects).execute(tx).await.map(drop)
}
