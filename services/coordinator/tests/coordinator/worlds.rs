//! Random small worlds whose arithmetic is exact in f32, so that equality means equality, ties included.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thicket_proto::v1::{InteractionSettings, SearchPersonRequest};

use crate::fakes::{COLLECTION, REFINED, Says, Stored, TEXT, World, request};

/// A world, the search to run in it and what the plain algorithm needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) world: World,
    pub(crate) request: SearchPersonRequest,
    /// Similarity of each item to the original and to the refined text, in insertion order.
    pub(crate) similarity: Vec<f32>,
    pub(crate) refined: Vec<f32>,
    /// The model's answer about each item.
    pub(crate) yes: Vec<bool>,
    pub(crate) rounds: usize,
    pub(crate) xi: f32,
    pub(crate) lambda: f32,
    pub(crate) top: usize,
}

/// Similarities are eighths and lambda is a quarter of something: every product and sum is a small dyadic number.
pub(crate) fn random(seed: u64) -> Case {
    let mut random = SmallRng::seed_from_u64(seed);
    let gallery = random.random_range(0..14);
    let eighths = |random: &mut SmallRng| random.random_range(-2..=7) as f32 / 8.0;
    let similarity: Vec<f32> = (0..gallery).map(|_| eighths(&mut random)).collect();
    let refined: Vec<f32> = (0..gallery).map(|_| eighths(&mut random)).collect();
    let yes: Vec<bool> = (0..gallery).map(|_| random.random_bool(0.35)).collect();
    let rounds = random.random_range(1..=6);
    let xi = random.random_range(0..=8) as f32 / 8.0;
    let lambda = random.random_range(0..=4) as f32 / 4.0;
    let top = random.random_range(1..=16);

    let mut world = World::of(&[]);
    world.texts.insert(TEXT.into(), vec![1.0, 0.0]);
    world.texts.insert(REFINED.into(), vec![0.0, 1.0]);
    let stored = (0..gallery).map(|index| Stored {
        // Ids in an order that is not the insertion order.
        id: format!("{}-{index}", (b'z' - index as u8) as char),
        vector: vec![similarity[index], refined[index]],
        image: format!("image {index}").into_bytes(),
    });
    world.collections.insert(COLLECTION.into(), stored.collect());
    for (index, yes) in yes.iter().enumerate() {
        world = world.saying(&format!("image {index}"), Says::PYes(if *yes { 0.75 } else { 0.25 }));
    }
    let settings = InteractionSettings {
        rounds: Some(rounds as u32),
        xi: Some(xi),
        lambda: Some(lambda),
        yes_threshold: Some(0.5),
        disabled: false,
    };
    let request = SearchPersonRequest { settings: Some(settings), top: top as u32, ..request() };
    Case { world, request, similarity, refined, yes, rounds, xi, lambda, top }
}
