//! The driver: contexts, memory, streams, events and graphs.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::fault;

const SUCCESS: c_int = 0;
const INVALID: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const NO_DEVICE: c_int = 100;
const INVALID_CONTEXT: c_int = 201;
const LAUNCH_FAILED: c_int = 719;
const TOTAL: usize = 2 << 30;

/// What is done on a stream; a graph does it again.
pub type Work = Arc<dyn Fn() + Send + Sync>;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Set by work that failed; every later wait says so, as a real GPU does.
static BROKEN: AtomicI32 = AtomicI32::new(0);
static MEMORY: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn inside() -> bool {
    CURRENT.with(|c| c.get() != 0)
}

/// Marks the device as broken.
pub fn break_device() {
    BROKEN.store(LAUNCH_FAILED, Ordering::SeqCst);
}

/// Whether a range lies in memory that was taken and not given back.
pub fn holds(address: usize, bytes: usize) -> bool {
    let memory = MEMORY.lock().unwrap();
    memory.range(..=address).next_back().is_some_and(|(start, size)| address + bytes <= start + size)
}

pub struct Stream {
    send: Mutex<Option<Sender<Work>>>,
    captured: Mutex<Option<Vec<Work>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Stream {
    /// Enqueues, or captures.
    pub fn push(&self, work: Work) {
        if let Some(captured) = self.captured.lock().unwrap().as_mut() {
            return captured.push(work);
        }
        if let Some(send) = self.send.lock().unwrap().as_ref() {
            let _ = send.send(work);
        }
    }
    pub fn capturing(&self) -> bool {
        self.captured.lock().unwrap().is_some()
    }
}

/// # Safety
/// A stream that `cuStreamCreate` made.
pub unsafe fn stream<'a>(handle: *mut c_void) -> &'a Stream {
    unsafe { &*handle.cast::<Stream>() }
}

#[derive(Default)]
struct Mark {
    recorded: u64,
    passed: u64,
    at: Option<Instant>,
}
type Event = Arc<(Mutex<Mark>, Condvar)>;

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    if let Some(code) = fault("init") {
        return code.parse().unwrap_or(999);
    }
    if fault("no-device").is_some() { NO_DEVICE } else { SUCCESS }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(v: *mut c_int) -> c_int {
    unsafe { *v = if fault("old-driver").is_some() { 11_080 } else { 12_060 } };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(_e: c_int, out: *mut *const c_char) -> c_int {
    unsafe { *out = c"STAND_IN".as_ptr() };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_e: c_int, out: *mut *const c_char) -> c_int {
    unsafe { *out = c"a fault of the stand-in".as_ptr() };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(n: *mut c_int) -> c_int {
    unsafe { *n = 1 };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(d: *mut c_int, _ordinal: c_int) -> c_int {
    unsafe { *d = 0 };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _d: c_int) -> c_int {
    let gpu = std::env::var("SCANSIDE_STANDIN_GPU").unwrap_or_else(|_| "Stand-in GPU".into());
    let n = gpu.len().min(length as usize - 1);
    unsafe {
        std::ptr::copy_nonoverlapping(gpu.as_ptr().cast(), name, n);
        *name.add(n) = 0;
    }
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(v: *mut c_int, attribute: c_int, _d: c_int) -> c_int {
    // 75 and 76 are the compute capability.
    unsafe { *v = [8, 7].get(attribute.wrapping_sub(75) as usize).copied().unwrap_or(0) };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _d: c_int) -> c_int {
    unsafe { *bytes = TOTAL };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _d: c_int) -> c_int {
    unsafe { *context = 0x1000 as *mut c_void };
    SUCCESS
}
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_d: c_int) -> c_int {
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    unsafe { *context = CURRENT.with(Cell::get) as *mut c_void };
    SUCCESS
}
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    CURRENT.with(|c| c.set(context as usize));
    SUCCESS
}

fn free() -> usize {
    TOTAL - MEMORY.lock().unwrap().values().sum::<usize>()
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free_bytes: *mut usize, total: *mut usize) -> c_int {
    if !inside() {
        return INVALID_CONTEXT;
    }
    unsafe {
        *free_bytes = free();
        *total = TOTAL;
    }
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    if !inside() {
        return INVALID_CONTEXT;
    }
    let limit = fault("oom").map_or(TOTAL, |v| v.parse().unwrap_or(0));
    if TOTAL - free() + bytes > limit {
        return OUT_OF_MEMORY;
    }
    // What was never written is no number.
    let start = unsafe { alloc(Layout::from_size_align(bytes, 256).unwrap()) };
    unsafe { std::ptr::write_bytes(start, 0xff, bytes) };
    MEMORY.lock().unwrap().insert(start as usize, bytes);
    unsafe { *address = start as u64 };
    SUCCESS
}
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    let Some(bytes) = MEMORY.lock().unwrap().remove(&(address as usize)) else { return INVALID };
    unsafe { dealloc(address as *mut u8, Layout::from_size_align(bytes, 256).unwrap()) };
    SUCCESS
}

static PINNED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    if !inside() || flags != 0 {
        return INVALID_CONTEXT;
    }
    let start = unsafe { alloc(Layout::from_size_align(bytes, 256).unwrap()) };
    PINNED.lock().unwrap().insert(start as usize, bytes);
    unsafe { *out = start.cast() };
    SUCCESS
}
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(start: *mut c_void) -> c_int {
    let Some(bytes) = PINNED.lock().unwrap().remove(&(start as usize)) else { return INVALID };
    unsafe { dealloc(start.cast(), Layout::from_size_align(bytes, 256).unwrap()) };
    SUCCESS
}
fn copy(to: usize, from: usize, bytes: usize, stream_handle: *mut c_void) -> c_int {
    let work: Work =
        Arc::new(move || unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) });
    unsafe { stream(stream_handle) }.push(work);
    SUCCESS
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, s: *mut c_void) -> c_int {
    if !holds(to as usize, bytes) {
        return INVALID;
    }
    copy(to as usize, from as usize, bytes, s)
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, s: *mut c_void) -> c_int {
    if !holds(from as usize, bytes) {
        return INVALID;
    }
    copy(to as usize, from as usize, bytes, s)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(out: *mut *mut c_void, _flags: c_uint) -> c_int {
    if !inside() {
        return INVALID_CONTEXT;
    }
    let (send, receive) = channel::<Work>();
    let thread = std::thread::spawn(move || {
        for work in receive {
            work();
        }
    });
    let stream = Stream { send: Mutex::new(Some(send)), captured: Mutex::new(None), thread: Mutex::new(Some(thread)) };
    unsafe { *out = Box::into_raw(Box::new(stream)).cast() };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamDestroy_v2(s: *mut c_void) -> c_int {
    let stream = unsafe { Box::from_raw(s.cast::<Stream>()) };
    drop(stream.send.lock().unwrap().take());
    let thread = stream.thread.lock().unwrap().take();
    if let Some(t) = thread {
        let _ = t.join();
    }
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamSynchronize(s: *mut c_void) -> c_int {
    let done = Arc::new((Mutex::new(false), Condvar::new()));
    let mark = done.clone();
    unsafe { stream(s) }.push(Arc::new(move || {
        *mark.0.lock().unwrap() = true;
        mark.1.notify_all();
    }));
    let mut over = done.0.lock().unwrap();
    while !*over {
        over = done.1.wait(over).unwrap();
    }
    BROKEN.load(Ordering::SeqCst)
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamBeginCapture_v2(s: *mut c_void, _mode: c_uint) -> c_int {
    if fault("capture").is_some() {
        return 900;
    }
    *unsafe { stream(s) }.captured.lock().unwrap() = Some(Vec::new());
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(s: *mut c_void, graph: *mut *mut c_void) -> c_int {
    let Some(works) = unsafe { stream(s) }.captured.lock().unwrap().take() else { return INVALID };
    unsafe { *graph = Box::into_raw(Box::new(works)).cast() };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(out: *mut *mut c_void, graph: *mut c_void, _flags: u64) -> c_int {
    let works = unsafe { &*graph.cast::<Vec<Work>>() }.clone();
    unsafe { *out = Box::into_raw(Box::new(works)).cast() };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphLaunch(exec: *mut c_void, s: *mut c_void) -> c_int {
    for work in unsafe { &*exec.cast::<Vec<Work>>() } {
        unsafe { stream(s) }.push(work.clone());
    }
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphExecDestroy(exec: *mut c_void) -> c_int {
    drop(unsafe { Box::from_raw(exec.cast::<Vec<Work>>()) });
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphDestroy(graph: *mut c_void) -> c_int {
    drop(unsafe { Box::from_raw(graph.cast::<Vec<Work>>()) });
    SUCCESS
}

unsafe fn event<'a>(handle: *mut c_void) -> &'a Event {
    unsafe { &*handle.cast::<Event>() }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(out: *mut *mut c_void, _flags: c_uint) -> c_int {
    if !inside() {
        return INVALID_CONTEXT;
    }
    unsafe { *out = Box::into_raw(Box::new(Event::default())).cast() };
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventDestroy_v2(e: *mut c_void) -> c_int {
    drop(unsafe { Box::from_raw(e.cast::<Event>()) });
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventRecord(e: *mut c_void, s: *mut c_void) -> c_int {
    let event = unsafe { event(e) }.clone();
    let number = {
        let mut mark = event.0.lock().unwrap();
        mark.recorded += 1;
        mark.recorded
    };
    let passed = AtomicBool::new(false);
    unsafe { stream(s) }.push(Arc::new(move || {
        if !passed.swap(true, Ordering::SeqCst) {
            let mut mark = event.0.lock().unwrap();
            mark.passed = mark.passed.max(number);
            mark.at = Some(Instant::now());
            event.1.notify_all();
        }
    }));
    SUCCESS
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventSynchronize(e: *mut c_void) -> c_int {
    let event = unsafe { event(e) };
    let mut mark = event.0.lock().unwrap();
    while mark.passed < mark.recorded {
        mark = event.1.wait(mark).unwrap();
    }
    BROKEN.load(Ordering::SeqCst)
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: *mut c_void, end: *mut c_void) -> c_int {
    let at = |e| unsafe { event(e) }.0.lock().unwrap().at;
    let (Some(a), Some(b)) = (at(start), at(end)) else { return INVALID };
    let signed = if b >= a { (b - a).as_secs_f32() } else { -(a - b).as_secs_f32() };
    unsafe { *ms = 1e3 * signed };
    SUCCESS
}
