//! TensorRT 8.6, 10 and 11 from Rust: the library is opened at run time and its C++ objects are called through their virtual tables.
//!
//! No header and no C++ compiler is needed, and a program with this module starts on a machine without TensorRT, where
//! [`Library::open`] says so. A public object of TensorRT is a pair of pointers, its own virtual table and its implementation, and the
//! methods are those of the implementation's virtual table; [`slots`] knows where each one stands. docs/tensorrt-binding.md tells why
//! this is not a crate from elsewhere, and how a version is added.
//!
//! All unsafe code of the program is in this module. What it relies on everywhere:
//! - **The table is right**: a version without a column is refused, and a column is never used for a lower version.
//! - **Objects live**: each holds what it was made from (library, runtime, engine), so that it is deleted first.
//! - **A pointer below 4096 is no object**: without a usable CUDA driver TensorRT returns such a pointer in place of an error.
//! - **Nothing of ours unwinds into C++**: callbacks catch panics.

mod build;
mod callbacks;
mod cuda;
mod library;
mod measure;
mod object;
mod plans;
mod platform;
mod runtime;
mod serving;
mod slots;

pub use build::{BuildOptions, Builder, Plan};
pub use callbacks::{Severity, Sink};
pub use cuda::{Gpu, GpuError};
pub use library::{CudaReady, Library, Search};
pub use measure::{Measured, Span, Steps, overlap};
pub use object::Dims;
pub use plans::{PlanError, PlanKey, PlanRecord, Plans, read_plan};
pub use platform::{Platform, Unusable};
pub use runtime::{Context, DataType, Engine, Refitter, Runtime, TensorInfo};
pub use serving::{ServingError, ServingOptions, Signature, TensorRtEngine};
pub use slots::{Method, SlotTable, Version};

/// Why TensorRT cannot be used, or what it refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrtError {
    /// No library was found.
    #[error("no TensorRT library was found ({}): install TensorRT, or name its folder", tried.join("; "))]
    Absent {
        /// What was tried, with the loader's words.
        tried: Vec<String>,
    },
    /// The library lacks an entry point.
    #[error("{library} has no {symbol}: it is no complete TensorRT library")]
    Symbol {
        /// File name.
        library: String,
        /// The missing symbol.
        symbol: String,
    },
    /// No table describes this version.
    #[error("TensorRT {found} is not supported: 8.6, 10 from 10.3 and 11 from 11.1 are")]
    Version {
        /// What the library says that it is.
        found: Version,
    },
    /// The library's version number makes no sense.
    #[error("{library} says that its version is {number}, which is no TensorRT version")]
    Number {
        /// File name.
        library: String,
        /// What it said.
        number: i32,
    },
    /// This version lacks a method.
    #[error("TensorRT {version} has no {interface}::{name}")]
    Method {
        /// The interface.
        interface: &'static str,
        /// The method.
        name: &'static str,
        /// The version.
        version: Version,
    },
    /// TensorRT gave no object.
    #[error("TensorRT made no {what}{}", said(words))]
    Null {
        /// What was asked for.
        what: &'static str,
        /// Its log while it was asked.
        words: Vec<String>,
    },
    /// TensorRT gave a pointer that is none: its sign that CUDA is not usable.
    #[error("TensorRT returned {pointer:#x} in place of a {what}: it found no usable CUDA driver{}", said(words))]
    NoCuda {
        /// What was asked for.
        what: &'static str,
        /// The pointer.
        pointer: usize,
        /// Its log while it was asked.
        words: Vec<String>,
    },
    /// TensorRT said no.
    #[error("TensorRT refused {what}{}", said(words))]
    Refused {
        /// What was asked for.
        what: String,
        /// Its log and its errors while it was asked.
        words: Vec<String>,
    },
    /// The ONNX parser refused a graph.
    #[error("TensorRT's ONNX parser refused the graph: {}", errors.join("; "))]
    Parse {
        /// Its errors, each with the node where it occurred.
        errors: Vec<String>,
    },
    /// What was given cannot be given to TensorRT.
    #[error("{0}")]
    Argument(String),
}

/// The library's own words, the last few of them.
fn said(words: &[String]) -> String {
    const MOST: usize = 6;
    if words.is_empty() {
        return String::new();
    }
    format!(": {}", words[words.len().saturating_sub(MOST)..].join("; "))
}
