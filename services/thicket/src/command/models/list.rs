use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thicket_catalogue::{GPUS, MODELS, Model, Need, Role};
use thicket_hub::{Revision, snapshot};
use thicket_inspection::Kind;

use super::{bytes, settings, table};
use crate::{Failure, console, models};

/// How deep a place is searched for model folders: a repository may hold several, one a folder.
const DEPTH: usize = 2;

/// Lists the supported models, which GPUs they fit, and what is already here
///
/// What a model needs of a GPU, at 2 bytes a value (bf16; on a T4, which has no bf16, f16):
///
///   need = parameters x 2 bytes + 2 GiB key-value caches (answer models only) + 1 GiB activations + 1.5 GiB driver
///
/// Qwen2-VL-7B: 8,291,375,616 x 2 bytes = 15.44 GiB, with 2 + 1 + 1.5 GiB 19.94 GiB: it fits 24 GiB and not 16 GiB. The
/// caches' 2 GiB are the most that the answer service uses; the driver's 1.5 GiB include what error correction takes on
/// an L4 or a T4. An adapter is merged into its base and needs what the base needs.
///
/// Here are the models in the cache of the Hugging Face hub and in the folder of models.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Folder of model folders, looked at beside the hub's cache [default: `models` above the executable]
    #[arg(long, env = "THICKET_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    supported: Vec<Supported>,
    here: Vec<Here>,
    gpus: Vec<GpuMemory>,
}

/// A model of the catalogue.
#[derive(Debug, Serialize)]
struct Supported {
    name: &'static str,
    repo: &'static str,
    /// `embedding`, `answer` or `adapter`.
    role: &'static str,
    /// Of an adapter: the model it belongs to.
    base: Option<&'static str>,
    parameters: u64,
    /// Bytes of the weights as published; `null` where that cannot be told beforehand.
    published_bytes: Option<u64>,
    /// Bytes of one token in the key-value cache, in bf16.
    cache_bytes_per_token: Option<u64>,
    need: NeedBytes,
    /// GPUs that it fits.
    fits: Vec<&'static str>,
    /// Folders that hold it.
    here: Vec<String>,
}

/// Bytes of a GPU's memory at 2 bytes a value.
#[derive(Debug, Serialize)]
struct NeedBytes {
    weights: u64,
    cache: u64,
    activations: u64,
    driver: u64,
    total: u64,
}

/// A folder with a model.
#[derive(Debug, Serialize)]
struct Here {
    path: String,
    /// `run`, `clip`, `qwen2_vl`, `qwen2_5_vl` or `lora`.
    kind: &'static str,
    /// Name in the catalogue, where it is known.
    name: Option<&'static str>,
    /// Commit of a folder in the hub's cache.
    commit: Option<String>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct GpuMemory {
    name: &'static str,
    memory: u64,
    bf16: bool,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Failure> {
    let mut here = in_cache(&settings()?.cache);
    let folder = match &args.models {
        Some(folder) if !folder.is_dir() => {
            return Err(Failure::bad_input(format!("models: there is no folder {}", folder.display())));
        }
        Some(folder) => Some(folder.clone()),
        None => models::folder(),
    };
    if let Some(folder) = folder {
        here.extend(in_folder(&folder));
    }
    let document = Document {
        supported: MODELS.iter().map(|model| supported(model, &here)).collect(),
        here,
        gpus: GPUS.map(|gpu| GpuMemory { name: gpu.name, memory: gpu.memory, bf16: gpu.bf16 }).into(),
    };
    if args.json {
        return console::print_json(&document);
    }
    console::print(&text(&document))
}

fn supported(model: &Model, here: &[Here]) -> Supported {
    let (role, base, cache) = match model.role {
        Role::Embedding => ("embedding", None, None),
        Role::Answer { cache_bytes_per_token } => ("answer", None, Some(cache_bytes_per_token)),
        Role::Adapter { base } => ("adapter", Some(base), None),
    };
    let need = model.need();
    let Need { weights, cache: reserve, activations, driver } = need;
    Supported {
        name: model.name,
        repo: model.repo,
        role,
        base,
        parameters: model.parameters,
        published_bytes: model.published_size(),
        cache_bytes_per_token: cache,
        need: NeedBytes { weights, cache: reserve, activations, driver, total: need.total() },
        fits: GPUS.iter().filter(|gpu| need.fits(gpu)).map(|gpu| gpu.name).collect(),
        here: here
            .iter()
            .filter(|found| found.name == Some(model.name))
            .map(|found| found.path.clone())
            .collect(),
    }
}

/// The catalogue's models in the hub's cache, as their main branch was when it was pulled.
fn in_cache(cache: &Path) -> Vec<Here> {
    let mut found = Vec::new();
    for model in &MODELS {
        let Ok(repo) = model.repo.parse() else { continue };
        let Some(snapshot) = snapshot(cache, &repo, &Revision::default()) else { continue };
        for (path, kind) in model_folders(&snapshot.folder, DEPTH) {
            let commit = Some(snapshot.commit.to_string());
            found.push(Here {
                bytes: size(&path),
                kind: kind.name(),
                name: Some(model.name),
                commit,
                path: shown(&path),
            });
        }
    }
    found
}

/// The models in a folder of one's own; one that is named like a published one is taken for it.
fn in_folder(folder: &Path) -> Vec<Here> {
    let named = |path: &Path| {
        let below = path.strip_prefix(folder).ok()?;
        let first = below.components().next()?.as_os_str().to_str()?;
        let is_it = |model: &&Model| {
            let repository = model.repo.rsplit('/').next().unwrap_or_default();
            model.name.eq_ignore_ascii_case(first) || repository.eq_ignore_ascii_case(first)
        };
        MODELS.iter().find(is_it).map(|model| model.name)
    };
    model_folders(folder, DEPTH)
        .into_iter()
        .map(|(path, kind)| Here {
            bytes: size(&path),
            kind: kind.name(),
            name: named(&path),
            commit: None,
            path: shown(&path),
        })
        .collect()
}

/// The model folders at and below a folder, sorted.
fn model_folders(folder: &Path, depth: usize) -> Vec<(PathBuf, Kind)> {
    if let Ok(kind) = Kind::of(folder) {
        return vec![(folder.to_path_buf(), kind)];
    }
    if depth == 0 {
        return Vec::new();
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders: BTreeSet<PathBuf> = entries.filter(|path| path.is_dir() && !is_hidden(path)).collect();
    folders.iter().flat_map(|path| model_folders(path, depth - 1)).collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Bytes of the files in a folder, links followed.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files =
        entries.filter_map(|entry| std::fs::metadata(entry.path()).ok()).filter(std::fs::Metadata::is_file);
    files.map(|metadata| metadata.len()).sum()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn text(document: &Document) -> String {
    let mut rows = vec![
        ["NAME", "REPOSITORY", "ROLE", "PARAMETERS", "DOWNLOAD", "GPU NEED", "FITS", "HERE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for model in &document.supported {
        let fits = if model.fits.len() == GPUS.len() { "all".to_owned() } else { model.fits.join(", ") };
        rows.push(vec![
            model.name.to_owned(),
            model.repo.to_owned(),
            model.base.map_or_else(|| model.role.to_owned(), |base| format!("adapter of {base}")),
            format!("{:.1} M", model.parameters as f64 / 1e6),
            model.published_bytes.map_or_else(|| "?".to_owned(), bytes),
            bytes(model.need.total),
            fits,
            if model.here.is_empty() { "no" } else { "yes" }.to_owned(),
        ]);
    }
    let gpus: Vec<String> = GPUS.iter().map(|gpu| format!("{} ({})", gpu.name, bytes(gpu.memory))).collect();
    let mut parts = vec![
        table(&rows),
        format!(
            "need: weights at 2 bytes a value, caches, activations and driver, see `thicket models list --help`; all: {}",
            gpus.join(", ")
        ),
    ];
    if document.here.is_empty() {
        parts.push("nothing is here yet: thicket models pull NAME".to_owned());
    } else {
        let mut rows = vec![["HERE", "KIND", "BYTES"].map(str::to_owned).to_vec()];
        rows.extend(
            document
                .here
                .iter()
                .map(|found| vec![found.path.clone(), found.kind.to_owned(), bytes(found.bytes)]),
        );
        parts.push(table(&rows));
    }
    parts.join("\n\n")
}
