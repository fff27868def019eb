//! Stateless server nonces (RFC 9449 §8, §9): HMAC over role, epoch, time and randomness.
//!
//! A nonce names the epoch of the replay store: a store that lost its memory starts a new epoch, and
//! proofs spent in the old one carry a nonce that no longer counts.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;

use crate::domain::proof::{Epoch, Role};
use crate::domain::time::Timestamp;

/// How long one nonce key step lasts; a nonce of the two steps before is accepted too.
const STEP: Duration = Duration::from_mins(1);
const STEPS_BACK: u64 = 2;
/// How many steps one derived key serves: an hour.
const STEPS_A_KEY: u64 = 60;
const BODY: usize = 1 + 8 + 8 + 12;

/// How long after `at` a proof with a nonce made then may still pass.
pub const NONCE_LIFE: Duration = Duration::from_secs(60 * (STEPS_BACK + 1));

/// The key that makes and checks nonces, shared by replicas. It signs nothing itself: each hour has a key of its own,
/// derived from it, so that the keys in use rotate without replicas having to talk.
pub struct NonceKey {
    key: hmac::Key,
    one_role: bool,
}

impl NonceKey {
    /// From 32 random bytes. Where token service and gateway have one origin, clients keep one nonce for both, so both have
    /// one role.
    pub fn new(bytes: &[u8; 32], one_origin: bool) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, bytes), one_role: one_origin }
    }

    const fn role(&self, role: Role) -> u8 {
        if self.one_role { Role::Token.byte() } else { role.byte() }
    }

    /// The key of the hour that a step is in.
    fn working(&self, step: u64) -> hmac::Key {
        let mut info = b"popgate nonce key".to_vec();
        info.extend((step / STEPS_A_KEY).to_be_bytes());
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&self.key, &info).as_ref())
    }

    /// A nonce of `epoch`; `random` must be fresh, so that each challenge has a new value.
    pub fn make(&self, role: Role, epoch: &Epoch, now: Timestamp, random: &[u8; 12]) -> String {
        let mut body = Vec::with_capacity(BODY + 16);
        body.push(self.role(role));
        body.extend(epoch.id);
        body.extend(step(now).to_be_bytes());
        body.extend(random);
        let tag = hmac::sign(&self.working(step(now)), &body);
        body.extend(&tag.as_ref()[..16]);
        B64.encode(body)
    }

    /// Whether the nonce is ours, of this role and epoch, and not more than two steps old.
    pub fn accepts(&self, nonce: &str, role: Role, epoch: &Epoch, now: Timestamp) -> bool {
        let Ok(bytes) = B64.decode(nonce) else { return false };
        if bytes.len() != BODY + 16 {
            return false;
        }
        let (body, tag) = bytes.split_at(BODY);
        let mut made = [0; 8];
        made.copy_from_slice(&body[9..17]);
        let made = u64::from_be_bytes(made);
        let expected = hmac::sign(&self.working(made), body);
        let genuine = aws_lc_rs::constant_time::verify_slices_are_equal(&expected.as_ref()[..16], tag).is_ok();
        let current = step(now);
        genuine
            && body[0] == self.role(role)
            && body[1..9] == epoch.id
            && made <= current.saturating_add(1)
            && made.saturating_add(STEPS_BACK) >= current
    }
}

fn step(now: Timestamp) -> u64 {
    now.unix() / STEP.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_700_000_040);
    const EPOCH: Epoch = Epoch { id: [3; 8], since: Timestamp::ZERO };

    #[test]
    fn p9_keys_rotate_by_the_hour_and_no_nonce_dies_of_it() {
        let key = NonceKey::new(&[7; 32], false);
        let tag = |step| hmac::sign(&key.working(step), b"x").as_ref().to_vec();
        assert_eq!(tag(0), tag(STEPS_A_KEY - 1));
        assert_ne!(tag(STEPS_A_KEY - 1), tag(STEPS_A_KEY));
        let last = Timestamp::from_unix(3600 * 1000 - 1);
        let nonce = key.make(Role::Gateway, &EPOCH, last, &[1; 12]);
        assert!(key.accepts(&nonce, Role::Gateway, &EPOCH, last.plus(Duration::from_secs(1))), "in the next hour");
        assert!(!key.accepts(&nonce, Role::Gateway, &EPOCH, last.plus(Duration::from_mins(4))), "and not for longer");
    }

    #[test]
    fn p9_where_both_have_one_origin_they_have_one_role() {
        let key = NonceKey::new(&[1; 32], true);
        let nonce = key.make(Role::Gateway, &EPOCH, NOW, &[9; 12]);
        assert!([Role::Gateway, Role::Token].iter().all(|role| key.accepts(&nonce, *role, &EPOCH, NOW)));
    }

    #[test]
    fn p9_a_nonce_is_bound_to_key_role_epoch_and_time() {
        let key = NonceKey::new(&[1; 32], false);
        let nonce = key.make(Role::Gateway, &EPOCH, NOW, &[9; 12]);
        let accepts = |key: &NonceKey, nonce: &str, role, epoch: &Epoch, offset: u64| {
            key.accepts(nonce, role, epoch, NOW.plus(Duration::from_secs(offset)))
        };
        assert!(accepts(&key, &nonce, Role::Gateway, &EPOCH, 0));
        assert!(accepts(&key, &nonce, Role::Gateway, &EPOCH, 120), "two steps back");
        assert!(!accepts(&key, &nonce, Role::Gateway, &EPOCH, 180), "three steps back");
        assert!(!accepts(&key, &nonce, Role::Token, &EPOCH, 0), "the other role's");
        assert!(!accepts(&key, &nonce, Role::Gateway, &Epoch { id: [4; 8], ..EPOCH }, 0), "another epoch's");
        assert!(!accepts(&NonceKey::new(&[2; 32], false), &nonce, Role::Gateway, &EPOCH, 0), "forged");
        for bad in ["", "x", &nonce[1..], &format!("{nonce}A")] {
            assert!(!accepts(&key, bad, Role::Gateway, &EPOCH, 0), "{bad}");
        }
    }

    #[test]
    fn p9_each_challenge_is_a_new_value() {
        let key = NonceKey::new(&[1; 32], false);
        let [a, b] = [[1; 12], [2; 12]].map(|r| key.make(Role::Token, &EPOCH, NOW, &r));
        assert_ne!(a, b);
    }
}
