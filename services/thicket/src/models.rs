//! Where the sample models are, and the settings that were chosen for them.

use std::path::{Path, PathBuf};

use thicket_answer::{DEFAULT_MAX_BATCH, LoadingArgs, ServedArgs, Server};
use thicket_thi::Settings;

use crate::Failure;

const EMBEDDING: &str = "sample-embedding";
const ANSWER: &str = "sample-answer";
/// In an answer model's folder: the interaction's settings, chosen on validation data.
const SETTINGS_FILE: &str = "thi.json";
/// Where models are, relative to a folder above the executable: a checkout, an installation.
const PLACES: [&str; 2] = ["models", "share/thicket/models"];

/// Flags that name the models of a cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Models")]
pub(crate) struct ModelArgs {
    /// Folder that holds `sample-embedding` and `sample-answer` [default: `models` above the executable]
    #[arg(long, env = "THICKET_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// Folder of the embedding model [default: the sample's]
    #[arg(long, env = "THICKET_EMBEDDING_MODEL", value_name = "DIR")]
    embedding_model: Option<PathBuf>,
    /// Folder of the answer model [default: the sample's]
    #[arg(long, env = "THICKET_ANSWER_MODEL", value_name = "DIR")]
    answer_model: Option<PathBuf>,
    #[command(flatten)]
    loading: LoadingArgs,
    #[command(flatten)]
    served: ServedArgs,
}

/// The models of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    pub(crate) embedding: PathBuf,
    pub(crate) answer: PathBuf,
    pub(crate) loading: LoadingArgs,
    /// Another program that answers instead.
    pub(crate) server: Option<Server>,
}

impl ModelArgs {
    /// The folders, which exist.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a folder that is not there.
    pub(crate) fn find(&self) -> Result<Models, Failure> {
        let sample = |name: &str| match &self.models {
            Some(models) => Some(models.join(name)),
            None => std::env::current_exe().ok().and_then(|program| above(&program, name)),
        };
        let folder = |flag: &str, given: &Option<PathBuf>, name: &str| {
            let folder = given.clone().or_else(|| sample(name));
            match folder {
                None => Err(Failure::bad_input(format!(
                    "{flag}: there is no {name} in a folder `models` above the executable; name one"
                ))),
                Some(folder) if !folder.is_dir() => {
                    Err(Failure::bad_input(format!("{flag}: there is no folder {}", folder.display())))
                }
                Some(folder) => Ok(folder),
            }
        };
        Ok(Models {
            embedding: folder("embedding-model", &self.embedding_model, EMBEDDING)?,
            answer: folder("answer-model", &self.answer_model, ANSWER)?,
            loading: self.loading.clone(),
            server: self.served.server(DEFAULT_MAX_BATCH).map_err(Failure::bad_input)?,
        })
    }
}

impl Models {
    /// The settings that come with the answer model; `None` where none do.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a file that cannot be read or has a setting out of range.
    pub(crate) fn settings(&self) -> Result<Option<Settings>, Failure> {
        let path = self.answer.join(SETTINGS_FILE);
        let refuse = |reason: String| Failure::bad_input(format!("{}: {reason}", path.display()));
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| refuse(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refuse(error.to_string())),
        }
    }
}

/// The nearest folder of models above the executable; `None` where there is none.
pub(crate) fn folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.canonicalize().ok()?;
    let mut places = program.ancestors().skip(1).flat_map(|folder| PLACES.map(|place| folder.join(place)));
    places.find(|folder| folder.join(EMBEDDING).is_dir() || folder.join(ANSWER).is_dir())
}

/// The nearest folder `name` in a place for models above `program`.
fn above(program: &Path, name: &str) -> Option<PathBuf> {
    let program = program.canonicalize().ok()?;
    program
        .ancestors()
        .skip(1)
        .flat_map(|folder| PLACES.map(|place| folder.join(place).join(name)))
        .find(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(models: Option<PathBuf>) -> ModelArgs {
        ModelArgs {
            models,
            embedding_model: None,
            answer_model: None,
            loading: LoadingArgs::default(),
            served: ServedArgs::default(),
        }
    }

    #[test]
    fn models_are_found_above_a_build_and_in_an_installation() {
        for (program, place) in
            [("target/release/thicket", "models"), ("bin/thicket", "share/thicket/models")]
        {
            let root = tempfile::tempdir().unwrap();
            let program = root.path().join(program);
            std::fs::create_dir_all(program.parent().unwrap()).unwrap();
            std::fs::write(&program, "").unwrap();
            assert_eq!(above(&program, ANSWER), None);
            let folder = root.path().canonicalize().unwrap().join(place).join(ANSWER);
            std::fs::create_dir_all(&folder).unwrap();
            assert_eq!(above(&program, ANSWER), Some(folder));
        }
    }

    #[test]
    fn a_model_that_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        let refused = args(Some(root.path().to_owned())).find().unwrap_err().to_string();
        assert!(refused.contains("embedding-model") && refused.contains(EMBEDDING), "{refused}");
    }

    #[test]
    fn settings_are_read_from_the_answer_models_folder_and_checked() {
        let root = tempfile::tempdir().unwrap();
        let models = Models {
            embedding: root.path().to_owned(),
            answer: root.path().to_owned(),
            loading: LoadingArgs::default(),
            server: None,
        };
        assert_eq!(models.settings().unwrap(), None);
        let write = |text: &str| std::fs::write(root.path().join(SETTINGS_FILE), text).unwrap();
        write(r#"{"xi": 0.4, "lambda": 0.7, "yes_threshold": 0.6, "rounds": 5}"#);
        assert_eq!(models.settings().unwrap(), Some(Settings::new(5, 0.4, 0.7, 0.6).unwrap()));
        write(r#"{"xi": 0.4, "lambda": 1.7, "yes_threshold": 0.6, "rounds": 5}"#);
        let refused = models.settings().unwrap_err().to_string();
        assert!(refused.contains("lambda") && refused.contains(SETTINGS_FILE), "{refused}");
    }
}
