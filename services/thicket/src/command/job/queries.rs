//! A file of queries.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use thicket_proto::v1::{Filter, JobQuery};
use thicket_runtime::unix_ms;

use crate::Failure;

/// A line as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    text: String,
    #[serde(default)]
    adapter: String,
    #[serde(default)]
    cameras: Vec<String>,
    from: Option<String>,
    until: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    any_tags: Vec<String>,
}

/// Reads a file, or stdin where it is `-`: a query a line, as a JSON object or as a plain description whose id is the
/// line's number. Empty lines do not count.
///
/// # Errors
/// [`Failure::BadInput`] with the line.
pub(super) fn read(file: &Path) -> Result<Vec<JobQuery>, Failure> {
    let refuse =
        |error: std::io::Error| Failure::bad_input(format!("{} cannot be read: {error}", file.display()));
    let text = match file.as_os_str().as_encoded_bytes() {
        b"-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).map(|_| text).map_err(refuse)?
        }
        _ => std::fs::read_to_string(file).map_err(refuse)?,
    };
    let queries = parse(&text)
        .map_err(|(line, reason)| Failure::bad_input(format!("{}, line {line}: {reason}", file.display())))?;
    match queries.is_empty() {
        true => Err(Failure::bad_input(format!("{} has no query", file.display()))),
        false => Ok(queries),
    }
}

/// The queries, or the first line that is none and why.
fn parse(text: &str) -> Result<Vec<JobQuery>, (usize, String)> {
    let mut ids = HashSet::new();
    let mut queries = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let query = match line.trim_start().starts_with('{') {
            true => object(line).map_err(|reason| (number, reason))?,
            false => JobQuery { id: number.to_string(), text: line.trim().to_owned(), ..JobQuery::default() },
        };
        if !ids.insert(query.id.clone()) {
            return Err((number, format!("an earlier line has the id `{}`", query.id)));
        }
        queries.push(query);
    }
    Ok(queries)
}

fn object(line: &str) -> Result<JobQuery, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let time = |name: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => unix_ms(&text)
            .map(Some)
            .ok_or_else(|| format!("{name}: write a time as in 2026-03-01T08:30:00+01:00")),
    };
    let filter = Filter {
        cameras: line.cameras,
        captured_from_unix_ms: time("from", line.from)?,
        captured_until_unix_ms: time("until", line.until)?,
        tags_all: line.tags,
        tags_any: line.any_tags,
    };
    Ok(JobQuery {
        id: line.id,
        text: line.text,
        adapter: line.adapter,
        filter: Some(filter).filter(|filter| *filter != Filter::default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_or_a_description() {
        let queries = parse(
            "a red coat\n\n{\"id\": \"q\", \"text\": \"a hat\", \"adapter\": \"night\", \"cameras\": [\"gate\"]}\n",
        )
        .unwrap();
        assert_eq!((queries[0].id.as_str(), queries[0].text.as_str()), ("1", "a red coat"));
        assert_eq!((queries[1].id.as_str(), queries[1].adapter.as_str()), ("q", "night"));
        assert_eq!(queries[1].filter.as_ref().unwrap().cameras, ["gate"]);
        assert_eq!(queries[0].filter, None);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line) in [
            ("ok\n{\"id\": \"a\"}", 2),
            ("{\"id\": \"a\", \"text\": \"t\", \"colour\": \"red\"}", 1),
            ("{\"id\": \"a\", \"text\": \"t\", \"from\": \"yesterday\"}", 1),
            ("{\"id\": \"2\", \"text\": \"t\"}\na red coat", 2),
            ("{", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().0, line, "{text}");
        }
    }
}
