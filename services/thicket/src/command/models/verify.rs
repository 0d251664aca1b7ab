use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use thicket_device::{ComputeArgs, Place};
use thicket_inspection::{Forward, Inspection, Options, Stored, inspect};

use super::bytes;
use crate::{Failure, console};

/// Checks a checkpoint folder: says what it is, loads it as the services do, and runs it once
///
/// Every tensor must be there, have its shape and hold finite values, and one forward pass (a text and a drawn image, or
/// one question about it) must give finite values. The whole model is read into memory: as it is stored on the CPU, in
/// the type of --dtype elsewhere. Exit status 2: the folder is broken, and why, in one line.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Checkpoint folder: an RDE or IRRA run, CLIP, Qwen2-VL, Qwen2.5-VL or a LoRA adapter
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// LoRA adapter to merge into it, as PEFT saves it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    folder: String,
    /// `run`, `clip`, `qwen2_vl`, `qwen2_5_vl` or `lora`.
    kind: &'static str,
    /// Catalogue name of the published model that has as many parameters.
    sizes_of: Option<&'static str>,
    sizes: BTreeMap<String, String>,
    stored: StoredTensors,
    adapter: Option<StoredTensors>,
    memory: Memory,
    /// `null` for an adapter by itself: it is merged into a base, and computes nothing alone.
    forward: Option<ForwardPass>,
}

#[derive(Debug, Serialize)]
struct StoredTensors {
    tensors: usize,
    parameters: u64,
    bytes: u64,
    /// Tensors of each type.
    types: BTreeMap<String, usize>,
}

/// Bytes in each precision; zero for an adapter by itself, because its base stays as large as it is.
#[derive(Debug, Serialize)]
struct Memory {
    /// Of the default, f32 arithmetic on the CPU: weights stay as they are stored.
    weights_as_stored: u64,
    weights: Precisions,
    /// `null` for a model without a key-value cache.
    cache_per_token: Option<Precisions>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Precisions {
    f32: u64,
    f16: u64,
    bf16: u64,
}

#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum ForwardPass {
    Embedded { dimension: usize, similarity: f64, finite: bool },
    Judged { p_yes: f64, mass: f64, prompt_tokens: usize, finite: bool },
}

pub(super) fn run(args: VerifyArgs) -> Result<(), Failure> {
    let options = Options {
        adapter: args.adapter.clone(),
        dtype: args.compute.dtype(),
        device: args.compute.device.only().and_then(Place::open).map_err(Failure::bad_input)?,
        backend: args.compute.backend().map_err(Failure::bad_input)?.backend,
    };
    let found =
        inspect(&args.folder, &options).map_err(|error| Failure::bad_input(console::with_causes(&error)))?;
    if args.json {
        return console::print_json(&document(&args, &found));
    }
    console::print(&text(&args, &found))
}

fn precisions(f32: u64) -> Precisions {
    Precisions { f32, f16: f32 / 2, bf16: f32 / 2 }
}

fn document(args: &VerifyArgs, found: &Inspection) -> Document {
    Document {
        folder: args.folder.display().to_string(),
        kind: found.kind.name(),
        sizes_of: found.sizes_of,
        sizes: found.sizes.iter().map(|(name, size)| (name.replace([' ', '-'], "_"), size.clone())).collect(),
        stored: stored(&found.stored),
        adapter: found.adapter.as_ref().map(stored),
        memory: Memory {
            weights_as_stored: found.memory.weights_as_stored,
            weights: precisions(found.memory.weights_f32),
            cache_per_token: found.memory.cache_per_token_f32.map(precisions),
        },
        forward: found.forward.map(|forward| match forward {
            Forward::Embedded { dimension, similarity } => {
                ForwardPass::Embedded { dimension, similarity, finite: true }
            }
            Forward::Judged { p_yes, mass, prompt_tokens } => {
                ForwardPass::Judged { p_yes, mass, prompt_tokens, finite: true }
            }
        }),
    }
}

fn stored(stored: &Stored) -> StoredTensors {
    StoredTensors {
        tensors: stored.tensors,
        parameters: stored.parameters,
        bytes: stored.bytes,
        types: stored.by_type.clone(),
    }
}

fn text(args: &VerifyArgs, found: &Inspection) -> String {
    let sizes: Vec<String> = found.sizes.iter().map(|(name, size)| format!("{name} {size}")).collect();
    let as_published = found.sizes_of.map(|name| format!(" of the sizes of {name}")).unwrap_or_default();
    let mut lines = vec![
        format!("{}: {}{as_published}", args.folder.display(), found.kind.title()),
        format!("  sizes    {}", sizes.join(", ")),
        format!("  stored   {}", stored_text(&found.stored)),
    ];
    if let (Some(folder), Some(adapter)) = (&args.adapter, &found.adapter) {
        lines.push(format!("  adapter  {}, merged: {}", stored_text(adapter), folder.display()));
    }
    if found.forward.is_some() {
        let weights = precisions(found.memory.weights_f32);
        lines.push(format!(
            "  memory   weights {} on the CPU, {} in f16 or bf16, {} in f32 elsewhere",
            bytes(found.memory.weights_as_stored),
            bytes(weights.bf16),
            bytes(weights.f32)
        ));
    }
    if let Some(cache) = found.memory.cache_per_token_f32.map(precisions) {
        lines.push(format!("  cache    {} B a token in f32, {} B in f16 or bf16", cache.f32, cache.bf16));
    }
    lines.push(match found.forward {
        Some(Forward::Embedded { dimension, similarity }) => format!(
            "  forward  a text and an image embedded, {dimension} finite values each, inner product {similarity:.4}"
        ),
        Some(Forward::Judged { p_yes, mass, prompt_tokens }) => format!(
            "  forward  a question of {prompt_tokens} tokens about an image judged: p(Yes) {p_yes:.4} of a mass of {mass:.4}, finite"
        ),
        None => "  forward  none: an adapter is merged into its base, see `thicket models verify BASE --adapter DIR`".to_owned(),
    });
    lines.push("ok".to_owned());
    lines.join("\n")
}

fn stored_text(stored: &Stored) -> String {
    let types: Vec<String> = stored.by_type.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!(
        "{} tensors ({}), {} parameters, {}",
        stored.tensors,
        types.join(", "),
        stored.parameters,
        bytes(stored.bytes)
    )
}
