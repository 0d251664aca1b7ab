use std::fmt;
use std::str::FromStr;

/// Most lists of an IVF index.
pub const MAX_LISTS: u32 = 65_536;
/// Most links of a vector in an HNSW index.
pub const MAX_LINKS: u32 = 128;
/// Most candidates that an HNSW index looks at, when it is built and when it is searched.
pub const MAX_EF: u32 = 4096;

/// Vectors that an IVF index is trained from once there are so many of them a list.
const NEEDED_PER_LIST: usize = 40;
/// Fewer vectors than this are searched faster without a graph.
const NEEDED_FOR_GRAPH: usize = 1000;

/// How the vectors of a collection are searched.
///
/// Whatever the kind, scores are computed exactly and equal scores come in the same order: only which vectors are among
/// the best can differ from the exact ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexKind {
    /// Every vector is compared.
    #[default]
    Exact,
    /// The vectors are divided among lists, and those of the lists nearest to the query are compared.
    Ivf {
        /// Lists, 1 to [`MAX_LISTS`].
        lists: u32,
        /// Lists that a search reads, 1 to `lists`.
        probes: u32,
    },
    /// A graph whose links lead from vector to nearer vector.
    Hnsw {
        /// Links of a vector, 2 to [`MAX_LINKS`].
        links: u32,
        /// Candidates that a search keeps, 1 to [`MAX_EF`]; at least as many as it returns.
        ef_search: u32,
        /// Candidates looked at for the links of a new vector, 1 to [`MAX_EF`].
        ef_construction: u32,
    },
}

/// Why an index kind cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// A parameter is out of range.
    #[error("{parameter} is {actual}, allowed are {least} to {most}")]
    Range {
        /// Name of the parameter.
        parameter: &'static str,
        /// Least allowed value.
        least: u32,
        /// Greatest allowed value.
        most: u32,
        /// The value given.
        actual: u32,
    },
    /// The text names no kind.
    #[error("`{text}` is not exact, ivf[:lists=N,probes=N] or hnsw[:links=N,ef_search=N,ef_construction=N]")]
    Text {
        /// The text, cut short.
        text: String,
    },
}

impl IndexKind {
    /// An IVF index: 1,024 lists of which 32 are read.
    pub const IVF: Self = Self::Ivf { lists: 1024, probes: 32 };
    /// An HNSW index: 32 links, 128 candidates in a search, 200 for a new vector.
    pub const HNSW: Self = Self::Hnsw { links: 32, ef_search: 128, ef_construction: 200 };

    /// Checks every parameter.
    ///
    /// # Errors
    /// [`KindError::Range`].
    pub fn check(self) -> Result<(), KindError> {
        let within = |parameter, actual, least, most| {
            if (least..=most).contains(&actual) {
                return Ok(());
            }
            Err(KindError::Range { parameter, least, most, actual })
        };
        match self {
            Self::Exact => Ok(()),
            Self::Ivf { lists, probes } => {
                within("lists", lists, 1, MAX_LISTS)?;
                within("probes", probes, 1, lists)
            }
            Self::Hnsw { links, ef_search, ef_construction } => {
                within("links", links, 2, MAX_LINKS)?;
                within("ef_search", ef_search, 1, MAX_EF)?;
                within("ef_construction", ef_construction, 1, MAX_EF)
            }
        }
    }

    /// Vectors below which every vector is compared all the same; `None` where it is always so.
    pub fn vectors_needed(self) -> Option<usize> {
        match self {
            Self::Exact => None,
            Self::Ivf { lists, .. } => Some(NEEDED_PER_LIST * lists as usize),
            Self::Hnsw { .. } => Some(NEEDED_FOR_GRAPH),
        }
    }
}

impl fmt::Display for IndexKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Ivf { lists, probes } => write!(f, "ivf:lists={lists},probes={probes}"),
            Self::Hnsw { links, ef_search, ef_construction } => {
                write!(f, "hnsw:links={links},ef_search={ef_search},ef_construction={ef_construction}")
            }
        }
    }
}

impl FromStr for IndexKind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        let unknown = || KindError::Text { text: text.chars().take(80).collect() };
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut kind = match name {
            "exact" => Self::Exact,
            "ivf" => Self::IVF,
            "hnsw" => Self::HNSW,
            _ => return Err(unknown()),
        };
        for pair in rest.split(',').filter(|_| text.contains(':')) {
            let (key, value) = pair.split_once('=').ok_or_else(unknown)?;
            let value: u32 = value.parse().map_err(|_| unknown())?;
            let place = match (&mut kind, key) {
                (Self::Ivf { lists, .. }, "lists") => lists,
                (Self::Ivf { probes, .. }, "probes") => probes,
                (Self::Hnsw { links, .. }, "links") => links,
                (Self::Hnsw { ef_search, .. }, "ef_search") => ef_search,
                (Self::Hnsw { ef_construction, .. }, "ef_construction") => ef_construction,
                _ => return Err(unknown()),
            };
            *place = value;
        }
        kind.check()?;
        Ok(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_its_text() {
        for kind in [
            IndexKind::Exact,
            IndexKind::IVF,
            IndexKind::Ivf { lists: 7, probes: 7 },
            IndexKind::HNSW,
            IndexKind::Hnsw { links: 2, ef_search: 1, ef_construction: 9 },
        ] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn a_parameter_that_is_not_named_has_its_default() {
        assert_eq!("hnsw".parse(), Ok(IndexKind::HNSW));
        assert_eq!("ivf:probes=3".parse(), Ok(IndexKind::Ivf { lists: 1024, probes: 3 }));
    }

    #[test]
    fn texts_that_name_no_kind_are_refused() {
        for text in
            ["", "flat", "exact:lists=1", "ivf:", "ivf:lists", "ivf:lists=x", "ivf:links=3", "hnsw:links=-1"]
        {
            assert!(matches!(text.parse::<IndexKind>(), Err(KindError::Text { .. })), "{text}");
        }
    }

    #[test]
    fn a_parameter_out_of_range_is_named() {
        let refused = "ivf:lists=4,probes=5".parse::<IndexKind>();
        assert_eq!(refused, Err(KindError::Range { parameter: "probes", least: 1, most: 4, actual: 5 }));
        assert!("hnsw:links=1".parse::<IndexKind>().is_err());
        assert!("ivf:lists=0".parse::<IndexKind>().is_err());
    }
}
