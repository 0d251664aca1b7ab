use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use thicket_engine::AdapterInfo;
use thicket_proto::v1;
use thicket_runtime::Fault;

/// Longest name of an adapter in bytes.
pub const MAX_ADAPTER_NAME_BYTES: usize = 128;
/// The file that makes a folder an adapter's.
const CONFIG_FILE: &str = "adapter_config.json";

/// The adapters that the model has loaded: changed by the model's thread, read by the handlers.
#[derive(Debug)]
pub(crate) struct Loaded {
    limit: usize,
    by_name: RwLock<BTreeMap<String, AdapterInfo>>,
}

impl Loaded {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, by_name: RwLock::default() }
    }

    /// Refuses a name beyond the limit; one that is there already takes no more room.
    pub(crate) fn require_room(&self, name: &str) -> Result<(), Fault> {
        let loaded = self.by_name.read();
        if loaded.contains_key(name) || loaded.len() < self.limit {
            return Ok(());
        }
        Err(Fault::Exhausted {
            reason: "ADAPTERS_FULL".into(),
            message: format!("{} adapters are loaded, the limit is {}", loaded.len(), self.limit),
            retry_after: None,
        })
    }

    pub(crate) fn insert(&self, info: AdapterInfo) {
        self.by_name.write().insert(info.name.clone(), info);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.by_name.write().remove(name);
    }
}

/// The adapters of a server: those that are loaded, and the folder that others can be loaded from.
#[derive(Debug, Clone)]
pub(crate) struct Adapters {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) folder: Option<PathBuf>,
}

impl Adapters {
    /// Fingerprint of a loaded adapter.
    pub(crate) fn fingerprint(&self, name: &str) -> Result<String, Fault> {
        let loaded = self.loaded.by_name.read();
        loaded.get(name).map(|info| info.fingerprint.clone()).ok_or_else(|| missing(name))
    }

    pub(crate) fn loaded(&self) -> Vec<v1::Adapter> {
        self.loaded.by_name.read().values().cloned().map(to_wire).collect()
    }

    /// Names of the folders that hold an adapter, sorted. Reads the disk.
    pub(crate) fn available(&self) -> Result<Vec<String>, Fault> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let entries = std::fs::read_dir(folder)
            .map_err(|cause| Fault::internal(format!("adapter folder {}: {cause}", folder.display())))?;
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().join(CONFIG_FILE).is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// The folder of an adapter. Reads the disk.
    pub(crate) fn folder_of(&self, name: &str) -> Result<PathBuf, Fault> {
        let root = self.folder.as_deref().ok_or_else(|| Fault::FailedPrecondition {
            reason: "NO_ADAPTER_FOLDER".into(),
            message: "this server has no adapter folder: start it with --adapters".to_owned(),
        })?;
        folder_of(root, name)
    }
}

/// The folder of an adapter below `root`.
pub(crate) fn folder_of(root: &Path, name: &str) -> Result<PathBuf, Fault> {
    let refused = |message: String| Fault::invalid("name", "ADAPTER_NAME", message);
    if name.is_empty() || name.len() > MAX_ADAPTER_NAME_BYTES {
        return Err(refused(format!("1 to {MAX_ADAPTER_NAME_BYTES} bytes, got {}", name.len())));
    }
    if name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(refused("a folder name expected, not a path".to_owned()));
    }
    let folder = root.join(name);
    if !folder.join(CONFIG_FILE).is_file() {
        return Err(missing(name));
    }
    Ok(folder)
}

pub(crate) fn missing(name: &str) -> Fault {
    Fault::NotFound { kind: "adapter".into(), name: name.to_owned() }
}

pub(crate) fn to_wire(info: AdapterInfo) -> v1::Adapter {
    v1::Adapter { name: info.name, fingerprint: info.fingerprint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["", ".", "..", "a/b", "/etc", "a\\b", "a\0b", &"n".repeat(129)] {
            let fault = folder_of(root.path(), name).expect_err("no plain name");
            assert!(matches!(fault, Fault::InvalidInput { .. }), "{name}: {fault}");
        }
        assert!(matches!(folder_of(root.path(), "absent"), Err(Fault::NotFound { .. })));
    }

    #[test]
    fn only_folders_with_an_adapter_are_available() {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["b", "a", "empty"] {
            std::fs::create_dir(root.path().join(name)).expect("made");
        }
        for name in ["a", "b"] {
            std::fs::write(root.path().join(name).join(CONFIG_FILE), "{}").expect("written");
        }
        let adapters = Adapters { loaded: Arc::new(Loaded::new(1)), folder: Some(root.path().to_path_buf()) };
        assert_eq!(adapters.available(), Ok(vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn a_full_list_takes_a_known_name_and_no_other() {
        let loaded = Loaded::new(1);
        loaded.insert(AdapterInfo { name: "a".to_owned(), fingerprint: String::new() });
        assert_eq!(loaded.require_room("a"), Ok(()));
        assert!(matches!(loaded.require_room("b"), Err(Fault::Exhausted { .. })));
        loaded.remove("a");
        assert_eq!(loaded.require_room("b"), Ok(()));
    }
}
