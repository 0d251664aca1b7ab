//! The places that a test of the contract runs on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use thicket_gallery::{BackendConfig, Config, ImagesConfig, MilvusConfig};

use crate::common::*;
use crate::contract::milvus::Milvus;

/// A gallery somewhere.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) client: Client,
    pub(crate) milvus: Option<Milvus>,
    /// `None` while it starts again.
    running: Option<Running>,
    folder: TempDir,
}

impl Place {
    pub(crate) async fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let running = Running::on(folder.path()).await;
        Self {
            name: "embedded",
            client: running.client.clone(),
            milvus: None,
            running: Some(running),
            folder,
        }
    }

    pub(crate) async fn milvus() -> Option<Self> {
        let milvus = start_milvus().await?;
        let folder = tempfile::tempdir().unwrap();
        let running = Running::start(config(&milvus, folder.path())).await;
        let client = running.client.clone();
        Some(Self { name: "milvus", client, milvus: Some(milvus), running: Some(running), folder })
    }

    /// Another gallery over the same Milvus.
    pub(crate) async fn another(&self) -> Running {
        Running::start(config(self.milvus.as_ref().unwrap(), self.folder.path())).await
    }

    /// Stops the gallery and starts it again.
    pub(crate) async fn restart(&mut self) {
        let config = match &self.milvus {
            Some(milvus) => config(milvus, self.folder.path()),
            None => Config::in_process(self.folder.path()),
        };
        self.running.take().unwrap().stop().await;
        let running = Running::start(config).await;
        self.client = running.client.clone();
        self.running = Some(running);
    }

    /// The folder under which everything is that the gallery writes itself.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Every file of the folder.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        files(self.folder.path())
    }

    pub(crate) async fn end(self) {
        self.running.unwrap().stop().await;
    }
}

/// A Milvus, where there is one.
pub(crate) async fn start_milvus() -> Option<Milvus> {
    tokio::task::spawn_blocking(Milvus::start).await.unwrap()
}

/// A gallery over a Milvus, which takes nothing for old but what another process left.
pub(crate) fn config(milvus: &Milvus, folder: &Path) -> Config {
    let milvus =
        thicket_milvus::Settings { url: milvus.url(), token: None, ca: None, database: String::new() };
    Config {
        backend: BackendConfig::Milvus(MilvusConfig {
            milvus,
            index: thicket_milvus::Index::Flat,
            grace: Duration::ZERO,
        }),
        image_store: Some(ImagesConfig {
            url: format!("file://{}/objects", folder.display()),
            settings: thicket_blobs::Settings::default(),
        }),
        ..Config::in_process(folder.join("data"))
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Runs a test on every place that there is.
pub(crate) async fn everywhere(test: impl AsyncFn(&mut Place)) {
    let mut place = Place::embedded().await;
    test(&mut place).await;
    place.end().await;
    let Some(mut place) = Place::milvus().await else { return };
    test(&mut place).await;
    place.end().await;
}
