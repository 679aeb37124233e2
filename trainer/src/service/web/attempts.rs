//! Who gives wrong tokens is not looked at for a while, longer with every one. Who knows a right one does not wait.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens that cost nothing: people mistype.
const FREE: u32 = 3;
/// The first wait, doubled with every further wrong token …
const WAIT: Duration = Duration::from_secs(1);
/// … up to this.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// An address that guessed nothing for so long is forgotten.
const QUIET: Duration = Duration::from_secs(900);
/// Addresses that are remembered at once.
const MAX_ADDRESSES: usize = 1024;

struct Tries {
    wrong: u32,
    last: Instant,
    next: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Attempts {
    by_address: Mutex<HashMap<IpAddr, Tries>>,
}

impl Attempts {
    /// How long an address still has to wait.
    pub(super) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let tries = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        tries.get(&network(address)).and_then(|tries| tries.next.checked_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    pub(super) fn failed(&self, address: IpAddr, now: Instant) {
        let mut known = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, tries| now.saturating_duration_since(tries.last) < QUIET);
        let address = network(address);
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&address) {
            let oldest = known.iter().min_by_key(|(_, tries)| tries.last).map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                known.remove(&oldest);
            }
        }
        let tries = known.entry(address).or_insert(Tries { wrong: 0, last: now, next: now });
        tries.wrong = tries.wrong.saturating_add(1);
        tries.last = now;
        if let Some(beyond) = tries.wrong.checked_sub(FREE + 1) {
            tries.next = now + (WAIT * 2_u32.pow(beyond.min(10))).min(WAIT_MAX);
        }
    }
}

/// What one host has to itself: an IPv4 address, or the first half of an IPv6 one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_cost_more_and_more_time_to_their_network_alone() {
        let attempts = Attempts::default();
        let (guesser, other) = (IpAddr::from([10, 0, 0, 7]), IpAddr::from([10, 0, 0, 8]));
        let now = Instant::now();
        for _ in 0..FREE {
            attempts.failed(guesser, now);
        }
        assert_eq!(attempts.wait(guesser, now), None);
        let waits: Vec<u64> = (0..7)
            .map(|_| {
                attempts.failed(guesser, now);
                attempts.wait(guesser, now).unwrap().as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(attempts.wait(guesser, now + WAIT_MAX), None);
        assert_eq!(attempts.wait(other, now), None);
        assert!(attempts.wait("::ffff:10.0.0.7".parse().unwrap(), now).is_some(), "the same address in other clothes");

        let host = |n: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n));
        (0..=FREE as u16).for_each(|n| attempts.failed(host(n), now));
        assert!(attempts.wait(host(999), now).is_some(), "a host has many addresses");
        let street = |n: u32| IpAddr::from(n.to_be_bytes());
        (0..2 * MAX_ADDRESSES as u32).for_each(|n| attempts.failed(street(n), now));
        assert!(attempts.by_address.lock().unwrap().len() <= MAX_ADDRESSES);
        attempts.failed(other, now + QUIET);
        assert_eq!(attempts.by_address.lock().unwrap().len(), 1);
    }
}
