use candle_core::Device;

/// Does `work`, many small steps each of which is shared out among rayon's threads, as one of them where it is done on the CPU.
///
/// A thread that is none of them sleeps through every step and is woken after it, and so is one of them before it: a tenth of a
/// millisecond each time on a virtual machine, with a hundred steps in a forward pass.
pub fn among_workers<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { rayon::scope(|_| work()) } else { work() }
}
