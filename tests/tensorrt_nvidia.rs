//! The TensorRT binding against NVIDIA's own lean runtimes, 10.16 and 11.4, on a machine without a GPU: it loads, its log reaches ours,
//! and the lack of CUDA is an error and no crash. tests/setup-nvidia.sh fetches them; without them this test says SKIPPED.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use scanside::engine::tensorrt::{Builder, CudaReady, Library, Runtime, Search, Severity, TrtError};

fn folder(version: &str) -> Option<PathBuf> {
    let root =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".peers/nvidia").join(std::env::consts::ARCH).join(version);
    if root.join("done").exists() {
        return Some(root.join("tensorrt_lean_libs"));
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
