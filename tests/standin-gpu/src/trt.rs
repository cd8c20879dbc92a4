//! TensorRT's objects: pairs of pointers with virtual tables, whose slots are those of the version that is played.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::graph::{Loaded, Parsed, load, parse, plan};
use crate::{cuda, fault};

const SLOTS: usize = 100;
type Table = [*const c_void; SLOTS];

/// 8601, 100300 or 110100; anything else is a version that the program must refuse.
fn version() -> i32 {
    std::env::var("SCANSIDE_STANDIN_VERSION").ok().and_then(|v| v.parse().ok()).unwrap_or(100_300)
}

/// The slot in 8.6.1, 10.3.0 and 11.1, or later ones of these majors.
fn at(slots: [usize; 3]) -> usize {
    match version() {
        v if v < 10_000 => slots[0],
        v if v < 110_000 => slots[1],
        _ => slots[2],
    }
}

static LOGGER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

fn say(severity: i32, words: &str) {
    let logger = LOGGER.load(Ordering::SeqCst);
    let words = CString::new(words).unwrap_or_default();
    unsafe {
        let table = *logger.cast::<*const *const c_void>();
        let log: extern "C" fn(*mut c_void, i32, *const c_char) = std::mem::transmute(*table.add(at([0, 0, 4])));
        log(logger, severity, words.as_ptr());
    }
}

extern "C" fn astray() {
    eprintln!("stand-in: a method was called that is not played");
    std::process::abort();
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Dims32 {
    rank: i32,
    d: [i32; 8],
}
#[repr(C)]
#[derive(Clone, Copy)]
struct Dims64 {
    rank: i32,
    d: [i64; 8],
}
fn dims32(shape: &[i64]) -> Dims32 {
    let mut d = [0; 8];
    d.iter_mut().zip(shape).for_each(|(d, s)| *d = *s as i32);
    Dims32 { rank: shape.len() as i32, d }
}
fn dims64(shape: &[i64]) -> Dims64 {
    let mut d = [0; 8];
    d.iter_mut().zip(shape).for_each(|(d, s)| *d = *s);
    Dims64 { rank: shape.len() as i32, d }
}

/// What an object is.
enum Body {
    Runtime,
    Engine(Arc<Loaded>),
    Context(Arc<Loaded>, Mutex<Vec<usize>>),
    Builder,
    Network(Mutex<Option<Parsed>>),
    Config(Mutex<Vec<i32>>, Mutex<*mut c_void>),
    Cache(Vec<u8>),
    Bytes(Vec<u8>),
    Tensor(CString, Vec<i64>),
}

#[repr(C)]
struct Pair {
    vptr: *const Table,
    implementation: *mut Impl,
}
#[repr(C)]
struct Impl {
    vptr: *const Table,
    body: Body,
}

extern "C" fn delete(this: *mut c_void) {
    unsafe {
        let pair = Box::from_raw(this.cast::<Pair>());
        drop(Box::from_raw(pair.implementation));
    }
}

fn table(methods: &[(usize, *const ())]) -> *const Table {
    let mut table: Table = [astray as *const () as *const c_void; SLOTS];
    for (slot, f) in methods {
        table[*slot] = (*f).cast();
    }
    Box::leak(Box::new(table))
}

fn object(body: Body, methods: &[(usize, *const ())]) -> *mut c_void {
    let implementation = Box::into_raw(Box::new(Impl { vptr: table(methods), body }));
    let vptr = table(&[(1, delete as *const ())]);
    Box::into_raw(Box::new(Pair { vptr, implementation })).cast()
}

unsafe fn body<'a>(this: *mut Impl) -> &'a Body {
    unsafe { &(*this).body }
}
/// The body behind a public object.
unsafe fn behind<'a>(object: *mut c_void) -> &'a Body {
    unsafe { &(*(*object.cast::<Pair>()).implementation).body }
}
unsafe fn name<'a>(p: *const c_char) -> &'a CStr {
    unsafe { CStr::from_ptr(p) }
}

#[unsafe(no_mangle)]
extern "C" fn getInferLibVersion() -> i32 {
    version()
}
#[unsafe(no_mangle)]
extern "C" fn getNvOnnxParserVersion() -> i32 {
    version()
}

#[unsafe(no_mangle)]
extern "C" fn createInferRuntime_INTERNAL(logger: *mut c_void, _version: i32) -> *mut c_void {
    LOGGER.store(logger, Ordering::SeqCst);
    let f = if version() < 10_000 { deserialize8 as *const () } else { deserialize as *const () };
    object(Body::Runtime, &[(at([2, 3, 3]), f)])
}
extern "C" fn deserialize8(_this: *mut Impl, blob: *const u8, size: usize, _factory: *mut c_void) -> *mut c_void {
    engine(blob, size)
}
extern "C" fn deserialize(_this: *mut Impl, blob: *const u8, size: usize) -> *mut c_void {
    engine(blob, size)
}
fn engine(blob: *const u8, size: usize) -> *mut c_void {
    let bytes = unsafe { std::slice::from_raw_parts(blob, size) };
    let loaded = if fault("deserialize").is_some() {
        Err("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (the stand-in refuses)".into())
    } else {
        load(bytes, version())
    };
    let loaded = match loaded {
        Ok(l) => l,
        Err(e) => {
            say(1, &e);
            return std::ptr::null_mut();
        }
    };
    let (shape, new_context) = if version() < 10_000 {
        (engine_shape8 as *const (), context8 as *const ())
    } else {
        (engine_shape as *const (), context as *const ())
    };
    object(
        Body::Engine(Arc::new(loaded)),
        &[
            (at([45, 30, 26]), tensors as *const ()),
            (at([46, 31, 27]), tensor_name as *const ()),
            (at([34, 19, 15]), shape),
            (at([35, 20, 16]), tensor_type as *const ()),
            (at([38, 23, 19]), tensor_mode as *const ()),
            (at([11, 5, 5]), new_context),
            (at([14, 52, 44]), context_bytes as *const ()),
        ],
    )
}
unsafe fn loaded<'a>(this: *mut Impl) -> &'a Arc<Loaded> {
    match unsafe { body(this) } {
        Body::Engine(l) | Body::Context(l, _) => l,
        _ => panic!("not an engine"),
    }
}
extern "C" fn tensors(this: *mut Impl) -> i32 {
    unsafe { loaded(this) }.ports.len() as i32
}
extern "C" fn tensor_name(this: *mut Impl, i: i32) -> *const c_char {
    unsafe { loaded(this) }.ports[i as usize].name.as_ptr()
}
fn shape_of(this: *mut Impl, n: *const c_char) -> Vec<i64> {
    let l = unsafe { loaded(this) };
    l.ports.iter().find(|p| p.name.as_c_str() == unsafe { name(n) }).map_or(Vec::new(), |p| p.shape.clone())
}
extern "C" fn engine_shape8(this: *mut Impl, n: *const c_char) -> Dims32 {
    dims32(&shape_of(this, n))
}
extern "C" fn engine_shape(this: *mut Impl, n: *const c_char) -> Dims64 {
    dims64(&shape_of(this, n))
}
extern "C" fn tensor_type(_this: *mut Impl, _n: *const c_char) -> i32 {
    0
}
extern "C" fn tensor_mode(this: *mut Impl, n: *const c_char) -> i32 {
    let l = unsafe { loaded(this) };
    l.ports.iter().find(|p| p.name.as_c_str() == unsafe { name(n) }).map_or(0, |p| if p.input { 1 } else { 2 })
}
extern "C" fn context_bytes(_this: *mut Impl) -> i64 {
    1 << 20
}
fn new_context(this: *mut Impl) -> *mut c_void {
    let l = unsafe { loaded(this) }.clone();
    let addresses = Mutex::new(vec![0; l.ports.len()]);
    object(
        Body::Context(l, addresses),
        &[(at([32, 24, 23]), set_address as *const ()), (at([44, 37, 36]), enqueue as *const ())],
    )
}
extern "C" fn context8(this: *mut Impl) -> *mut c_void {
    new_context(this)
}
extern "C" fn context(this: *mut Impl, _strategy: i32) -> *mut c_void {
    new_context(this)
}
extern "C" fn set_address(this: *mut Impl, n: *const c_char, address: *mut c_void) -> bool {
    let Body::Context(l, addresses) = (unsafe { body(this) }) else { return false };
    let Some(i) = l.ports.iter().position(|p| p.name.as_c_str() == unsafe { name(n) }) else { return false };
    if !(address as usize).is_multiple_of(256) || !cuda::holds(address as usize, l.ports[i].bytes()) {
        say(1, "setTensorAddress: the tensor does not fit into the memory at this address");
        return false;
    }
    addresses.lock().unwrap()[i] = address as usize;
    true
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn enqueue(this: *mut Impl, stream: *mut c_void) -> bool {
    let Body::Context(l, addresses) = (unsafe { body(this) }) else { return false };
    let addresses = addresses.lock().unwrap().clone();
    let run = RUNS.fetch_add(1, Ordering::SeqCst);
    // `enqueue:N` lets N runs go well first.
    let fails = |name: &str| fault(name).is_some_and(|n| run >= n.parse().unwrap_or(0));
    if fails("enqueue") || addresses.contains(&0) {
        say(1, "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (the stand-in refuses)");
        return false;
    }
    let (l, breaks) = (l.clone(), fails("device"));
    let stream = unsafe { cuda::stream(stream) };
    if stream.capturing() && fault("capture-enqueue").is_some() {
        say(1, "operation not permitted when stream is capturing");
        return false;
    }
    stream.push(Arc::new(move || {
        let held = l.ports.iter().zip(&addresses).all(|(p, a)| cuda::holds(*a, p.bytes()));
        let ran = if held { unsafe { l.run(&addresses) } } else { Err("memory was freed under a run".into()) };
        if let Err(e) = &ran {
            eprintln!("stand-in: {e}");
        }
        if breaks || ran.is_err() {
            cuda::break_device();
        }
    }));
    true
}

#[unsafe(no_mangle)]
extern "C" fn createInferBuilder_INTERNAL(logger: *mut c_void, _version: i32) -> *mut c_void {
    LOGGER.store(logger, Ordering::SeqCst);
    object(
        Body::Builder,
        &[
            (at([9, 7, 5]), new_config as *const ()),
            (at([11, 8, 6]), new_network as *const ()),
            (at([17, 14, 11]), serialized as *const ()),
        ],
    )
}
extern "C" fn new_config(_this: *mut Impl) -> *mut c_void {
    object(
        Body::Config(Mutex::default(), Mutex::new(std::ptr::null_mut())),
        &[
            (at([15, 11, 9]), set_flag as *const ()),
            (at([42, 38, 27]), set_tactics as *const ()),
            (at([51, 47, 36]), set_level as *const ()),
            (at([44, 40, 29]), create_cache as *const ()),
            (at([45, 41, 30]), set_cache as *const ()),
            (at([46, 42, 31]), get_cache as *const ()),
        ],
    )
}
extern "C" fn set_flag(this: *mut Impl, flag: i32) {
    if let Body::Config(flags, _) = unsafe { body(this) } {
        flags.lock().unwrap().push(flag);
    }
}
extern "C" fn set_tactics(_this: *mut Impl, _sources: u32) -> bool {
    true
}
extern "C" fn set_level(_this: *mut Impl, _level: i32) {}
fn cache(bytes: Vec<u8>) -> *mut c_void {
    object(Body::Cache(bytes), &[(2, cache_serialize as *const ())])
}
extern "C" fn create_cache(_this: *mut Impl, blob: *const u8, size: usize) -> *mut c_void {
    let bytes = if size == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(blob, size) }.to_vec() };
    cache(bytes)
}
extern "C" fn set_cache(this: *mut Impl, cache: *mut c_void, _ignore: bool) -> bool {
    if let Body::Config(_, kept) = unsafe { body(this) } {
        *kept.lock().unwrap() = cache;
    }
    true
}
extern "C" fn get_cache(this: *mut Impl) -> *mut c_void {
    match unsafe { body(this) } {
        Body::Config(_, kept) => *kept.lock().unwrap(),
        _ => std::ptr::null_mut(),
    }
}
fn bytes(b: Vec<u8>) -> *mut c_void {
    object(Body::Bytes(b), &[(2, data as *const ()), (3, size as *const ())])
}
extern "C" fn data(this: *mut Impl) -> *const u8 {
    match unsafe { body(this) } {
        Body::Bytes(b) => b.as_ptr(),
        _ => std::ptr::null(),
    }
}
extern "C" fn size(this: *mut Impl) -> usize {
    match unsafe { body(this) } {
        Body::Bytes(b) => b.len(),
        _ => 0,
    }
}
extern "C" fn cache_serialize(this: *mut Impl) -> *mut c_void {
    match unsafe { body(this) } {
        // It grows by a word for each build that used it.
        Body::Cache(b) => bytes([b.as_slice(), b"timed "].concat()),
        _ => std::ptr::null_mut(),
    }
}

extern "C" fn new_network(_this: *mut Impl, flags: u32) -> *mut c_void {
    // 8.6 wants the explicit batch, 10 strongly typed graphs; 11 knows nothing else.
    if flags != at([1, 2, 0]) as u32 {
        say(1, "createNetworkV2: flags of another version");
        return std::ptr::null_mut();
    }
    object(
        Body::Network(Mutex::new(None)),
        &[
            (at([19, 14, 14]), inputs as *const ()),
            (at([20, 15, 15]), input as *const ()),
            (at([21, 16, 16]), outputs as *const ()),
            (at([22, 17, 17]), output as *const ()),
            (at([17, 12, 12]), layers as *const ()),
        ],
    )
}
fn with_parsed<R>(this: *mut Impl, f: impl FnOnce(&Parsed) -> R) -> Option<R> {
    match unsafe { body(this) } {
        Body::Network(p) => p.lock().unwrap().as_ref().map(f),
        _ => None,
    }
}
fn count(this: *mut Impl, input: bool) -> i32 {
    with_parsed(this, |p| p.ports.iter().filter(|p| p.input == input).count() as i32).unwrap_or(0)
}
fn nth(this: *mut Impl, i: i32, input: bool) -> *mut c_void {
    let port = with_parsed(this, |p| p.ports.iter().filter(|p| p.input == input).nth(i as usize).cloned()).flatten();
    let Some(port) = port else { return std::ptr::null_mut() };
    let dims = if version() < 10_000 { tensor_dims8 as *const () } else { tensor_dims as *const () };
    // The network owns its tensors; the stand-in leaves them.
    object(Body::Tensor(port.name, port.shape), &[(3, port_name as *const ()), (5, dims)])
}
extern "C" fn inputs(this: *mut Impl) -> i32 {
    count(this, true)
}
extern "C" fn outputs(this: *mut Impl) -> i32 {
    count(this, false)
}
extern "C" fn input(this: *mut Impl, i: i32) -> *mut c_void {
    nth(this, i, true)
}
extern "C" fn output(this: *mut Impl, i: i32) -> *mut c_void {
    nth(this, i, false)
}
extern "C" fn layers(this: *mut Impl) -> i32 {
    with_parsed(this, |p| p.layers as i32).unwrap_or(0)
}
extern "C" fn port_name(this: *mut Impl) -> *const c_char {
    match unsafe { body(this) } {
        Body::Tensor(n, _) => n.as_ptr(),
        _ => std::ptr::null(),
    }
}
extern "C" fn tensor_dims8(this: *mut Impl) -> Dims32 {
    match unsafe { body(this) } {
        Body::Tensor(_, s) => dims32(s),
        _ => dims32(&[]),
    }
}
extern "C" fn tensor_dims(this: *mut Impl) -> Dims64 {
    match unsafe { body(this) } {
        Body::Tensor(_, s) => dims64(s),
        _ => dims64(&[]),
    }
}
extern "C" fn serialized(_this: *mut Impl, network: *mut c_void, config: *mut c_void) -> *mut c_void {
    let (Body::Network(parsed), Body::Config(flags, _)) = (unsafe { (behind(network), behind(config)) }) else {
        return std::ptr::null_mut();
    };
    let (parsed, flags) = (parsed.lock().unwrap(), flags.lock().unwrap());
    let Some(parsed) = parsed.as_ref() else { return std::ptr::null_mut() };
    let lacks = |flag| !flags.contains(&flag);
    if fault("build").is_some() {
        say(1, "IBuilder::buildSerializedNetwork: Error Code 10: Could not find any implementation for node");
        return std::ptr::null_mut();
    }
    // 8.6 takes types from flags as well as from the graph.
    if version() < 10_000 && ((parsed.half && lacks(0)) || (parsed.int8 && lacks(1))) {
        say(1, "IBuilder::buildSerializedNetwork: the network has types that no flag allows");
        return std::ptr::null_mut();
    }
    bytes(plan(parsed, version()))
}

/// `IParser`: a plain interface.
#[repr(C)]
struct Parser {
    vptr: *const Table,
    network: *mut c_void,
    errors: Vec<*mut ParseError>,
}
#[repr(C)]
struct ParseError {
    vptr: *const Table,
    words: CString,
}
#[unsafe(no_mangle)]
extern "C" fn createNvOnnxParser_INTERNAL(network: *mut c_void, _logger: *mut c_void, _version: i32) -> *mut c_void {
    let vptr = table(&[
        (0, parse_model as *const ()),
        (at([6, 5, 3]), errors as *const ()),
        (at([7, 6, 4]), error as *const ()),
        (at([10, 9, 7]), delete_parser as *const ()),
    ]);
    Box::into_raw(Box::new(Parser { vptr, network, errors: Vec::new() })).cast()
}
extern "C" fn delete_parser(this: *mut Parser) {
    let parser = unsafe { Box::from_raw(this) };
    for e in &parser.errors {
        drop(unsafe { Box::from_raw(*e) });
    }
}
extern "C" fn parse_model(this: *mut Parser, model: *const u8, size: usize, _path: *const c_char) -> bool {
    let parser = unsafe { &mut *this };
    let bytes = unsafe { std::slice::from_raw_parts(model, size) };
    let parsed =
        if fault("parse").is_some() { Err("No importer registered for op: Stand-in".into()) } else { parse(bytes) };
    match (parsed, unsafe { behind(parser.network) }) {
        (Ok(p), Body::Network(kept)) => {
            *kept.lock().unwrap() = Some(p);
            true
        }
        (Err(e), _) => {
            let vptr = table(&[(1, description as *const ()), (5, node as *const ())]);
            let words = CString::new(e).unwrap_or_default();
            parser.errors.push(Box::into_raw(Box::new(ParseError { vptr, words })));
            false
        }
        _ => false,
    }
}
extern "C" fn errors(this: *mut Parser) -> i32 {
    unsafe { &*this }.errors.len() as i32
}
extern "C" fn error(this: *mut Parser, i: i32) -> *mut ParseError {
    unsafe { &*this }.errors[i as usize]
}
extern "C" fn description(this: *mut ParseError) -> *const c_char {
    unsafe { &*this }.words.as_ptr()
}
extern "C" fn node(_this: *mut ParseError) -> i32 {
    7
}
