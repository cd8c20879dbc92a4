//! What makes a plan: builder, network, ONNX parser, optimisation profile, timing cache.

use std::ffi::{c_char, c_void};
use std::ops::Deref;
use std::sync::Arc;

use super::TrtError;
use super::library::{CudaReady, Library};
use super::object::{Dims, Dims32, Dims64, Form, Object, c_name, call, text};
use super::slots::Method;

/// Most errors of the parser that are told.
const MOST_ERRORS: i32 = 16;
/// Most bytes that a builder's answer may have.
const MOST_BYTES: usize = 8 << 30;

/// How a plan is built. Precision is in the graph itself: FP16 tensors, Q/DQ nodes; 8.6 must be allowed it besides.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Workspace, bytes; 0 leaves it to TensorRT.
    pub workspace: usize,
    /// 0 (quick) to 5 (thorough); none is TensorRT's own choice, 3.
    pub level: Option<i32>,
    /// Whether weights can be exchanged later. It costs speed.
    pub refit: bool,
    /// Whether a later version of TensorRT, or its lean runtime, can run the plan.
    pub version_compatible: bool,
    /// Timing cache of a former build on this GPU; empty for none.
    pub timing_cache: Vec<u8>,
    /// 8.6 alone: FP16 kernels may be used. Later versions take types from the graph.
    pub half: bool,
    /// 8.6 alone: INT8 kernels may be used, where the graph has Q/DQ nodes.
    pub int8: bool,
    /// Up to 10: leave cuBLAS and cuDNN out, which TensorRT takes kernels from where they are installed.
    pub own_kernels: bool,
    /// Inputs with an open dimension: name, smallest, usual and largest shape.
    pub profile: Vec<(String, [Dims; 3])>,
}

/// A plan and what the builder learnt.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The plan.
    pub plan: Vec<u8>,
    /// For the next build on this GPU; empty where TensorRT gave none.
    pub timing_cache: Vec<u8>,
    /// Layers of the network as it was parsed.
    pub layers: usize,
    /// Names and shapes of the inputs.
    pub inputs: Vec<(String, Dims)>,
    /// Names and shapes of the outputs.
    pub outputs: Vec<(String, Dims)>,
}

/// Builds plans from ONNX graphs.
pub struct Builder {
    object: Object,
}

/// Flags of `BuilderFlag`, whose numbers differ between majors.
#[derive(Clone, Copy)]
struct Flags {
    refit: i32,
    version_compatible: i32,
    /// 8.6 alone: FP16, INT8 and the wish that the graph's types be kept.
    typed: Option<[i32; 3]>,
    /// Creation flags of the network: an explicit batch in 8.6, types as the graph has them in 10. 11 knows nothing else.
    network: u32,
}

impl Flags {
    fn of(major: u32) -> Self {
        match major {
            8 => Flags { refit: 5, version_compatible: 15, typed: Some([0, 1, 11]), network: 1 },
            10 => Flags { refit: 4, version_compatible: 13, typed: None, network: 2 },
            _ => Flags { refit: 4, version_compatible: 12, typed: None, network: 0 },
        }
    }
}

/// Memory that TensorRT owns until it is dropped.
struct HostMemory {
    object: Object,
}

impl HostMemory {
    /// # Safety
    /// As [`Object::own`], of an IHostMemory.
    unsafe fn own(pointer: *mut c_void, what: &'static str, library: &Arc<Library>) -> Result<Vec<u8>, TrtError> {
        // SAFETY: by the caller's word; the signatures of the table: data and size of the memory that this object owns.
        unsafe {
            let memory = HostMemory { object: Object::own(pointer, Form::Pair, what, library)? };
            let data = call!(memory.object, Method::HostData => *const u8);
            let size = call!(memory.object, Method::HostSize => usize);
            if data.is_null() || size == 0 || size > MOST_BYTES {
                return Err(TrtError::Refused {
                    what: format!("to give a {what} ({size} bytes)"),
                    words: library.words(),
                });
            }
            Ok(std::slice::from_raw_parts(data, size).to_vec())
        }
    }
}

impl Builder {
    /// A builder.
    ///
    /// # Errors
    /// [`TrtError::Symbol`] for the lean runtime, [`TrtError::Null`], [`TrtError::NoCuda`].
    pub fn new(library: &Arc<Library>, _ready: CudaReady) -> Result<Self, TrtError> {
        let pointer = library.create("createInferBuilder_INTERNAL", &[library.logger()])?;
        // SAFETY: the entry point returns a new IBuilder, null, or its sign for no CUDA.
        let object = unsafe { Object::own(pointer, Form::Pair, "builder", library)? };
        Ok(Builder { object })
    }

    /// Parses a graph and builds its plan. It takes from seconds to many minutes.
    ///
    /// # Errors
    /// [`TrtError::Parse`] with the parser's errors, [`TrtError::Null`] and [`TrtError::Refused`] with the builder's words.
    pub fn build(&mut self, onnx: &[u8], options: &BuildOptions) -> Result<Plan, TrtError> {
        let library = self.object.library().clone();
        let flags = Flags::of(library.generation());
        // SAFETY: the signatures of the table; both calls return new objects or null.
        let (network, config) = unsafe {
            let network = call!(self.object, Method::BuilderNetwork, (flags.network; u32) => *mut c_void);
            let network = Object::own(network, Form::Pair, "network", &library)?;
            let config = call!(self.object, Method::BuilderConfig => *mut c_void);
            (network, Object::own(config, Form::Pair, "builder configuration", &library)?)
        };
        // The parser keeps weights that the network refers to, so it lives until the plan is built.
        let _parser = parse(&network, onnx, &library)?;
        self.configure(&config, flags, options)?;
        let _cache = timing_cache(&config, &options.timing_cache, &library)?;
        library.words();
        // SAFETY: the signatures of the table; network and configuration are alive. It returns a new IHostMemory or null.
        let plan = unsafe {
            let pointer = call!(self.object, Method::BuilderSerialized, (network.as_ptr(); *mut c_void), (config.as_ptr(); *mut c_void) => *mut c_void);
            HostMemory::own(pointer, "plan", &library)?
        };
        Ok(Plan {
            plan,
            timing_cache: learnt(&config, &library)?,
            // SAFETY: the signature of the table.
            layers: unsafe { call!(network, Method::NetworkLayers => i32) }.max(0) as usize,
            inputs: tensors(&network, Method::NetworkInputs, Method::NetworkInput, &library)?,
            outputs: tensors(&network, Method::NetworkOutputs, Method::NetworkOutput, &library)?,
        })
    }

    fn configure(&self, config: &Object, flags: Flags, options: &BuildOptions) -> Result<(), TrtError> {
        let mut wanted = Vec::new();
        if let Some([half, int8, keep]) = flags.typed {
            wanted.extend(options.half.then_some(half));
            wanted.extend(options.int8.then_some(int8));
            wanted.extend((options.half || options.int8).then_some(keep));
        }
        wanted.extend(options.refit.then_some(flags.refit));
        wanted.extend(options.version_compatible.then_some(flags.version_compatible));
        // SAFETY: the signatures of the table. Pool 0 is the workspace.
        unsafe {
            for flag in wanted {
                call!(config, Method::ConfigSetFlag, (flag; i32) => ());
            }
            if options.workspace > 0 {
                call!(config, Method::ConfigSetPool, (0; i32), (options.workspace; usize) => ());
            }
            if options.own_kernels && self.object.library().generation() < 11 {
                // Bits 3 and 4, edge-mask and just-in-time convolutions: all sources that need no other library.
                call!(config, Method::ConfigTactics, (0b11000; u32) => bool);
            }
            if let Some(level) = options.level {
                call!(config, Method::ConfigLevel, (level.clamp(0, 5); i32) => ());
            }
        }
        if options.profile.is_empty() { Ok(()) } else { self.add_profile(config, options) }
    }

    fn add_profile(&self, config: &Object, options: &BuildOptions) -> Result<(), TrtError> {
        let library = self.object.library();
        // SAFETY: the signatures of the table; the profile belongs to the builder. `Dims` go by value in 8.6 and by address since.
        unsafe {
            let profile = call!(self.object, Method::BuilderProfile => *mut c_void);
            let profile = Object::borrow(profile, Form::Pair, "optimisation profile", library)?;
            for (name, shapes) in &options.profile {
                let c = c_name(name)?;
                for (select, shape) in shapes.iter().enumerate() {
                    let select = select as i32;
                    let done = if library.generation() == 8 {
                        let dims = shape.narrow()?;
                        call!(profile, Method::ProfileSetDims, (c.as_ptr(); *const c_char), (select; i32), (dims; Dims32) => bool)
                    } else {
                        let dims = shape.wide()?;
                        call!(profile, Method::ProfileSetDims, (c.as_ptr(); *const c_char), (select; i32), (&raw const dims; *const Dims64) => bool)
                    };
                    if !done {
                        let what = format!("the shape {:?} of {name} in a profile", shape.0);
                        return Err(TrtError::Refused { what, words: library.words() });
                    }
                }
            }
            if call!(config, Method::ConfigAddProfile, (profile.as_ptr(); *const c_void) => i32) < 0 {
                return Err(TrtError::Refused { what: "the optimisation profile".into(), words: library.words() });
            }
        }
        Ok(())
    }
}

fn parse(network: &Object, onnx: &[u8], library: &Arc<Library>) -> Result<Object, TrtError> {
    let pointer = library.parser(network.as_ptr())?;
    // SAFETY: the entry point returns a new IParser or null; it is deleted before its network, which outlives this value in `build`.
    let parser = unsafe { Object::own(pointer, Form::Plain, "ONNX parser", library)? };
    let bytes: *const c_void = onnx.as_ptr().cast();
    // SAFETY: the signature of the table; the graph lives during the call.
    let done = unsafe {
        call!(parser, Method::ParserParse, (bytes; *const c_void), (onnx.len(); usize), (std::ptr::null(); *const c_char) => bool)
    };
    if done {
        return Ok(parser);
    }
    // SAFETY: the signatures of the table; errors belong to the parser.
    let errors = unsafe {
        let n = call!(parser, Method::ParserErrors => i32).clamp(0, MOST_ERRORS);
        let mut errors = Vec::new();
        for i in 0..n {
            let error = call!(parser, Method::ParserError, (i; i32) => *mut c_void);
            let error = Object::borrow(error, Form::Plain, "parser error", library)?;
            let pointer = call!(error, Method::ErrorDescription => *const c_char);
            errors.push(format!("node {}: {}", call!(error, Method::ErrorNode => i32), text(pointer)));
        }
        errors
    };
    Err(TrtError::Parse { errors: if errors.is_empty() { library.words() } else { errors } })
}

/// Puts a timing cache into the configuration; one that TensorRT refuses, because it is of another GPU or version, is left out.
fn timing_cache(config: &Object, bytes: &[u8], library: &Arc<Library>) -> Result<Option<Object>, TrtError> {
    let blob: *const c_void = bytes.as_ptr().cast();
    // SAFETY: the signatures of the table; the bytes live during the call. The configuration keeps the cache's address, and is dropped
    // after it is used last, in `build`.
    unsafe {
        let made = call!(config, Method::ConfigCreateCache, (blob; *const c_void), (bytes.len(); usize) => *mut c_void);
        let Ok(cache) = Object::own(made, Form::Pair, "timing cache", library) else { return Ok(None) };
        let taken = call!(config, Method::ConfigSetCache, (cache.as_ptr(); *const c_void), (false; bool) => bool);
        Ok(taken.then_some(cache))
    }
}

/// The configuration's timing cache as bytes; empty where it has none.
fn learnt(config: &Object, library: &Arc<Library>) -> Result<Vec<u8>, TrtError> {
    // SAFETY: the signatures of the table; the cache belongs to the configuration, the memory to us.
    unsafe {
        let cache = call!(config, Method::ConfigCache => *mut c_void);
        let Ok(cache) = Object::borrow(cache, Form::Pair, "timing cache", library) else { return Ok(Vec::new()) };
        let memory = call!(cache, Method::CacheSerialize => *mut c_void);
        Ok(HostMemory::own(memory, "timing cache", library).unwrap_or_default())
    }
}

fn tensors(
    network: &Object,
    count: Method,
    get: Method,
    library: &Arc<Library>,
) -> Result<Vec<(String, Dims)>, TrtError> {
    // SAFETY: the signatures of the table; tensors and names belong to the network. `Dims` come with 32 bits in 8.6.
    unsafe {
        let n = call!(network, count => i32).clamp(0, 4096);
        let mut all = Vec::new();
        for i in 0..n {
            let tensor = call!(network, get, (i; i32) => *mut c_void);
            let tensor = Object::borrow(tensor, Form::Pair, "tensor", library)?;
            let pointer = call!(tensor, Method::TensorName => *const c_char);
            let dims: Dims = if library.generation() == 8 {
                call!(tensor, Method::TensorDims => Dims32).into()
            } else {
                call!(tensor, Method::TensorDims => Dims64).into()
            };
            all.push((text(pointer), dims));
        }
        Ok(all)
    }
}

impl Deref for Plan {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.plan
    }
}
