//! Compiles the kernels to PTX, which the driver compiles for its GPU.

#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    println!("cargo::rerun-if-changed=src/kernels.cu");
    cudaforge::KernelBuilder::new()
        .source_files(vec!["src/kernels.cu"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .map(|_| ())
}

#[cfg(not(feature = "cuda"))]
fn main() {}
