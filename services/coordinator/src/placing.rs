//! Where the confirmed candidate stands in the final ranking.

use thicket_proto::v1::Hit;
use thicket_thi::fusion::place_anchor;
use thicket_thi::ranking::Scored;

/// The id of a hit, empty where it has no item.
pub(crate) fn id(hit: &Hit) -> &str {
    hit.item.as_ref().map_or("", |item| &item.id)
}

/// The hits that score exactly what the anchor scores, in insertion order, as they all are in a ranking.
pub(crate) fn ties<'a>(hits: &'a [Hit], anchor: &'a Hit) -> impl Iterator<Item = &'a Hit> {
    hits.iter().filter(|hit| hit.score == anchor.score && id(hit) != id(anchor))
}

/// Puts the anchor with its own score into the hits of the mixed query, best first, and cuts the result to `limit`.
///
/// `older_ties` says how many of its [`ties`] were inserted before the anchor: equal scores rank in insertion order.
pub(crate) fn place(mut hits: Vec<Hit>, anchor: Hit, older_ties: usize, limit: usize) -> Vec<Hit> {
    hits.retain(|hit| id(hit) != id(&anchor));
    let above = hits.iter().filter(|hit| hit.score > anchor.score).count();
    // Odd places for the hits leave an even one for the anchor before, between and after any of them.
    let anchor_place = 2 * (above + older_ties);
    let scored = hits
        .iter()
        .enumerate()
        .map(|(position, hit)| Scored { id: 2 * position + 1, score: hit.score })
        .collect();
    let ranking = place_anchor(scored, Scored { id: anchor_place, score: anchor.score }, limit);
    ranking
        .into_iter()
        .map(|scored| if scored.id == anchor_place { anchor.clone() } else { hits[scored.id / 2].clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use thicket_proto::v1::Item;

    use super::*;

    fn hit(id: &str, score: f32) -> Hit {
        Hit { item: Some(Item { id: id.into(), ..Default::default() }), score }
    }

    fn placed(hits: &[(&str, f32)], anchor: (&str, f32), older_ties: usize, limit: usize) -> Vec<String> {
        let hits = hits.iter().map(|(id, score)| hit(id, *score)).collect();
        place(hits, hit(anchor.0, anchor.1), older_ties, limit).iter().map(|hit| id(hit).to_owned()).collect()
    }

    #[test]
    fn an_anchor_from_outside_pushes_the_last_hit_out() {
        assert_eq!(placed(&[("a", 0.9), ("b", 0.8), ("c", 0.7)], ("x", 0.85), 0, 3), ["a", "x", "b"]);
    }

    #[test]
    fn an_anchor_among_the_hits_stands_there_once_with_its_own_score() {
        assert_eq!(placed(&[("a", 0.9), ("x", 0.8), ("b", 0.7)], ("x", 0.95), 0, 2), ["x", "a"]);
    }

    #[test]
    fn an_anchor_below_the_cut_is_not_shown() {
        assert_eq!(placed(&[("a", 0.9), ("b", 0.8)], ("x", 0.1), 0, 2), ["a", "b"]);
    }

    #[test]
    fn ties_keep_the_insertion_order() {
        let hits = [("a", 0.9), ("b", 0.5), ("c", 0.5), ("d", 0.1)];
        assert_eq!(placed(&hits, ("x", 0.5), 0, 9), ["a", "x", "b", "c", "d"]);
        assert_eq!(placed(&hits, ("x", 0.5), 1, 9), ["a", "b", "x", "c", "d"]);
        assert_eq!(placed(&hits, ("x", 0.5), 2, 9), ["a", "b", "c", "x", "d"]);
    }

    #[test]
    fn the_anchor_does_not_tie_with_itself() {
        let hits = [hit("x", 0.5), hit("a", 0.5), hit("b", 0.4)];
        let anchor = hit("x", 0.5);
        assert_eq!(ties(&hits, &anchor).map(id).collect::<Vec<_>>(), ["a"]);
    }
}
