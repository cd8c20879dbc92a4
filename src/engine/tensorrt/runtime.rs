//! What runs a plan: runtime, engine, execution context; and the refitter, which exchanges an engine's weights.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::TrtError;
use super::library::{CudaReady, Library};
use super::object::{Dims, Dims32, Dims64, Form, Object, RawWeights, c_name, call, text};
use super::slots::Method;

/// Most inputs and outputs of an engine.
const MOST_TENSORS: i32 = 4096;
/// Smallest plan that could be one.
const LEAST_PLAN: usize = 16;

/// Element type of a tensor, as TensorRT numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Signed byte.
    I8,
    /// 32-bit integer.
    I32,
    /// Boolean.
    Bool,
    /// 64-bit integer.
    I64,
    /// Another one, by its number.
    Other(i32),
}

impl DataType {
    fn of(v: i32) -> Self {
        match v {
            0 => DataType::F32,
            1 => DataType::F16,
            2 => DataType::I8,
            3 => DataType::I32,
            4 => DataType::Bool,
            8 => DataType::I64,
            other => DataType::Other(other),
        }
    }

    /// Bytes of an element; none where this binding does not know.
    pub fn bytes(self) -> Option<usize> {
        match self {
            DataType::F32 | DataType::I32 => Some(4),
            DataType::F16 => Some(2),
            DataType::I8 | DataType::Bool => Some(1),
            DataType::I64 => Some(8),
            DataType::Other(_) => None,
        }
    }
}

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the graph.
    pub name: String,
    /// Its shape; -1 where it changes.
    pub shape: Dims,
    /// Its elements.
    pub kind: DataType,
    /// Whether it is an input.
    pub input: bool,
}

/// Deserializes plans.
pub struct Runtime {
    object: Object,
}

impl Runtime {
    /// A runtime.
    ///
    /// # Errors
    /// [`TrtError::Null`], [`TrtError::NoCuda`].
    pub fn new(library: &Arc<Library>, _ready: CudaReady) -> Result<Self, TrtError> {
        let pointer = library.create("createInferRuntime_INTERNAL", &[library.logger()])?;
        // SAFETY: the entry point returns a new IRuntime, null, or its sign for no CUDA.
        let object = unsafe { Object::own(pointer, Form::Pair, "runtime", library)? };
        Ok(Runtime { object })
    }

    /// The library's product and version, e.g. `TensorRT 10.3.0`.
    pub fn version(&self) -> String {
        self.object.library().product()
    }

    /// An engine from a plan.
    ///
    /// # Errors
    /// [`TrtError::Null`] with TensorRT's words: a plan of another version or GPU, or a broken one.
    pub fn deserialize(self: &Arc<Self>, plan: &[u8]) -> Result<Arc<Engine>, TrtError> {
        if plan.len() < LEAST_PLAN {
            return Err(TrtError::Argument(format!("a plan of {} bytes is no plan", plan.len())));
        }
        let library = self.object.library();
        library.words();
        let blob: *const c_void = plan.as_ptr().cast();
        // SAFETY: the signatures of the table: 8.6 has a third argument, a plugin factory that may be null. The plan lives during
        // the call, which copies what it keeps. It returns a new ICudaEngine or null.
        let object = unsafe {
            let pointer = if library.generation() == 8 {
                call!(self.object, Method::RuntimeDeserialize, (blob; *const c_void), (plan.len(); usize),
                    (std::ptr::null_mut(); *mut c_void) => *mut c_void)
            } else {
                call!(self.object, Method::RuntimeDeserialize, (blob; *const c_void), (plan.len(); usize) => *mut c_void)
            };
            Object::own(pointer, Form::Pair, "engine", library)?
        };
        Ok(Arc::new(Engine { object, _runtime: self.clone() }))
    }
}

/// A plan in GPU memory. Several contexts may run it at once.
pub struct Engine {
    object: Object,
    _runtime: Arc<Runtime>,
}

impl Engine {
    /// Its inputs and outputs.
    ///
    /// # Errors
    /// [`TrtError::Method`], [`TrtError::Refused`] for a number that cannot be.
    pub fn tensors(&self) -> Result<Vec<TensorInfo>, TrtError> {
        // SAFETY: the signature of the table.
        let n = unsafe { call!(self.object, Method::EngineTensors => i32) };
        if !(0..=MOST_TENSORS).contains(&n) {
            return Err(TrtError::Refused { what: format!("to say its inputs: {n} of them"), words: vec![] });
        }
        (0..n).map(|i| self.tensor(i)).collect()
    }

    fn tensor(&self, i: i32) -> Result<TensorInfo, TrtError> {
        let library = self.object.library();
        // SAFETY: the signatures of the table; the name is TensorRT's and lives as long as the engine.
        unsafe {
            let pointer = call!(self.object, Method::EngineTensorName, (i; i32) => *const c_char);
            let name = text(pointer);
            let c = c_name(&name)?;
            let shape = shape_of(&self.object, Method::EngineTensorShape, &c)?;
            let kind = call!(self.object, Method::EngineTensorType, (c.as_ptr(); *const c_char) => i32);
            let mode = call!(self.object, Method::EngineTensorMode, (c.as_ptr(); *const c_char) => i32);
            if name.is_empty() || !matches!(mode, 1 | 2) {
                return Err(TrtError::Refused { what: format!("to name input or output {i}"), words: library.words() });
            }
            Ok(TensorInfo { name, shape, kind: DataType::of(kind), input: mode == 1 })
        }
    }

    /// The name that its builder gave it.
    ///
    /// # Errors
    /// [`TrtError::Method`].
    pub fn name(&self) -> Result<String, TrtError> {
        // SAFETY: the signature of the table; the text lives as long as the engine.
        unsafe {
            let pointer = call!(self.object, Method::EngineName => *const c_char);
            Ok(text(pointer))
        }
    }

    /// Whether its weights can be exchanged.
    ///
    /// # Errors
    /// [`TrtError::Method`].
    pub fn refittable(&self) -> Result<bool, TrtError> {
        // SAFETY: the signature of the table.
        Ok(unsafe { call!(self.object, Method::EngineRefittable => bool) })
    }

    /// Bytes of GPU memory that each context takes.
    ///
    /// # Errors
    /// [`TrtError::Method`].
    pub fn context_bytes(&self) -> Result<u64, TrtError> {
        // SAFETY: the signatures of the table.
        unsafe {
            Ok(if self.object.library().has(Method::EngineMemoryV2) {
                call!(self.object, Method::EngineMemoryV2 => i64).max(0) as u64
            } else {
                call!(self.object, Method::EngineMemory => usize) as u64
            })
        }
    }

    /// A context of its own.
    ///
    /// # Errors
    /// [`TrtError::Null`]: no memory on the GPU, as a rule.
    pub fn context(self: &Arc<Self>) -> Result<Context, TrtError> {
        let library = self.object.library();
        library.words();
        // SAFETY: the signatures of the table: from 10 on it takes an allocation strategy, 0 is static. It returns a new
        // IExecutionContext or null.
        let object = unsafe {
            let pointer = if library.generation() == 8 {
                call!(self.object, Method::EngineContext => *mut c_void)
            } else {
                call!(self.object, Method::EngineContext, (0; i32) => *mut c_void)
            };
            Object::own(pointer, Form::Pair, "execution context", library)?
        };
        Ok(Context { object, _engine: self.clone() })
    }
}

/// Shape of a tensor by name: `Dims` came with 32 bits in 8.6, and with 64 since.
///
/// # Safety
/// `method` takes a name and returns `Dims`.
unsafe fn shape_of(object: &Object, method: Method, name: &std::ffi::CStr) -> Result<Dims, TrtError> {
    // SAFETY: by the caller's word.
    unsafe {
        Ok(if object.library().generation() == 8 {
            call!(object, method, (name.as_ptr(); *const c_char) => Dims32).into()
        } else {
            call!(object, method, (name.as_ptr(); *const c_char) => Dims64).into()
        })
    }
}

/// One run at a time of an engine.
pub struct Context {
    object: Object,
    _engine: Arc<Engine>,
}

impl Context {
    /// Sets an input's shape, where the engine left it open.
    ///
    /// # Errors
    /// [`TrtError::Refused`] with TensorRT's words.
    pub fn set_shape(&mut self, name: &str, shape: &Dims) -> Result<(), TrtError> {
        let c = c_name(name)?;
        let library = self.object.library();
        library.words();
        // SAFETY: the signatures of the table; `Dims const&` is the address of one.
        let done = unsafe {
            if library.generation() == 8 {
                let dims = shape.narrow()?;
                call!(self.object, Method::ContextSetShape, (c.as_ptr(); *const c_char), (&raw const dims; *const Dims32) => bool)
            } else {
                let dims = shape.wide()?;
                call!(self.object, Method::ContextSetShape, (c.as_ptr(); *const c_char), (&raw const dims; *const Dims64) => bool)
            }
        };
        self.said(done, || format!("the shape {:?} of {name}", shape.0))
    }

    /// A tensor's shape as things stand; -1 where an input's is not set.
    ///
    /// # Errors
    /// [`TrtError::Method`].
    pub fn shape(&self, name: &str) -> Result<Dims, TrtError> {
        let c = c_name(name)?;
        // SAFETY: the method takes a name and returns Dims.
        unsafe { shape_of(&self.object, Method::ContextShape, &c) }
    }

    /// Sets where a tensor lies in GPU memory.
    ///
    /// # Errors
    /// [`TrtError::Refused`]: no such tensor, or an address that it cannot use.
    ///
    /// # Safety
    /// The address is 0, or device memory (256-byte aligned) that holds the tensor, lives until another address is set or the last
    /// enqueued run is over, and, of an output, is written by nobody else meanwhile.
    pub unsafe fn set_address(&mut self, name: &str, address: u64) -> Result<(), TrtError> {
        let c = c_name(name)?;
        self.object.library().words();
        // SAFETY: the signature of the table; the address by the caller's word.
        let done = unsafe {
            call!(self.object, Method::ContextSetAddress, (c.as_ptr(); *const c_char), (address as *mut c_void; *mut c_void) => bool)
        };
        self.said(done, || format!("the address {address:#x} of {name}"))
    }

    /// Enqueues a run on a CUDA stream; it is over when the stream has passed it.
    ///
    /// # Errors
    /// [`TrtError::Refused`] with TensorRT's words.
    ///
    /// # Safety
    /// The stream is a live `cudaStream_t` of the current context, and every address is as [`Context::set_address`] wants it.
    pub unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), TrtError> {
        self.object.library().words();
        // SAFETY: the signature of the table; the stream by the caller's word.
        let done = unsafe { call!(self.object, Method::ContextEnqueue, (stream; *mut c_void) => bool) };
        self.said(done, || "the run".into())
    }

    fn said(&self, done: bool, what: impl Fn() -> String) -> Result<(), TrtError> {
        if done { Ok(()) } else { Err(TrtError::Refused { what: what(), words: self.object.library().words() }) }
    }
}

/// Exchanges the weights of a refittable engine.
pub struct Refitter {
    object: Object,
    /// Values that TensorRT reads when the engine is refitted.
    values: Vec<Box<[f32]>>,
    _engine: Arc<Engine>,
}

impl Refitter {
    /// A refitter for an engine.
    ///
    /// # Errors
    /// [`TrtError::Null`]: the engine is not refittable.
    pub fn new(engine: &Arc<Engine>) -> Result<Self, TrtError> {
        let library = engine.object.library();
        let pointer = library.create("createInferRefitter_INTERNAL", &[engine.object.as_ptr(), library.logger()])?;
        // SAFETY: the entry point returns a new IRefitter or null.
        let object = unsafe { Object::own(pointer, Form::Pair, "refitter", library)? };
        Ok(Refitter { object, values: Vec::new(), _engine: engine.clone() })
    }

    /// Names of all weights that can be exchanged.
    ///
    /// # Errors
    /// [`TrtError::Refused`] for a number that cannot be.
    pub fn names(&self) -> Result<Vec<String>, TrtError> {
        // SAFETY: the signature of the table: with size 0 it counts; then it fills as many names as the array takes, which live as
        // long as the engine.
        unsafe {
            let n =
                call!(self.object, Method::RefitterAll, (0; i32), (std::ptr::null_mut(); *mut *const c_char) => i32);
            if !(0..=1_000_000).contains(&n) {
                return Err(TrtError::Refused { what: format!("to name {n} weights"), words: vec![] });
            }
            let mut names = vec![std::ptr::null(); n as usize];
            call!(self.object, Method::RefitterAll, (n; i32), (names.as_mut_ptr(); *mut *const c_char) => i32);
            Ok(names.into_iter().map(|p| text(p)).collect())
        }
    }

    /// Gives new values to a weight.
    ///
    /// # Errors
    /// [`TrtError::Refused`]: no such weight, or another count.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<(), TrtError> {
        let c = c_name(name)?;
        let held: Box<[f32]> = values.into();
        self.object.library().words();
        let weights = RawWeights { kind: 0, values: held.as_ptr().cast(), count: values.len() as i64 };
        self.values.push(held);
        // SAFETY: the signature of the table. The values are kept by this refitter until it is gone.
        let done = unsafe {
            call!(self.object, Method::RefitterSet, (c.as_ptr(); *const c_char), (weights; RawWeights) => bool)
        };
        let words = || self.object.library().words();
        if done { Ok(()) } else { Err(TrtError::Refused { what: format!("the weight {name}"), words: words() }) }
    }

    /// Puts the new values into the engine. No context of it may run meanwhile.
    ///
    /// # Errors
    /// [`TrtError::Refused`] with TensorRT's words.
    pub fn refit(&mut self) -> Result<(), TrtError> {
        self.object.library().words();
        // SAFETY: the signature of the table; the values are alive.
        let done = unsafe { call!(self.object, Method::RefitterRefit => bool) };
        let words = || self.object.library().words();
        if done { Ok(()) } else { Err(TrtError::Refused { what: "to refit the engine".into(), words: words() }) }
    }
}
