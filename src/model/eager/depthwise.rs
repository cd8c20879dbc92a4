//! Depthwise convolution, directly: a plane is padded and split by remainder of row and column modulo the stride, so that every
//! tap of the kernel is one contiguous run over the whole plane.

use rayon::prelude::*;

use super::buffer::Buf;
use super::conv::Conv;
use super::simd::{self, CHUNK, wide};

/// Padded planes `[stride * stride][height][width]`: pixel `(y, x)` of the plane lies in the part of remainders
/// `((y + pad) % stride, (x + pad) % stride)`. Output `(oy, ox)` is at `oy * width + ox` of a run; columns past the output's
/// width are computed and thrown away.
struct Phases<'a> {
    s: &'a Conv,
    height: usize,
    width: usize,
    data: Buf,
    /// A run: outputs, or gradients with zeros past the output's width.
    run: Buf,
}

impl<'a> Phases<'a> {
    fn new(s: &'a Conv) -> Self {
        let extra = (s.k - 1) / s.stride;
        let (height, width) = (s.oh + extra, s.ow + extra);
        // Runs of the last row may read past the last part's end, by less than a row.
        let data = Buf::zeros(s.stride * s.stride * height * width + width);
        Phases { s, height, width, data, run: Buf::zeros(s.oh * width) }
    }

    /// For each plane row that a tap can reach: its number and where its pixels of column remainder 0, 1, .. go:
    /// (first plane column, offset, count).
    #[inline(always)]
    fn rows(&self, phase: usize) -> (usize, usize, usize) {
        let Conv { w, stride, pad, .. } = *self.s;
        let first = pad.saturating_sub(phase).div_ceil(stride);
        let start = first * stride + phase - pad;
        let count = if start < w { (w - start).div_ceil(stride) } else { 0 };
        (start, first, count.min(self.width.saturating_sub(first)))
    }

    /// Offset of plane row `y` in the part of a column phase, if a tap can reach it.
    #[inline(always)]
    fn row(&self, y: usize, phase: usize) -> Option<usize> {
        let (padded, stride) = (y + self.s.pad, self.s.stride);
        let part = padded % stride * stride + phase;
        (padded / stride < self.height).then(|| (part * self.height + padded / stride) * self.width)
    }

    /// Copies a plane in; the padding keeps its zeros.
    #[inline(always)]
    fn load(&mut self, x: &[f32]) {
        let Conv { h, w, stride, .. } = *self.s;
        for phase in 0..stride {
            let (start, first, count) = self.rows(phase);
            if count == 0 {
                continue;
            }
            for y in 0..h {
                let Some(at) = self.row(y, phase) else { continue };
                let x = &x[y * w + start..(y + 1) * w];
                let to = &mut self.data[at + first..at + first + count];
                match stride {
                    1 => to.copy_from_slice(&x[..count]),
                    2 => every_second(to, x),
                    _ => to.iter_mut().zip(x.iter().step_by(stride)).for_each(|(o, &x)| *o = x),
                }
            }
        }
    }

    /// Copies the plane out, without the padding. Pixels that no tap reaches get 0.
    #[inline(always)]
    fn store(&self, x: &mut [f32]) {
        let Conv { h, w, stride, .. } = *self.s;
        x.fill(0.0);
        for phase in 0..stride {
            let (start, first, count) = self.rows(phase);
            if count == 0 {
                continue;
            }
            for y in 0..h {
                let Some(at) = self.row(y, phase) else { continue };
                let from = &self.data[at + first..at + first + count];
                x[y * w + start..(y + 1) * w].iter_mut().step_by(stride).zip(from).for_each(|(o, &v)| *o = v);
            }
        }
    }

    /// Offset of a tap's run.
    #[inline(always)]
    fn tap(&self, t: usize) -> usize {
        let Conv { k, stride, .. } = *self.s;
        let (ky, kx) = (t / k, t % k);
        let part = ky % stride * stride + kx % stride;
        (part * self.height + ky / stride) * self.width + kx / stride
    }

    /// Spreads output rows (a gradient) to the run's pitch.
    #[inline(always)]
    fn load_run(&mut self, g: &[f32]) {
        for (run, g) in self.run.chunks_exact_mut(self.width).zip(g.chunks_exact(self.s.ow)) {
            run[..g.len()].copy_from_slice(g);
        }
    }

    /// One plane's convolution, from the parts by way of the run.
    #[inline(always)]
    fn convolve(&mut self, w: &[f32], bias: f32, out: &mut [f32]) {
        let len = self.run.len();
        if let &[w0, w1, w2, w3, w4, w5, w6, w7, w8] = w {
            let at: [usize; 9] = std::array::from_fn(|t| self.tap(t));
            let [a, b, c, d, e, f, g, h, i] = at.map(|at| &self.data[at..at + len]);
            let top = a.iter().zip(b).zip(c).zip(d).zip(e);
            let rest = f.iter().zip(g).zip(h).zip(i);
            for ((o, ((((a, b), c), d), e)), (((f, g), h), i)) in self.run.iter_mut().zip(top).zip(rest) {
                *o = ((w0 * a + w1 * b + w2 * c) + (w3 * d + w4 * e + w5 * f)) + ((w6 * g + w7 * h + w8 * i) + bias);
            }
        } else {
            self.run.fill(bias);
            for (t, &w) in w.iter().enumerate() {
                let at = self.tap(t);
                simd::axpy(&mut self.run, w, &self.data[at..at + len]);
            }
        }
        for (out, run) in out.chunks_exact_mut(self.s.ow).zip(self.run.chunks_exact(self.width)) {
            out.copy_from_slice(&run[..out.len()]);
        }
    }
}

#[inline(always)]
fn every_second(to: &mut [f32], x: &[f32]) {
    let (pairs, rest) = x.as_chunks::<2>();
    let (last, count) = (rest.first(), to.len());
    for (o, pair) in to.iter_mut().zip(pairs) {
        *o = pair[0];
    }
    if let (true, Some(&last)) = (pairs.len() < count, last) {
        to[count - 1] = last;
    }
}

/// Calls `f(phases, number, plane)` for the planes of `size` values in `out`, several to a task, at full vector width.
fn planes(s: &Conv, out: &mut [f32], size: usize, f: impl Fn(&mut Phases<'_>, usize, &mut [f32]) + Sync) {
    let each = (CHUNK / (s.h * s.w).max(1)).max(1);
    out.par_chunks_mut(each * size).enumerate().for_each(|(piece, out)| {
        let mut p = Phases::new(s);
        wide(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(size).enumerate() {
                    f(&mut p, piece * each + i, out);
                }
            },
        );
    });
}

pub(super) fn forward(s: &Conv, x: &[f32], w: &[f32], b: Option<&[f32]>) -> Buf {
    let (plane, taps) = (s.h * s.w, s.k * s.k);
    let mut out = Buf::stale(s.n * s.o * s.oh * s.ow);
    planes(
        s,
        &mut out,
        s.oh * s.ow,
        #[inline(always)]
        |p, i, out| {
            let c = i % s.c;
            p.load(&x[i * plane..(i + 1) * plane]);
            p.convolve(&w[c * taps..(c + 1) * taps], b.map_or(0.0, |b| b[c]), out);
        },
    );
    out
}

pub(super) fn input_gradient(s: &Conv, g: &[f32], w: &[f32]) -> Buf {
    let (out_plane, taps) = (s.oh * s.ow, s.k * s.k);
    if s.stride == 1 && s.pad < s.k {
        // A convolution of the gradient with the mirrored kernel.
        let back = Conv { h: s.oh, w: s.ow, oh: s.h, ow: s.w, pad: s.k - 1 - s.pad, ..*s };
        let mirrored: Vec<f32> = w.chunks_exact(taps).flat_map(|w| w.iter().rev().copied()).collect();
        return forward(&back, g, &mirrored, None);
    }
    let mut dx = Buf::stale(s.n * s.c * s.h * s.w);
    planes(
        s,
        &mut dx,
        s.h * s.w,
        #[inline(always)]
        |p, i, dx| {
            p.load_run(&g[i * out_plane..(i + 1) * out_plane]);
            p.data.fill(0.0);
            for (t, &w) in w[i % s.c * taps..][..taps].iter().enumerate() {
                let at = p.tap(t);
                let len = p.run.len();
                simd::axpy(&mut p.data[at..at + len], w, &p.run);
            }
            p.store(dx);
        },
    );
    dx
}

pub(super) fn weight_gradient(s: &Conv, g: &[f32], x: &[f32]) -> Buf {
    let (plane, out_plane, taps) = (s.h * s.w, s.oh * s.ow, s.k * s.k);
    let mut dw = Buf::zeros(s.c * taps);
    planes(
        s,
        &mut dw,
        taps,
        #[inline(always)]
        |p, c, dw| {
            for i in (c..s.n * s.c).step_by(s.c) {
                p.load(&x[i * plane..(i + 1) * plane]);
                p.load_run(&g[i * out_plane..(i + 1) * out_plane]);
                for (t, dw) in dw.iter_mut().enumerate() {
                    let at = p.tap(t);
                    *dw += simd::dot(&p.data[at..at + p.run.len()], &p.run);
                }
            }
        },
    );
    dw
}
