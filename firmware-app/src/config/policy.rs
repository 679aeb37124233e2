//! `[policy]`: which frames are labelled.

use serde::{Deserialize, Serialize};

/// `[policy]`: which frames are labelled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// A frame is skipped when no part of it changed by this much of full scale since the last one that was labelled; 0: none is.
    pub novelty: f32,
    /// Labels an hour at most; 0: no limit.
    pub labels_per_hour: u64,
    /// Labels a day at most; 0: no limit.
    pub labels_per_day: u64,
    /// When live cameras are labelled, `HH:MM-HH:MM`; always when empty.
    pub hours: Vec<Hours>,
    /// What is added to UTC for `hours` and for where a day begins.
    pub utc_offset_minutes: i32,
}

/// A part of the day, in minutes from its beginning; one that ends before it begins goes over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    /// First minute.
    pub from: u16,
    /// The minute after the last.
    pub to: u16,
}

impl Hours {
    /// Whether a minute of the day lies within.
    pub const fn contains(&self, minute: u16) -> bool {
        if self.from <= self.to { self.from <= minute && minute < self.to } else { self.from <= minute || minute < self.to }
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let minute = |text: &str| -> Option<u16> {
            let (hours, minutes) = text.split_once(':')?;
            let two = |text: &str| text.parse::<u16>().ok().filter(|_| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()));
            let (hours, minutes) = (two(hours)?, two(minutes)?);
            (minutes < 60 && hours * 60 + minutes <= 24 * 60).then_some(hours * 60 + minutes)
        };
        let parts = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
        match parts {
            Some((from, to)) if from != to && from < 24 * 60 => Ok(Self { from, to }),
            _ => Err(format!("{text:?}, expected HH:MM-HH:MM")),
        }
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        format!("{}-{}", clock(hours.from), clock(hours.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_go_over_midnight() {
        let hours = |text: &str| Hours::try_from(text.to_owned());
        let night = hours("22:30-06:00").unwrap();
        assert_eq!([0, 359, 360, 1349, 1350, 1439].map(|minute| night.contains(minute)), [true, true, false, false, true, true]);
        let day = hours("06:00-24:00").unwrap();
        assert_eq!([0, 359, 360, 1439].map(|minute| day.contains(minute)), [false, false, true, true]);
        assert_eq!((String::from(night), String::from(day)), ("22:30-06:00".to_owned(), "06:00-24:00".to_owned()));
        for bad in ["", "6:00-7:00", "06:00-06:00", "06:60-07:00", "24:00-01:00", "06:00-24:01", "06:00", "+6:00-07:00"] {
            assert!(hours(bad).is_err(), "{bad}");
        }
    }
}
