//! A GPU with TensorRT that is neither: the functions of libcuda, libnvinfer and libnvonnxparser in one library, computing with the
//! embedded CPU engine. Streams are threads, so work that is not waited for is seen as such; device memory is bounded and every address
//! is held against what was taken. `SCANSIDE_STANDIN` lists what goes wrong, `SCANSIDE_STANDIN_VERSION` says which TensorRT is played.

mod cuda;
mod graph;
mod trt;

/// Whether a fault is to be played; `name` or `name:value`.
fn fault(name: &str) -> Option<String> {
    let all = std::env::var("SCANSIDE_STANDIN").unwrap_or_default();
    all.split(',').find_map(|f| match f.split_once(':') {
        Some((n, v)) if n == name => Some(v.to_string()),
        None if f == name => Some(String::new()),
        _ => None,
    })
}
