//! The answer role as a program of its own.

use clap::Parser;
use thicket_answer::{App, Args};
use thicket_runtime::run;

fn main() {
    let args = Args::parse();
    run("thicket-answer", &args.telemetry, |stop| {
        let config = args.config();
        async move { App::build(config).await?.run(stop).await }
    })
}
