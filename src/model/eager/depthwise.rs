//! Depthwise convolution, directly: planes are padded once and split by column phase, so that every tap is a contiguous run.

use rayon::prelude::*;

use super::buffer::Buf;
use super::conv::Conv;
use super::simd::{self, CHUNK, wide};

/// A padded plane, its columns sorted by remainder modulo the stride: `[row][phase][column]`.
struct Phases {
    stride: usize,
    pad: usize,
    /// Columns per phase.
    width: usize,
    rows: usize,
    data: Buf,
}

impl Phases {
    fn new(s: &Conv) -> Self {
        let width = s.ow + (s.k - 1) / s.stride;
        let rows = (s.oh - 1) * s.stride + s.k;
        Phases { stride: s.stride, pad: s.pad, width, rows, data: Buf::zeros(rows * s.stride * width) }
    }

    /// Rows of the padded plane that hold rows `0..h` of the plane, as far as any tap reaches them.
    fn inner_rows(&self, h: usize) -> std::ops::Range<usize> {
        self.pad.min(self.rows)..(self.pad + h).min(self.rows)
    }

    /// Plane columns of a phase: (first padded column holding one, first plane column, count).
    fn inner_columns(&self, phase: usize, w: usize) -> (usize, usize, usize) {
        let first = self.pad.saturating_sub(phase).div_ceil(self.stride);
        let start = first * self.stride + phase - self.pad;
        let count = if start < w { (w - start).div_ceil(self.stride) } else { 0 };
        (first, start, count.min(self.width.saturating_sub(first)))
    }

    /// Copies a plane in; the padding keeps its zeros.
    fn load(&mut self, x: &[f32], h: usize, w: usize) {
        for row in self.inner_rows(h) {
            let x = &x[(row - self.pad) * w..(row - self.pad + 1) * w];
            for phase in 0..self.stride {
                let (first, start, count) = self.inner_columns(phase, w);
                let at = (row * self.stride + phase) * self.width + first;
                let to = &mut self.data[at..at + count];
                match self.stride {
                    _ if count == 0 => {}
                    1 => to.copy_from_slice(&x[start..start + count]),
                    2 => phase_of_two(to, &x[start..]),
                    stride => to.iter_mut().zip(x[start..].iter().step_by(stride)).for_each(|(o, &x)| *o = x),
                }
            }
        }
    }

    /// Copies the plane out, without the padding. Pixels that no tap reaches get 0.
    fn store(&self, x: &mut [f32], h: usize, w: usize) {
        x.fill(0.0);
        for row in self.inner_rows(h) {
            let x = &mut x[(row - self.pad) * w..(row - self.pad + 1) * w];
            for phase in 0..self.stride {
                let (first, start, count) = self.inner_columns(phase, w);
                if count == 0 {
                    continue;
                }
                let at = (row * self.stride + phase) * self.width + first;
                let from = &self.data[at..at + count];
                x[start..].iter_mut().step_by(self.stride).zip(from).for_each(|(o, &x)| *o = x);
            }
        }
    }

    /// Offset of the run under output row `oy` and tap `(ky, kx)`.
    #[inline(always)]
    fn run(&self, oy: usize, ky: usize, kx: usize) -> usize {
        ((oy * self.stride + ky) * self.stride + kx % self.stride) * self.width + kx / self.stride
    }
}

#[inline(always)]
fn phase_of_two(to: &mut [f32], x: &[f32]) {
    let (pairs, rest) = x.as_chunks::<2>();
    let count = to.len();
    for (o, pair) in to.iter_mut().zip(pairs) {
        *o = pair[0];
    }
    if pairs.len() < count {
        to[count - 1] = rest[0];
    }
}

/// Planes per parallel piece.
fn planes_per_piece(s: &Conv) -> usize {
    (CHUNK / (s.h * s.w)).max(1)
}

/// One plane's convolution from its padded phases.
#[inline(always)]
fn convolve(s: &Conv, p: &Phases, w: &[f32], bias: f32, out: &mut [f32]) {
    let ow = s.ow;
    if s.k == 3 {
        for (oy, out) in out.chunks_exact_mut(ow).enumerate() {
            let [a, b, c, d, e, f, g, h, i]: [&[f32]; 9] = std::array::from_fn(|t| {
                let at = p.run(oy, t / 3, t % 3);
                &p.data[at..at + ow]
            });
            for x in 0..ow {
                let top = w[0] * a[x] + w[1] * b[x] + w[2] * c[x];
                let middle = w[3] * d[x] + w[4] * e[x] + w[5] * f[x];
                let bottom = w[6] * g[x] + w[7] * h[x] + w[8] * i[x];
                out[x] = (top + middle) + (bottom + bias);
            }
        }
        return;
    }
    out.fill(bias);
    for (oy, out) in out.chunks_exact_mut(ow).enumerate() {
        for (t, &w) in w.iter().enumerate() {
            let at = p.run(oy, t / s.k, t % s.k);
            simd::axpy(out, w, &p.data[at..at + ow]);
        }
    }
}

pub(super) fn forward(s: &Conv, x: &[f32], w: &[f32], b: Option<&[f32]>) -> Buf {
    let (plane, out_plane, taps) = (s.h * s.w, s.oh * s.ow, s.k * s.k);
    let mut out = Buf::stale(s.n * s.o * out_plane);
    let each = planes_per_piece(s);
    out.par_chunks_mut(each * out_plane).enumerate().for_each(|(piece, out)| {
        let mut p = Phases::new(s);
        wide(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(out_plane).enumerate() {
                    let i = piece * each + i;
                    let c = i % s.c;
                    p.load(&x[i * plane..(i + 1) * plane], s.h, s.w);
                    convolve(s, &p, &w[c * taps..(c + 1) * taps], b.map_or(0.0, |b| b[c]), out);
                }
            },
        );
    });
    out
}

pub(super) fn input_gradient(s: &Conv, g: &[f32], w: &[f32]) -> Buf {
    let (plane, out_plane, taps) = (s.h * s.w, s.oh * s.ow, s.k * s.k);
    if s.stride == 1 && s.pad < s.k {
        // A convolution of the gradient with the mirrored kernel.
        let back = Conv { h: s.oh, w: s.ow, oh: s.h, ow: s.w, pad: s.k - 1 - s.pad, ..*s };
        let mirrored: Vec<f32> = w.chunks_exact(taps).flat_map(|w| w.iter().rev().copied()).collect();
        return forward(&back, g, &mirrored, None);
    }
    let mut dx = Buf::stale(s.n * s.c * plane);
    let each = planes_per_piece(s);
    dx.par_chunks_mut(each * plane).enumerate().for_each(|(piece, dx)| {
        let mut p = Phases::new(s);
        wide(
            #[inline(always)]
            || {
                for (i, dx) in dx.chunks_exact_mut(plane).enumerate() {
                    let i = piece * each + i;
                    let w = &w[i % s.c * taps..][..taps];
                    p.data.fill(0.0);
                    for (oy, g) in g[i * out_plane..(i + 1) * out_plane].chunks_exact(s.ow).enumerate() {
                        for (t, &w) in w.iter().enumerate() {
                            let at = p.run(oy, t / s.k, t % s.k);
                            simd::axpy(&mut p.data[at..at + s.ow], w, g);
                        }
                    }
                    p.store(dx, s.h, s.w);
                }
            },
        );
    });
    dx
}

pub(super) fn weight_gradient(s: &Conv, g: &[f32], x: &[f32]) -> Buf {
    let (plane, out_plane, taps) = (s.h * s.w, s.oh * s.ow, s.k * s.k);
    let mut dw = Buf::zeros(s.c * taps);
    dw.par_chunks_mut(taps).enumerate().for_each(|(c, dw)| {
        let mut p = Phases::new(s);
        for n in 0..s.n {
            let i = n * s.c + c;
            p.load(&x[i * plane..(i + 1) * plane], s.h, s.w);
            wide(
                #[inline(always)]
                || {
                    for (oy, g) in g[i * out_plane..(i + 1) * out_plane].chunks_exact(s.ow).enumerate() {
                        for (t, dw) in dw.iter_mut().enumerate() {
                            let at = p.run(oy, t / s.k, t % s.k);
                            *dw += simd::dot(&p.data[at..at + s.ow], g);
                        }
                    }
                },
            );
        }
    });
    dw
}
