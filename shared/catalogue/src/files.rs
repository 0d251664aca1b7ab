//! Which files of a repository are read. Repositories hold the same weights several times, in other formats, and more
//! that is not read at all.

use std::collections::{BTreeMap, BTreeSet};

/// Beside any weights: sizes, tokenizer, preprocessing.
const SETTINGS: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "configs.yaml",
    "bpe_simple_vocab.txt",
    "adapter_config.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";
const ARCHIVE: &str = "best.pth";
/// Endings of weights that are not read, for the message.
const OTHER_WEIGHTS: [&str; 6] = [".bin", ".pt", ".pth", ".h5", ".msgpack", ".safetensors"];

/// A repository holds no weights in a form that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoWeights {
    /// Paths of files that are weights in another form, in order.
    pub others: Vec<String>,
}

impl std::fmt::Display for NoWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no {SINGLE} (or its shards), {ADAPTER} or {ARCHIVE}")?;
        match self.others.first() {
            None => Ok(()),
            Some(first) => write!(
                f,
                "; {first} is there, which is not read: a revision like refs/pr/1 may hold a conversion to safetensors"
            ),
        }
    }
}

impl std::error::Error for NoWeights {}

/// The paths, relative and with `/`, of the files that are read: in every folder its weights once (safetensors, sharded
/// or single, before a `best.pth`), and beside them sizes, tokenizer and preprocessing.
///
/// # Errors
/// [`NoWeights`] where no folder has any.
pub fn needed<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<&'a str>, NoWeights> {
    let mut folders: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut others = Vec::new();
    for path in paths {
        let (folder, name) = split(path);
        // What is below a hidden folder is a tool's own.
        if path.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        folders.entry(folder).or_default().insert(path);
        if OTHER_WEIGHTS.iter().any(|ending| name.ends_with(ending)) {
            others.push(path.to_owned());
        }
    }
    let needed: BTreeSet<&str> = folders.values().flat_map(in_folder).collect();
    if needed.is_empty() { Err(NoWeights { others }) } else { Ok(needed) }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn in_folder<'a>(paths: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let named =
        |wanted: &str| paths.iter().copied().filter(move |path| split(path).1 == wanted).collect::<Vec<_>>();
    let mut found: Vec<&str> = paths.iter().copied().filter(|path| is_shard(split(path).1)).collect();
    if found.is_empty() {
        found = named(SINGLE);
    } else {
        found.extend(named(INDEX));
    }
    found.extend(named(ADAPTER));
    if found.is_empty() {
        found = named(ARCHIVE);
    }
    if !found.is_empty() {
        found.extend(SETTINGS.iter().flat_map(|name| named(name)));
    }
    found
}

/// `model-00001-of-00005.safetensors`.
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .and_then(|numbers| numbers.split_once("-of-"))
        .is_some_and(|(part, of)| digits(part) && digits(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        needed(paths.iter().copied()).unwrap().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn weights_come_once_and_in_safetensors() {
        let paths = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "model-q4.gguf",
            ".gitattributes",
        ];
        assert_eq!(names(&paths), ["config.json", "model.safetensors", "tokenizer.json"]);
    }

    #[test]
    fn shards_come_with_their_index() {
        let paths = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "model-x-of-y.safetensors",
            "model.safetensors",
            "config.json",
        ];
        assert_eq!(
            names(&paths),
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json"
            ]
        );
    }

    #[test]
    fn every_run_folder_comes_with_its_options() {
        let paths = [
            "a/best.pth",
            "a/configs.yaml",
            "a/last.pth",
            "a/train_log.txt",
            "b/best.pth",
            "b/configs.yaml",
            "c/configs.yaml",
        ];
        assert_eq!(names(&paths), ["a/best.pth", "a/configs.yaml", "b/best.pth", "b/configs.yaml"]);
    }

    #[test]
    fn an_adapter_comes_without_the_data_it_was_trained_on() {
        let paths = [
            "lora/adapter_config.json",
            "lora/adapter_model.safetensors",
            "lora/trainer_state.json",
            "sft.json",
        ];
        assert_eq!(names(&paths), ["lora/adapter_config.json", "lora/adapter_model.safetensors"]);
    }

    #[test]
    fn what_is_there_instead_is_told() {
        let error = needed(["config.json", "pytorch_model.bin"]).unwrap_err();
        assert_eq!(error.others, ["pytorch_model.bin"]);
        assert!(
            error.to_string().contains("pytorch_model.bin")
                && error.to_string().contains("model.safetensors")
        );
        assert!(needed([]).unwrap_err().others.is_empty());
    }
}
