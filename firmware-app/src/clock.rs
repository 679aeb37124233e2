//! The clock of the wall, which may never have been set.

/// 2026-01-01, Unix milliseconds: a clock that says less was never set.
pub(crate) const SET_MS: u64 = 1_767_225_600_000;

/// Unix milliseconds; 0 before 1970.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
