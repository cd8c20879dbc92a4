//! Raw objects of TensorRT: a pair of pointers, and calls through the implementation's virtual table.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use super::TrtError;
use super::library::Library;
use super::slots::Method;

/// Pointers below this are TensorRT's way to say that CUDA is not usable (0x228 was seen).
const LEAST_POINTER: usize = 4096;
/// Most dimensions of a tensor.
const MOST_DIMS: usize = 8;
/// A text of TensorRT's longer than this is cut.
const MOST_TEXT: usize = 4096;

/// Dimensions of a tensor; -1 where one is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dims(pub Vec<i64>);

/// `nvinfer1::Dims` of 8.6.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Dims32 {
    rank: i32,
    d: [i32; MOST_DIMS],
}

/// `nvinfer1::Dims` from 10 on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Dims64 {
    rank: i32,
    d: [i64; MOST_DIMS],
}

impl Dims {
    fn check(&self) -> Result<(), TrtError> {
        if self.0.len() > MOST_DIMS {
            return Err(TrtError::Argument(format!("{} dimensions; TensorRT takes {MOST_DIMS}", self.0.len())));
        }
        Ok(())
    }

    pub(super) fn wide(&self) -> Result<Dims64, TrtError> {
        self.check()?;
        let mut d = [0; MOST_DIMS];
        d[..self.0.len()].copy_from_slice(&self.0);
        Ok(Dims64 { rank: self.0.len() as i32, d })
    }

    pub(super) fn narrow(&self) -> Result<Dims32, TrtError> {
        self.check()?;
        let mut d = [0; MOST_DIMS];
        for (to, from) in d.iter_mut().zip(&self.0) {
            *to = i32::try_from(*from)
                .map_err(|_| TrtError::Argument(format!("a dimension of {from} is beyond TensorRT 8.6")))?;
        }
        Ok(Dims32 { rank: self.0.len() as i32, d })
    }
}

impl From<Dims64> for Dims {
    /// An invalid rank gives no dimension.
    fn from(d: Dims64) -> Self {
        Dims(d.d[..(d.rank.max(0) as usize).min(MOST_DIMS)].to_vec())
    }
}

impl From<Dims32> for Dims {
    fn from(d: Dims32) -> Self {
        Dims(d.d[..(d.rank.max(0) as usize).min(MOST_DIMS)].iter().map(|v| i64::from(*v)).collect())
    }
}

/// `nvinfer1::Weights`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RawWeights {
    pub kind: i32,
    pub values: *const c_void,
    pub count: i64,
}

/// How the methods of an object are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// {vptr, mImpl}: methods are those of `mImpl`; the object's own table has its destructors.
    Pair,
    /// A plain interface: methods and destructor are in the object's own table.
    Plain,
}

/// An object that TensorRT made, deleted with this; or one that another object owns.
pub(super) struct Object {
    pointer: NonNull<c_void>,
    form: Form,
    library: Arc<Library>,
    /// Slot of the deleting destructor in the object's own table; none for a borrowed object.
    delete: Option<usize>,
}

// SAFETY: TensorRT's objects have no thread affinity. Those that are used from several threads at once (engine, runtime) are
// thread-safe by its documentation; the others (context, refitter, builder) are only reached through `&mut`.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

impl Object {
    /// Takes a pointer that TensorRT returned for `what`.
    ///
    /// # Safety
    /// The pointer is null, TensorRT's sign for no CUDA, or an object of form `form` that this value may delete and nothing else
    /// will.
    pub unsafe fn own(
        pointer: *mut c_void,
        form: Form,
        what: &'static str,
        library: &Arc<Library>,
    ) -> Result<Self, TrtError> {
        let delete = match form {
            // Itanium: the complete destructor, then the deleting one; `virtual ~IRuntime()` is the first member of each pair.
            Form::Pair => 1,
            Form::Plain => library.slot(Method::ParserDelete)?,
        };
        let pointer = checked(pointer, what, library)?;
        Ok(Object { pointer, form, library: library.clone(), delete: Some(delete) })
    }

    /// Takes a pointer to an object that another one owns.
    ///
    /// # Safety
    /// As [`Object::own`], but that its owner outlives this value and deletes it.
    pub unsafe fn borrow(
        pointer: *mut c_void,
        form: Form,
        what: &'static str,
        library: &Arc<Library>,
    ) -> Result<Self, TrtError> {
        let pointer = checked(pointer, what, library)?;
        Ok(Object { pointer, form, library: library.clone(), delete: None })
    }

    pub fn as_ptr(&self) -> *mut c_void {
        self.pointer.as_ptr()
    }

    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// `this` and the address of a method.
    pub fn method(&self, method: Method) -> Result<(*mut c_void, *const c_void), TrtError> {
        let slot = self.library.slot(method)?;
        // SAFETY: the object is alive and of this form (`own`, `borrow`): its first word points to its virtual table and, of a pair,
        // its second to the implementation, whose first word points to its own. The slot is within that table: it was read from
        // the column of this library's version.
        unsafe {
            let this = match self.form {
                Form::Pair => *self.pointer.as_ptr().cast::<*mut c_void>().add(1),
                Form::Plain => self.pointer.as_ptr(),
            };
            let table = *this.cast::<*const *const c_void>();
            Ok((this, *table.add(slot)))
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let Some(slot) = self.delete else { return };
        // SAFETY: the object is alive and ours to delete (`own`); the slot is that of its deleting destructor, which takes `this`.
        unsafe {
            let table = *self.pointer.as_ptr().cast::<*const *const c_void>();
            let delete: unsafe extern "C" fn(*mut c_void) = std::mem::transmute(*table.add(slot));
            delete(self.pointer.as_ptr());
        }
    }
}

fn checked(pointer: *mut c_void, what: &'static str, library: &Library) -> Result<NonNull<c_void>, TrtError> {
    match NonNull::new(pointer) {
        None => Err(TrtError::Null { what, words: library.words() }),
        Some(p) if (p.as_ptr() as usize) < LEAST_POINTER => {
            Err(TrtError::NoCuda { what, pointer: p.as_ptr() as usize, words: library.words() })
        }
        Some(p) => Ok(p),
    }
}

/// Calls a method: `call!(object, Method::X, (argument: Type), ... => Return)`. To be used inside `unsafe`: the types must be those of the
/// method's signature in the table.
macro_rules! call {
    ($object:expr, $method:expr $(, ($argument:expr ; $kind:ty))* => $ret:ty) => {{
        let (this, address) = $object.method($method)?;
        let function: unsafe extern "C" fn(*mut std::ffi::c_void $(, $kind)*) -> $ret = std::mem::transmute(address);
        function(this $(, $argument)*)
    }};
}
pub(super) use call;

/// A name for C.
pub(super) fn c_name(name: &str) -> Result<CString, TrtError> {
    CString::new(name).map_err(|_| TrtError::Argument(format!("the name {name:?} has a zero byte")))
}

/// A text of TensorRT's, cut where it is long; empty for none.
///
/// # Safety
/// The pointer is null or points to a zero-terminated text that lives during the call.
pub(super) unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by the caller's word.
    let all = unsafe { CStr::from_ptr(pointer) }.to_string_lossy();
    all.chars().take(MOST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_keep_their_values_and_their_bounds() {
        let d = Dims(vec![1, 3, 448, -1]);
        assert_eq!(Dims::from(d.wide().unwrap()), d);
        assert_eq!(Dims::from(d.narrow().unwrap()), d);
        assert!(Dims(vec![1; 9]).wide().is_err());
        assert!(Dims(vec![1 << 40]).narrow().is_err());
        assert_eq!(Dims::from(Dims64 { rank: -1, d: [7; 8] }), Dims(vec![]));
        assert_eq!(Dims::from(Dims32 { rank: 99, d: [7; 8] }), Dims(vec![7; 8]));
        assert_eq!((size_of::<Dims32>(), size_of::<Dims64>(), size_of::<RawWeights>()), (36, 72, 24));
    }
}
