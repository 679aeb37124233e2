//! What an outbox has sent, counted in the commit that stores it.

use super::Store;
use super::intake::ROWS;
use sqlx::AnyConnection;
use sqlx::AssertSqlSafe;

/// Numbers to be added to the account of one outbox epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Labels, each once.
    pub(super) stored: i64,
    /// Of these with everything that was announced.
    pub(super) settled: i64,
    /// Of these kept but not trained on.
    pub(super) refused: i64,
    /// Pictures kept.
    pub(super) frames: i64,
    /// Of these pictures.
    pub(super) picture_bytes: i64,
    /// Labels that came again.
    pub(super) duplicates: i64,
    /// Of these with other bytes under the same key.
    pub(super) conflicts: i64,
}

impl Store {
    /// Adds what a batch says of each outbox (device and epoch, each once).
    pub(super) async fn add_accounts(&self, db: &mut AnyConnection, accounts: &[(&str, i64, Account)]) -> Result<(), sqlx::Error> {
        let told: Vec<_> = accounts.iter().filter(|(_, _, account)| *account != Account::default()).collect();
        for chunk in told.chunks(ROWS) {
            let sql = format!(
                "INSERT INTO epochs (device, epoch, stored, settled, refused, frames, picture_bytes, duplicates, conflicts) VALUES {} \
                 ON CONFLICT (device, epoch) DO UPDATE SET stored = epochs.stored + excluded.stored, \
                 settled = epochs.settled + excluded.settled, refused = epochs.refused + excluded.refused, \
                 frames = epochs.frames + excluded.frames, picture_bytes = epochs.picture_bytes + excluded.picture_bytes, \
                 duplicates = epochs.duplicates + excluded.duplicates, \
                 conflicts = epochs.conflicts + excluded.conflicts",
                self.values(chunk.len(), 9)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (device, epoch, account) in chunk {
                query = query.bind(*device).bind(*epoch).bind(account.stored).bind(account.settled).bind(account.refused);
                query = query.bind(account.frames).bind(account.picture_bytes).bind(account.duplicates).bind(account.conflicts);
            }
            query.persistent(false).execute(&mut *db).await?;
        }
        Ok(())
    }
}
