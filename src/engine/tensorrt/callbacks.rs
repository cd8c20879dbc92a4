//! Objects that TensorRT calls back: our logger and our error recorder, laid out as its C++ classes.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use super::object::text;

/// How grave a message of TensorRT is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The library is broken.
    Internal,
    /// It refused something.
    Error,
    /// Something is odd.
    Warning,
    /// Progress.
    Info,
    /// For developers.
    Verbose,
}

impl Severity {
    fn of(v: i32) -> Self {
        match v {
            0 => Severity::Internal,
            1 => Severity::Error,
            2 => Severity::Warning,
            3 => Severity::Info,
            _ => Severity::Verbose,
        }
    }
}

/// Where TensorRT's messages go; called from any of its threads.
pub type Sink = Arc<dyn Fn(Severity, &str) + Send + Sync>;

/// Messages that are kept to be told with an error.
const KEPT: usize = 32;

/// What TensorRT said lately: warnings and worse.
#[derive(Default)]
pub(super) struct Lately(Mutex<Vec<String>>);

impl Lately {
    fn add(&self, line: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.remove(0);
        }
        all.push(line);
    }

    /// Takes what was said.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Heard {
    sink: Sink,
    lately: Lately,
}

/// A virtual table with what stands before it in the Itanium ABI: offset to top and type information.
#[repr(C)]
struct Table<const N: usize> {
    offset_to_top: isize,
    type_info: *const c_void,
    methods: [*const c_void; N],
}

// SAFETY: a table is never changed, and points to functions only.
unsafe impl<const N: usize> Sync for Table<N> {}

/// `nvinfer1::ILogger`: a virtual table, then our own data.
#[repr(C)]
pub(super) struct Logger {
    vptr: *const c_void,
    heard: Heard,
}

// SAFETY: the virtual table is constant; what was heard is behind a lock, and the sink is Sync.
unsafe impl Send for Logger {}
// SAFETY: as above.
unsafe impl Sync for Logger {}

/// `nvinfer1::InterfaceInfo`.
#[repr(C)]
struct InterfaceInfo {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

const fn address(f: *const ()) -> *const c_void {
    f.cast()
}

/// Up to 10: log, then the destructors.
static LOGGER_10: Table<3> = Table {
    offset_to_top: 0,
    type_info: std::ptr::null(),
    methods: [address(log as *const ()), address(destroyed as *const ()), address(destroyed as *const ())],
};
/// From 11: language, interface, destructors, log.
static LOGGER_11: Table<5> = Table {
    offset_to_top: 0,
    type_info: std::ptr::null(),
    methods: [
        address(language as *const ()),
        address(logger_interface as *const ()),
        address(destroyed as *const ()),
        address(destroyed as *const ()),
        address(log as *const ()),
    ],
};

impl Logger {
    /// A logger for a major version. It is boxed because TensorRT keeps its address.
    pub fn new(major: u32, sink: Sink) -> Box<Self> {
        let vptr = if major >= 11 { LOGGER_11.methods.as_ptr() } else { LOGGER_10.methods.as_ptr() };
        Box::new(Logger { vptr: vptr.cast(), heard: Heard { sink, lately: Lately::default() } })
    }

    pub fn as_ptr(&self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }

    /// Takes what TensorRT said since the last time.
    pub fn words(&self) -> Vec<String> {
        self.heard.lately.take()
    }
}

extern "C" fn log(this: *mut c_void, severity: i32, message: *const c_char) {
    // SAFETY: TensorRT calls this with the address that it was given, that of a boxed `Logger` that outlives every object, and with a
    // zero-terminated text.
    let (logger, words) = unsafe { (&*this.cast::<Logger>(), text(message)) };
    let severity = Severity::of(severity);
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if severity <= Severity::Warning {
            logger.heard.lately.add(words.clone());
        }
        (logger.heard.sink)(severity, &words);
    }));
}

extern "C" fn language(_this: *mut c_void) -> i32 {
    0 // C++
}

extern "C" fn logger_interface(_this: *mut c_void) -> InterfaceInfo {
    InterfaceInfo { kind: c"ILogger".as_ptr(), major: 1, minor: 0 }
}

/// TensorRT never deletes what the application owns; if it did, nothing would happen.
extern "C" fn destroyed(_this: *mut c_void) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(major: u32) -> Vec<(Severity, String)> {
        let seen: Arc<Mutex<Vec<(Severity, String)>>> = Arc::default();
        let to = seen.clone();
        let logger = Logger::new(
            major,
            Arc::new(move |s, m| {
                assert!(m != "panic", "a sink that fails");
                to.lock().unwrap().push((s, m.into()));
            }),
        );
        let slot = if major >= 11 { 4 } else { 0 };
        // SAFETY: called as TensorRT would: through the virtual table, with the object's address.
        unsafe {
            let table = *logger.as_ptr().cast::<*const *const c_void>();
            let f: extern "C" fn(*mut c_void, i32, *const c_char) = std::mem::transmute(*table.add(slot));
            for (severity, words) in [(1, c"first"), (3, c"second"), (2, c"panic"), (99, c"third")] {
                f(logger.as_ptr(), severity, words.as_ptr());
            }
            f(logger.as_ptr(), 2, std::ptr::null());
        }
        assert_eq!(logger.words(), ["first", "panic", ""]);
        assert!(logger.words().is_empty());
        drop(logger);
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    }

    #[test]
    fn what_tensorrt_says_arrives_and_a_failing_sink_harms_nothing() {
        for major in [8, 10, 11] {
            let all = messages(major);
            let want = [
                (Severity::Error, "first"),
                (Severity::Info, "second"),
                (Severity::Verbose, "third"),
                (Severity::Warning, ""),
            ];
            assert_eq!(all, want.map(|(s, m)| (s, m.to_string())));
        }
    }

    #[test]
    fn only_the_last_words_are_kept() {
        let lately = Lately::default();
        (0..100).for_each(|i| lately.add(i.to_string()));
        let kept = lately.take();
        assert_eq!((kept.len(), kept[0].as_str()), (KEPT, "68"));
    }
}
