//! The operator's command. The story: refuse a CPU this binary was not built for, read the command line, do the one
//! thing it asks for, and leave with the status that says how it went.

use std::io::Write;
use std::process::ExitCode;

/// Tensors come and go by megabytes; an allocator that gives each back to the system spends a tenth of a training step
/// on clearing pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything else: everything below may be compiled to instructions that an older CPU does not have.
    if let Some(feature) = thicket::cpu::missing_feature() {
        let mut stderr = std::io::stderr();
        for part in ["error: this CPU has no ", feature, ", which this build needs (x86-64-v3)\n"] {
            let _ = stderr.write_all(part.as_bytes());
        }
        return ExitCode::FAILURE;
    }
    thicket::run(std::env::args_os())
}
