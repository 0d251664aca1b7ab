use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::record::{self, Record};
use crate::{DatasetError, Format, SplitName};

/// Largest annotation file accepted, bytes. The largest of the four data sets has about 100 MiB.
pub const MAX_ANNOTATION_BYTES: u64 = 1 << 30;

/// A data set: three splits and where they came from.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Which benchmark's layout it has.
    pub format: Format,
    /// The data set's folder.
    pub folder: PathBuf,
    /// The annotation file that was read.
    pub annotation: PathBuf,
    /// What models learn from. Its identities have no gap.
    pub train: Split,
    /// What settings are chosen on; may be empty.
    pub validation: Split,
    /// What is reported.
    pub test: Split,
}

/// One split: images and captions in file order.
///
/// `image_*` have one element an image, `caption_*` and `captions` one a caption; the captions of an image follow each
/// other. In training data the pairs (caption, its image) in this order are the data set's canonical order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Identity of each image. In the training split of CUHK-PEDES it is the id in the file minus 1, otherwise the id
    /// in the file; test identities are meant for comparison only.
    pub image_ids: Vec<i64>,
    /// Path of each image, the data set's folder included.
    pub image_paths: Vec<PathBuf>,
    /// Identity of each caption.
    pub caption_ids: Vec<i64>,
    /// The captions.
    pub captions: Vec<String>,
    /// Position in `image_ids` of the image that each caption describes.
    pub caption_images: Vec<usize>,
}

impl Dataset {
    /// Loads a data set. `root` is the data set's folder, or the folder that holds it under its name.
    ///
    /// # Errors
    /// [`DatasetError`] where the annotation file is absent, unreadable, damaged or has a bad record.
    pub fn load(format: Format, root: &Path) -> Result<Self, DatasetError> {
        let folders = [root.join(format.name()), root.to_owned()];
        let annotation = folders
            .iter()
            .flat_map(|folder| format.annotation_names().iter().map(move |name| folder.join(name)))
            .find(|file| file.is_file())
            .ok_or_else(|| DatasetError::NoAnnotation {
                folder: root.to_owned(),
                names: format.annotation_names().iter().map(|name| (*name).to_owned()).collect(),
            })?;
        let bytes = read_limited(&annotation)?;
        Self::parse(format, &annotation, &bytes)
    }

    /// Reads the bytes of an annotation file. `annotation` is its path: its folder is the data set's folder.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn parse(format: Format, annotation: &Path, bytes: &[u8]) -> Result<Self, DatasetError> {
        let folder = annotation.parent().unwrap_or(Path::new("")).to_owned();
        let mut dataset = Self {
            format,
            folder: folder.clone(),
            annotation: annotation.to_owned(),
            train: Split::default(),
            validation: Split::default(),
            test: Split::default(),
        };
        let images = folder.join(format.image_folder());
        let mut training_ids = BTreeSet::new();
        for (index, raw) in record::parse_list(bytes, annotation)?.into_iter().enumerate() {
            let record = record::check(raw, format, index, annotation)?;
            let identity = match record.split {
                SplitName::Train => {
                    training_ids.insert(record.identity);
                    format.training_identity(record.identity)
                }
                SplitName::Validation | SplitName::Test => record.identity,
            };
            dataset.split_mut(record.split).push(record, identity, &images);
        }
        check_gapless(&training_ids, format, annotation)?;
        Ok(dataset)
    }

    /// One of the three splits.
    pub fn split(&self, name: SplitName) -> &Split {
        match name {
            SplitName::Train => &self.train,
            SplitName::Validation => &self.validation,
            SplitName::Test => &self.test,
        }
    }

    fn split_mut(&mut self, name: SplitName) -> &mut Split {
        match name {
            SplitName::Train => &mut self.train,
            SplitName::Validation => &mut self.validation,
            SplitName::Test => &mut self.test,
        }
    }
}

impl Split {
    /// Number of distinct identities.
    pub fn identities(&self) -> usize {
        self.image_ids.iter().collect::<BTreeSet<_>>().len()
    }

    /// True where there is no image.
    pub fn is_empty(&self) -> bool {
        self.image_ids.is_empty()
    }

    /// The image files that are not there, in file order.
    pub fn missing_images(&self) -> impl Iterator<Item = &Path> {
        self.image_paths.iter().map(PathBuf::as_path).filter(|path| !path.is_file())
    }

    /// Checks that every image file is there.
    ///
    /// # Errors
    /// [`DatasetError::MissingImages`] with the first that is not.
    pub fn require_images(&self) -> Result<(), DatasetError> {
        let mut missing = self.missing_images();
        match missing.next() {
            None => Ok(()),
            Some(first) => {
                Err(DatasetError::MissingImages { first: first.to_owned(), others: missing.count() })
            }
        }
    }

    fn push(&mut self, record: Record, identity: i64, images: &Path) {
        let image = self.image_ids.len();
        self.image_ids.push(identity);
        self.image_paths.push(images.join(record.path));
        for caption in record.captions {
            self.caption_ids.push(identity);
            self.captions.push(caption);
            self.caption_images.push(image);
        }
    }
}

fn read_limited(file: &Path) -> Result<Vec<u8>, DatasetError> {
    let failed = |source| DatasetError::Read { file: file.to_owned(), source };
    let opened = File::open(file).map_err(failed)?;
    let actual = opened.metadata().map_err(failed)?.len();
    if actual > MAX_ANNOTATION_BYTES {
        return Err(DatasetError::TooLarge { file: file.to_owned(), limit: MAX_ANNOTATION_BYTES, actual });
    }
    let mut bytes = Vec::new();
    opened.take(MAX_ANNOTATION_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn check_gapless(ids: &BTreeSet<i64>, format: Format, file: &Path) -> Result<(), DatasetError> {
    let first = format.first_identity();
    match (first..).zip(ids).find(|(expected, actual)| expected != *actual) {
        None => Ok(()),
        Some((missing, _)) => Err(DatasetError::IdentityGap {
            file: file.to_owned(),
            identities: ids.len(),
            first,
            last: first + ids.len() as i64 - 1,
            missing,
        }),
    }
}
