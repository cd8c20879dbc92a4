//! Recycled f32 buffers: a training step allocates the same sizes every time, and fresh pages cost more than arithmetic.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Below this many values a plain allocation is as fast as the pool.
const SMALLEST: usize = 1024;
/// Values that the pool keeps at most (1 GiB); what exceeds it goes back to the system.
const KEPT: usize = 1 << 28;

#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<Vec<f32>>>,
    kept: usize,
}

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rounds a length up so that near sizes share a bucket: eight steps per power of two.
fn bucket(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.next_multiple_of(step)
}

/// A fixed-length run of f32 that returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Buf {
    data: Vec<f32>,
    len: usize,
}

impl Buf {
    /// A buffer whose values are unspecified (left over from earlier use): the caller writes every one.
    pub fn stale(len: usize) -> Buf {
        if len < SMALLEST {
            return Buf { data: vec![STALE; len], len };
        }
        let size = bucket(len);
        let recycled = {
            let mut pool = pool();
            let found = pool.free.get_mut(&size).and_then(Vec::pop);
            if found.is_some() {
                pool.kept -= size;
            }
            found
        };
        #[allow(unused_mut)]
        let mut data = recycled.unwrap_or_else(|| vec![0.0; size]);
        #[cfg(test)]
        data.fill(STALE);
        Buf { data, len }
    }

    /// A buffer of zeros.
    pub fn zeros(len: usize) -> Buf {
        if len < SMALLEST {
            return Buf { data: vec![0.0; len], len };
        }
        let mut buf = Buf::stale(len);
        buf.fill(0.0);
        buf
    }

    /// A buffer around existing values.
    pub fn from_vec(data: Vec<f32>) -> Buf {
        Buf { len: data.len(), data }
    }

    /// A copy of values.
    pub fn copy_of(values: &[f32]) -> Buf {
        let mut buf = Buf::stale(values.len());
        buf.copy_from_slice(values);
        buf
    }
}

/// What unwritten values hold: in tests a NaN, so that an operation which forgets one is caught.
const STALE: f32 = if cfg!(test) { f32::NAN } else { 0.0 };

impl Deref for Buf {
    type Target = [f32];
    #[inline]
    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let size = self.data.len();
        if size >= SMALLEST && bucket(size) == size {
            let mut pool = pool();
            if pool.kept + size <= KEPT {
                pool.kept += size;
                pool.free.entry(size).or_default().push(std::mem::take(&mut self.data));
            }
        }
    }
}

/// Gives the pool's memory back to the system.
pub fn release_buffers() {
    *pool() = Pool::default();
}
