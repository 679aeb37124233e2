//! `[retention]` of `trainer.toml`.

use serde::{Deserialize, Serialize};

/// `[retention]`: how long labels and pictures are kept; for ever without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Days after their arrival that pictures are dropped; their labels stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture_days: Option<u32>,
    /// Days after their arrival that labels are dropped, with their pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_days: Option<u32>,
    /// Bytes of all pictures at most: the oldest are dropped, their labels stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture_bytes: Option<u64>,
}

/// A hundred years: what is added up from it stays far inside of what a clock can say.
const MAX_DAYS: u32 = 36_500;

impl RetentionConfig {
    /// Whether anything is ever dropped.
    pub const fn is_on(&self) -> bool {
        self.picture_days.is_some() || self.label_days.is_some() || self.picture_bytes.is_some()
    }

    /// Whether each value can be: good, key, found, expected.
    pub fn checks(&self) -> [(bool, &'static str, String, &'static str); 4] {
        let days = |days: Option<u32>| days.is_none_or(|days| (1..=MAX_DAYS).contains(&days));
        let found = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let ordered = self.label_days.is_none_or(|labels| self.picture_days.is_none_or(|pictures| pictures <= labels));
        [
            (days(self.picture_days), "retention.picture_days", found(self.picture_days.map(u64::from)), "1 to 36500"),
            (days(self.label_days), "retention.label_days", found(self.label_days.map(u64::from)), "1 to 36500"),
            (
                self.picture_bytes.is_none_or(|bytes| (1..1 << 62).contains(&bytes)),
                "retention.picture_bytes",
                found(self.picture_bytes),
                "1 to 2^62 - 1",
            ),
            (
                ordered,
                "retention.picture_days",
                found(self.picture_days.map(u64::from)),
                "at most `retention.label_days`: a picture goes with its label",
            ),
        ]
    }
}
