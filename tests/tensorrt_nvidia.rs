//! The TensorRT binding against NVIDIA's own lean runtimes, 10.16 and 11.4, on a machine without a GPU: it loads, its log reaches ours,
//! and the lack of CUDA is an error and no crash. tests/setup-nvidia.sh fetches them; without them this test says SKIPPED.
#![allow(clippy::unwrap_used, clippy::expect_used, unsafe_code)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use scanside::adapter::Adapter;
use scanside::engine::tensorrt::{BuildOptions, Builder, CudaReady, Library, Runtime, Search, Severity, TrtError};
use scanside::model::onnx::{EngineManifest, Precision, emit_all};

fn folder(version: &str) -> Option<PathBuf> {
    let root =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".peers/nvidia").join(std::env::consts::ARCH).join(version);
    if root.join("done").exists() {
        return Some(root.join(if version.starts_with("1.") { "tensorrt_rtx_libs" } else { "tensorrt_lean_libs" }));
    }
    assert!(
        std::env::var_os("SCANSIDE_REQUIRE_NVIDIA").is_none(),
        "{} is missing: run tests/setup-nvidia.sh",
        root.display()
    );
    println!("SKIPPED: NVIDIA's TensorRT {version} is not in {} (tests/setup-nvidia.sh)", root.display());
    None
}

/// Runs `body` in a process of its own: TensorRT keeps state for the life of a process, and a crash must be seen as one.
fn apart(test: &str, version: &str, body: impl FnOnce(PathBuf)) {
    let Some(folder) = folder(version) else { return };
    if std::env::var("SCANSIDE_NVIDIA_CHILD").is_ok_and(|c| c == test) {
        return body(folder);
    }
    let out = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("SCANSIDE_NVIDIA_CHILD", test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{:?}: {said}", out.status);
}

fn meets(folder: PathBuf, major: u32, minor: u32) {
    let log: Arc<Mutex<Vec<(Severity, String)>>> = Arc::default();
    let to = log.clone();
    let search = Search { folder: Some(folder), lean: true, rtx: false };
    let library = Library::open(&search, Arc::new(move |s, m| to.lock().unwrap().push((s, m.into())))).unwrap();
    assert_eq!((library.version().major, library.version().minor, library.builds()), (major, minor, false));
    println!("{} is TensorRT {}", library.name(), library.version());
    if PathBuf::from("/dev/nvidia0").exists() {
        println!("SKIPPED: this machine has a GPU, so the error without one cannot be seen");
        return;
    }
    // SAFETY: there is no CUDA, which these versions survive; that is what is tested.
    let ready = unsafe { CudaReady::assume() };
    for _ in 0..3 {
        let e = Runtime::new(&library, ready).map(|_| ()).unwrap_err();
        println!("{e}");
        assert!(matches!(&e, TrtError::NoCuda { what: "runtime", words, .. } if !words.is_empty()), "{e}");
    }
    let e = Builder::new(&library, ready).map(|_| ()).unwrap_err();
    assert!(matches!(e, TrtError::Symbol { .. }), "the lean runtime cannot build: {e}");
    // What the library said reached our log, whole.
    let log = log.lock().unwrap();
    assert!(log.iter().any(|(s, m)| *s == Severity::Error && m.to_lowercase().contains("cuda")), "{log:?}");
}

#[test]
fn nvidias_10_16_without_a_gpu() {
    apart("nvidias_10_16_without_a_gpu", "10.16.1.11", |f| meets(f, 10, 16));
}

#[test]
fn nvidias_11_4_without_a_gpu() {
    apart("nvidias_11_4_without_a_gpu", "11.4.0.106", |f| meets(f, 11, 4));
}

/// TensorRT-RTX's builder needs no GPU. A wrong slot anywhere on the way from builder over network and parser to the plan would crash.
#[test]
fn nvidias_parser_and_builder_take_our_graphs() {
    let test = "nvidias_parser_and_builder_take_our_graphs";
    apart(test, "1.7.1.116", |folder| {
        let base = scanside::model::weights::load_or_fetch(&mut |line| println!("{line}")).unwrap();
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("adapters/thigh-phantom.safetensors");
        let adapter = Adapter::load(&path).unwrap();
        let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
        let size = adapter.meta.input_size;
        let search = Search { folder: Some(folder), lean: false, rtx: true };
        let library = Library::open(
            &search,
            Arc::new(|s, m| {
                if s <= Severity::Warning {
                    println!("{s:?}: {m}")
                }
            }),
        )
        .unwrap();
        assert!(library.builds());
        // SAFETY: TensorRT-RTX builds without CUDA; that is what it is here for.
        let mut builder = Builder::new(&library, unsafe { CudaReady::assume() }).unwrap();
        // The recipe's own graphs, once for the adapter's tensors and once as engines/ makes them, with LoRA at the highest rank.
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("engines/mobile-sam-256");
        let manifest = EngineManifest::load(&folder).unwrap();
        let recipe = manifest.recipe(&folder).unwrap();
        assert_eq!(manifest.input_size, size);
        let own = emit_all(&base, &shapes, size).unwrap();
        for graph in own.iter().chain(&manifest.graphs(&base).unwrap()) {
            for precision in [Precision::Fp16, Precision::Int8, Precision::Int8Fp16] {
                let made = precision.of(graph, Some(&recipe)).unwrap();
                let plan = builder.build(&made.onnx, &BuildOptions::default()).unwrap();
                println!(
                    "{} {}: {} layers, a plan of {} KiB",
                    graph.name,
                    precision.word(),
                    plan.layers,
                    plan.plan.len() >> 10
                );
                assert!(plan.layers > 5 && !plan.outputs.is_empty(), "{} {}", graph.name, precision.word());
                assert_eq!(plan.inputs.len(), graph.inputs.len() + graph.adapter_inputs.len(), "LoRA's inputs stay");
            }
            let plan = builder.build(&graph.onnx, &BuildOptions::default()).unwrap();
            println!("{} fp32: {} layers, a plan of {} KiB", graph.name, plan.layers, plan.plan.len() >> 10);
            let mut wanted: Vec<(String, Vec<i64>)> = graph.inputs.iter().map(signed).collect();
            wanted.extend(graph.adapter_inputs.iter().map(|(n, s)| signed(&(n.clone(), s.clone()))));
            wanted.sort();
            let mut found: Vec<(String, Vec<i64>)> =
                plan.inputs.iter().map(|(n, d)| (n.clone(), d.0.clone())).collect();
            found.sort();
            assert_eq!(found, wanted, "{}", graph.name);
            assert!(plan.layers > 5 && plan.plan.len() > 1000 && !plan.outputs.is_empty(), "{}", graph.name);
        }
        let e = builder.build(b"no graph at all", &BuildOptions::default()).map(|_| ()).unwrap_err();
        assert!(matches!(&e, TrtError::Parse { errors } if !errors.is_empty()), "{e}");
        println!("{e}");
    });
}

fn signed((name, shape): &(String, Vec<usize>)) -> (String, Vec<i64>) {
    (name.clone(), shape.iter().map(|d| *d as i64).collect())
}
