//! The TensorRT binding against stand-in libraries that this test compiles: the whole cycle on each version, and everything that can
//! go wrong on a box. No GPU, no CUDA, no TensorRT is needed. tests/tensorrt_nvidia.rs has NVIDIA's own libraries.
#![allow(clippy::unwrap_used, clippy::expect_used, unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use scanside::engine::tensorrt::{
    CudaReady, DataType, Dims, Library, Refitter, Runtime, Search, Severity, TrtError, Version,
};

/// The folder with the stand-in that plays a version.
fn standin(version: &str) -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    static BUILT: Mutex<Vec<(String, &'static Path)>> = Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap();
    if let Some((_, path)) = built.iter().find(|(v, _)| v == version) {
        return path;
    }
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path().join(version);
    std::fs::create_dir(&dir).unwrap();
    let (cfg, major) = match version {
        "8" => ("v8", "8"),
        "11" => ("v11", "11"),
        _ => ("v10", "10"),
    };
    let mut rustc = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()));
    rustc.args([
        "--edition=2024",
        "--crate-type=cdylib",
        "-Cpanic=abort",
        "--check-cfg=cfg(v8,v10,v11,nosymbol)",
        "--cfg",
        cfg,
    ]);
    if version == "nosymbol" {
        rustc.args(["--cfg", "nosymbol"]);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorrt/standin.rs");
    let out = rustc.arg("-o").arg(dir.join(format!("libnvinfer.so.{major}"))).arg(source).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let path: &'static Path = Box::leak(dir.into_boxed_path());
    built.push((version.into(), path));
    path
}

type Log = Arc<Mutex<Vec<(Severity, String)>>>;

fn open(folder: &Path) -> (Result<Arc<Library>, TrtError>, Log) {
    let log: Log = Arc::default();
    let to = log.clone();
    let search = Search { folder: Some(PathBuf::from(folder)), lean: false, rtx: false };
    (Library::open(&search, Arc::new(move |s, m| to.lock().unwrap().push((s, m.into())))), log)
}

/// Each test plays its faults in a process of its own, because the stand-in asks the environment: runs `body` there.
fn in_child(test: &str, fault: &str, body: impl FnOnce()) {
    if std::env::var("SCANSIDE_STANDIN_CHILD").is_ok_and(|c| c == test) {
        return body();
    }
    let out = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("SCANSIDE_STANDIN_CHILD", test)
        .env("SCANSIDE_STANDIN", fault)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{test} with fault {fault:?}: {said}");
}

fn ready() -> CudaReady {
    // SAFETY: a stand-in needs no CUDA.
    unsafe { CudaReady::assume() }
}

fn alive(folder: &Path, major: u32) -> i64 {
    // SAFETY: the stand-in's own counter.
    unsafe {
        let library = libloading::Library::new(folder.join(format!("libnvinfer.so.{major}"))).unwrap();
        let f: libloading::Symbol<extern "C" fn() -> i64> = library.get(b"standin_alive").unwrap();
        f()
    }
}

const PLAN: &[u8] = b"stand-in plan, and some more bytes";

fn cycle(version: &str, expected: Version) {
    let folder = standin(version);
    let (library, log) = open(folder);
    let library = library.unwrap();
    assert_eq!((library.version(), library.builds()), (expected, false));
    {
        let runtime = Arc::new(Runtime::new(&library, ready()).unwrap());
        let engine = runtime.deserialize(PLAN).unwrap();
        assert_eq!((engine.name().unwrap().as_str(), engine.refittable().unwrap()), ("stand-in", true));
        assert_eq!(engine.context_bytes().unwrap(), 4096);
        let tensors = engine.tensors().unwrap();
        assert_eq!(tensors[0].shape, Dims(vec![-1, 3]));
        let facts: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.kind, t.input)).collect();
        assert_eq!(facts, [("image", DataType::F32, true), ("mask", DataType::F16, false)]);
        let mut context = engine.context().unwrap();
        let mut other = engine.context().unwrap();
        // What is not set is refused with the library's words.
        // SAFETY: the stand-in refuses before it touches anything.
        let e = unsafe { context.enqueue(std::ptr::null_mut()) }.unwrap_err();
        assert!(e.to_string().contains("Address is not set"), "{e}");
        let e = context.set_shape("image", &Dims(vec![2, 4])).unwrap_err();
        assert!(e.to_string().contains("[2, 4] of image: setInputShape: dimensions do not fit"), "{e}");
        context.set_shape("image", &Dims(vec![5, 3])).unwrap();
        assert_eq!(context.shape("image").unwrap(), Dims(vec![5, 3]));
        assert_eq!(other.shape("image").unwrap(), Dims(vec![-1, 3]), "contexts are apart");
        let (input, mut output) = (2.5f32, 0f32);
        // SAFETY: the stand-in reads and writes host memory, which lives until the run is over.
        unsafe {
            assert!(context.set_address("nothing", 4096).unwrap_err().to_string().contains("no such tensor"));
            context.set_address("image", (&raw const input) as u64).unwrap();
            context.set_address("mask", (&raw mut output) as u64).unwrap();
            context.enqueue(40 as *mut _).unwrap();
            assert!(other.enqueue(40 as *mut _).is_err());
        }
        assert_eq!(output, 42.5);
        let mut refitter = Refitter::new(&engine).unwrap();
        assert_eq!(refitter.names().unwrap(), ["lora", "bias"]);
        assert!(refitter.refit().is_err(), "nothing was set");
        assert!(refitter.set("lora", &[1.0]).unwrap_err().to_string().contains("no such weights"));
        refitter.set("lora", &[1.0, 2.0, 3.0]).unwrap();
        refitter.refit().unwrap();
        assert!(refitter.set("a\0b", &[1.0]).is_err());
        assert_eq!(alive(folder, expected.major), 5);
    }
    assert_eq!(alive(folder, expected.major), 0, "every object was deleted once");
    assert!(log.lock().unwrap().contains(&(Severity::Info, "loaded a plan".into())));
}

#[test]
fn the_whole_cycle_on_8_6() {
    in_child("the_whole_cycle_on_8_6", "", || cycle("8", Version::new(8, 6, 1)));
}

#[test]
fn the_whole_cycle_on_10_3() {
    in_child("the_whole_cycle_on_10_3", "", || cycle("10", Version::new(10, 3, 0)));
}

#[test]
fn the_whole_cycle_on_11_1() {
    in_child("the_whole_cycle_on_11_1", "", || cycle("11", Version::new(11, 1, 0)));
}

#[test]
fn a_plan_that_is_none_is_refused_with_the_librarys_words() {
    in_child("a_plan_that_is_none_is_refused_with_the_librarys_words", "", || {
        for version in ["8", "10", "11"] {
            let library = open(standin(version)).0.unwrap();
            let runtime = Arc::new(Runtime::new(&library, ready()).unwrap());
            let refused = |plan: &[u8]| runtime.deserialize(plan).map(|_| ()).unwrap_err();
            assert!(matches!(refused(b""), TrtError::Argument(_)));
            let e = refused(b"an ONNX graph, say, in place of a plan");
            assert!(
                e.to_string().contains("made no engine") && e.to_string().contains("Serialization assertion"),
                "{e}"
            );
        }
    });
}

#[test]
fn a_run_that_fails_says_why() {
    in_child("a_run_that_fails_says_why", "enqueue", || {
        let library = open(standin("10")).0.unwrap();
        let runtime = Arc::new(Runtime::new(&library, ready()).unwrap());
        let mut context = runtime.deserialize(PLAN).unwrap().context().unwrap();
        // SAFETY: the stand-in refuses before it touches anything.
        let e = unsafe { context.enqueue(std::ptr::null_mut()) }.unwrap_err();
        assert!(matches!(&e, TrtError::Refused { words, .. } if words.len() == 1), "{e}");
    });
}

#[test]
fn the_pointer_that_means_no_cuda_is_never_used() {
    in_child("the_pointer_that_means_no_cuda_is_never_used", "cuda", || {
        let library = open(standin("10")).0.unwrap();
        let e = Runtime::new(&library, ready()).map(|_| ()).unwrap_err();
        assert!(matches!(e, TrtError::NoCuda { pointer: 0x228, .. }), "{e}");
        assert!(e.to_string().contains("no usable CUDA driver: CUDA initialization failure"), "{e}");
    });
}

#[test]
fn no_runtime_is_an_error_of_its_own() {
    in_child("no_runtime_is_an_error_of_its_own", "runtime", || {
        let library = open(standin("11")).0.unwrap();
        assert!(matches!(Runtime::new(&library, ready()), Err(TrtError::Null { what: "runtime", .. })));
    });
}

#[test]
fn an_engine_that_cannot_be_refitted_says_so() {
    in_child("an_engine_that_cannot_be_refitted_says_so", "norefit", || {
        let library = open(standin("10")).0.unwrap();
        let engine = Arc::new(Runtime::new(&library, ready()).unwrap()).deserialize(PLAN).unwrap();
        assert!(!engine.refittable().unwrap());
        let e = Refitter::new(&engine).map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("not refittable"), "{e}");
    });
}

#[test]
fn an_old_and_a_future_version_are_refused() {
    in_child("an_old_and_a_future_version_are_refused", "version", || {
        let e = open(standin("10")).0.map(|_| ()).unwrap_err();
        assert!(matches!(e, TrtError::Version { found } if found.major == 7), "{e}");
        assert!(e.to_string().contains("8.6, 10 from 10.3 and 11 from 11.1"), "{e}");
    });
}

#[test]
fn a_major_without_a_table_is_refused() {
    in_child("a_major_without_a_table_is_refused", "future", || {
        assert!(matches!(open(standin("10")).0, Err(TrtError::Version { found }) if found.major == 12));
    });
}

#[test]
fn a_version_that_is_no_number_is_refused() {
    in_child("a_version_that_is_no_number_is_refused", "number", || {
        assert!(matches!(open(standin("10")).0, Err(TrtError::Number { number: -7, .. })));
    });
}

#[test]
fn a_library_without_its_entry_point_and_a_file_that_is_none_are_refused() {
    let e = open(standin("nosymbol")).0.map(|_| ()).unwrap_err();
    assert!(matches!(&e, TrtError::Symbol { symbol, .. } if symbol == "createInferRuntime_INTERNAL"), "{e}");
    let dir = tempfile::tempdir().unwrap();
    let e = open(dir.path()).0.map(|_| ()).unwrap_err();
    assert!(matches!(&e, TrtError::Absent { tried } if tried.len() == 3), "{e}");
    assert!(e.to_string().contains("install TensorRT, or name its folder"), "{e}");
    std::fs::write(dir.path().join("libnvinfer.so.10"), b"not a library").unwrap();
    let e = open(dir.path()).0.map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("libnvinfer.so.10"), "{e}");
}
