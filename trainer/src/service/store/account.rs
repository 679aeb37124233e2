//! What an outbox has sent, counted in the commit that stores it.

use sqlx::SqliteConnection;

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
    /// Labels that came again.
    pub(super) duplicates: i64,
    /// Of these with other bytes under the same key.
    pub(super) conflicts: i64,
}

impl Account {
    pub(super) async fn add(self, db: &mut SqliteConnection, device: &str, epoch: i64) -> Result<(), sqlx::Error> {
        if self == Self::default() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO epochs (device, epoch, stored, settled, refused, frames, duplicates, conflicts) VALUES (?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO UPDATE SET stored = stored + excluded.stored, settled = settled + excluded.settled, \
             refused = refused + excluded.refused, frames = frames + excluded.frames, \
             duplicates = duplicates + excluded.duplicates, conflicts = conflicts + excluded.conflicts",
        )
        .bind(device)
        .bind(epoch)
        .bind(self.stored)
        .bind(self.settled)
        .bind(self.refused)
        .bind(self.frames)
        .bind(self.duplicates)
        .bind(self.conflicts)
        .execute(db)
        .await
        .map(drop)
    }
}
