//! Who is logged in. Sessions live in memory: whoever restarts the centre logs everybody out.

use super::tokens::{Role, hashed};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sessions at once; one more ends the one that would end first.
const MAX_SESSIONS: usize = 256;

/// Somebody who is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) role: Role,
    /// What a request that changes something has to bring, which a page of somewhere else cannot know.
    pub(super) csrf: String,
    ends: Instant,
}

/// See the module.
pub(super) struct Sessions {
    life: Duration,
    /// By the SHA-256 of the cookie's value.
    open: Mutex<HashMap<[u8; 32], Session>>,
}

impl Sessions {
    pub(super) fn new(life: Duration) -> Self {
        Self { life, open: Mutex::default() }
    }

    pub(super) const fn life(&self) -> Duration {
        self.life
    }

    /// A new session with the value of its cookie; `None` when the system gives no random numbers.
    pub(super) fn open(&self, role: Role, now: Instant) -> Option<(String, Session)> {
        let (id, session) = (draw()?, Session { role, csrf: draw()?, ends: now + self.life });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| session.ends > now);
        if open.len() >= MAX_SESSIONS {
            let first = open.iter().min_by_key(|(_, session)| session.ends).map(|(id, _)| *id);
            if let Some(first) = first {
                open.remove(&first);
            }
        }
        open.insert(hashed(&id), session.clone());
        Some((id, session))
    }

    pub(super) fn find(&self, id: &str, now: Instant) -> Option<Session> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&hashed(id)).filter(|session| session.ends > now).cloned()
    }

    pub(super) fn close(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&hashed(id));
    }
}

/// 128 random bits in hex.
fn draw() -> Option<String> {
    Some(format!("{:016x}{:016x}", getrandom::u64().ok()?, getrandom::u64().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end_by_themselves_by_log_out_and_by_their_number() {
        let sessions = Sessions::new(Duration::from_secs(60));
        let now = Instant::now();
        let (id, session) = sessions.open(Role::Viewer, now).unwrap();
        assert_eq!((id.len(), session.csrf.len()), (32, 32));
        assert_ne!(id, session.csrf);
        assert_eq!(sessions.find(&id, now + Duration::from_secs(59)), Some(session));
        assert_eq!(sessions.find(&id, now + Duration::from_secs(60)), None);
        assert_eq!(sessions.find("", now), None);

        let later = now + Duration::from_secs(1);
        let ids: Vec<String> = (0..MAX_SESSIONS).map(|_| sessions.open(Role::Operator, later).unwrap().0).collect();
        assert_eq!(sessions.find(&id, later), None, "the one that ends first makes room");
        assert!(ids.iter().all(|id| sessions.find(id, later).is_some_and(|session| session.role == Role::Operator)));
        sessions.close(&ids[0]);
        assert_eq!(sessions.find(&ids[0], later), None);
    }
}
