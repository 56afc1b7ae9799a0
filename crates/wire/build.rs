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
    let mut compiler = protox::Compiler::new([&root]).expect("proto/ is a directory");
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(files)
        .expect("the definitions in proto/ are valid");
    // For reflection: what generic clients such as grpcurl ask for.
    let out = std::env::var_os("OUT_DIR").expect("cargo names it to build scripts");
    let path = std::path::Path::new(&out).join("holdfast.v1.bin");
    std::fs::write(path, compiler.encode_file_descriptor_set())
        .expect("the output directory of a build script is writable");
    let descriptors = compiler.file_descriptor_set();
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)
        .expect("the output directory of a build script is writable");
}
