use std::{fs, path::Path};

use serde::Serialize;
use serde_norway::Value;

use crate::ClipError;

/// Name of the options file in a run folder.
pub const OPTIONS_FILE: &str = "configs.yaml";

/// Share of the tokens that are selected where the options do not say: that of the published models.
const DEFAULT_SELECT_RATIO: f64 = 0.3;

/// What tensor shapes cannot tell: the part of a run folder's `configs.yaml` that an embedding depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// Input size of an image as `(height, width)` in pixels.
    pub image_size: (usize, usize),
    /// Step between patches in pixels; smaller than the patch makes patches overlap. `None`: the patch size.
    pub stride: Option<usize>,
    /// Width of an attention head; `None`: 64, as in every published model. Published files do not have it.
    pub head_width: Option<usize>,
    /// Tokens of a text, start and end marks included. `None`: as many as the positional embedding has rows.
    pub text_length: Option<usize>,
    /// Share of the tokens that token selection keeps, above 0 and at most 1.
    pub select_ratio: f64,
}

/// The spelling of the options on disk.
#[derive(Serialize)]
struct Written {
    img_size: (usize, usize),
    select_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stride_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_width: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_length: Option<usize>,
}

impl RunOptions {
    /// Reads the options of a run folder. Options that an embedding does not depend on are ignored, YAML tags too
    /// (published files mark `img_size` as a Python tuple).
    ///
    /// # Errors
    /// [`ClipError::File`] where the file is not there, [`ClipError::Options`] for a missing `img_size` or a value of
    /// the wrong kind.
    pub fn read(dir: &Path) -> Result<Self, ClipError> {
        let path = dir.join(OPTIONS_FILE);
        let text = fs::read_to_string(&path)
            .map_err(|cause| ClipError::File { path: path.clone(), reason: cause.to_string() })?;
        Self::parse(&text).map_err(|(field, reason)| ClipError::Options {
            path,
            field: field.to_owned(),
            reason,
        })
    }

    /// Writes the options of a run folder, in the form that [`RunOptions::read`] and published tools read.
    ///
    /// # Errors
    /// [`ClipError::File`].
    pub fn write(&self, dir: &Path) -> Result<(), ClipError> {
        let path = dir.join(OPTIONS_FILE);
        let written = Written {
            img_size: self.image_size,
            select_ratio: self.select_ratio,
            stride_size: self.stride,
            head_width: self.head_width,
            text_length: self.text_length,
        };
        let text = serde_norway::to_string(&written)
            .map_err(|cause| ClipError::File { path: path.clone(), reason: cause.to_string() })?;
        fs::write(&path, text).map_err(|cause| ClipError::File { path, reason: cause.to_string() })
    }

    fn parse(text: &str) -> Result<Self, (&'static str, String)> {
        let root: Value = serde_norway::from_str(text).map_err(|cause| ("file", cause.to_string()))?;
        let size = untagged(root.get("img_size")).ok_or(("img_size", "is missing".to_owned()))?;
        let image_size = match size.as_sequence().map(Vec::as_slice) {
            Some([height, width]) => (count("img_size", height)?, count("img_size", width)?),
            _ => return Err(("img_size", "is not a pair of height and width".to_owned())),
        };
        let optional_count = |field| untagged(root.get(field)).map(|value| count(field, value)).transpose();
        let select_ratio = match untagged(root.get("select_ratio")) {
            None => DEFAULT_SELECT_RATIO,
            Some(value) => value.as_f64().ok_or(("select_ratio", "is not a number".to_owned()))?,
        };
        Ok(Self {
            image_size,
            stride: optional_count("stride_size")?,
            head_width: optional_count("head_width")?,
            text_length: optional_count("text_length")?,
            select_ratio,
        })
    }
}

fn untagged(value: Option<&Value>) -> Option<&Value> {
    match value {
        Some(Value::Tagged(tagged)) => untagged(Some(&tagged.value)),
        Some(Value::Null) => None,
        other => other,
    }
}

fn count(field: &'static str, value: &Value) -> Result<usize, (&'static str, String)> {
    value
        .as_u64()
        .and_then(|count| usize::try_from(count).ok())
        .filter(|&count| count > 0)
        .ok_or_else(|| (field, format!("{} is not a positive whole number", shown(value))))
}

fn shown(value: &Value) -> String {
    serde_norway::to_string(value).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_file_with_a_python_tuple_is_read() {
        let text = "MLM: false\nimg_size: !!python/tuple\n- 384\n- 128\nlr: 1.0e-05\nmilestones: !!python/tuple\n- 20\n\
                    - 50\nname: RDE\nresume_ckpt_file: ''\nselect_ratio: 0.3\nstride_size: 16\ntext_length: 77\n";
        let options = RunOptions::parse(text).unwrap();
        let expected = RunOptions {
            image_size: (384, 128),
            stride: Some(16),
            head_width: None,
            text_length: Some(77),
            select_ratio: 0.3,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn options_that_are_not_given_have_the_published_defaults() {
        let options = RunOptions::parse("img_size: [24, 8]").unwrap();
        assert_eq!((options.stride, options.text_length), (None, None));
        assert_eq!(options.select_ratio, 0.3);
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_option() {
        assert_eq!(RunOptions::parse("stride_size: 16").unwrap_err().0, "img_size");
        assert_eq!(RunOptions::parse("img_size: [1, -3]").unwrap_err().0, "img_size");
        assert_eq!(RunOptions::parse("img_size: [8, 8]\nstride_size: x").unwrap_err().0, "stride_size");
        assert_eq!(RunOptions::parse("img_size: [8, 8]\nselect_ratio: many").unwrap_err().0, "select_ratio");
        assert_eq!(RunOptions::parse("img_size: [8").unwrap_err().0, "file");
    }

    #[test]
    fn written_options_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let options = RunOptions {
            image_size: (96, 48),
            stride: Some(8),
            head_width: Some(32),
            text_length: Some(40),
            select_ratio: 0.25,
        };
        options.write(dir.path()).unwrap();
        assert_eq!(RunOptions::read(dir.path()).unwrap(), options);
    }
}
