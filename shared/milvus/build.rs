//! Generates the client from the part of Milvus's interface that is called.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".milvus.proto.milvus.PlaceholderValue")
        .compile_protos(&["proto/milvus.proto"], &["proto"])
}
