use prost::Message;

use crate::expression::Expression;
use crate::proto;
use crate::schema::{Index, pair};

/// A search by inner product.
#[derive(Debug, Clone)]
pub struct Search<'a> {
    /// Field of the vectors.
    pub field: &'static str,
    /// How that is indexed.
    pub index: Index,
    /// Queries, row-major.
    pub queries: &'a [f32],
    /// Values of each.
    pub dimension: usize,
    /// Results for each query, 1 to [`crate::MAX_RESULTS`].
    pub top: usize,
    /// Rows that are searched.
    pub among: &'a Expression,
}

/// The candidates for one query: keys of rows and Milvus's scores, best first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// Keys.
    pub keys: Vec<String>,
    /// As many scores.
    pub scores: Vec<f32>,
}

impl Search<'_> {
    pub(crate) fn message(&self, database: &str, name: &str) -> proto::SearchRequest {
        let queries = self.queries.chunks(self.dimension);
        let rows = queries.len();
        let values =
            queries.map(|query| query.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        let group = proto::PlaceholderGroup {
            placeholders: vec![proto::PlaceholderValue {
                tag: "$0".to_owned(),
                r#type: proto::PlaceholderType::FloatVectors as i32,
                values: values.map(Into::into).collect(),
            }],
        };
        let params = self.index.search_parameters(self.top);
        proto::SearchRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            dsl: self.among.as_str().to_owned(),
            placeholder_group: group.encode_to_vec(),
            dsl_type: proto::DslType::BoolExprV1 as i32,
            output_fields: Vec::new(),
            search_params: vec![
                pair("anns_field", self.field),
                pair("topk", &self.top.to_string()),
                pair("metric_type", "IP"),
                pair("params", &params),
                pair("round_decimal", "-1"),
            ],
            guarantee_timestamp: 0,
            nq: rows as i64,
            consistency_level: proto::ConsistencyLevel::Strong as i32,
        }
    }
}

/// Cuts the flat results of a search into those of each query.
pub(crate) fn candidates(
    results: proto::SearchResultData,
    queries: usize,
) -> Result<Vec<Candidates>, String> {
    let keys = match results.ids.and_then(|ids| ids.id_field) {
        Some(proto::i_ds::IdField::StrId(keys)) => keys.data,
        Some(proto::i_ds::IdField::IntId(_)) => return Err("numbers as keys".to_owned()),
        None => Vec::new(),
    };
    if keys.len() != results.scores.len() {
        return Err(format!("{} keys and {} scores", keys.len(), results.scores.len()));
    }
    let counts: Vec<usize> =
        results.topks.iter().map(|count| usize::try_from(*count).unwrap_or(usize::MAX)).collect();
    // Where nothing was found, the counts may be left out.
    if counts.is_empty() && keys.is_empty() {
        return Ok(vec![Candidates::default(); queries]);
    }
    let all = counts.iter().fold(0usize, |sum, count| sum.saturating_add(*count));
    if counts.len() != queries || all != keys.len() {
        return Err(format!("{} results in {} rankings for {queries} queries", keys.len(), counts.len()));
    }
    let mut rest = keys.into_iter().zip(results.scores);
    Ok(counts
        .into_iter()
        .map(|count| {
            let (keys, scores) = rest.by_ref().take(count).unzip();
            Candidates { keys, scores }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(topks: &[i64], keys: &[&str], scores: &[f32]) -> proto::SearchResultData {
        let data = keys.iter().map(|key| (*key).to_owned()).collect();
        proto::SearchResultData {
            topks: topks.to_vec(),
            scores: scores.to_vec(),
            ids: Some(proto::IDs {
                id_field: Some(proto::i_ds::IdField::StrId(proto::StringArray { data })),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn flat_results_are_cut_by_query() {
        let cut = candidates(results(&[2, 0, 1], &["a", "b", "c"], &[0.9, 0.5, 0.7]), 3).unwrap();
        assert_eq!(cut[0], Candidates { keys: vec!["a".to_owned(), "b".to_owned()], scores: vec![0.9, 0.5] });
        assert!(cut[1].keys.is_empty());
        assert_eq!(cut[2].keys, ["c"]);
        assert_eq!(candidates(Default::default(), 2).unwrap().len(), 2);
    }

    #[test]
    fn results_that_do_not_add_up_are_refused() {
        for (topks, scores, queries) in
            [(&[2, 0][..], &[0.9, 0.5][..], 2), (&[1, 1], &[0.9], 2), (&[2], &[0.9, 0.5], 2), (&[-1], &[], 1)]
        {
            assert!(candidates(results(topks, &["a"], scores), queries).is_err(), "{topks:?}");
        }
    }
}
