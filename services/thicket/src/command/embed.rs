use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use serde::Serialize;
use thicket_clip::{ClipEmbedder, LoadOptions};
use thicket_device::{ComputeArgs, Place};
use thicket_engine::{Embedder, EngineError};

use super::engine::{model_name, read_image};
use crate::{Failure, console};

/// Vectors of texts and images from a two-tower checkpoint folder; needs no cluster
///
/// For a checkpoint with token selection (RDE) it is the stored vector `[bge, tse] / sqrt(2)`, whose inner products
/// are the mean of the two cosines; otherwise the unit vector.
#[derive(Debug, clap::Args)]
pub(crate) struct EmbedArgs {
    /// Checkpoint folder: a published RDE or IRRA run (configs.yaml), one that `thicket train` wrote, or a CLIP model as
    /// Hugging Face's transformers saves it (config.json)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Texts and images in the order they were given.
#[derive(Debug)]
struct Inputs(Vec<Input>);

#[derive(Debug)]
enum Input {
    Text(String),
    Image(PathBuf),
}

impl Args for Inputs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let many = |arg: Arg| arg.action(ArgAction::Append).required(false);
        command
            .arg(many(Arg::new("text").long("text").value_name("T").help("A text to embed; may be repeated")))
            .arg(
                many(
                    Arg::new("image")
                        .long("image")
                        .value_name("F")
                        .help("An image file to embed; may be repeated"),
                )
                .value_parser(clap::value_parser!(PathBuf)),
            )
            .group(clap::ArgGroup::new("inputs").args(["text", "image"]).multiple(true).required(true))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Inputs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let places = |name| matches.indices_of(name).into_iter().flatten();
        let texts = matches.get_many::<String>("text").into_iter().flatten().cloned().map(Input::Text);
        let images = matches.get_many::<PathBuf>("image").into_iter().flatten().cloned().map(Input::Image);
        let mut inputs: Vec<(usize, Input)> =
            places("text").zip(texts).chain(places("image").zip(images)).collect();
        inputs.sort_by_key(|(place, _)| *place);
        Ok(Self(inputs.into_iter().map(|(_, input)| input).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    dim: usize,
    vectors: Vec<Vec<f32>>,
}

pub(super) fn run(args: EmbedArgs) -> Result<(), Failure> {
    // Inputs first: a bad one is told before a large checkpoint is read.
    let mut texts = Vec::new();
    let mut images = Vec::new();
    for input in &args.inputs.0 {
        match input {
            Input::Text(text) => texts.push(text.clone()),
            Input::Image(path) => images.push(read_image(path)?),
        }
    }
    let options = LoadOptions {
        name: model_name(&args.model),
        dtype: args.compute.dtype(),
        device: args.compute.device.only().and_then(Place::open).map_err(Failure::bad_input)?,
        backend: args.compute.backend().map_err(Failure::bad_input)?.backend,
    };
    let mut embedder = ClipEmbedder::load(&args.model, options)
        .map_err(|error| Failure::bad_input(format!("model: {}", console::with_causes(&error))))?;

    let engine = |error: EngineError| match error {
        EngineError::InvalidInput { .. } => Failure::bad_input(error),
        EngineError::Internal { .. } | EngineError::Unavailable { .. } => Failure::failed(error),
    };
    let mut text_vectors = embedder.embed_texts(&texts).map_err(engine)?.into_iter();
    let mut image_vectors = embedder.embed_images(&images).map_err(engine)?.into_iter();
    let vectors: Vec<Vec<f32>> = args
        .inputs
        .0
        .iter()
        .filter_map(|input| match input {
            Input::Text(_) => text_vectors.next(),
            Input::Image(_) => image_vectors.next(),
        })
        .collect();

    let dim = embedder.info().dimension;
    if args.json {
        return console::print_json(&Document { dim, vectors });
    }
    let lines: Vec<String> =
        args.inputs.0.iter().zip(&vectors).map(|(input, vector)| line(input, vector)).collect();
    console::print(&lines.join("\n"))
}

/// What a vector belongs to and its values, tab between.
fn line(input: &Input, vector: &[f32]) -> String {
    let values: Vec<String> = vector.iter().map(f32::to_string).collect();
    let name = match input {
        Input::Text(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        Input::Image(path) => path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned(),
    };
    format!("{name}\t{}", values.join(" "))
}
