//! Settings of what computes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which engine serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// TensorRT where a GPU, TensorRT and plans are there and agree with the CPU engine; the CPU engine otherwise.
    #[default]
    Auto,
    /// The embedded CPU engine.
    Cpu,
    /// TensorRT; that anything else serves is a warning.
    Tensorrt,
}

/// In what TensorRT computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats; where the GPU has TF32, TensorRT may use it.
    Fp32,
    /// 16-bit floats, with normalisation and softmax in 32 bits.
    #[default]
    Fp16,
    /// Calibrated bytes, from graphs that were made beforehand.
    Int8,
}

impl Precision {
    /// As results and plans say it.
    pub fn word(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Which engine serves.
    pub kind: EngineKind,
    /// In what TensorRT computes.
    pub precision: Precision,
    /// Whether the CPU engine serves where TensorRT cannot; otherwise the service refuses to start, and a series whose run failed is tried
    /// on TensorRT again.
    pub cpu_fallback: bool,
    /// Where plans lie; empty: `engines` in the state directory.
    pub plans: PathBuf,
    /// Folder of libnvinfer; empty: where the system's loader looks.
    pub library: PathBuf,
    /// Folder with encoder.onnx, classifier.onnx and decoder.onnx that are used in place of the program's own: calibrated INT8.
    pub graphs: PathBuf,
    /// LoRA's factors are padded to this rank, so that adapters up to it share plans; 0: each adapter's own.
    pub max_rank: usize,
    /// Whether runs are captured as CUDA graphs.
    pub cuda_graph: bool,
}

impl Default for Engine {
    fn default() -> Self {
        Engine {
            kind: EngineKind::Auto,
            precision: Precision::Fp16,
            cpu_fallback: true,
            plans: PathBuf::new(),
            library: PathBuf::new(),
            graphs: PathBuf::new(),
            max_rank: 16,
            cuda_graph: true,
        }
    }
}
