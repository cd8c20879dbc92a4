//! TensorRT on this machine: driver, GPU, library and runtime, opened in the one order in which each survives the lack of the next.

use std::sync::Arc;

use super::cuda::{Gpu, GpuError};
use super::{Builder, Library, Runtime, Search, Severity, Sink, TrtError};

/// Why TensorRT cannot be used on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// No GPU.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// No TensorRT.
    #[error(transparent)]
    TensorRt(#[from] TrtError),
}

impl Unusable {
    /// A stable word for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Unusable::Gpu(GpuError::NoDriver) => "NO_DRIVER",
            Unusable::Gpu(GpuError::OldDriver { .. }) => "OLD_DRIVER",
            Unusable::Gpu(GpuError::NoDevice { .. }) => "NO_GPU",
            Unusable::Gpu(GpuError::Init { .. }) => "DRIVER_FAILED",
            Unusable::Gpu(GpuError::OutOfMemory { .. }) => "GPU_MEMORY",
            Unusable::Gpu(_) => "GPU_FAILED",
            Unusable::TensorRt(TrtError::Absent { .. }) => "NO_TENSORRT",
            Unusable::TensorRt(TrtError::Version { .. } | TrtError::Number { .. } | TrtError::Method { .. }) => {
                "TENSORRT_VERSION"
            }
            Unusable::TensorRt(_) => "TENSORRT_FAILED",
        }
    }

    /// The next step for who runs the box.
    pub fn remedy(&self) -> String {
        match self {
            Unusable::Gpu(e) => e.remedy().into(),
            Unusable::TensorRt(TrtError::Absent { .. }) => {
                "install TensorRT (a Jetson has it with JetPack: apt install tensorrt), or name its folder in engine.library"
                    .into()
            }
            Unusable::TensorRt(TrtError::Version { .. } | TrtError::Number { .. } | TrtError::Method { .. }) => {
                "install TensorRT 8.6, 10.3 or later, or 11.1 or later; or name its folder in engine.library".into()
            }
            Unusable::TensorRt(_) => "install TensorRT again, whole; look into the journal for its own words".into(),
        }
    }
}

/// A GPU with TensorRT on it.
#[derive(Clone)]
pub struct Platform {
    /// The GPU.
    pub gpu: Arc<Gpu>,
    /// The library.
    pub library: Arc<Library>,
    /// Deserialises plans.
    pub runtime: Arc<Runtime>,
}

impl Platform {
    /// Opens them. TensorRT's own messages go to the log.
    ///
    /// # Errors
    /// [`Unusable`], with a code and a remedy.
    pub fn open(search: &Search) -> Result<Platform, Unusable> {
        let gpu = Gpu::open()?;
        gpu.enter()?;
        let library = Library::open(search, to_log())?;
        let runtime = Arc::new(Runtime::new(&library, gpu.ready())?);
        Ok(Platform { gpu, library, runtime })
    }

    /// A builder.
    ///
    /// # Errors
    /// [`Unusable`]: the lean runtime cannot build.
    pub fn builder(&self) -> Result<Builder, Unusable> {
        self.gpu.enter()?;
        Ok(Builder::new(&self.library, self.gpu.ready())?)
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let d = self.gpu.driver();
        let total = self.gpu.total() >> 20;
        format!(
            "{} on {}, {total} MiB, driver for CUDA {}.{}",
            self.library.product(),
            self.gpu,
            d / 1000,
            d % 1000 / 10
        )
    }
}

fn to_log() -> Sink {
    Arc::new(|severity, words| match severity {
        Severity::Internal | Severity::Error => log::warn!(target: "tensorrt", "{words}"),
        Severity::Warning => log::info!(target: "tensorrt", "{words}"),
        Severity::Info => log::debug!(target: "tensorrt", "{words}"),
        Severity::Verbose => log::trace!(target: "tensorrt", "{words}"),
    })
}
