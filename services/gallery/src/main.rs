//! The gallery as a program of its own.

use clap::Parser;
use thicket_gallery::{App, Args};
use thicket_runtime::run;

fn main() {
    let args = Args::parse();
    run("thicket-gallery", &args.telemetry, |stop| {
        let config = args.config();
        async move { App::build(config?).await?.run(stop).await }
    })
}
