//! Turns the protobuf definitions into code when the `grpc` feature asks for it. `protox` compiles
//! them, so no protoc has to be installed.

fn main() {
    #[cfg(feature = "grpc")]
    generate();
}

#[cfg(feature = "grpc")]
fn generate() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = ["holdfast/v1/sessions.proto", "holdfast/v1/admin.proto"];
    let descriptors = protox::compile(files, [&root]).expect("the definitions in proto/ are valid");
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)
        .expect("the output directory of a build script is writable");
}
