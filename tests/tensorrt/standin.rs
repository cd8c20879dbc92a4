//! A stand-in for libnvinfer, compiled by tests/tensorrt_binding.rs with `rustc --crate-type cdylib`: objects with TensorRT's layout
//! and virtual tables, whose slots are written down here by hand from the headers of each version, apart from the binding's own
//! table. Every slot that the binding has no business with ends the process with a message. `--cfg v8`, `v10` or `v11` says which
//! version it plays; SCANSIDE_STANDIN says what goes wrong.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

#[cfg(v8)]
const VERSION: i32 = 8601;
#[cfg(v10)]
const VERSION: i32 = 100_300;
#[cfg(v11)]
const VERSION: i32 = 110_100;

fn wrong() -> String {
    std::env::var("SCANSIDE_STANDIN").unwrap_or_default()
}

static LOGGER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
/// Objects that live; the binding's user asks for it.
static ALIVE: AtomicI64 = AtomicI64::new(0);

#[unsafe(no_mangle)]
pub extern "C" fn standin_alive() -> i64 {
    ALIVE.load(Ordering::SeqCst)
}

fn say(severity: i32, words: &CStr) {
    let logger = LOGGER.load(Ordering::SeqCst);
    let slot = if cfg!(v11) { 4 } else { 0 };
    unsafe {
        let table = *logger.cast::<*const *const c_void>();
        let log: extern "C" fn(*mut c_void, i32, *const c_char) = std::mem::transmute(*table.add(slot));
        log(logger, severity, words.as_ptr());
    }
}

extern "C" fn astray() {
    eprintln!("stand-in: a method was called that the binding has no business with");
    std::process::abort();
}

#[cfg(v8)]
type Dim = i32;
#[cfg(not(v8))]
type Dim = i64;

#[repr(C)]
#[derive(Clone, Copy)]
struct Dims {
    rank: i32,
    d: [Dim; 8],
}

const SLOTS: usize = 100;
type Table = [*const c_void; SLOTS];

/// {vptr, mImpl}; the implementation's first word points to its own table.
#[repr(C)]
struct Pair {
    vptr: *const Table,
    implementation: *mut Impl,
}

#[repr(C)]
struct Impl {
    vptr: *const Table,
    shape: Dims,
    addresses: [*mut c_void; 2],
}

extern "C" fn complete(_this: *mut c_void) {
    astray();
}

extern "C" fn delete(this: *mut c_void) {
    unsafe {
        let pair = Box::from_raw(this.cast::<Pair>());
        drop(Box::from_raw(pair.implementation));
    }
    ALIVE.fetch_sub(1, Ordering::SeqCst);
}

fn object(methods: &[(usize, *const ())]) -> *mut c_void {
    let mut table: Table = [astray as *const () as *const c_void; SLOTS];
    for (slot, f) in methods {
        table[*slot] = (*f).cast();
    }
    let mut public: Table = [astray as *const () as *const c_void; SLOTS];
    public[0] = complete as *const () as *const c_void;
    public[1] = delete as *const () as *const c_void;
    let implementation = Impl {
        vptr: Box::leak(Box::new(table)),
        shape: Dims { rank: 2, d: [-1, 3, 0, 0, 0, 0, 0, 0] },
        addresses: [std::ptr::null_mut(); 2],
    };
    ALIVE.fetch_add(1, Ordering::SeqCst);
    let pair = Pair { vptr: Box::leak(Box::new(public)), implementation: Box::into_raw(Box::new(implementation)) };
    Box::into_raw(Box::new(pair)).cast()
}

/// The slot for the version that is played: 8.6.1, 10.3.0, 11.1.
const fn at(slots: [usize; 3]) -> usize {
    if cfg!(v8) {
        slots[0]
    } else if cfg!(v10) {
        slots[1]
    } else {
        slots[2]
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn getInferLibVersion() -> i32 {
    match wrong().as_str() {
        "version" => 70_203 / 10,
        "future" => 120_000,
        "number" => -7,
        _ => VERSION,
    }
}

#[cfg(not(nosymbol))]
#[unsafe(no_mangle)]
pub extern "C" fn createInferRuntime_INTERNAL(logger: *mut c_void, version: i32) -> *mut c_void {
    if version != VERSION {
        return std::ptr::null_mut();
    }
    LOGGER.store(logger, Ordering::SeqCst);
    match wrong().as_str() {
        "cuda" => {
            say(1, c"CUDA initialization failure with error: 35");
            0x228 as *mut c_void
        }
        "runtime" => std::ptr::null_mut(),
        _ => object(&[(at([2, 3, 3]), deserialize as *const ())]),
    }
}

#[cfg(v8)]
extern "C" fn deserialize(_this: *mut Impl, blob: *const u8, size: usize, factory: *mut c_void) -> *mut c_void {
    assert!(factory.is_null());
    engine(blob, size)
}
#[cfg(not(v8))]
extern "C" fn deserialize(_this: *mut Impl, blob: *const u8, size: usize) -> *mut c_void {
    engine(blob, size)
}

fn engine(blob: *const u8, size: usize) -> *mut c_void {
    let plan = unsafe { std::slice::from_raw_parts(blob, size) };
    if !plan.starts_with(b"stand-in plan") {
        say(1, c"IRuntime::deserializeCudaEngine: Error Code 1: Serialization assertion failed");
        return std::ptr::null_mut();
    }
    say(3, c"loaded a plan");
    object(&[
        (at([45, 30, 26]), tensors as *const ()),
        (at([46, 31, 27]), name as *const ()),
        (at([34, 19, 15]), shape as *const ()),
        (at([35, 20, 16]), kind as *const ()),
        (at([38, 23, 19]), mode as *const ()),
        (at([21, 9, 7]), engine_name as *const ()),
        (at([15, 8, 6]), refittable as *const ()),
        (at([11, 5, 5]), context as *const ()),
        (at([14, 52, 44]), memory as *const ()),
    ])
}

extern "C" fn tensors(_this: *mut Impl) -> i32 {
    2
}
extern "C" fn name(_this: *mut Impl, i: i32) -> *const c_char {
    [c"image", c"mask"][i as usize].as_ptr()
}
fn is(name: *const c_char, what: &CStr) -> bool {
    unsafe { CStr::from_ptr(name) == what }
}
extern "C" fn shape(this: *mut Impl, name: *const c_char) -> Dims {
    if is(name, c"image") { unsafe { (*this).shape } } else { Dims { rank: 1, d: [9, 0, 0, 0, 0, 0, 0, 0] } }
}
extern "C" fn kind(_this: *mut Impl, name: *const c_char) -> i32 {
    i32::from(is(name, c"mask"))
}
extern "C" fn mode(_this: *mut Impl, name: *const c_char) -> i32 {
    if is(name, c"image") { 1 } else { 2 }
}
extern "C" fn engine_name(_this: *mut Impl) -> *const c_char {
    c"stand-in".as_ptr()
}
extern "C" fn refittable(_this: *mut Impl) -> bool {
    wrong() != "norefit"
}
extern "C" fn memory(_this: *mut Impl) -> i64 {
    4096
}

fn new_context() -> *mut c_void {
    object(&[
        (at([29, 21, 20]), set_shape as *const ()),
        (at([30, 22, 21]), shape as *const ()),
        (at([32, 24, 23]), set_address as *const ()),
        (at([44, 37, 36]), enqueue as *const ()),
    ])
}
#[cfg(v8)]
extern "C" fn context(_this: *mut Impl) -> *mut c_void {
    new_context()
}
#[cfg(not(v8))]
extern "C" fn context(_this: *mut Impl, strategy: i32) -> *mut c_void {
    assert_eq!(strategy, 0);
    new_context()
}
extern "C" fn set_shape(this: *mut Impl, name: *const c_char, dims: *const Dims) -> bool {
    let dims = unsafe { *dims };
    if !is(name, c"image") || dims.rank != 2 || dims.d[1] != 3 {
        say(1, c"setInputShape: dimensions do not fit");
        return false;
    }
    unsafe { (*this).shape = dims };
    true
}
extern "C" fn set_address(this: *mut Impl, name: *const c_char, address: *mut c_void) -> bool {
    let i = if is(name, c"image") {
        0
    } else if is(name, c"mask") {
        1
    } else {
        say(1, c"setTensorAddress: no such tensor");
        return false;
    };
    unsafe { (*this).addresses[i] = address };
    true
}
/// Plays a run: the output's first float is the stream's number plus the input's first.
extern "C" fn enqueue(this: *mut Impl, stream: *mut c_void) -> bool {
    let [input, output] = unsafe { (*this).addresses };
    if wrong() == "enqueue" || input.is_null() || output.is_null() {
        say(1, c"enqueueV3: Error Code 3: Address is not set");
        return false;
    }
    unsafe { *output.cast::<f32>() = stream as usize as f32 + *input.cast::<f32>() };
    true
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Weights {
    kind: i32,
    values: *const f32,
    count: i64,
}

static SET: AtomicPtr<f32> = AtomicPtr::new(std::ptr::null_mut());

#[unsafe(no_mangle)]
pub extern "C" fn createInferRefitter_INTERNAL(engine: *mut c_void, _logger: *mut c_void, _version: i32) -> *mut c_void {
    if wrong() == "norefit" || engine.is_null() {
        say(1, c"createInferRefitter: engine is not refittable");
        return std::ptr::null_mut();
    }
    object(&[
        (at([12, 13, 9]), set_weights as *const ()),
        (at([3, 4, 4]), refit as *const ()),
        (at([14, 15, 11]), weights as *const ()),
    ])
}
extern "C" fn set_weights(_this: *mut Impl, name: *const c_char, w: Weights) -> bool {
    if !is(name, c"lora") || w.count != 3 || w.kind != 0 {
        say(2, c"setNamedWeights: no such weights");
        return false;
    }
    SET.store(w.values.cast_mut(), Ordering::SeqCst);
    true
}
extern "C" fn refit(_this: *mut Impl) -> bool {
    let values = SET.load(Ordering::SeqCst);
    // The values must still be alive now.
    !values.is_null() && unsafe { std::slice::from_raw_parts(values, 3) } == [1.0, 2.0, 3.0]
}
extern "C" fn weights(_this: *mut Impl, size: i32, names: *mut *const c_char) -> i32 {
    for i in 0..size.min(2) {
        unsafe { *names.add(i as usize) = [c"lora", c"bias"][i as usize].as_ptr() };
    }
    2
}
