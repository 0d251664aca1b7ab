//! The embedding role as a program of its own.

use clap::Parser;
use thicket_embedding::{App, Args};
use thicket_runtime::run;

fn main() {
    let args = Args::parse();
    run("thicket-embedding", &args.telemetry, |stop| {
        let config = args.config();
        async move { App::build(config).await?.run(stop).await }
    })
}
