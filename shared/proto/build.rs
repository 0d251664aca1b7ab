//! Generates the Rust types and services from the public contract in `proto/`.

use std::{env, io, path::PathBuf};

const PROTO_ROOT: &str = "../../proto";
const FILES: [&str; 5] = ["embedding", "gallery", "answer", "coordinator", "job"];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let descriptor = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("thicket.bin");
    let files: Vec<String> =
        FILES.iter().map(|name| format!("{PROTO_ROOT}/thicket/v1/{name}.proto")).collect();
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(descriptor)
        .compile_protos(&files, &[PROTO_ROOT.to_string()])
}
