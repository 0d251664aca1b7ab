use std::path::Path;
use std::str::FromStr;

/// A benchmark, with its folder layout and its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// CUHK-PEDES; also what `thicket synth` writes.
    CuhkPedes,
    /// ICFG-PEDES.
    IcfgPedes,
    /// RSTPReid.
    RstpReid,
    /// UFine6926.
    UFine6926,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::CuhkPedes, Self::IcfgPedes, Self::RstpReid, Self::UFine6926];

    /// The name of the data set and of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::CuhkPedes => "CUHK-PEDES",
            Self::IcfgPedes => "ICFG-PEDES",
            Self::RstpReid => "RSTPReid",
            Self::UFine6926 => "UFine6926",
        }
    }

    /// Accepted names of the annotation file, the preferred one first.
    pub fn annotation_names(self) -> &'static [&'static str] {
        match self {
            Self::CuhkPedes => &["reid_raw.json"],
            Self::IcfgPedes => &["ICFG-PEDES.json", "ICFG_PEDES.json"],
            Self::RstpReid => &["data_captions.json"],
            Self::UFine6926 => &["UFine6926_Annotations_1024.json", "UFine6926.json"],
        }
    }

    /// The format of a data-set folder, by the annotation file in it.
    pub fn detect(folder: &Path) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| format.annotation_names().iter().any(|name| folder.join(name).is_file()))
    }

    /// The folder that image paths are relative to, inside the data set's folder. UFine6926's paths name it already.
    pub(crate) fn image_folder(self) -> &'static str {
        match self {
            Self::CuhkPedes | Self::IcfgPedes | Self::RstpReid => "imgs",
            Self::UFine6926 => "",
        }
    }

    /// The key of the image path.
    pub(crate) fn path_key(self) -> &'static str {
        match self {
            Self::CuhkPedes | Self::IcfgPedes | Self::UFine6926 => "file_path",
            Self::RstpReid => "img_path",
        }
    }

    /// The smallest training identity in the file.
    pub(crate) fn first_identity(self) -> i64 {
        match self {
            Self::CuhkPedes | Self::UFine6926 => 1,
            Self::IcfgPedes | Self::RstpReid => 0,
        }
    }

    /// A training identity as training code sees it. Only CUHK-PEDES is shifted to start at 0; UFine6926 keeps its
    /// ids from 1, as in the reference loaders.
    pub(crate) fn training_identity(self, raw: i64) -> i64 {
        match self {
            Self::CuhkPedes => raw - 1,
            Self::IcfgPedes | Self::RstpReid | Self::UFine6926 => raw,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of the accepted ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{actual:?} is not a {field}; known: {}", known.join(", "))]
pub struct UnknownName {
    /// `data set` or `split`.
    pub field: &'static str,
    /// What was given.
    pub actual: String,
    /// What is accepted.
    pub known: Vec<&'static str>,
}

impl FromStr for Format {
    type Err = UnknownName;

    /// Reads a data set's name in any case.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            UnknownName {
                field: "data set",
                actual: name.to_owned(),
                known: Self::ALL.map(Self::name).to_vec(),
            }
        })
    }
}

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SplitName {
    /// What models learn from.
    Train,
    /// What settings are chosen on.
    Validation,
    /// What is reported.
    Test,
}

impl SplitName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name in annotation files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }

    /// Reads the `split` of a record: whatever is neither train nor test is validation.
    pub(crate) fn of_record(value: &str) -> Self {
        match value {
            "train" => Self::Train,
            "test" => Self::Test,
            _ => Self::Validation,
        }
    }
}

impl std::fmt::Display for SplitName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SplitName {
    type Err = UnknownName;

    /// Reads `train`, `val` or `test`.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|split| split.name() == name).ok_or_else(|| UnknownName {
            field: "split",
            actual: name.to_owned(),
            known: Self::ALL.map(Self::name).to_vec(),
        })
    }
}
