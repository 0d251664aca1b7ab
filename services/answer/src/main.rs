//! The answer role as a program of its own.

use clap::Parser;
use thicket_answer::{App, Args};
use thicket_runtime::run;

/// Tensors come and go by megabytes; an allocator that gives each back to the system has its pages cleared every time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args = Args::parse();
    run("thicket-answer", &args.telemetry, |stop| {
        let config = args.config();
        async move { App::build(config?).await?.run(stop).await }
    })
}
