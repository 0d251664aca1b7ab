use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::InspectError;

/// Longest file that is read as JSON.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// What a folder of weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A run folder of RDE or IRRA, as published or as Thicket's trainer writes it.
    Run,
    /// A CLIP model as Hugging Face's tools save it.
    HuggingFaceClip,
    /// Qwen2-VL.
    Qwen2Vl,
    /// Qwen2.5-VL.
    Qwen25Vl,
    /// A LoRA adapter as PEFT saves it.
    Adapter,
}

impl Kind {
    /// Tells from what lies in a folder what it is; the weights are not opened.
    ///
    /// # Errors
    /// [`InspectError::Unknown`] with what was looked for, [`InspectError::File`] for a configuration that cannot be read.
    pub fn of(dir: &Path) -> Result<Self, InspectError> {
        let unknown = |reason: String| InspectError::Unknown { dir: dir.to_path_buf(), reason };
        if !dir.is_dir() {
            return Err(unknown("there is no such folder".to_owned()));
        }
        let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
        if has("configs.yaml") {
            return Ok(Self::Run);
        }
        if has("adapter_config.json") {
            return Ok(Self::Adapter);
        }
        if !has("config.json") {
            let expected = "config.json, configs.yaml or adapter_config.json";
            return Err(unknown(format!("this is no model folder: it has no {expected}")));
        }
        let config = read_json(&dir.join("config.json"))?;
        match config["model_type"].as_str() {
            Some("qwen2_vl") => Ok(Self::Qwen2Vl),
            Some("qwen2_5_vl") => Ok(Self::Qwen25Vl),
            Some("clip") => Ok(Self::HuggingFaceClip),
            Some(other) => Err(unknown(format!(
                "config.json: model_type: {other:?} is not supported, qwen2_vl, qwen2_5_vl and clip are"
            ))),
            None => Err(unknown("config.json: model_type is missing".to_owned())),
        }
    }

    /// For a person.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Run => "an RDE or IRRA run (embedding)",
            Self::HuggingFaceClip => "a CLIP model (embedding)",
            Self::Qwen2Vl => "Qwen2-VL (answers)",
            Self::Qwen25Vl => "Qwen2.5-VL (answers)",
            Self::Adapter => "a LoRA adapter",
        }
    }

    /// For a program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::HuggingFaceClip => "clip",
            Self::Qwen2Vl => "qwen2_vl",
            Self::Qwen25Vl => "qwen2_5_vl",
            Self::Adapter => "lora",
        }
    }
}

/// Reads a JSON file of a reasonable size.
pub(crate) fn read_json(path: &Path) -> Result<Value, InspectError> {
    let failed = |reason: String| InspectError::File { path: path.to_path_buf(), reason };
    let length = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if length > MAX_JSON_BYTES {
        return Err(failed(format!("the file has {length} bytes, the limit is {MAX_JSON_BYTES}")));
    }
    let bytes = fs::read(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
}
