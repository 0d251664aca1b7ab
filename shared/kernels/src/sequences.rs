//! Attention of sequences of any lengths, and the caches that they read.

use candle_core::{DType, Result, Tensor};
pub use thicket_cuda::{Entry, Sequence};

use crate::{
    attention::{Mask, attention},
    few_queries, narrow,
    prepared::Backend,
};

/// Causal attention of every sequence over its own keys, the beginning's first: its queries are its last positions. Returns the
/// rows of all queries one after the other, `[queries, heads * d]`.
///
/// In bf16 it is one kernel on a GPU, and one pass over sequences of few queries on the CPU, that read keys where they lie.
///
/// # Errors
/// No sequence, or shapes that do not fit.
pub fn attention_of_each(sequences: &[Sequence], scale: f64, backend: Backend) -> Result<Tensor> {
    if let Some(attended) = thicket_cuda::attention_of_each(sequences, scale as f32, true)? {
        return attended.flatten_from(1);
    }
    let few = |sequence: &Sequence| {
        let queries = &sequence.queries;
        queries.device().is_cpu()
            && queries.dtype() == DType::BF16
            && queries.dims().first().is_some_and(|&count| count < narrow::FEWEST_QUERIES)
    };
    let together = |sequence: &Sequence| matches!(backend, Backend::OneDnn(_)) && few(sequence);
    let mut attended = Vec::new();
    // Prompts stand beside texts in the making: the runs of those go together.
    for run in sequences.chunk_by(|one, next| together(one) && together(next)) {
        match run {
            [first, ..] if together(first) => {
                attended.push(few_queries::attend_each(run, scale as f32)?.flatten_from(1)?);
            }
            _ => {
                for sequence in run {
                    attended.push(alone(sequence, scale, backend)?);
                }
            }
        }
    }
    match attended.as_slice() {
        [one] => Ok(one.clone()),
        _ => Tensor::cat(&attended, 0),
    }
}

fn alone(
    Sequence { queries, beginning, keys, values }: &Sequence,
    scale: f64,
    backend: Backend,
) -> Result<Tensor> {
    // In one piece for the time of the product, so that it is summed as a whole prompt's is: bit for bit the same answer.
    // Reading all of it is what attention does anyway.
    let joined = |first: Option<&Tensor>, rest: &Tensor| match first {
        None => Ok(rest.clone()),
        Some(first) => Tensor::cat(&[first, rest], 0),
    };
    let keys = joined(beginning.as_ref().map(|(keys, _)| keys), keys)?;
    let values = joined(beginning.as_ref().map(|(_, values)| values), values)?;
    let [queries, keys, values] = [queries, &keys, &values].map(|rows| rows.unsqueeze(0)?.transpose(1, 2));
    let attended = attention(&queries?, &keys?, &values?, scale, &Mask::Causal, backend)?;
    attended.squeeze(0)?.transpose(0, 1)?.flatten_from(1)
}

/// Writes keys and values to the caches that hold them.
///
/// # Errors
/// An entry that does not fit its cache.
pub fn store(entries: &[Entry]) -> Result<()> {
    if thicket_cuda::stored(entries)?.is_some() {
        return Ok(());
    }
    for Entry { keys, values, held_keys, held_values, at } in entries {
        held_keys.slice_set(keys, 0, *at)?;
        held_values.slice_set(values, 0, *at)?;
    }
    Ok(())
}
