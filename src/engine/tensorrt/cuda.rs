//! The GPU: found, asked what it is, and its streams, memory, events and graphs as values that free themselves.
//!
//! What this file relies on: every value holds the [`Gpu`] it was made on, so the context outlives it; the context is made current on the
//! calling thread before any call; and whoever enqueues work keeps what it reads and writes alive until the stream has passed it.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::CudaReady;

/// Least version of the driver's interface: TensorRT 8.6 of JetPack 6.0 comes with 12.2, and 12.0 has all that is called here.
const LEAST_DRIVER: i32 = 12_000;
/// Alignment that TensorRT wants of every address.
pub const ALIGNMENT: usize = 256;
/// Functions of the driver that are called, here or by `cudarc` for us: one that is missing must be an error and no panic.
const CALLED: [&str; 34] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
];

/// Why there is no GPU, or what it refused.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No driver is installed.
    #[error("no CUDA driver is on this machine (libcuda cannot be loaded)")]
    NoDriver,
    /// The driver lacks something.
    #[error("the CUDA driver ({version}) is too old: {lacks}")]
    OldDriver {
        /// Its version, or `unknown`.
        version: String,
        /// What it lacks.
        lacks: String,
    },
    /// The driver is there and sees no device.
    #[error("the CUDA driver sees no GPU ({cause})")]
    NoDevice {
        /// The driver's words.
        cause: String,
    },
    /// The driver cannot be used.
    #[error("the CUDA driver cannot be initialised ({cause})")]
    Init {
        /// The driver's words.
        cause: String,
    },
    /// Memory ran out.
    #[error("the GPU has no memory left for {what} ({bytes} bytes asked for, {free} of {total} free)")]
    OutOfMemory {
        /// What for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
        /// How much is free.
        free: usize,
        /// How much there is.
        total: usize,
    },
    /// A call failed.
    #[error("the GPU failed at {what}: {cause}")]
    Failed {
        /// What was done.
        what: &'static str,
        /// The driver's words.
        cause: String,
    },
}

impl GpuError {
    /// The next step for who runs the box.
    pub fn remedy(&self) -> &'static str {
        match self {
            GpuError::NoDriver => {
                "install the NVIDIA driver (a Jetson has it with JetPack); in a container, pass the GPU through"
            }
            GpuError::OldDriver { .. } => {
                "update the NVIDIA driver to one with CUDA 12.2 or later (a Jetson: JetPack 6 or later)"
            }
            GpuError::NoDevice { .. } => {
                "check with nvidia-smi (a Jetson: tegrastats) that the GPU is there, and CUDA_VISIBLE_DEVICES"
            }
            GpuError::Init { .. } => {
                "let the service's user into the groups video and render, reboot after a driver update, look into dmesg"
            }
            GpuError::OutOfMemory { .. } => "stop what else uses the GPU, or choose a smaller input or fp16",
            GpuError::Failed { .. } => "look into dmesg for an Xid message; restart the service, then the machine",
        }
    }
}

/// The driver's own words, with its number.
fn words(e: DriverError) -> String {
    let text = |t: Result<&std::ffi::CStr, DriverError>| t.map_or(String::new(), |t| t.to_string_lossy().into_owned());
    format!("CUDA error {}, {}: {}", e.0 as i32, text(e.error_name()), text(e.error_string()))
}

fn failed(what: &'static str) -> impl Fn(DriverError) -> GpuError {
    move |e| GpuError::Failed { what, cause: words(e) }
}

/// The first GPU of this machine and its primary context.
pub struct Gpu {
    context: Arc<CudaContext>,
    name: String,
    capability: (i32, i32),
    driver: i32,
    total: usize,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sm_{}{})", self.name, self.capability.0, self.capability.1)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Gpu {
    /// Opens it.
    ///
    /// # Errors
    /// [`GpuError`], each with its remedy.
    pub fn open() -> Result<Arc<Gpu>, GpuError> {
        // SAFETY: this loads libcuda, whose initialisers are the driver's; it is found where the system's loader looks.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::NoDriver);
        }
        // SAFETY: the library is present, so `culib` does not panic; symbols are only asked for, not called.
        let missing = unsafe {
            let library = sys::culib();
            CALLED.iter().find(|f| library.get::<*const c_void>(f.as_bytes()).is_err())
        };
        if let Some(f) = missing {
            return Err(GpuError::OldDriver { version: "unknown".into(), lacks: format!("it has no {f}") });
        }
        let mut driver = 0;
        // SAFETY: the function exists (`CALLED`) and writes one integer; it may be called before `cuInit`.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().map_err(failed("asking for its version"))?;
        if driver < LEAST_DRIVER {
            let version = format!("CUDA {}.{}", driver / 1000, driver % 1000 / 10);
            return Err(GpuError::OldDriver { version, lacks: "CUDA 12.0 is the least".into() });
        }
        result::init().map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => GpuError::NoDevice { cause: words(e) },
            _ => GpuError::Init { cause: words(e) },
        })?;
        match result::device::get_count() {
            Ok(n) if n > 0 => {}
            Ok(_) => return Err(GpuError::NoDevice { cause: "it counts none".into() }),
            Err(e) => return Err(GpuError::NoDevice { cause: words(e) }),
        }
        let context = CudaContext::new(0).map_err(|e| GpuError::Init { cause: words(e) })?;
        let ask = failed("asking what it is");
        Ok(Arc::new(Gpu {
            name: context.name().map_err(&ask)?,
            capability: context.compute_capability().map_err(&ask)?,
            total: context.total_mem().map_err(&ask)?,
            driver,
            context,
        }))
    }

    /// Its name, e.g. `NVIDIA Orin`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, e.g. (8, 7).
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// The driver's version as CUDA counts it, e.g. 12020.
    pub fn driver(&self) -> i32 {
        self.driver
    }

    /// Its memory, bytes; of a Jetson the memory that CPU and GPU share.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Free memory, bytes.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn free(&self) -> Result<usize, GpuError> {
        self.context.mem_get_info().map(|(free, _)| free).map_err(failed("asking for its free memory"))
    }

    /// The word that TensorRT may be called.
    pub fn ready(&self) -> CudaReady {
        // SAFETY: `open` initialised CUDA in this process and counted a device.
        unsafe { CudaReady::assume() }
    }

    /// Makes the context current on this thread.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for an error that an earlier value left when it was freed.
    pub fn enter(&self) -> Result<(), GpuError> {
        self.context.bind_to_thread().map_err(failed("entering its context"))
    }
}

/// A stream: what is enqueued on it runs in order, and beside other streams.
pub struct Stream {
    gpu: Arc<Gpu>,
    raw: sys::CUstream,
}

// SAFETY: the driver's streams, events and graphs have no thread affinity; they are called with the context current (`enter`), and those
// here are only changed through `&mut` or by calls that the driver serialises.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that waits for no other.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn new(gpu: &Arc<Gpu>) -> Result<Stream, GpuError> {
        gpu.enter()?;
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("making a stream"))?;
        Ok(Stream { gpu: gpu.clone(), raw })
    }

    /// The `cudaStream_t`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Waits until all that was enqueued is done.
    ///
    /// # Errors
    /// [`GpuError::Failed`]: what was enqueued failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.gpu.enter()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.raw) }.map_err(failed("running"))
    }

    /// Enqueues a copy to the device.
    ///
    /// # Errors
    /// [`GpuError::Failed`]; out of bounds is one.
    ///
    /// # Safety
    /// Neither is freed, nor the host's bytes changed, nor the device's used otherwise, until the stream has passed the copy.
    pub unsafe fn upload(&self, from: &Pinned, to: &Memory, bytes: usize) -> Result<(), GpuError> {
        let source = from.bytes().get(..bytes.min(to.bytes));
        let source = source.filter(|s| s.len() == bytes).ok_or_else(out_of_bounds)?;
        // SAFETY: both are alive and long enough; until when, by the caller's word.
        unsafe { result::memcpy_htod_async(to.address, source, self.raw) }.map_err(failed("copying to it"))
    }

    /// Enqueues a copy from the device.
    ///
    /// # Errors
    /// [`GpuError::Failed`]; out of bounds is one.
    ///
    /// # Safety
    /// As [`Stream::upload`], with the sides exchanged.
    pub unsafe fn download(&self, from: &Memory, to: &mut Pinned, bytes: usize) -> Result<(), GpuError> {
        let target = to.bytes_mut().get_mut(..bytes.min(from.bytes));
        let target = target.filter(|t| t.len() == bytes).ok_or_else(out_of_bounds)?;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(target, from.address, self.raw) }.map_err(failed("copying from it"))
    }

    /// Captures what `enqueue` enqueues instead of running it. No other thread's work is taken in.
    ///
    /// # Errors
    /// `enqueue`'s own, and [`GpuError::Failed`] where something cannot be captured. The stream is usable afterwards in any case.
    ///
    /// # Safety
    /// What is enqueued refers to memory that outlives the graph.
    pub unsafe fn capture<E: From<GpuError>>(
        self: &Arc<Self>,
        enqueue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.gpu.enter()?;
        // SAFETY: the stream is alive. In this mode only unsafe calls of this very thread would end the capture.
        unsafe {
            result::stream::begin_capture(self.raw, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        }
        .map_err(failed("beginning a graph"))?;
        let enqueued = enqueue();
        // SAFETY: as above; the capture must be ended whatever happened in it.
        let graph = unsafe { result::stream::end_capture(self.raw) };
        let graph = match (enqueued, graph) {
            (Err(e), Ok(graph)) => {
                if !graph.is_null() {
                    // SAFETY: the graph is ours and used no more.
                    let _ = unsafe { result::graph::destroy(graph) };
                }
                return Err(e);
            }
            (Err(e), Err(_)) => return Err(e),
            (Ok(()), graph) => graph.map_err(failed("ending a graph"))?,
        };
        if graph.is_null() {
            return Err(GpuError::Failed { what: "ending a graph", cause: "it is empty".into() }.into());
        }
        // SAFETY: the graph is valid.
        let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        match exec {
            Ok(exec) => Ok(Graph { stream: self.clone(), graph, exec }),
            Err(e) => {
                // SAFETY: the graph is ours and used no more.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(failed("instantiating a graph")(e).into())
            }
        }
    }
}

fn out_of_bounds() -> GpuError {
    GpuError::Failed { what: "copying", cause: "a copy is longer than its memory".into() }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: the stream is alive, ours, and used no more.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// What a stream did once, to be done again in one call.
pub struct Graph {
    stream: Arc<Stream>,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

// SAFETY: as `Stream`; a graph is launched through `&mut self` only, so that no two threads touch it at once.
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues it on its own stream.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn launch(&mut self) -> Result<(), GpuError> {
        self.stream.gpu.enter()?;
        // SAFETY: graph and stream are alive; what the graph refers to as well (`capture`).
        unsafe { result::graph::launch(self.exec, self.stream.raw) }.map_err(failed("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.stream.gpu.enter().is_ok() {
            // SAFETY: both are alive, ours, and used no more; the driver waits with freeing until a launch is over.
            unsafe {
                let _ = result::graph::exec_destroy(self.exec);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}

/// Memory of the device.
pub struct Memory {
    gpu: Arc<Gpu>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// So many bytes for `what`, their values unset.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, what: &'static str) -> Result<Memory, GpuError> {
        gpu.enter()?;
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        // SAFETY: nothing reads the memory before it is written: every run uploads its inputs first.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Memory { gpu: gpu.clone(), address, bytes }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = gpu.context.mem_get_info().unwrap_or_default();
                Err(GpuError::OutOfMemory { what, bytes, free, total })
            }
            Err(e) => Err(failed("taking memory")(e)),
        }
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: the memory is ours. The driver frees it when what was enqueued before is done.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked memory of the host, which the device copies from and to by itself.
pub struct Pinned {
    gpu: Arc<Gpu>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory of the process, reached by the rules of references.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// So many bytes, zeroed.
    ///
    /// # Errors
    /// [`GpuError::Failed`]: the system has no memory to lock.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned, GpuError> {
        gpu.enter()?;
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        // Flags 0: write-combined memory, the usual default, is slow to read, and outputs are read here.
        // SAFETY: the memory is zeroed before anyone reads it.
        unsafe {
            let start = result::malloc_host(bytes, 0).map_err(failed("locking memory of the host"))?.cast::<u8>();
            std::ptr::write_bytes(start, 0, bytes);
            Ok(Pinned { gpu: gpu.clone(), start, bytes })
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is alive, initialised and, behind `&self`, not written. A download in flight writes it, and who enqueues one
        // promises not to look meanwhile (`Stream::download`).
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// Its bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: the memory came from `malloc_host` and is used no more.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}

/// A mark in a stream.
pub struct Event {
    gpu: Arc<Gpu>,
    raw: sys::CUevent,
}

// SAFETY: as `Stream`.
unsafe impl Send for Event {}
// SAFETY: as `Stream`.
unsafe impl Sync for Event {}

impl Event {
    /// An event that a thread waits for asleep; with the time where `timed`.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn new(gpu: &Arc<Gpu>, timed: bool) -> Result<Event, GpuError> {
        gpu.enter()?;
        let blocking = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the call writes one handle.
        unsafe { sys::cuEventCreate(&raw mut raw, if timed { blocking } else { blocking | untimed }) }
            .result()
            .map_err(failed("making an event"))?;
        Ok(Event { gpu: gpu.clone(), raw })
    }

    /// Marks the place in the stream that was reached by now.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn record(&self, stream: &Stream) -> Result<(), GpuError> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.raw, stream.raw) }.map_err(failed("recording an event"))
    }

    /// Sleeps until the stream has passed the mark.
    ///
    /// # Errors
    /// [`GpuError::Failed`]: what stands before the mark failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.raw) }.map_err(failed("running"))
    }

    /// Milliseconds from another event, both timed and passed.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn since(&self, earlier: &Event) -> Result<f32, GpuError> {
        // SAFETY: both are alive.
        unsafe { result::event::elapsed(earlier.raw, self.raw) }.map_err(failed("timing"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: the event is ours and used no more.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
