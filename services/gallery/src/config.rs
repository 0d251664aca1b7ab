use std::path::PathBuf;
use std::time::Duration;

use thicket_discovery::{Address, DiscoveryArgs};
use thicket_imaging::Limits;
use thicket_runtime::{Role, RoleArgs, RoleConfig, parse_duration};
use thicket_telemetry::TelemetryArgs;

use crate::error::OpenError;
use crate::forget::{ForgetConfig, Told};
use crate::milvus::{DEFAULT_GRACE, MilvusConfig};

/// Folder of the data where none is given.
pub const DEFAULT_DATA: &str = "thicket-data/gallery";
/// Writes that may wait for the writer.
pub const DEFAULT_QUEUE_LIMIT: usize = 1024;
/// Writes committed together.
pub const DEFAULT_BATCH_LIMIT: usize = 256;
/// Bytes of upserts held in memory at a time, in MiB.
pub const DEFAULT_UPSERT_MIB: usize = 128;
/// Threads that search and read.
pub const DEFAULT_READERS: usize = 4;
/// Reads that may wait for a reader.
pub const DEFAULT_READ_QUEUE_LIMIT: usize = 256;
/// Memory of the store's page cache, in MiB.
pub const DEFAULT_CACHE_MIB: usize = 64;
/// How long bytes of what was deleted or replaced may stay in the store's file before it is compacted.
pub const DEFAULT_COMPACT_AFTER: Duration = Duration::from_secs(600);

/// Command line of `thicket-gallery`; every flag is also an environment variable.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "thicket-gallery",
    version,
    about = "Serves one gallery of Thicket: vectors, images and rankings"
)]
pub struct Args {
    /// What every role has
    #[command(flatten)]
    pub role: RoleArgs,
    /// Logs and traces
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// How the others find this role
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    /// What the gallery alone has
    #[command(flatten)]
    pub gallery: GalleryArgs,
    /// What of it is elsewhere
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Flags of the gallery, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Gallery")]
pub struct GalleryArgs {
    /// Folder of the store, the images and the snapshots; created where it is missing
    #[arg(long = "data", env = "THICKET_GALLERY_DATA", value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Writes that may wait; more are refused (deletions) or slowed down (upserts)
    #[arg(long, env = "THICKET_GALLERY_QUEUE", value_name = "N", default_value_t = DEFAULT_QUEUE_LIMIT)]
    pub gallery_queue: usize,
    /// Writes committed in one transaction at most
    #[arg(long, env = "THICKET_GALLERY_BATCH", value_name = "N", default_value_t = DEFAULT_BATCH_LIMIT)]
    pub gallery_batch: usize,
    /// MiB of upserts held in memory at a time
    #[arg(long, env = "THICKET_GALLERY_UPSERT_MIB", value_name = "N", default_value_t = DEFAULT_UPSERT_MIB)]
    pub gallery_upsert_mib: usize,
    /// Threads that search and read images
    #[arg(long, env = "THICKET_GALLERY_READERS", value_name = "N", default_value_t = DEFAULT_READERS)]
    pub gallery_readers: usize,
    /// Reads that may wait; more are refused
    #[arg(long, env = "THICKET_GALLERY_READ_QUEUE", value_name = "N", default_value_t = DEFAULT_READ_QUEUE_LIMIT)]
    pub gallery_read_queue: usize,
    /// MiB of the store's page cache
    #[arg(long, env = "THICKET_GALLERY_CACHE_MIB", value_name = "N", default_value_t = DEFAULT_CACHE_MIB)]
    pub gallery_cache_mib: usize,
    /// How long bytes of what was deleted or replaced may stay in the store's file, in free pages, before the store is
    /// rewritten without them [default: 10m]
    #[arg(long, env = "THICKET_GALLERY_COMPACT_AFTER", value_name = "TIME", value_parser = parse_duration)]
    pub gallery_compact_after: Option<Duration>,
    /// Address of a gallery to follow: this one is then a read replica, which has what that one has, answers reads and
    /// refuses writes
    #[arg(long, env = "THICKET_GALLERY_FOLLOW", value_name = "URL")]
    pub follow: Option<Address>,
    /// File with the bearer token that the gallery followed wants; it must have the rights `read` and `admin`
    /// on every collection
    #[arg(long, env = "THICKET_GALLERY_FOLLOW_TOKEN_FILE", value_name = "FILE", requires = "follow")]
    pub follow_token_file: Option<PathBuf>,
}

/// What keeps the collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendKind {
    /// This process, on its own disk
    Embedded,
    /// A Milvus cluster; this process keeps nothing
    Milvus,
}

/// How Milvus indexes the vectors of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MilvusIndex {
    /// Every vector is compared: exact
    Flat,
    /// A graph of neighbours: faster in large collections, and it may leave some out
    Hnsw,
}

/// Flags of the gallery for what is not on this machine, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Gallery beyond one machine")]
pub struct PlaceArgs {
    /// What keeps the collections
    #[arg(long, env = "THICKET_GALLERY_BACKEND", value_name = "KIND", value_enum, default_value_t = BackendKind::Embedded)]
    pub backend: BackendKind,
    /// Where the images are: file:///folder or s3://bucket/prefix, for the gallery alone. Endpoint and credentials of S3
    /// come from the usual AWS_ variables [default: a folder in the data folder; needed with --backend milvus]
    #[arg(long, env = "THICKET_GALLERY_IMAGES", value_name = "URL")]
    pub images: Option<String>,
    /// Address of Milvus: http://host:port or https://host:port
    #[arg(long, env = "THICKET_MILVUS", value_name = "URL")]
    pub milvus: Option<String>,
    /// user:password or API key for Milvus
    #[arg(long, env = "THICKET_MILVUS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub milvus_token: Option<String>,
    /// Certificates in PEM that are trusted for Milvus [default: those of the system]
    #[arg(long, env = "THICKET_MILVUS_CA", value_name = "FILE")]
    pub milvus_ca: Option<PathBuf>,
    /// Database in Milvus, which has to exist [default: the default one]
    #[arg(long, env = "THICKET_MILVUS_DATABASE", value_name = "NAME")]
    pub milvus_database: Option<String>,
    /// Answer services, as in `http://answer-0:7703,http://answer-1:7703`, that are to forget what they keep of an image when
    /// its last item goes; every address of a host name is one
    #[arg(long, env = "THICKET_GALLERY_FORGET_AT", value_name = "URL", value_delimiter = ',')]
    pub forget_at: Vec<Address>,
    /// Coordinators, as in `http://coordinator-0:7700`, that are to take such an image out of the results of jobs; every address
    /// of a host name is one
    #[arg(long, env = "THICKET_GALLERY_FORGET_JOBS_AT", value_name = "URL", value_delimiter = ',')]
    pub forget_jobs_at: Vec<Address>,
    /// The same for all answer services and coordinators that are registered in etcd
    #[arg(long, env = "THICKET_GALLERY_FORGET_REGISTERED", requires = "etcd", conflicts_with_all = ["forget_at", "forget_jobs_at"])]
    pub forget_registered: bool,
    /// File with the bearer token that they want
    #[arg(long, env = "THICKET_GALLERY_FORGET_TOKEN_FILE", value_name = "FILE")]
    pub forget_token_file: Option<PathBuf>,
    /// How Milvus indexes new collections; the same for every gallery of a cluster
    #[arg(long, env = "THICKET_MILVUS_INDEX", value_name = "KIND", value_enum, default_value_t = MilvusIndex::Flat)]
    pub milvus_index: MilvusIndex,
}

impl PlaceArgs {
    /// What keeps the collections. An address that is missing is found by [`Config::validate`].
    fn backend(&self) -> BackendConfig {
        match self.backend {
            BackendKind::Embedded => BackendConfig::Embedded,
            BackendKind::Milvus => BackendConfig::Milvus(MilvusConfig {
                milvus: thicket_milvus::Settings {
                    url: self.milvus.clone().unwrap_or_default(),
                    token: self.milvus_token.clone(),
                    ca: self.milvus_ca.clone(),
                    database: self.milvus_database.clone().unwrap_or_default(),
                },
                index: match self.milvus_index {
                    MilvusIndex::Flat => thicket_milvus::Index::Flat,
                    MilvusIndex::Hnsw => thicket_milvus::Index::Hnsw,
                },
                grace: DEFAULT_GRACE,
            }),
        }
    }

    /// Who is to forget; `None` for nobody.
    fn forget(&self, discovery: &DiscoveryArgs) -> Result<Option<ForgetConfig>, OpenError> {
        let told = match discovery.etcd() {
            _ if !(self.forget_at.is_empty() && self.forget_jobs_at.is_empty()) => {
                Told::at(&self.forget_at, &self.forget_jobs_at)
            }
            Ok(Some(etcd)) if self.forget_registered => Told::Registered(Box::new(etcd)),
            Err(error) if self.forget_registered => {
                return Err(OpenError::Setting { setting: "etcd", reason: error.to_string() });
            }
            _ => return Ok(None),
        };
        let token = self.forget_token_file.as_ref().map(|file| {
            let read = std::fs::read_to_string(file);
            read.map(|token| token.trim().to_owned()).map_err(|cause| OpenError::Setting {
                setting: "forget-token-file",
                reason: format!("{}: {cause}", file.display()),
            })
        });
        Ok(Some(ForgetConfig { told, token: token.transpose()? }))
    }

    /// Where the images are; `None` for a folder in the data folder.
    fn images(&self) -> Option<ImagesConfig> {
        let url = self.images.clone()?;
        Some(ImagesConfig { url, settings: thicket_blobs::Settings::from_env() })
    }
}

/// What keeps the collections, with its settings.
#[derive(Debug, Clone)]
pub enum BackendConfig {
    /// This process, in [`Config::data`].
    Embedded,
    /// A Milvus cluster.
    Milvus(MilvusConfig),
}

/// Where images are.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// `file:///folder` or `s3://bucket/prefix`.
    pub url: String,
    /// What it needs beside that.
    pub settings: thicket_blobs::Settings,
}

impl Args {
    /// The settings, not yet validated.
    ///
    /// # Errors
    /// [`OpenError::Setting`] for a file of a token that cannot be read, or settings of etcd that do not do.
    pub fn config(&self) -> Result<Config, OpenError> {
        let gallery = &self.gallery;
        Ok(Config {
            role: self.role.config(Role::Gallery),
            discovery: self.discovery.clone(),
            data: gallery.data.clone(),
            queue_limit: gallery.gallery_queue,
            batch_limit: gallery.gallery_batch,
            upsert_bytes: gallery.gallery_upsert_mib.saturating_mul(1 << 20),
            readers: gallery.gallery_readers,
            read_queue_limit: gallery.gallery_read_queue,
            cache_bytes: gallery.gallery_cache_mib.saturating_mul(1 << 20),
            compact_after: gallery.gallery_compact_after.unwrap_or(DEFAULT_COMPACT_AFTER),
            images: Limits::default(),
            backend: self.place.backend(),
            image_store: self.place.images(),
            forget: self.place.forget(&self.discovery)?,
            follow: gallery.follow.clone(),
            follow_token_file: gallery.follow_token_file.clone(),
        })
    }
}

/// Settings of a gallery.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners, deadlines, tokens, audit log.
    pub role: RoleConfig,
    /// How the others find this role. Default: not at all.
    pub discovery: DiscoveryArgs,
    /// Folder of the store, the images and the snapshots; created where it is missing.
    pub data: PathBuf,
    /// Writes that may wait, at least 1. Default: [`DEFAULT_QUEUE_LIMIT`].
    pub queue_limit: usize,
    /// Writes committed in one transaction at most, at least 1. Default: [`DEFAULT_BATCH_LIMIT`].
    pub batch_limit: usize,
    /// Bytes of upserts held in memory at a time, at least 1 MiB. Default: [`DEFAULT_UPSERT_MIB`] MiB.
    pub upsert_bytes: usize,
    /// Threads that search and read images, 1 to 256. Default: [`DEFAULT_READERS`].
    pub readers: usize,
    /// Reads that may wait, at least 1. Default: [`DEFAULT_READ_QUEUE_LIMIT`].
    pub read_queue_limit: usize,
    /// Memory of the store's page cache in bytes, at least 1 MiB. Default: [`DEFAULT_CACHE_MIB`] MiB.
    pub cache_bytes: usize,
    /// How long bytes of what was deleted or replaced may stay in the store's file before the store is rewritten without
    /// them; writes wait meanwhile. Default: [`DEFAULT_COMPACT_AFTER`].
    pub compact_after: Duration,
    /// Bounds on an item's image.
    pub images: Limits,
    /// What keeps the collections. Default: this process.
    pub backend: BackendConfig,
    /// Where the images are; `None` for a folder in [`Self::data`], which is the default.
    pub image_store: Option<ImagesConfig>,
    /// Who is to forget what it keeps of an image when its last item goes. Default: nobody.
    pub forget: Option<ForgetConfig>,
    /// Address of a gallery to follow as a read replica. Default: none, this gallery takes writes.
    pub follow: Option<Address>,
    /// File with the bearer token that it wants. Default: none is sent.
    pub follow_token_file: Option<PathBuf>,
}

impl Config {
    /// The defaults on free loopback ports, with the data in `data`: a gallery inside another process or a test.
    pub fn in_process(data: impl Into<PathBuf>) -> Self {
        Self {
            role: RoleConfig::in_process(),
            discovery: DiscoveryArgs::default(),
            data: data.into(),
            queue_limit: DEFAULT_QUEUE_LIMIT,
            batch_limit: DEFAULT_BATCH_LIMIT,
            upsert_bytes: DEFAULT_UPSERT_MIB << 20,
            readers: DEFAULT_READERS,
            read_queue_limit: DEFAULT_READ_QUEUE_LIMIT,
            cache_bytes: DEFAULT_CACHE_MIB << 20,
            compact_after: DEFAULT_COMPACT_AFTER,
            images: Limits::default(),
            backend: BackendConfig::Embedded,
            image_store: None,
            forget: None,
            follow: None,
            follow_token_file: None,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`OpenError::Setting`] with the range and the actual value.
    pub fn validate(&self) -> Result<(), OpenError> {
        /// As many as a queue of tokio holds, and far more than memory does.
        const MOST: usize = 1 << 24;
        let rules = [
            ("gallery-queue", self.queue_limit, 1, MOST),
            ("gallery-batch", self.batch_limit, 1, MOST),
            ("gallery-upsert-mib", self.upsert_bytes >> 20, 1, 1 << 20),
            ("gallery-readers", self.readers, 1, 256),
            ("gallery-read-queue", self.read_queue_limit, 1, MOST),
            ("gallery-cache-mib", self.cache_bytes >> 20, 1, 1 << 20),
        ];
        for (setting, value, least, most) in rules {
            if value < least || value > most {
                return Err(OpenError::Setting {
                    setting,
                    reason: format!("{least} to {most}, got {value}"),
                });
            }
        }
        if let BackendConfig::Milvus(milvus) = &self.backend {
            if milvus.milvus.url.is_empty() {
                return Err(OpenError::missing("milvus", "--backend milvus needs the address of Milvus"));
            }
            if self.image_store.is_none() {
                return Err(OpenError::missing("images", "--backend milvus needs a place for the images"));
            }
            if self.follow.is_some() {
                let reason =
                    "galleries with --backend milvus share what Milvus holds and follow nobody".to_owned();
                return Err(OpenError::Setting { setting: "follow", reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        for arg in Args::command()
            .get_arguments()
            .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        {
            let variable = arg.get_env().unwrap_or_else(|| panic!("{} has none", arg.get_id()));
            assert!(variable.to_string_lossy().starts_with("THICKET_"), "{variable:?}");
        }
    }

    #[test]
    fn milvus_needs_an_address_and_a_place_for_images() {
        let parse = |flags: &[&str]| {
            let args = ["thicket-gallery"].iter().chain(flags);
            <Args as clap::Parser>::try_parse_from(args).unwrap().config().unwrap().validate()
        };
        let setting = |flags: &[&str]| match parse(flags) {
            Err(OpenError::Setting { setting, .. }) => setting,
            other => panic!("{other:?}"),
        };
        assert_eq!(setting(&["--backend", "milvus", "--images", "s3://b"]), "milvus");
        assert_eq!(setting(&["--backend", "milvus", "--milvus", "http://m:19530"]), "images");
        parse(&["--backend", "milvus", "--milvus", "http://m:19530", "--images", "s3://b"]).unwrap();
    }

    #[test]
    fn a_queue_of_nothing_is_refused() {
        let config = Config { queue_limit: 0, ..Config::in_process("x") };
        assert!(matches!(config.validate(), Err(OpenError::Setting { setting: "gallery-queue", .. })));
        Config::in_process("x").validate().unwrap();
    }
}
