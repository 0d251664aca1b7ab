use std::path::PathBuf;
use std::time::Duration;

use thicket_discovery::DiscoveryArgs;
use thicket_imaging::Limits;
use thicket_runtime::{Role, RoleArgs, RoleConfig, parse_duration};
use thicket_telemetry::TelemetryArgs;

use crate::error::OpenError;

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
}

impl Args {
    /// The settings, not yet validated.
    pub fn config(&self) -> Config {
        let gallery = &self.gallery;
        Config {
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
        }
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
    fn a_queue_of_nothing_is_refused() {
        let config = Config { queue_limit: 0, ..Config::in_process("x") };
        assert!(matches!(config.validate(), Err(OpenError::Setting { setting: "gallery-queue", .. })));
        Config::in_process("x").validate().unwrap();
    }
}
