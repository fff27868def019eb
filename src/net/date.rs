//! The `Date` of answers (RFC 9110 section 6.6.1).

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;

thread_local! {
    /// The last one and its second: it is written once a second and not once an answer.
    static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((u64::MAX, HeaderValue::from_static(""))) };
}

/// The time of this machine.
#[expect(clippy::disallowed_methods, reason = "an answer's Date is this machine's, whatever the clock in use says")]
pub fn now() -> HeaderValue {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|last| {
        if last.0 != second {
            let written = httpdate::fmt_http_date(now);
            *last = (second, HeaderValue::from_str(&written).unwrap_or_else(|_| last.1.clone()));
        }
        last.1.clone()
    })
}
