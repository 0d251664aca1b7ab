use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use thicket_device::{ComputeArgs, Place};
use thicket_engine::{Answerer, EngineError, Prompt, Sampling};
use thicket_qwen::{LoadOptions, Quantization, QwenAnswerer};

use super::engine::{model_name, read_image};
use crate::{Failure, console};

/// Tokens of an answer where nothing else is said.
const DEFAULT_MAX_TOKENS: usize = 256;

/// One question to a Qwen2-VL checkpoint folder; needs no cluster
///
/// The folder's chat template is applied with the system text "You are a helpful assistant.", the image before the
/// prompt. The answer is decoded greedily unless a temperature is given.
#[derive(Debug, clap::Args)]
pub(crate) struct AskArgs {
    /// Checkpoint folder in the Hugging Face format
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// LoRA adapter as PEFT saves it, merged into the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Keep the language model's matrices in fewer bits: q8 or q4
    #[arg(long, value_name = "FORM")]
    quantize: Option<Quantization>,
    /// Image the prompt is about
    #[arg(long, value_name = "F")]
    image: Option<PathBuf>,
    /// What to ask
    #[arg(long, value_name = "P")]
    prompt: String,
    /// Most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS)]
    max_tokens: usize,
    /// 0 takes the most likely token; above, tokens are drawn, 0 to 10
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Seed of the draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    text: String,
    tokens: Vec<u32>,
    /// Probability of Yes, given that the answer begins with Yes or No.
    p_yes: f64,
}

pub(super) fn run(args: AskArgs) -> Result<(), Failure> {
    let image = args.image.as_deref().map(read_image).transpose()?.map(Arc::new);
    let options = LoadOptions {
        name: model_name(&args.model),
        adapter: args.adapter,
        quantization: args.quantize,
        dtype: args.compute.dtype(),
        device: args.compute.device.only().and_then(Place::open).map_err(Failure::bad_input)?,
        budgets: thicket_qwen::Budgets::default(),
        backend: args.compute.backend().map_err(Failure::bad_input)?.backend,
    };
    let mut answerer = QwenAnswerer::load(&args.model, options)
        .map_err(|error| Failure::bad_input(format!("model: {}", console::with_causes(&error))))?;

    let prompts = [Prompt::new(image, args.prompt)];
    let sampling = Sampling { max_tokens: args.max_tokens, temperature: args.temperature, seed: args.seed };
    let generation = only(answerer.generate(&prompts, &sampling))?;
    let verdict = only(answerer.judge(&prompts))?;
    let document = Document { text: generation.text, tokens: generation.tokens, p_yes: verdict.p_yes };
    if args.json {
        return console::print_json(&document);
    }
    console::print(&document.text)
}

/// The answer to the one prompt that was asked.
fn only<T>(answers: Vec<Result<T, EngineError>>) -> Result<T, Failure> {
    match answers.into_iter().next() {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error @ EngineError::InvalidInput { .. })) => Err(Failure::bad_input(error)),
        Some(Err(error)) => Err(Failure::failed(error)),
        None => Err(Failure::failed("the model gave no answer")),
    }
}
