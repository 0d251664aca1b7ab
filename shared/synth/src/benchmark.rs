//! The whole benchmark as a plan: who is in which split and how each picture is taken.

use std::collections::BTreeSet;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::caption::Caption;
use crate::family::{Family, Person};
use crate::schema::{ACTION_RUNNING, Appearance, Facing, Occluder, SLOTS, Scene, slot};
use crate::seed::{Purpose, stream};
use crate::witness::{Style, Witness, write_caption};

/// A part of the benchmark; no person is in two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For training.
    Train,
    /// For choosing settings.
    Val,
    /// For the reported numbers.
    Test,
}

impl Split {
    /// Every split, in the order of the annotation file.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// The name in the annotation file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }

    const fn tag(self) -> u8 {
        self as u8
    }
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Families of the training split. Default 800.
    pub train: usize,
    /// Families of the validation split. Default 50.
    pub val: usize,
    /// Families of the test split. Default 76.
    pub test: usize,
    /// Look-alikes in a family, 1 to 8. Default 4.
    pub identities: usize,
    /// Images of each identity, 1 to 64. Default 4.
    pub views: usize,
    /// Captions of each image, 1 to 16, each by another witness. Default 1.
    pub captions: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { train: 800, val: 50, test: 76, identities: 4, views: 4, captions: 1 }
    }
}

/// A size that the benchmark does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {actual}, allowed are {least} to {most}")]
pub struct ScopeError {
    /// The field of [`Sizes`].
    pub field: &'static str,
    /// Its value.
    pub actual: usize,
    /// The smallest allowed value.
    pub least: usize,
    /// The greatest allowed value.
    pub most: usize,
}

impl Sizes {
    fn check(&self) -> Result<(), ScopeError> {
        let limits = [
            ("train", self.train, 0, 100_000),
            ("val", self.val, 0, 100_000),
            ("test", self.test, 0, 100_000),
            ("identities", self.identities, 1, 8),
            ("views", self.views, 1, 64),
            ("captions", self.captions, 1, 16),
        ];
        for (field, actual, least, most) in limits {
            if !(least..=most).contains(&actual) {
                return Err(ScopeError { field, actual, least, most });
            }
        }
        Ok(())
    }

    /// Number of families of a split.
    #[must_use]
    pub const fn families(&self, split: Split) -> usize {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
            Split::Test => self.test,
        }
    }

    /// Number of images of a split.
    #[must_use]
    pub const fn images(&self, split: Split) -> usize {
        self.families(split) * self.identities * self.views
    }
}

/// One image of the benchmark, not yet painted.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The split it belongs to.
    pub split: Split,
    /// Index of the family in its split, from 0.
    pub family: usize,
    /// Index of the person in the family, from 0.
    pub identity: usize,
    /// Index of the image among those of the person, from 0.
    pub view: usize,
    /// Number of the person in the annotation: 1, 2, ... over training, validation and test.
    pub id: usize,
    /// Path of the image relative to `imgs/`, with forward slashes.
    pub file_path: String,
    /// Who is in the picture.
    pub person: Person,
    /// How the picture is taken.
    pub scene: Scene,
    /// What the picture shows: the ground truth.
    pub appearance: Appearance,
    /// What the witnesses say of it, and the style of each.
    pub captions: Vec<(Style, Caption)>,
    pub(crate) seed: u64,
}

impl View {
    pub(crate) fn pixel_stream(&self) -> rand_chacha::ChaCha8Rng {
        stream(self.seed, self.split.tag(), Purpose::Pixels, self.item())
    }

    fn item(&self) -> [u32; 4] {
        item(self.family, self.identity, self.view, 0)
    }
}

fn item(family: usize, identity: usize, view: usize, caption: usize) -> [u32; 4] {
    [family as u32, identity as u32, view as u32, caption as u32]
}

/// A benchmark: a seed, sizes, and the people they give.
#[derive(Debug, Clone, PartialEq)]
pub struct Benchmark {
    seed: u64,
    sizes: Sizes,
    families: [Vec<Family>; 3],
}

impl Benchmark {
    /// Draws the people. Cheap: nothing is painted.
    ///
    /// The test split depends on its own size alone, so that a larger training split leaves it as it is.
    ///
    /// # Errors
    /// When a field of `sizes` is out of its range.
    pub fn new(seed: u64, sizes: Sizes) -> Result<Self, ScopeError> {
        sizes.check()?;
        let mut taken = BTreeSet::new();
        let mut families = [Vec::new(), Vec::new(), Vec::new()];
        for split in [Split::Test, Split::Val, Split::Train] {
            for family in 0..sizes.families(split) {
                let mut rng = stream(seed, split.tag(), Purpose::Family, item(family, 0, 0, 0));
                families[split as usize].push(Family::draw(&mut rng, sizes.identities, &mut taken));
            }
        }
        Ok(Self { seed, sizes, families })
    }

    /// The seed.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The sizes.
    #[must_use]
    pub const fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The families of a split.
    #[must_use]
    pub fn families(&self, split: Split) -> &[Family] {
        &self.families[split as usize]
    }

    /// Every image of a split, by family, identity and view.
    pub fn views(&self, split: Split) -> impl Iterator<Item = View> {
        (0..self.sizes.images(split)).filter_map(move |index| self.view(split, index))
    }

    /// Image `index` of a split, in the order of [`Benchmark::views`]; `None` past the last one.
    #[must_use]
    pub fn view(&self, split: Split, index: usize) -> Option<View> {
        let Sizes { identities, views, captions, .. } = self.sizes;
        let (person_index, view) = (index / views, index % views);
        let (family, identity) = (person_index / identities, person_index % identities);
        let person = *self.families(split).get(family)?.people.get(identity)?;
        let before: usize = Split::ALL
            .iter()
            .take_while(|&&s| s != split)
            .map(|&s| self.sizes.families(s) * identities)
            .sum();
        let id = before + person_index + 1;
        let mut rng = stream(self.seed, split.tag(), Purpose::Scene, item(family, identity, view, 0));
        let scene = draw_scene(&mut rng);
        let appearance = scene.appearance(&person.values);
        let captions =
            (0..captions).map(|caption| self.caption(split, [family, identity, view, caption], &appearance));
        Some(View {
            split,
            family,
            identity,
            view,
            id,
            file_path: format!("{}/{id:05}_{view}.png", split.name()),
            person,
            scene,
            appearance,
            captions: captions.collect(),
            seed: self.seed,
        })
    }

    fn caption(&self, split: Split, at: [usize; 4], appearance: &Appearance) -> (Style, Caption) {
        let [family, identity, view, caption] = at;
        let mut rng = stream(self.seed, split.tag(), Purpose::Caption, item(family, identity, view, caption));
        let witness = Witness::draw(&mut rng);
        (witness.style, write_caption(&mut rng, appearance, &witness))
    }
}

fn draw_scene(rng: &mut impl Rng) -> Scene {
    let mut value = |index: usize| rng.random_range(0..SLOTS[index].values.len() as u8);
    let (mut action, background, others) =
        (value(slot::ACTION), value(slot::BACKGROUND), value(slot::OTHERS));
    let facing = match rng.random_range(0..100) {
        0..52 => Facing::Front,
        52..77 => Facing::Back,
        _ => Facing::Side,
    };
    let occluder = match rng.random_range(0..100) {
        0..80 => Occluder::None,
        80..85 => Occluder::Crop,
        85..90 => Occluder::Hedge,
        90..95 => Occluder::Car,
        _ => Occluder::Barrier,
    };
    // The heel of a runner would show above what hides the feet.
    if occluder != Occluder::None && action == ACTION_RUNNING {
        action = rng.random_range(0..ACTION_RUNNING);
    }
    Scene { facing, occluder, action, background, others }
}
