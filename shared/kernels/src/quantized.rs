use std::{fmt, str::FromStr, sync::Arc};

use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Error, Layout, Module, Result, Shape, Tensor,
    quantized::{
        GgmlDType, GgmlType, QMatMul, QTensor,
        k_quants::{BlockQ4_0, BlockQ4K, BlockQ8_0},
    },
};
use rayon::prelude::*;

use crate::{
    memory::contiguous,
    product::{matrix, multiply_packed},
};

/// How a matrix is stored in fewer bits than a float has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// 8 bits a value and an f16 scale for every 32 of a row: 8.5 bits.
    Q8,
    /// 4 bits a value, 6-bit scales and minima for every 32 and f16 ones for every 256 of a row: 4.5 bits. Rows that are
    /// no multiple of 256 long get an f16 scale for every 32 instead, which is as large and less exact.
    Q4,
}

impl Quantization {
    /// Every name, as [`FromStr`] reads it.
    pub const NAMES: [&'static str; 2] = ["q8", "q4"];

    /// Rows must be a multiple of it long.
    pub const BLOCK: usize = BlockQ8_0::BLCK_SIZE;

    /// Bits of a value in the form that rows of `input` values get, scales included.
    #[must_use]
    pub fn bits(self, input: usize) -> f64 {
        let form = self.form(input);
        8.0 * form.type_size() as f64 / form.block_size() as f64
    }

    /// How candle calls the form that rows of `input` values get.
    fn form(self, input: usize) -> GgmlDType {
        match self {
            Self::Q8 => GgmlDType::Q8_0,
            Self::Q4 if input.is_multiple_of(BlockQ4K::BLCK_SIZE) => GgmlDType::Q4K,
            Self::Q4 => GgmlDType::Q4_0,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8 => Self::NAMES[0],
            Self::Q4 => Self::NAMES[1],
        })
    }
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            _ => Err(format!("`{name}` is no quantization: {} expected", Self::NAMES.join(" or "))),
        }
    }
}

/// A weight of shape `[out, in]` in blocks of few bits, for [`QuantizedMatrix::apply`].
///
/// On the CPU rows are unpacked to f32 while they are used, so a row of a product depends on its own row of the input
/// alone, bit for bit, and nothing but the blocks stays in memory. On a GPU candle's own kernels multiply.
#[derive(Clone)]
pub struct QuantizedMatrix {
    blocks: Blocks,
    output: usize,
    input: usize,
}

#[derive(Clone)]
enum Blocks {
    Q8(Arc<Vec<BlockQ8_0>>),
    Q4K(Arc<Vec<BlockQ4K>>),
    Q4(Arc<Vec<BlockQ4_0>>),
    Device(QMatMul),
}

impl fmt::Debug for QuantizedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantizedMatrix").field("out", &self.output).field("in", &self.input).finish()
    }
}

impl QuantizedMatrix {
    /// Quantizes a weight `[out, in]` of any float type on the CPU and keeps it on `device`.
    ///
    /// # Errors
    /// An `in` that is no multiple of [`Quantization::BLOCK`], a weight that is not on the CPU.
    pub fn new(weight: &Tensor, quantization: Quantization, device: &Device) -> Result<Self> {
        let (output, input) = weight.dims2()?;
        if !input.is_multiple_of(Quantization::BLOCK) {
            return Err(Error::Msg(format!(
                "rows of {input} values cannot be quantized: a multiple of {} expected",
                Quantization::BLOCK
            )));
        }
        let form = quantization.form(input);
        let blocks = match (device, form) {
            (Device::Cpu, GgmlDType::Q8_0) => Blocks::Q8(Arc::new(blocks_of(weight)?)),
            (Device::Cpu, GgmlDType::Q4K) => Blocks::Q4K(Arc::new(blocks_of(weight)?)),
            (Device::Cpu, GgmlDType::Q4_0) => Blocks::Q4(Arc::new(blocks_of(weight)?)),
            _ => {
                let tensor = QTensor::quantize_onto(weight, form, device)?;
                Blocks::Device(QMatMul::QTensor(Arc::new(tensor)))
            }
        };
        Ok(Self { blocks, output, input })
    }

    /// `x W^T + b`: x `[rows, in]` of any float type, bias `[out]`; the result has the type of x.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        if x.dims().last() != Some(&self.input) {
            return Err(Error::Msg(format!(
                "linear map of x {:?} by a quantized weight [{}, {}]",
                x.dims(),
                self.output,
                self.input
            )));
        }
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let y = match &self.blocks {
            Blocks::Device(weight) => weight.forward(&wide)?,
            _ => wide.apply_op1_no_bwd(self)?,
        };
        let y = y.to_dtype(x.dtype())?;
        match bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.output, self.input)
    }

    /// Bytes that the weight occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.blocks {
            Blocks::Q8(blocks) => std::mem::size_of_val(blocks.as_slice()),
            Blocks::Q4K(blocks) => std::mem::size_of_val(blocks.as_slice()),
            Blocks::Q4(blocks) => std::mem::size_of_val(blocks.as_slice()),
            Blocks::Device(QMatMul::QTensor(tensor)) => tensor.storage_size_in_bytes(),
            Blocks::Device(QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor)) => {
                tensor.elem_count() * tensor.dtype().size_in_bytes()
            }
        }
    }
}

/// Rows that a task quantizes at a time.
const ROWS: usize = 64;

/// Quantizes row by row; only the rows in work are ever in f32.
fn blocks_of<T: GgmlType>(weight: &Tensor) -> Result<Vec<T>> {
    let (output, input) = weight.dims2()?;
    let per_row = input / T::BLCK_SIZE;
    let mut blocks = vec![T::zeros(); output * per_row];
    blocks.par_chunks_mut(ROWS * per_row).enumerate().try_for_each(|(chunk, blocks)| {
        let rows = weight.narrow(0, chunk * ROWS, blocks.len() / per_row)?;
        let values = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        T::from_float(&values, blocks);
        Ok::<_, Error>(())
    })?;
    Ok(blocks)
}

impl CustomOp1 for QuantizedMatrix {
    fn name(&self) -> &'static str {
        "quantized linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = matrix(contiguous(x, layout)?, self.input)?;
        let mut y = vec![0f32; x.nrows() * self.output];
        match &self.blocks {
            Blocks::Q8(blocks) => multiply_packed(x, blocks, None, &mut y, BlockQ8_0::to_float)?,
            Blocks::Q4K(blocks) => multiply_packed(x, blocks, None, &mut y, BlockQ4K::to_float)?,
            Blocks::Q4(blocks) => multiply_packed(x, blocks, None, &mut y, BlockQ4_0::to_float)?,
            Blocks::Device(_) => {
                return Err(Error::Msg("a weight on a device and an x on the CPU".to_string()));
            }
        }
        let mut shape = layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.output;
        }
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(output: usize, input: usize, dtype: DType) -> Tensor {
        Tensor::randn(0f32, 1.0, (output, input), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    /// Largest difference of a product by the quantized weight from one by the weight itself, in parts of its spread.
    fn loss(quantization: Quantization, dtype: DType, input: usize) -> f32 {
        let (x, weight) = (weight(7, input, DType::F32), weight(100, input, dtype));
        let matrix = QuantizedMatrix::new(&weight, quantization, &Device::Cpu).unwrap();
        let exact = crate::linear(&x, &weight, None).unwrap();
        let difference = (matrix.apply(&x, None).unwrap() - exact).unwrap();
        let worst = difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        worst / (input as f32).sqrt()
    }

    #[test]
    fn eight_bits_lose_little_and_four_bits_more() {
        for (dtype, input) in [(DType::F32, 512), (DType::BF16, 512), (DType::F16, 480)] {
            let (eight, four) = (loss(Quantization::Q8, dtype, input), loss(Quantization::Q4, dtype, input));
            assert!(eight > 0.0 && eight < 0.03, "{eight}");
            assert!(four > eight && four < 0.5, "{four}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_companions() {
        let x = weight(40, 256, DType::F32);
        let matrix =
            QuantizedMatrix::new(&weight(70, 256, DType::F32), Quantization::Q4, &Device::Cpu).unwrap();
        let together = matrix.apply(&x, None).unwrap().to_vec2::<f32>().unwrap();
        for row in [0, 13, 39] {
            let alone = matrix.apply(&x.narrow(0, row, 1).unwrap(), None).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap()[0], together[row]);
        }
    }

    #[test]
    fn bytes_are_those_of_the_blocks() {
        let of = |input, quantization| {
            let matrix = QuantizedMatrix::new(&weight(3, input, DType::F32), quantization, &Device::Cpu);
            matrix.unwrap().bytes()
        };
        for input in [512, 480] {
            assert_eq!(of(input, Quantization::Q8) * 8, 3 * input * 17 / 2);
            assert_eq!(of(input, Quantization::Q4) * 8, 3 * input * 9 / 2);
        }
    }

    #[test]
    fn bits_are_those_of_the_blocks() {
        for input in [512, 480] {
            assert_eq!((Quantization::Q8.bits(input), Quantization::Q4.bits(input)), (8.5, 4.5));
        }
    }

    #[test]
    fn rows_of_a_broken_block_are_refused_with_both_lengths() {
        let error = QuantizedMatrix::new(&weight(2, 100, DType::F32), Quantization::Q4, &Device::Cpu);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("100") && error.contains("32"), "{error}");
    }

    #[test]
    fn names_are_read_as_they_are_printed() {
        for name in Quantization::NAMES {
            assert_eq!(name.parse::<Quantization>().unwrap().to_string(), name);
        }
        assert!("q5".parse::<Quantization>().is_err());
    }
}
