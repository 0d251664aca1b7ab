//! The coordinator against the method as the paper writes it: round by round, over whole matrices.

use thicket_proto::v1::Outcome;
use thicket_thi::fusion::{Forced, rerank};
use thicket_thi::plain::{self, PlainQuery};
use thicket_thi::ranking;

use crate::fakes::{Bench, COLLECTION, ids};
use crate::worlds::{Case, random};

const WORLDS: u64 = 400;

struct Plain {
    /// Insertion index of the anchor and its round.
    anchor: Option<(usize, usize)>,
    /// Insertion indices of the final ranking, with scores.
    hits: Vec<(usize, f32)>,
    /// What the round-by-round script asks.
    questions: usize,
}

fn plainly(case: &Case) -> Plain {
    let gallery = case.similarity.len();
    let candidates = ranking::top(&case.similarity, case.rounds).unwrap();
    let best = candidates.first().map_or(f32::NEG_INFINITY, |index| case.similarity[*index]);
    let query = PlainQuery { best, candidates: candidates.len(), echo: false };
    let run = plain::run(&[query], case.rounds, case.xi, |_, round| case.yes[candidates[round - 1]]);
    let anchor = run.refined_in[0].map(|round| (candidates[round - 1], round));
    let anchors = [anchor.map(|(index, _)| index)];
    let lambda = f64::from(case.lambda);
    let fused = rerank(&case.similarity, &case.refined, gallery, &anchors, lambda, Forced::Anchor).unwrap();
    let hits = ranking::top(&fused, case.top).unwrap().into_iter().map(|index| (index, fused[index]));
    Plain { anchor, hits: hits.collect(), questions: run.questions }
}

#[tokio::test]
async fn anchors_and_rankings_equal_the_plain_algorithm_in_random_worlds() {
    let bench = Bench::start(random(0).world).await;
    let (mut refined, mut outside, mut tied) = (0, 0, 0);
    for seed in 0..WORLDS {
        let case = random(seed);
        *bench.world() = case.world.clone();
        let end = bench.finish(case.request.clone()).await;
        let expected = plainly(&case);

        let id = |index: usize| case.world.collections[COLLECTION][index].id.clone();
        let anchor = expected.anchor.map_or((String::new(), 0), |(index, round)| (id(index), round as u32));
        assert_eq!((end.anchor_id.clone(), end.anchor_round), anchor, "seed {seed}");
        let hits: Vec<(String, f32)> =
            ids(&end.hits).into_iter().zip(end.hits.iter().map(|hit| hit.score)).collect();
        let expected_hits: Vec<(String, f32)> =
            expected.hits.iter().map(|(index, score)| (id(*index), *score)).collect();
        assert_eq!(hits, expected_hits, "seed {seed}");
        let asked = end.questions.unwrap().locate as usize;
        assert!(asked <= expected.questions, "seed {seed}: {asked} questions");

        let world = bench.world();
        refined += usize::from(end.outcome() == Outcome::Refined);
        tied += usize::from(world.count("rank_of") > 0);
        // The second search is the one for the mixed query: the anchor may be missing among what it finds.
        if let Some((index, _)) = expected.anchor {
            let mixed = [case.lambda, 1.0 - case.lambda];
            let found = world.ranking(COLLECTION, &mixed).unwrap();
            outside += usize::from(!found.iter().take(case.top + 1).any(|(found, _)| *found == id(index)));
        }
        assert_eq!(world.count("search:"), 1 + usize::from(expected.anchor.is_some()), "seed {seed}");
    }
    // The worlds must reach the cases they are there for.
    assert!(refined > 60, "{refined} refined");
    assert!(outside > 3, "{outside} anchors outside what the mixed query finds");
    assert!(tied > 10, "{tied} ties with the anchor");
}
