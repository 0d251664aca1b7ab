//! Filters as conditions on rows.

use thicket_milvus::{Expression, Token};

use crate::facets::Filter;
use crate::milvus::names;
use crate::milvus::rows::{CAMERA, CAPTURED, NEVER, TAGS};

/// The rows that a filter holds for; all of them without one.
pub(super) fn rows(filter: Option<&Filter>) -> Expression {
    let Some(filter) = filter else { return Expression::default() };
    let mut rows = Expression::default();
    if !filter.cameras.is_empty() {
        let cameras: Vec<Token> = filter.cameras.iter().map(|name| names::camera(name)).collect();
        rows = rows.and(Expression::one_of(CAMERA, &cameras));
    }
    let tags = |tags: &[String]| tags.iter().map(|tag| names::tag(tag)).collect::<Vec<Token>>();
    if !filter.tags_all.is_empty() {
        rows = rows.and(Expression::has_all(TAGS, &tags(&filter.tags_all)));
    }
    if !filter.tags_any.is_empty() {
        rows = rows.and(Expression::has_any(TAGS, &tags(&filter.tags_any)));
    }
    if filter.captured_from.is_some() || filter.captured_until.is_some() {
        // A row without a time has none that is late enough.
        let from = filter.captured_from.unwrap_or(i64::MIN).clamp(NEVER + 1, -NEVER);
        rows = rows.and(Expression::at_least(CAPTURED, from));
    }
    if let Some(until) = filter.captured_until {
        rows = rows.and(Expression::below(CAPTURED, until.clamp(NEVER + 1, -NEVER)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_time_meets_no_condition_on_it() {
        let filter = Filter { captured_until: Some(5), ..Filter::default() };
        let expected = format!("(captured >= {}) and (captured < 5)", NEVER + 1);
        assert_eq!(rows(Some(&filter)).as_str(), expected);
        let filter = Filter { captured_from: Some(i64::MIN), ..Filter::default() };
        assert_eq!(rows(Some(&filter)).as_str(), format!("captured >= {}", NEVER + 1));
    }

    #[test]
    fn what_a_caller_writes_is_never_part_of_an_expression() {
        let names = vec![r#"x"] or key != [""#.to_owned()];
        let filter = Filter { cameras: names.clone(), tags_all: names, ..Filter::default() };
        assert!(!rows(Some(&filter)).as_str().contains("key"));
    }
}
