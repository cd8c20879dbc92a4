//! The library itself: found, opened, its version held against the tables.

use std::ffi::{OsString, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TrtError;
use super::callbacks::{Logger, Sink};
use super::slots::{Method, SlotTable, Version};

/// Major versions that a table exists for, in the order in which they are looked for.
const MAJORS: [u32; 3] = [10, 11, 8];

/// Where the library is looked for.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// This folder alone; none means the loader's own path (`LD_LIBRARY_PATH`, `/etc/ld.so.conf`).
    pub folder: Option<PathBuf>,
    /// Take the lean runtime too, which deserializes version-compatible plans and cannot build.
    pub lean: bool,
    /// Look for TensorRT-RTX instead. It has no kernels for a Jetson, but its parser and builder run without a GPU: a check of graphs.
    pub rtx: bool,
}

impl Search {
    fn candidates(&self, stem: &str) -> Vec<OsString> {
        let place = |name: String| match &self.folder {
            Some(folder) => folder.join(name).into_os_string(),
            None => name.into(),
        };
        let majors: &[u32] = if self.rtx { &[1] } else { &MAJORS };
        majors.iter().map(|m| place(format!("{stem}.so.{m}"))).collect()
    }
}

/// The word that a CUDA driver is loaded and initialised and has a device. TensorRT may crash where it is not so.
#[derive(Clone, Copy, Debug)]
pub struct CudaReady(());

impl CudaReady {
    /// Says that CUDA was initialised and a device counted.
    ///
    /// # Safety
    /// That is so, in this process. (TensorRT 10 and 11 survive the contrary, 8.6 does not.)
    pub unsafe fn assume() -> Self {
        CudaReady(())
    }
}

/// An opened TensorRT library.
pub struct Library {
    /// Never freed: TensorRT keeps the first logger's address for the life of the process.
    logger: &'static Logger,
    table: SlotTable,
    name: String,
    builder: bool,
    /// Never closed: TensorRT and CUDA leave threads and exit handlers behind that live in it.
    file: ManuallyDrop<libloading::Library>,
    search: Search,
}

impl Library {
    /// Opens the first library that is found and whose version has a table. TensorRT's messages go to `sink`.
    ///
    /// # Errors
    /// [`TrtError::Absent`] with what was tried, [`TrtError::Symbol`], [`TrtError::Number`], [`TrtError::Version`].
    pub fn open(search: &Search, sink: Sink) -> Result<Arc<Self>, TrtError> {
        let mut tried = Vec::new();
        let stems: &[&str] = match search {
            Search { rtx: true, .. } => &["libtensorrt_rtx"],
            Search { lean: true, .. } => &["libnvinfer", "libnvinfer_lean"],
            _ => &["libnvinfer"],
        };
        for stem in stems {
            for candidate in search.candidates(stem) {
                // SAFETY: loading runs the library's initialisers. It is found by TensorRT's own name, in a folder that the operator
                // or the system's loader vouches for.
                match unsafe { libloading::Library::new(&candidate) } {
                    Ok(file) => {
                        let name = Path::new(&candidate).display().to_string();
                        return Library::checked(file, name, search, sink).map(Arc::new);
                    }
                    Err(e) => tried.push(e.to_string()),
                }
            }
        }
        Err(TrtError::Absent { tried })
    }

    fn checked(file: libloading::Library, name: String, search: &Search, sink: Sink) -> Result<Self, TrtError> {
        let version: extern "C" fn() -> i32 = symbol(&file, &name, "getInferLibVersion")?;
        let number = version();
        let version = if search.rtx { Version::rtx_from_int(number) } else { Version::from_int(number) };
        let version = version.ok_or_else(|| TrtError::Number { library: name.clone(), number })?;
        let table = if search.rtx { SlotTable::rtx(version)? } else { SlotTable::of(version)? };
        // Every library that runs a plan has this one; a builder is in the full library alone.
        let _: extern "C" fn(*mut c_void, i32) -> *mut c_void = symbol(&file, &name, "createInferRuntime_INTERNAL")?;
        let builder = symbol::<extern "C" fn()>(&file, &name, "createInferBuilder_INTERNAL").is_ok();
        let logger = Box::leak(Logger::new(table.generation(), sink));
        Ok(Library { logger, table, name, builder, file: ManuallyDrop::new(file), search: search.clone() })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.table.version()
    }

    /// Product and version, e.g. `TensorRT 10.3.0`.
    pub fn product(&self) -> String {
        format!("TensorRT{} {}", if self.search.rtx { "-RTX" } else { "" }, self.version())
    }

    /// The major version whose interfaces it has: its own, or 11 for TensorRT-RTX.
    pub(super) fn generation(&self) -> u32 {
        self.table.generation()
    }

    /// Its file name, as it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it can build engines; the lean runtime cannot.
    pub fn builds(&self) -> bool {
        self.builder
    }

    /// Takes what the library said since it was asked last: warnings and worse.
    pub fn words(&self) -> Vec<String> {
        self.logger.words()
    }

    pub(super) fn slot(&self, method: Method) -> Result<usize, TrtError> {
        self.table.slot(method)
    }

    pub(super) fn has(&self, method: Method) -> bool {
        self.table.has(method)
    }

    pub(super) fn logger(&self) -> *mut c_void {
        self.logger.as_ptr()
    }

    /// An entry point that takes a logger or an object, then a version: `create...(first, [logger,] version)`.
    pub(super) fn create(&self, name: &str, arguments: &[*mut c_void]) -> Result<*mut c_void, TrtError> {
        let version = self.table.number();
        // SAFETY (of the signatures): `createInferRuntime_INTERNAL(logger, version)` and `createInferBuilder_INTERNAL` likewise,
        // `createInferRefitter_INTERNAL(engine, logger, version)`.
        self.words();
        Ok(match arguments {
            [a] => symbol::<extern "C" fn(*mut c_void, i32) -> *mut c_void>(&self.file, &self.name, name)?(*a, version),
            [a, b] => symbol::<extern "C" fn(*mut c_void, *mut c_void, i32) -> *mut c_void>(
                &self.file, &self.name, name,
            )?(*a, *b, version),
            _ => return Err(TrtError::Argument(format!("{name} with {} arguments", arguments.len()))),
        })
    }

    /// A parser for a network, from the ONNX parser's library beside this one.
    pub(super) fn parser(&self, network: *mut c_void) -> Result<*mut c_void, TrtError> {
        let stem = if self.search.rtx { "libtensorrt_onnxparser_rtx" } else { "libnvonnxparser" };
        let name = format!("{stem}.so.{}", self.version().major);
        let path = self.search.folder.as_ref().map_or_else(|| PathBuf::from(&name), |f| f.join(&name));
        // SAFETY: as in `open`.
        let file =
            unsafe { libloading::Library::new(&path) }.map_err(|e| TrtError::Absent { tried: vec![e.to_string()] })?;
        let file = ManuallyDrop::new(file);
        type Create = extern "C" fn(*mut c_void, *mut c_void, i32) -> *mut c_void;
        let create: Create = symbol(&file, &name, "createNvOnnxParser_INTERNAL")?;
        let version: extern "C" fn() -> i32 = symbol(&file, &name, "getNvOnnxParserVersion")?;
        self.words();
        Ok(create(network, self.logger(), version()))
    }
}

/// A symbol of the file. `T` is the type of a C function whose signature the caller knows from the header.
fn symbol<T: Copy>(file: &libloading::Library, library: &str, name: &str) -> Result<T, TrtError> {
    // SAFETY: the callers in this module name functions of TensorRT's C interface with their own signatures; the value is used
    // only while the file is open, because `Library` owns both.
    unsafe { file.get::<T>(name.as_bytes()) }
        .map(|s| *s)
        .map_err(|_| TrtError::Symbol { library: library.into(), symbol: name.into() })
}
