use std::fmt::Write;

/// A word that may stand in an expression as it is: letters and digits of ASCII. Nothing that a caller sends can end a
/// literal and go on as an expression of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(String);

impl Token {
    /// The word; `None` where it has other characters.
    pub fn new(word: impl Into<String>) -> Option<Self> {
        let word = word.into();
        word.bytes().all(|byte| byte.is_ascii_alphanumeric()).then_some(Self(word))
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The word.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// A condition on rows. The default holds for every row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expression(String);

impl Expression {
    /// The field is one of `tokens`; never where there are none.
    pub fn one_of<'a>(field: &'static str, tokens: impl IntoIterator<Item = &'a Token>) -> Self {
        Self(format!("{field} in [{}]", quoted(tokens)))
    }

    /// The field equals `token`.
    pub fn equals(field: &'static str, token: &Token) -> Self {
        Self(format!("{field} == \"{}\"", token.0))
    }

    /// The field comes after `token`.
    pub fn after(field: &'static str, token: &Token) -> Self {
        Self(format!("{field} > \"{}\"", token.0))
    }

    /// The field is at least `least`.
    pub fn at_least(field: &'static str, least: i64) -> Self {
        Self(format!("{field} >= {least}"))
    }

    /// The field is below `bound`.
    pub fn below(field: &'static str, bound: i64) -> Self {
        Self(format!("{field} < {bound}"))
    }

    /// The list in the field has all of `tokens`.
    pub fn has_all<'a>(field: &'static str, tokens: impl IntoIterator<Item = &'a Token>) -> Self {
        Self(format!("ARRAY_CONTAINS_ALL({field}, [{}])", quoted(tokens)))
    }

    /// The list in the field has one of `tokens`.
    pub fn has_any<'a>(field: &'static str, tokens: impl IntoIterator<Item = &'a Token>) -> Self {
        Self(format!("ARRAY_CONTAINS_ANY({field}, [{}])", quoted(tokens)))
    }

    /// Both hold.
    pub fn and(self, other: Self) -> Self {
        match (self.0.is_empty(), other.0.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => Self(format!("({}) and ({})", self.0, other.0)),
        }
    }

    /// As Milvus reads it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Tokens as literals with commas between them.
fn quoted<'a>(tokens: impl IntoIterator<Item = &'a Token>) -> String {
    let mut list = String::new();
    for token in tokens {
        let comma = if list.is_empty() { "" } else { "," };
        let _ = write!(list, "{comma}\"{}\"", token.0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(word: &str) -> Token {
        Token::new(word).unwrap()
    }

    #[test]
    fn a_word_that_could_end_a_literal_is_no_token() {
        for word in ["a\"", "a b", "a\\", "é", "a-b", "a'"] {
            assert_eq!(Token::new(word), None, "{word}");
        }
    }

    #[test]
    fn conditions_read_as_milvus_has_them() {
        let both = Expression::one_of("key", [&token("a"), &token("b")]).and(Expression::below("time", -5));
        assert_eq!(both.as_str(), r#"(key in ["a","b"]) and (time < -5)"#);
        assert_eq!(Expression::default().and(Expression::equals("k", &token("x"))).as_str(), r#"k == "x""#);
        assert_eq!(Expression::has_all("tags", [&token("t")]).as_str(), r#"ARRAY_CONTAINS_ALL(tags, ["t"])"#);
    }
}
