//! How much one may ask: a token bucket for each address of those without a
//! token, and for each principal.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_protocol::names::PrincipalName;

/// Most of whom is remembered.
const MAX_KNOWN: usize = 20_000;
/// How many seconds' worth of requests may come at once.
const BURST_SECONDS: f64 = 10.0;

/// Limits requests by address.
#[derive(Debug)]
pub struct Limiter(Buckets<Origin>);

/// Limits requests by principal.
#[derive(Debug)]
pub struct PrincipalLimiter(Buckets<Option<PrincipalName>>);

/// A bucket for each of those who are known; one for all whom there is no
/// room for.
#[derive(Debug)]
struct Buckets<K> {
    per_second: f64,
    held: Mutex<HashMap<K, Bucket>>,
    others: K,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Origin {
    V4([u8; 4]),
    /// Whoever has one address of a /64 has them all.
    V6([u8; 8]),
    /// Those for whom there is no room, and those without an address.
    Others,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Limiter {
    /// So many requests in a second from each address, on the average.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self(Buckets::new(per_second, Origin::Others))
    }

    /// Takes one request from this address, if it may make one now.
    pub fn allows(&self, address: Option<IpAddr>, now: Instant) -> bool {
        self.0.allows(Origin::of(address), now)
    }
}

impl PrincipalLimiter {
    /// So many requests in a second of each principal, on the average.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self(Buckets::new(per_second, None))
    }

    /// Takes one request of this principal, if it may make one now.
    pub fn allows(&self, principal: &PrincipalName, now: Instant) -> bool {
        self.0.allows(Some(principal.clone()), now)
    }
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    fn new(per_second: u32, others: K) -> Self {
        Self {
            per_second: f64::from(per_second),
            held: Mutex::default(),
            others,
        }
    }

    fn allows(&self, mut who: K, now: Instant) -> bool {
        let full = self.per_second * BURST_SECONDS;
        let mut buckets = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_KNOWN && !buckets.contains_key(&who) {
            // Whoever was silent long enough has a full bucket again anyway.
            let refilled = Duration::from_secs_f64(BURST_SECONDS);
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < refilled);
            if buckets.len() >= MAX_KNOWN {
                who = self.others.clone();
            }
        }
        let bucket = buckets.entry(who).or_insert(Bucket {
            left: full,
            at: now,
        });
        let waited = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + waited * self.per_second).min(full);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

impl Origin {
    fn of(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(v4)) => Self::V4(v4.octets()),
            Some(IpAddr::V6(v6)) => {
                let octets = v6.octets();
                let mut net = [0; 8];
                net.copy_from_slice(&octets[..8]);
                Self::V6(net)
            }
            None => Self::Others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_burst_and_its_rate() {
        let limiter = Limiter::new(2);
        let now = Instant::now();
        assert_eq!(
            (0..50)
                .filter(|_| limiter.allows(ip("192.0.2.1"), now))
                .count(),
            20
        );
        assert!(limiter.allows(ip("192.0.2.2"), now));
        let later = now + Duration::from_secs(3);
        assert_eq!(
            (0..50)
                .filter(|_| limiter.allows(ip("192.0.2.1"), later))
                .count(),
            6
        );
        // One /64 is one address; a mapped address is the one it maps.
        assert_eq!(
            (0..50)
                .filter(|_| limiter.allows(ip("2001:db8::1"), now))
                .count(),
            20
        );
        assert!(!limiter.allows(ip("2001:db8::2"), now));
        assert!(limiter.allows(ip("2001:db8:0:1::2"), now));
        assert!(limiter.allows(ip("::ffff:192.0.2.7"), now));
    }

    #[test]
    fn a_principal_has_a_rate_of_its_own() {
        let limiter = PrincipalLimiter::new(1);
        let now = Instant::now();
        let (ana, ci) = ("ana".parse().unwrap(), "ci/web".parse().unwrap());
        assert_eq!((0..50).filter(|_| limiter.allows(&ci, now)).count(), 10);
        assert!(limiter.allows(&ana, now));
        assert!(limiter.allows(&ci, now + Duration::from_secs(1)));
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        for n in 0..u32::try_from(MAX_KNOWN).unwrap() + 100 {
            limiter.allows(Some(IpAddr::V4(n.into())), now);
        }
        assert!(limiter.0.held.lock().unwrap().len() <= MAX_KNOWN + 1);
    }
}
