//! Values moved, not changed: axes permuted, cut, joined, padded.

use super::buffer::Buf;
use super::shape::{Axes, strides};
use super::simd::{CHUNK, pieces};
use super::{Eager, Var};

/// Side of the square tiles in which a transposition works: both sides of one stay in the first-level cache.
const TILE: usize = 16;

/// The axes of `x` in another order.
pub(super) fn permuted(x: &[f32], shape: &[usize], axes: &[usize]) -> Buf {
    let own = strides(shape);
    let dims: Vec<usize> = axes.iter().map(|&a| shape[a]).collect();
    let from: Vec<usize> = axes.iter().map(|&a| own[a]).collect();
    let merged = Axes::merged(&dims, [&from]);
    let mut out = Buf::stale(x.len());
    let below: usize = merged.dims[1..].iter().product();
    let mut rows = (CHUNK / below.max(1)).clamp(1, merged.dims[0]);
    if rows > TILE {
        rows -= rows % TILE;
    }
    pieces(&mut out, rows * below, |start, out| {
        let first = start / below;
        let mut dims = merged.dims.clone();
        dims[0] = out.len() / below;
        let part = Axes { dims, strides: merged.strides.clone() };
        permute_block(&x[first * merged.strides[0][0]..], &part, out);
    });
    out
}

fn permute_block(x: &[f32], axes: &Axes<1>, out: &mut [f32]) {
    let inner = axes.inner();
    let [step] = axes.inner_strides();
    if step == 1 {
        let rows = out.len() / inner;
        let mut chunks = out.chunks_exact_mut(inner);
        axes.for_rows(0, rows, |[from]| {
            if let Some(out) = chunks.next() {
                out.copy_from_slice(&x[from..from + inner]);
            }
        });
        return;
    }
    // Some other axis is contiguous in `x`: transpose it against the last, in tiles.
    let last = axes.dims.len() - 1;
    let fast = axes.strides.iter().position(|s| s[0] == 1).unwrap_or(last);
    let to = strides(&axes.dims);
    let pick = |keep: &dyn Fn(usize) -> bool| (0..axes.dims.len()).filter(|&i| keep(i)).collect::<Vec<_>>();
    let others = pick(&|i| i != fast && i != last);
    let dims: Vec<usize> = others.iter().map(|&i| axes.dims[i]).chain([1]).collect();
    let pairs: Vec<[usize; 2]> = others.iter().map(|&i| [axes.strides[i][0], to[i]]).chain([[1, 1]]).collect();
    let planes: usize = dims.iter().product();
    let (count, pitch) = (axes.dims[fast], to[fast]);
    Axes { dims, strides: pairs }.for_rows(0, planes, |[from, at]| {
        for i0 in (0..count).step_by(TILE) {
            let i1 = (i0 + TILE).min(count);
            for j0 in (0..inner).step_by(TILE) {
                let j1 = (j0 + TILE).min(inner);
                for i in i0..i1 {
                    let row = &mut out[at + i * pitch + j0..at + i * pitch + j1];
                    let column = x[from + i + j0 * step..].iter().step_by(step);
                    for (o, &x) in row.iter_mut().zip(column) {
                        *o = x;
                    }
                }
            }
        }
    });
}

/// Product of extents before and after an axis.
fn around(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[..axis].iter().product(), shape[axis + 1..].iter().product())
}

impl Eager {
    pub(super) fn reshape_op(&self, x: &Var, shape: &[usize]) -> Var {
        self.outcome(shape, x.value.clone(), &[x], |g, sink| sink.add(0, g))
    }

    pub(super) fn permute_op(&self, x: &Var, axes: &[usize]) -> Var {
        let mut inverse = vec![usize::MAX; axes.len()];
        for (i, &a) in axes.iter().enumerate() {
            inverse[a] = i;
        }
        assert!(axes.len() == x.shape().len() && !inverse.contains(&usize::MAX), "permute {:?} by {axes:?}", x.shape());
        let shape: Vec<usize> = axes.iter().map(|&a| x.shape()[a]).collect();
        let out = permuted(x.data(), x.shape(), axes);
        self.outcome(&shape.clone(), out, &[x], move |g, sink| sink.add(0, permuted(&g, &shape, &inverse)))
    }

    pub(super) fn slice_op(&self, x: &Var, axis: usize, start: usize, end: usize) -> Var {
        let mut shape = x.shape().to_vec();
        let extent = shape[axis];
        assert!(start <= end && end <= extent, "slice {start}..{end} of {shape:?} along {axis}");
        shape[axis] = end - start;
        let (outer, inner) = around(&shape, axis);
        let (part, whole, skip) = ((end - start) * inner, extent * inner, start * inner);
        let mut out = Buf::stale(outer * part);
        if let Some(rows) = CHUNK.checked_div(part) {
            let data = x.data();
            pieces(&mut out, rows.max(1) * part, |at, out| {
                for (i, out) in out.chunks_exact_mut(part).enumerate() {
                    let from = (at / part + i) * whole + skip;
                    out.copy_from_slice(&data[from..from + part]);
                }
            });
        }
        self.outcome(&shape, out, &[x], move |g, sink| {
            sink.emit(0, outer * whole, |dx, fresh| {
                if fresh {
                    dx.fill(0.0);
                }
                if part == 0 {
                    return;
                }
                for (dx, g) in dx.chunks_exact_mut(whole).zip(g.chunks_exact(part)) {
                    for (d, &g) in dx[skip..skip + part].iter_mut().zip(g) {
                        *d += g;
                    }
                }
            });
        })
    }

    pub(super) fn concat_op(&self, xs: &[Var], axis: usize) -> Var {
        let mut shape = xs[0].shape().to_vec();
        for x in xs {
            let same = x.shape().len() == shape.len()
                && x.shape().iter().zip(&shape).enumerate().all(|(i, (a, b))| i == axis || a == b);
            assert!(same, "concat {:?} to {shape:?} along {axis}", x.shape());
        }
        shape[axis] = xs.iter().map(|x| x.shape()[axis]).sum();
        let (outer, inner) = around(&shape, axis);
        let whole = shape[axis] * inner;
        let mut out = Buf::stale(outer * whole);
        let mut parts = Vec::with_capacity(xs.len());
        let mut at = 0;
        for x in xs {
            let part = x.shape()[axis] * inner;
            if part > 0 {
                for (out, x) in out.chunks_exact_mut(whole).zip(x.data().chunks_exact(part)) {
                    out[at..at + part].copy_from_slice(x);
                }
            }
            parts.push((at, part));
            at += part;
        }
        let inputs: Vec<&Var> = xs.iter().collect();
        self.outcome(&shape, out, &inputs, move |g, sink| {
            for (i, &(at, part)) in parts.iter().enumerate() {
                if !sink.wants(i) {
                    continue;
                }
                let mut dx = Buf::stale(outer * part);
                if part > 0 {
                    for (dx, g) in dx.chunks_exact_mut(part).zip(g.chunks_exact(whole)) {
                        dx.copy_from_slice(&g[at..at + part]);
                    }
                }
                sink.add(i, dx);
            }
        })
    }

    pub(super) fn pad_end_op(&self, x: &Var, axis: usize, count: usize) -> Var {
        let mut shape = x.shape().to_vec();
        let (outer, inner) = around(&shape, axis);
        let part = shape[axis] * inner;
        shape[axis] += count;
        let whole = shape[axis] * inner;
        let mut out = Buf::stale(outer * whole);
        for (out, x) in out.chunks_exact_mut(whole).zip(x.data().chunks_exact(part)) {
            out[..part].copy_from_slice(x);
            out[part..].fill(0.0);
        }
        self.outcome(&shape, out, &[x], move |g, sink| {
            let mut dx = Buf::stale(outer * part);
            for (dx, g) in dx.chunks_exact_mut(part).zip(g.chunks_exact(whole)) {
                dx.copy_from_slice(&g[..part]);
            }
            sink.add(0, dx);
        })
    }
}
