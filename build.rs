//! Generates the gRPC code of `proto/` with a compiler in pure Rust, so that no machine needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    generate()
}

#[cfg(feature = "full")]
fn generate() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/spiffe_workload.proto"], ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = prost::Message::encode_to_vec(&files);
    std::fs::write(out.join("spiffe_workload.bin"), descriptors)?;
    tonic_prost_build::configure().build_transport(false).bytes(".").btree_map(".").compile_fds(files)?;
    let authz = protox::compile(["proto/ext_authz.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_transport(false).btree_map(".").compile_fds(authz)?;
    Ok(())
}

#[cfg(not(feature = "full"))]
fn generate() -> Result<(), Box<dyn std::error::Error>> {
    Ok(())
}
