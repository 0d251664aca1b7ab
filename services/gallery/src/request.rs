//! Requests about one collection, checked against it.

use thicket_proto::v1;

use crate::backend::{Facts, Picture};
use crate::check;
use crate::error::GalleryError;
use crate::facets::Filter;
use crate::filter;
use crate::record::ImageHash;

/// A search that may be made.
#[derive(Debug)]
pub(crate) struct Search {
    /// Row-major.
    pub(crate) queries: Vec<f32>,
    /// Results for each query.
    pub(crate) top: usize,
    pub(crate) filter: Option<Filter>,
}

/// Named items and the query that they are compared with.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) query: Vec<f32>,
    pub(crate) ids: Vec<String>,
    pub(crate) filter: Option<Filter>,
}

impl Search {
    pub(crate) fn parse(facts: &Facts, request: v1::SearchRequest) -> Result<Self, GalleryError> {
        if !request.model_fingerprint.is_empty() {
            facts.check_model(request.model_fingerprint)?;
        }
        Ok(Self {
            top: check::top(request.top)?,
            queries: check::queries(request.queries, facts.dimension)?,
            filter: filter::parse(request.filter)?,
        })
    }
}

impl Named {
    pub(crate) fn to_score(facts: &Facts, request: v1::ScoreRequest) -> Result<Self, GalleryError> {
        check::item_ids(&request.ids)?;
        let query = check::query("query", request.query, facts.dimension)?;
        Ok(Self { query, ids: request.ids, filter: None })
    }

    pub(crate) fn to_rank(facts: &Facts, request: v1::RankOfRequest) -> Result<Self, GalleryError> {
        check::item_ids(&request.ids)?;
        let query = check::query("query", request.query, facts.dimension)?;
        Ok(Self { query, ids: request.ids, filter: filter::parse(request.filter)? })
    }
}

/// Which image is asked for.
pub(crate) fn picture(by: Option<v1::get_image_request::By>) -> Result<Picture, GalleryError> {
    match by {
        Some(v1::get_image_request::By::Id(id)) => {
            check::item_id("id", &id)?;
            Ok(Picture::OfItem(id))
        }
        Some(v1::get_image_request::By::ImageHash(hex)) => {
            let hash = ImageHash::from_hex(&hex).ok_or_else(|| {
                let message = format!("64 hex digits, got {} bytes", hex.len());
                GalleryError::invalid("image_hash", "IMAGE_HASH_INVALID", message)
            })?;
            Ok(Picture::WithHash(hash))
        }
        None => Err(GalleryError::invalid("by", "IMAGE_NOT_NAMED", "name an item or an image hash")),
    }
}
