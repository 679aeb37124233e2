//! What SQLite and PostgreSQL write differently, and what a value has to be for both.

use super::Store;
use std::borrow::Cow;
use std::fmt::Write as _;

/// A yes or no in an integer column, or made of an expression by `CAST(… AS INTEGER)`.
#[derive(Clone, Copy, Debug, sqlx::Type)]
#[sqlx(transparent)]
pub(super) struct Flag(i64);

impl From<Flag> for bool {
    fn from(flag: Flag) -> Self {
        flag.0 != 0
    }
}

/// Text as both keep it: PostgreSQL has no NUL in a text.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

impl Store {
    /// `(…), (…)`: placeholders of so many rows. SQLite looks a numbered one up among all others, so that it gets them without.
    pub(super) fn values(&self, rows: usize, columns: usize) -> String {
        let mut list = String::new();
        for row in 0..rows {
            list.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..columns {
                let comma = if column == 0 { "" } else { ", " };
                // Writing to a string does not fail.
                _ = if self.is_shared() { write!(list, "{comma}${}", row * columns + column + 1) } else { write!(list, "{comma}?") };
            }
            list.push(')');
        }
        list
    }
}
