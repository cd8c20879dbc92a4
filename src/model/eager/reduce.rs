//! Sums over axes and their inverse, repetition; both in a fixed order whatever the number of threads.

use rayon::prelude::*;

use super::buffer::Buf;
use super::shape::{Axes, strides, strides_as};
use super::simd::{self, CHUNK, pieces, rows_per_piece, wide};
use super::{Eager, Var};

/// Sums `x` of shape `from` down to `to`, a shape that broadcasts to `from`.
pub(super) fn sum_to(x: &[f32], from: &[usize], to: &[usize]) -> Buf {
    let target = strides_as(to, from);
    let own = strides(from);
    let axes = Axes::merged(from, [&target, &own]);
    let len = to.iter().product();
    let mut out = Buf::zeros(len);
    sum_axes(x, &axes, &mut out);
    out
}

/// Sums rows of `width` values: the gradient of a bias.
pub(super) fn sum_rows(x: &[f32], width: usize) -> Buf {
    sum_to(x, &[x.len() / width, width], &[width])
}

fn sum_axes(x: &[f32], axes: &Axes<2>, out: &mut [f32]) {
    let (dims, first) = (&axes.dims, axes.dims[0]);
    let below: usize = dims[1..].iter().product();
    if x.len() <= 2 * CHUNK || first == 1 {
        return sum_block(x, axes, out);
    }
    let per_task = (2 * CHUNK / below.max(1)).clamp(1, first);
    if axes.strides[0][0] != 0 {
        // The first axis stays: each task owns a range of it.
        out.par_chunks_mut(per_task * axes.strides[0][0]).enumerate().for_each(|(i, out)| {
            let start = i * per_task;
            sum_block(&x[start * below..], &axes_with_first(axes, per_task.min(first - start)), out);
        });
    } else {
        // The first axis is summed: at most 16 partial sums, added in order.
        let per_task = per_task.max(first.div_ceil(16));
        let len = out.len();
        let parts: Vec<Buf> = (0..first.div_ceil(per_task))
            .into_par_iter()
            .map(|i| {
                let start = i * per_task;
                let mut part = Buf::zeros(len);
                sum_block(&x[start * below..], &axes_with_first(axes, per_task.min(first - start)), &mut part);
                part
            })
            .collect();
        for part in &parts {
            simd::add_assign(out, part);
        }
    }
}

fn axes_with_first(axes: &Axes<2>, count: usize) -> Axes<2> {
    let mut dims = axes.dims.clone();
    dims[0] = count;
    Axes { dims, strides: axes.strides.clone() }
}

fn sum_block(x: &[f32], axes: &Axes<2>, out: &mut [f32]) {
    let inner = axes.inner();
    let rows: usize = axes.dims[..axes.dims.len() - 1].iter().product();
    let summed = axes.inner_strides()[0] == 0;
    axes.for_rows(0, rows, |[to, from]| {
        let row = &x[from..from + inner];
        if summed {
            out[to] += wide(
                #[inline(always)]
                || simd::sum(row),
            );
        } else {
            let out = &mut out[to..to + inner];
            wide(
                #[inline(always)]
                || simd::axpy(out, 1.0, row),
            );
        }
    });
}

/// Repeats `x` of shape `from` to shape `to`, times `k`.
pub(super) fn repeat_to(x: &[f32], from: &[usize], to: &[usize], k: f32) -> Buf {
    let own = strides_as(from, to);
    let axes = Axes::merged(to, [&own]);
    let mut out = Buf::stale(to.iter().product());
    let (inner, [step]) = (axes.inner(), axes.inner_strides());
    let rows = rows_per_piece(inner);
    pieces(&mut out, rows * inner, |start, out| {
        let mut chunks = out.chunks_exact_mut(inner);
        let count = chunks.len();
        axes.for_rows(start / inner, count, |[from]| {
            let Some(out) = chunks.next() else { return };
            if step == 0 {
                out.fill(x[from] * k);
            } else {
                for (o, &x) in out.iter_mut().zip(&x[from..from + inner]) {
                    *o = x * k;
                }
            }
        });
    });
    out
}

/// `shape` with extent 1 along `axes`.
fn kept(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    let mut out = shape.to_vec();
    for &a in axes {
        out[a] = 1;
    }
    out
}

impl Eager {
    pub(super) fn sum_op(&self, x: &Var, axes: &[usize], k: f32) -> Var {
        let from = x.shape().to_vec();
        let to = kept(&from, axes);
        let mut out = sum_to(x.data(), &from, &to);
        if k != 1.0 {
            out.iter_mut().for_each(|o| *o *= k);
        }
        self.outcome(&to.clone(), out, &[x], move |g, sink| sink.add(0, repeat_to(&g, &to, &from, k)))
    }

    pub(super) fn mean_op(&self, x: &Var, axes: &[usize]) -> Var {
        let count: usize = axes.iter().map(|&a| x.shape()[a]).product();
        self.sum_op(x, axes, 1.0 / count as f32)
    }

    pub(super) fn expand_op(&self, x: &Var, shape: &[usize]) -> Var {
        let (from, to) = (x.shape().to_vec(), shape.to_vec());
        let out = repeat_to(x.data(), &from, &to, 1.0);
        self.outcome(shape, out, &[x], move |g, sink| sink.add(0, sum_to(&g, &to, &from)))
    }
}
