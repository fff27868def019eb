//! Checks an answer from its text alone: a recursive-descent evaluator that shares nothing with the search.

/// Why an answer is not one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    #[error("not an arithmetic expression")]
    Syntax,
    #[error("divides by zero")]
    DivisionByZero,
    #[error("does not use each given number exactly once")]
    Numbers,
    #[error("is not 24")]
    Value,
}

/// A fraction of this module's own.
type Fraction = (i128, i128);

/// Whether `expression` has the value 24 and uses each number of `input` exactly once.
pub fn check(expression: &str, input: &[i64]) -> Result<(), AnswerError> {
    let mut parser = Parser { rest: expression.as_bytes(), used: Vec::new() };
    let (numerator, denominator) = parser.sum()?;
    parser.skip();
    if !parser.rest.is_empty() {
        return Err(AnswerError::Syntax);
    }
    let (mut used, mut given) = (parser.used, input.to_vec());
    used.sort_unstable();
    given.sort_unstable();
    if used != given {
        return Err(AnswerError::Numbers);
    }
    if numerator == 24 * denominator { Ok(()) } else { Err(AnswerError::Value) }
}

struct Parser<'a> {
    rest: &'a [u8],
    used: Vec<i64>,
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn take(&mut self, any: &[u8]) -> Option<u8> {
        self.skip();
        let first = self.rest.first().copied().filter(|b| any.contains(b))?;
        self.rest = &self.rest[1..];
        Some(first)
    }

    fn sum(&mut self) -> Result<Fraction, AnswerError> {
        let mut left = self.product()?;
        while let Some(sign) = self.take(b"+-") {
            let right = self.product()?;
            let cross = right.0 * left.1;
            left = (left.0 * right.1 + if sign == b'+' { cross } else { -cross }, left.1 * right.1);
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Fraction, AnswerError> {
        let mut left = self.atom()?;
        while let Some(sign) = self.take(b"*/") {
            let right = self.atom()?;
            left = match (sign, right.0) {
                (b'*', _) => (left.0 * right.0, left.1 * right.1),
                (_, 0) => return Err(AnswerError::DivisionByZero),
                _ => (left.0 * right.1, left.1 * right.0),
            };
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<Fraction, AnswerError> {
        if self.take(b"(").is_some() {
            let inner = self.sum()?;
            return self.take(b")").map(|_| inner).ok_or(AnswerError::Syntax);
        }
        self.skip();
        let digits = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let text = std::str::from_utf8(&self.rest[..digits]).map_err(|_| AnswerError::Syntax)?;
        let number: i64 = text.parse().map_err(|_| AnswerError::Syntax)?;
        self.rest = &self.rest[digits..];
        self.used.push(number);
        Ok((number.into(), 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_if_it_is_24_from_each_number_once() {
        assert_eq!(check("((10 - 4) * 4) / 1", &[10, 4, 4, 1]), Ok(()));
        assert_eq!(check("8 / (3 - (8 / 3))", &[3, 3, 8, 8]), Ok(()));
        for (text, want) in [
            ("4 * 6", AnswerError::Numbers),
            ("10 + 4 + 4 + 1", AnswerError::Value),
            ("(10 - 4) * 4 * 1)", AnswerError::Syntax),
            ("10 / (4 - 4) + 1", AnswerError::DivisionByZero),
            ("24", AnswerError::Numbers),
            ("", AnswerError::Syntax),
        ] {
            assert_eq!(check(text, &[10, 4, 4, 1]), Err(want), "{text}");
        }
    }
}
