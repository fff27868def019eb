//! Exact rationals, small enough for four numbers up to 13 and any three operations on them.

use std::cmp::Ordering;
use std::fmt;

/// A fraction in lowest terms, denominator positive.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rational {
    numerator: i64,
    denominator: i64,
}

/// The four operations.
pub const OPERATIONS: [char; 4] = ['+', '-', '*', '/'];

impl Rational {
    /// A whole number.
    pub const fn whole(n: i64) -> Self {
        Self { numerator: n, denominator: 1 }
    }

    fn new(numerator: i64, denominator: i64) -> Self {
        let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs()).max(1);
        let divisor = i64::try_from(divisor).unwrap_or(1) * denominator.signum();
        Self { numerator: numerator / divisor, denominator: denominator / divisor }
    }

    /// `self operation other`; none for a division by zero.
    pub fn apply(self, operation: char, other: Self) -> Option<Self> {
        let (a, b, c, d) = (self.numerator, self.denominator, other.numerator, other.denominator);
        match operation {
            '+' => Some(Self::new(a * d + c * b, b * d)),
            '-' => Some(Self::new(a * d - c * b, b * d)),
            '*' => Some(Self::new(a * c, b * d)),
            '/' if c != 0 => Some(Self::new(a * d, b * c)),
            _ => None,
        }
    }

    /// Whether it is this whole number.
    pub fn is(self, n: i64) -> bool {
        self == Self::whole(n)
    }

    /// Whether it is a whole number.
    pub const fn is_whole(self) -> bool {
        self.denominator == 1
    }
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Ord for Rational {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.numerator * other.denominator).cmp(&(other.numerator * self.denominator))
    }
}

impl PartialOrd for Rational {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Rational {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_whole() {
            write!(f, "{}", self.numerator)
        } else {
            write!(f, "{}/{}", self.numerator, self.denominator)
        }
    }
}
