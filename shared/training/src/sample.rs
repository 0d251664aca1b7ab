use image::RgbImage;
use rand::Rng;
use rayon::prelude::*;
use thicket_synth::{Appearance, Benchmark, Caption, Split, View, Witness, render, write_caption};

/// One split of the built-in sample with its pictures in memory.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) views: Vec<View>,
    pub(crate) images: Vec<RgbImage>,
    views_per_person: usize,
    people_per_family: usize,
}

impl Sample {
    /// Paints a split; takes a few milliseconds an image on each core.
    pub(crate) fn paint(benchmark: &Benchmark, split: Split) -> Self {
        let views: Vec<View> = benchmark.views(split).collect();
        let images = views.par_iter().map(render).collect();
        let sizes = benchmark.sizes();
        Self { views, images, views_per_person: sizes.views, people_per_family: sizes.identities }
    }

    pub(crate) fn len(&self) -> usize {
        self.views.len()
    }

    pub(crate) fn people(&self) -> usize {
        self.len() / self.views_per_person
    }

    /// The person of an image, counted over the split.
    pub(crate) fn person_of(&self, view: usize) -> usize {
        view / self.views_per_person
    }

    pub(crate) fn appearance(&self, view: usize) -> Appearance {
        self.views[view].appearance
    }

    /// The people of a person's family, this one among them.
    pub(crate) fn family_of(&self, person: usize) -> std::ops::Range<usize> {
        let first = person - person % self.people_per_family;
        first..first + self.people_per_family
    }

    /// An image of a person, at random.
    pub(crate) fn any_view(&self, person: usize, rng: &mut impl Rng) -> usize {
        person * self.views_per_person + rng.random_range(0..self.views_per_person)
    }

    /// An image of another person of the same family, at random; `None` in families of one.
    pub(crate) fn look_alike(&self, view: usize, rng: &mut impl Rng) -> Option<usize> {
        let person = self.person_of(view);
        let others: Vec<usize> = self.family_of(person).filter(|&other| other != person).collect();
        if others.is_empty() {
            return None;
        }
        Some(self.any_view(others[rng.random_range(0..others.len())], rng))
    }

    /// What some witness says of an image, in fresh words.
    pub(crate) fn fresh_caption(&self, view: usize, rng: &mut impl Rng) -> Caption {
        let witness = Witness::draw(rng);
        write_caption(rng, &self.views[view].appearance, &witness)
    }
}
