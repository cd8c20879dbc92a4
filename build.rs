//! Links libtorch's CUDA half where the feature `cuda` is on: nothing names it, so that a linker would leave it out and libtorch see no GPU.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let Some(torch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else { return };
    let folder = torch.join("lib");
    // The program finds them where they were when it was built; LD_LIBRARY_PATH names another place.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    if folder.join("libtorch_cuda.so").exists() {
        println!("cargo:rustc-link-arg=-L{}", folder.display());
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
    }
}
