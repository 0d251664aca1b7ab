//! Reads of one collection.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use thicket_engine::Hit;
use thicket_index::{compare, dot, ranks_before};
use thicket_milvus::{Candidates, Columns, Expression, MAX_RESULTS, MilvusError, Page, Search, Token};
use thicket_proto::v1;
use thicket_runtime::Deadline;

use crate::backend::{Facts, Open, Picture, RANKINGS_BYTES};
use crate::error::GalleryError;
use crate::milvus::rows::{self, IMAGE, ITEM_FIELDS, KEY, OBJECT, Object, SEQUENCE, VECTOR};
use crate::milvus::settle::{self, Best};
use crate::milvus::{Shared, condition, names};
use crate::record::ImageHash;
use crate::request;

/// Candidates of the queries of one search, a bound on its memory.
const CANDIDATES_AT_ONCE: usize = 16_384;
/// Queries of one search.
const QUERIES_AT_ONCE: usize = 64;
/// What a score needs of a row.
const SCORED: &[&str] = &[KEY, SEQUENCE, VECTOR];
/// Rows whose vectors are read at once, at most, and bytes of them.
const ROWS_AT_ONCE: usize = 1024;
const VECTOR_BYTES_AT_ONCE: usize = 8 << 20;
/// How many of the best are looked at for a rank before the whole collection is.
const RANKS_AT_ONCE: usize = 1024;
/// Bytes of a hit at least: the parts of an item, its score and what is around them.
const HIT_BYTES: usize = 9;

/// A collection in Milvus.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) facts: Facts,
    /// Its name in Milvus.
    pub(super) there: String,
    pub(super) shared: Arc<Shared>,
}

/// A ranking before its items are known: sequence numbers, with the keys of their rows.
struct Ranked {
    hits: Vec<Hit>,
    keys: HashMap<u64, Token>,
}

impl Opened {
    fn failed(&self, error: MilvusError) -> GalleryError {
        self.shared.failed(&self.facts, error)
    }

    /// Fields of the rows with these keys, of which there are no more than [`Self::page`]. Rows that are not there are
    /// left out.
    async fn rows(&self, keys: &[Token], fields: &[&str], until: Instant) -> Result<Columns, GalleryError> {
        let which = Expression::one_of(KEY, keys);
        let found = self.shared.client.query(&self.there, &which, Page::All, fields, until).await;
        found.map_err(|error| self.failed(error))
    }

    /// Goes through all rows that meet a condition, in the order of their keys, with their vectors.
    fn scan(&self, among: &Expression, until: Instant) -> Scan<'_> {
        Scan { opened: self, among: among.clone(), next: Some(among.clone()), until }
    }

    /// Rows whose vectors fit one read.
    fn page(&self) -> usize {
        (VECTOR_BYTES_AT_ONCE / (4 * self.facts.dimension)).clamp(1, ROWS_AT_ONCE)
    }

    /// Scores rows against queries on a thread that may compute: for each row its sequence number, and its score with each
    /// query that `wanted` names for it.
    async fn score_rows(
        &self,
        mut rows: Columns,
        queries: Arc<[f32]>,
        wanted: impl Fn(usize) -> Vec<usize> + Send + 'static,
    ) -> Result<Vec<(usize, Hit)>, GalleryError> {
        let dimension = self.facts.dimension;
        let sequences = rows.numbers(SEQUENCE).map_err(|error| self.failed(error))?;
        let vectors = rows.vectors(VECTOR, dimension).map_err(|error| self.failed(error))?;
        let task = move || {
            let mut scored = Vec::new();
            for (row, (sequence, vector)) in sequences.iter().zip(vectors.chunks(dimension)).enumerate() {
                for query in wanted(row) {
                    let values = &queries[query * dimension..(query + 1) * dimension];
                    scored.push((query, Hit { id: *sequence as u64, score: dot(values, vector) }));
                }
            }
            Ok(scored)
        };
        self.shared.pool.run_patiently(task).await
    }

    /// The `k` best rows for each query.
    async fn best(
        &self,
        queries: Arc<[f32]>,
        k: usize,
        among: &Expression,
        until: Instant,
    ) -> Result<Vec<Ranked>, GalleryError> {
        let dimension = self.facts.dimension;
        let mut ranked = Vec::with_capacity(queries.len() / dimension);
        let fetch = settle::fetch(k);
        let at_once = (CANDIDATES_AT_ONCE / fetch).clamp(1, QUERIES_AT_ONCE);
        for block in queries.chunks(at_once * dimension) {
            let proposed = match fetch <= MAX_RESULTS {
                true => self.proposed(block.into(), k, fetch, among, until).await?,
                false => block.chunks(dimension).map(|_| None).collect(),
            };
            for (query, found) in block.chunks(dimension).zip(proposed) {
                let found = match found {
                    Some(found) => found,
                    None => self.best_of_one(query, k, fetch, among, until).await?,
                };
                ranked.push(found);
            }
        }
        Ok(ranked)
    }

    /// As [`Self::best`], for one query whose `fetch` candidates did not settle it: more of them, then all rows.
    async fn best_of_one(
        &self,
        query: &[f32],
        k: usize,
        mut fetch: usize,
        among: &Expression,
        until: Instant,
    ) -> Result<Ranked, GalleryError> {
        while fetch < MAX_RESULTS {
            fetch = (4 * fetch).min(MAX_RESULTS);
            let found = self.proposed(query.into(), k, fetch, among, until).await?;
            if let Some(Some(found)) = found.into_iter().next() {
                return Ok(found);
            }
        }
        let query: Arc<[f32]> = query.into();
        let (mut best, mut keys) = (Best::of(k), HashMap::new());
        let mut scan = self.scan(among, until);
        while let Some((found, rows)) = scan.next().await? {
            let scored = self.score_rows(rows, query.clone(), |_| vec![0]).await?;
            best.take(scored.iter().map(|(_, hit)| *hit));
            keys.extend(scored.iter().map(|(_, hit)| hit.id).zip(found));
            // Keys of rows that have fallen out go too.
            if keys.len() > 4 * k.max(ROWS_AT_ONCE) {
                let held = best.held();
                keys.retain(|sequence, _| held.contains(sequence));
            }
        }
        Ok(Ranked { hits: best.in_order(), keys })
    }

    /// Has Milvus propose candidates and settles what can be settled.
    async fn proposed(
        &self,
        queries: Arc<[f32]>,
        k: usize,
        fetch: usize,
        among: &Expression,
        until: Instant,
    ) -> Result<Vec<Option<Ranked>>, GalleryError> {
        let dimension = self.facts.dimension;
        let index = self.shared.index;
        let search = Search { field: VECTOR, index, queries: &queries, dimension, top: fetch, among };
        let found = self.shared.client.search(&self.there, search, until).await;
        let found = found.map_err(|error| self.failed(error))?;
        let mut wanted: HashMap<&str, Vec<usize>> = HashMap::new();
        for (query, candidates) in found.iter().enumerate() {
            for key in &candidates.keys {
                wanted.entry(key).or_default().push(query);
            }
        }
        let keys = tokens(wanted.keys().map(|key| (*key).to_owned()))?;
        let mut hits: Vec<Vec<Hit>> = vec![Vec::new(); found.len()];
        let mut keys_of: Vec<HashMap<u64, Token>> = vec![HashMap::new(); found.len()];
        for keys in keys.chunks(self.page()) {
            let mut rows = self.rows(keys, SCORED, until).await?;
            let keys = tokens(rows.texts(KEY).map_err(|error| self.failed(error))?)?;
            let queries_of: Vec<Vec<usize>> =
                keys.iter().map(|key| wanted.get(key.as_str()).cloned().unwrap_or_default()).collect();
            let owners: Vec<usize> = queries_of
                .iter()
                .enumerate()
                .flat_map(|(row, queries)| queries.iter().map(move |_| row))
                .collect();
            let scored = self.score_rows(rows, queries.clone(), move |row| queries_of[row].clone()).await?;
            for ((query, hit), row) in scored.into_iter().zip(owners) {
                hits[query].push(hit);
                keys_of[query].insert(hit.id, keys[row].clone());
            }
        }
        let settled =
            found.iter().zip(hits).zip(keys_of).enumerate().map(|(query, ((candidates, hits), keys))| {
                let Candidates { keys: proposed, scores } = candidates;
                let all = proposed.len() < fetch;
                let worst = scores.iter().copied().fold(f32::INFINITY, f32::min);
                let values = &queries[query * dimension..(query + 1) * dimension];
                let bound = settle::rounding_bound(dimension, values);
                settle::settle(hits, k, worst, bound, all).map(|hits| Ranked { hits, keys })
            });
        Ok(settled.collect())
    }

    /// The named rows as they would stand in a ranking for one query, in the order of `ids`.
    async fn named(
        &self,
        query: Arc<[f32]>,
        ids: &[String],
        until: Instant,
    ) -> Result<Vec<Hit>, GalleryError> {
        let mut keys: Vec<Token> = ids.iter().map(|id| names::key(id)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut found: HashMap<String, Hit> = HashMap::with_capacity(keys.len());
        for keys in keys.chunks(self.page()) {
            let mut rows = self.rows(keys, SCORED, until).await?;
            let keys = rows.texts(KEY).map_err(|error| self.failed(error))?;
            let scored = self.score_rows(rows, query.clone(), |_| vec![0]).await?;
            found.extend(keys.into_iter().zip(scored.into_iter().map(|(_, hit)| hit)));
        }
        ids.iter()
            .map(|id| found.get(names::key(id).as_str()).copied().ok_or_else(|| self.no_item(id)))
            .collect()
    }

    /// Puts the items to a ranking's rows. A row that has gone meanwhile is left out.
    async fn describe(&self, ranked: Vec<Ranked>, until: Instant) -> Result<Vec<v1::Ranking>, GalleryError> {
        let mut bytes = 0;
        let mut rankings = Vec::with_capacity(ranked.len());
        for Ranked { hits, keys } in ranked {
            let wanted: BTreeSet<&Token> = hits.iter().filter_map(|hit| keys.get(&hit.id)).collect();
            let wanted: Vec<Token> = wanted.into_iter().cloned().collect();
            let mut items: HashMap<String, v1::Item> = HashMap::with_capacity(wanted.len());
            let mut held = 0;
            for keys in wanted.chunks(ROWS_AT_ONCE) {
                let mut rows = self.rows(keys, ITEM_FIELDS, until).await?;
                for (key, item) in rows::items(&self.facts, &mut rows)? {
                    held += item.encoded_len();
                    items.insert(key, item);
                }
                if held > RANKINGS_BYTES {
                    return Err(GalleryError::AnswerTooLarge { limit: RANKINGS_BYTES });
                }
            }
            let hits = hits.into_iter().filter_map(|hit| {
                let item = items.remove(keys.get(&hit.id)?.as_str())?;
                Some(v1::Hit { item: Some(item), score: hit.score })
            });
            let ranking = v1::Ranking { hits: hits.collect() };
            bytes += ranking.encoded_len();
            if bytes > RANKINGS_BYTES {
                return Err(GalleryError::AnswerTooLarge { limit: RANKINGS_BYTES });
            }
            rankings.push(ranking);
        }
        Ok(rankings)
    }

    /// The object of an image.
    async fn object(&self, which: &Picture, until: Instant) -> Result<Object, GalleryError> {
        let condition = match which {
            Picture::OfItem(id) => Expression::equals(KEY, &names::key(id)),
            Picture::WithHash(hash) => Expression::equals(IMAGE, &token(hash.to_string())?),
        };
        let client = &self.shared.client;
        let found = client.query(&self.there, &condition, Page::First(1), &[KEY, IMAGE, OBJECT], until).await;
        let mut found = found.map_err(|error| self.failed(error))?;
        let images = found.texts(IMAGE).map_err(|error| self.failed(error))?;
        let objects = found.texts(OBJECT).map_err(|error| self.failed(error))?;
        let row = images.into_iter().zip(objects).next();
        let image = match which {
            Picture::OfItem(id) if row.is_none() => return Err(self.no_item(id)),
            Picture::OfItem(id) => id.clone(),
            Picture::WithHash(hash) => hash.to_string(),
        };
        row.and_then(|(image, object)| Object::of(&image, object))
            .ok_or_else(|| GalleryError::UnknownImage { collection: self.facts.name.clone(), image })
    }

    fn no_item(&self, id: &str) -> GalleryError {
        GalleryError::UnknownItem { collection: self.facts.name.clone(), id: id.to_owned() }
    }
}

/// A way through rows, some at a time.
struct Scan<'a> {
    opened: &'a Opened,
    among: Expression,
    /// Where to go on; `None` at the end.
    next: Option<Expression>,
    until: Instant,
}

impl Scan<'_> {
    /// The next rows: their keys, sequence numbers and vectors.
    async fn next(&mut self) -> Result<Option<(Vec<Token>, Columns)>, GalleryError> {
        let Some(which) = self.next.take() else { return Ok(None) };
        let Opened { there, shared, .. } = self.opened;
        let page = self.opened.page();
        let found = shared.client.query(there, &which, Page::First(page), SCORED, self.until).await;
        let mut rows = found.map_err(|error| self.opened.failed(error))?;
        let keys = tokens(rows.texts(KEY).map_err(|error| self.opened.failed(error))?)?;
        if keys.len() >= page {
            self.next = keys.last().map(|last| self.among.clone().and(Expression::after(KEY, last)));
        }
        Ok(Some((keys, rows)))
    }
}

/// Keys that Milvus answered, which are words that we chose.
fn tokens(keys: impl IntoIterator<Item = String>) -> Result<Vec<Token>, GalleryError> {
    keys.into_iter().map(token).collect()
}

fn token(word: String) -> Result<Token, GalleryError> {
    Token::new(word)
        .ok_or_else(|| GalleryError::internal("reading a row", "it has a key that is none of ours"))
}

#[tonic::async_trait]
impl Open for Opened {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    async fn search(
        &self,
        request: v1::SearchRequest,
        until: Deadline,
    ) -> Result<Vec<v1::Ranking>, GalleryError> {
        let until = until.instant();
        let facts = self.facts.clone();
        let parse = move || request::Search::parse(&facts, request);
        let request::Search { queries, top, filter } = self.shared.pool.run(parse).await?;
        let among = condition::rows(filter.as_ref());
        let rows = queries.len() / self.facts.dimension;
        if rows * top.min(MAX_RESULTS) * HIT_BYTES > RANKINGS_BYTES {
            // Before anything is read: unless there are fewer rows than are asked for, it cannot fit.
            let count = self.shared.client.count(&self.there, &among, until).await;
            let count = count.map_err(|error| self.failed(error))? as usize;
            if rows * top.min(count) * HIT_BYTES > RANKINGS_BYTES {
                return Err(GalleryError::AnswerTooLarge { limit: RANKINGS_BYTES });
            }
        }
        let ranked = self.best(queries.into(), top, &among, until).await?;
        self.describe(ranked, until).await
    }

    async fn score(&self, request: v1::ScoreRequest, until: Deadline) -> Result<Vec<f32>, GalleryError> {
        let facts = self.facts.clone();
        let parse = move || request::Named::to_score(&facts, request);
        let request::Named { query, ids, .. } = self.shared.pool.run(parse).await?;
        let named = self.named(query.into(), &ids, until.instant()).await?;
        Ok(named.into_iter().map(|hit| hit.score).collect())
    }

    async fn rank_of(&self, request: v1::RankOfRequest, until: Deadline) -> Result<Vec<u64>, GalleryError> {
        let until = until.instant();
        let facts = self.facts.clone();
        let parse = move || request::Named::to_rank(&facts, request);
        let request::Named { query, ids, filter } = self.shared.pool.run(parse).await?;
        let query: Arc<[f32]> = query.into();
        let among = condition::rows(filter.as_ref());
        let targets = self.named(query.clone(), &ids, until).await?;
        // Most ranks that are asked for are among the best.
        let best = self.best(query.clone(), RANKS_AT_ONCE, &among, until).await?;
        let best: Vec<Hit> = best.into_iter().flat_map(|ranked| ranked.hits).collect();
        let reached = |target: &Hit| best.last().is_some_and(|last| compare(target, last).is_le());
        if best.len() < RANKS_AT_ONCE || targets.iter().all(reached) {
            return Ok(ranks_before(best.into_iter(), &targets)
                .into_iter()
                .map(|before| before + 1)
                .collect());
        }
        let mut ranks = vec![1; targets.len()];
        let mut scan = self.scan(&among, until);
        while let Some((_, rows)) = scan.next().await? {
            let scored = self.score_rows(rows, query.clone(), |_| vec![0]).await?;
            let before = ranks_before(scored.into_iter().map(|(_, hit)| hit), &targets);
            ranks.iter_mut().zip(before).for_each(|(rank, before)| *rank += before);
        }
        Ok(ranks)
    }

    async fn item(&self, id: String, until: Deadline) -> Result<v1::Item, GalleryError> {
        let which = Expression::equals(KEY, &names::key(&id));
        let found =
            self.shared.client.query(&self.there, &which, Page::First(1), ITEM_FIELDS, until.instant()).await;
        let mut found = found.map_err(|error| self.failed(error))?;
        let item = rows::items(&self.facts, &mut found)?.into_iter().next();
        item.map(|(_, item)| item).ok_or_else(|| self.no_item(&id))
    }

    async fn image(&self, which: Picture, until: Deadline) -> Result<v1::GetImageResponse, GalleryError> {
        let until = until.instant();
        let object = self.object(&which, until).await?;
        let read = self.shared.read_object(self.facts.number, &object, until).await;
        let (object, image) = match read {
            Ok(image) => (object, image),
            // Its item may have been replaced or deleted since the row was read.
            Err(lost @ GalleryError::DataLoss { .. }) => match self.object(&which, until).await? {
                again if again == object => return Err(lost),
                again => {
                    let image = self.shared.read_object(self.facts.number, &again, until).await?;
                    (again, image)
                }
            },
            Err(error) => return Err(error),
        };
        let expected = object.hash;
        let image = self.shared.pool.run_patiently(move || match ImageHash::of(&image) == expected {
            true => Ok(image),
            false => {
                Err(GalleryError::DataLoss { image: expected.to_string(), reason: "the object has changed" })
            }
        });
        let image = image.await?;
        let media_type = object.format().map(|format| format.media_type()).unwrap_or_default().to_owned();
        Ok(v1::GetImageResponse { image, media_type, image_hash: expected.to_string() })
    }
}
