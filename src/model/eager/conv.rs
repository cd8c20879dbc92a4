//! Convolutions as matrix products: 1x1 directly, others over patches laid out as columns; transposed 2x2.

use rayon::prelude::*;

use super::buffer::Buf;
use super::gemm::{Bias, Mat, gemm};
use super::reduce::sum_to;
use super::{Eager, Var, depthwise};

/// The extents of one convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    pub n: usize,
    pub c: usize,
    pub h: usize,
    pub w: usize,
    pub o: usize,
    pub oh: usize,
    pub ow: usize,
    pub k: usize,
    pub stride: usize,
    pub pad: usize,
    pub groups: usize,
}

impl Conv {
    fn new(x: &[usize], w: &[usize], stride: usize, pad: usize, groups: usize) -> Self {
        let (&[n, c, h, wd], &[o, cg, k, k2]) = (x, w) else { panic!("conv2d of {x:?} by {w:?}") };
        let fits = k == k2 && groups > 0 && c == cg * groups && o % groups == 0;
        assert!(
            fits && h + 2 * pad >= k && wd + 2 * pad >= k && stride > 0,
            "conv2d of {x:?} by {w:?}, {groups} groups"
        );
        let out = |extent: usize| (extent + 2 * pad - k) / stride + 1;
        Conv { n, c, h, w: wd, o, oh: out(h), ow: out(wd), k, stride, pad, groups }
    }

    /// Values of one group's patch.
    fn patch(&self) -> usize {
        self.c / self.groups * self.k * self.k
    }

    /// Values of one output plane.
    fn plane(&self) -> usize {
        self.oh * self.ow
    }

    /// Whether the input planes already are the columns.
    fn pointwise(&self) -> bool {
        self.k == 1 && self.stride == 1 && self.pad == 0
    }

    /// Output positions along x whose sample under kernel column `kx` lies inside the input.
    fn inside(&self, kx: usize) -> std::ops::Range<usize> {
        let first = self.pad.saturating_sub(kx).div_ceil(self.stride);
        let end = (self.w + self.pad).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        first.min(end)..end
    }

    /// The input row under output row `oy` and kernel row `ky`.
    fn row(&self, oy: usize, ky: usize) -> Option<usize> {
        (oy * self.stride + ky).checked_sub(self.pad).filter(|&y| y < self.h)
    }

    /// Patches of `x` (the channels of one group of one image) as columns `[patch, plane]`.
    fn columns(&self, x: &[f32], out: &mut [f32]) {
        out.par_chunks_mut(self.plane()).enumerate().for_each(|(i, out)| {
            let (c, ky, kx) = (i / (self.k * self.k), i / self.k % self.k, i % self.k);
            let x = &x[c * self.h * self.w..(c + 1) * self.h * self.w];
            let inside = self.inside(kx);
            for (oy, out) in out.chunks_exact_mut(self.ow).enumerate() {
                let Some(y) = self.row(oy, ky).filter(|_| !inside.is_empty()) else {
                    out.fill(0.0);
                    continue;
                };
                let from = y * self.w + inside.start * self.stride + kx - self.pad;
                out[..inside.start].fill(0.0);
                out[inside.end..].fill(0.0);
                let out = &mut out[inside.clone()];
                if self.stride == 1 {
                    out.copy_from_slice(&x[from..from + out.len()]);
                } else {
                    for (o, &x) in out.iter_mut().zip(x[from..].iter().step_by(self.stride)) {
                        *o = x;
                    }
                }
            }
        });
    }

    /// Adds columns back onto the pixels they came from: the transpose of [`Conv::columns`].
    fn add_columns(&self, columns: &[f32], x: &mut [f32]) {
        let taps = self.k * self.k;
        x.par_chunks_mut(self.h * self.w).zip(columns.par_chunks(taps * self.plane())).for_each(|(x, columns)| {
            for (i, column) in columns.chunks_exact(self.plane()).enumerate() {
                let (ky, kx) = (i / self.k, i % self.k);
                let inside = self.inside(kx);
                if inside.is_empty() {
                    continue;
                }
                for (oy, g) in column.chunks_exact(self.ow).enumerate() {
                    let Some(y) = self.row(oy, ky) else { continue };
                    let from = y * self.w + inside.start * self.stride + kx - self.pad;
                    let g = &g[inside.clone()];
                    for (x, &g) in x[from..].iter_mut().step_by(self.stride).zip(g) {
                        *x += g;
                    }
                }
            }
        });
    }
}

impl Eager {
    pub(super) fn conv2d_op(&self, x: &Var, w: &Var, b: Option<&Var>, stride: usize, pad: usize, groups: usize) -> Var {
        let s = Conv::new(x.shape(), w.shape(), stride, pad, groups);
        if let Some(b) = b {
            assert_eq!(b.shape(), [s.o], "conv2d bias");
        }
        let depthwise = groups > 1 && s.groups == s.c && s.o == s.c;
        let shape = [s.n, s.o, s.oh, s.ow];
        let out = if depthwise {
            depthwise::forward(&s, x.data(), w.data(), b.map(Var::data))
        } else {
            forward(&s, x.data(), w.data(), b.map(Var::data))
        };
        let (xv, wv) = (x.value.clone(), w.value.clone());
        let mut inputs = vec![x, w];
        inputs.extend(b);
        self.outcome(&shape, out, &inputs, move |g, sink| {
            if depthwise {
                if sink.wants(0) {
                    sink.add(0, depthwise::input_gradient(&s, &g, &wv));
                }
                if sink.wants(1) {
                    sink.add(1, depthwise::weight_gradient(&s, &g, &xv));
                }
            } else {
                sink.emit(0, xv.len(), |dx, fresh| input_gradient(&s, &g, &wv, dx, fresh));
                sink.emit(1, wv.len(), |dw, fresh| weight_gradient(&s, &g, &xv, dw, fresh));
            }
            if sink.wants(2) {
                sink.add(2, sum_to(&g, &[s.n, s.o, s.plane()], &[s.o, 1]));
            }
        })
    }

    pub(super) fn conv_transpose2x2_op(&self, x: &Var, w: &Var, b: &Var) -> Var {
        let (&[n, c, h, wd], &[c2, o, 2, 2]) = (x.shape(), w.shape()) else {
            panic!("conv_transpose2x2 of {:?} by {:?}", x.shape(), w.shape())
        };
        assert!(c == c2 && b.shape() == [o], "conv_transpose2x2 of {:?} by {:?}", x.shape(), w.shape());
        let plane = h * wd;
        let mut out = Buf::stale(n * o * 4 * plane);
        let mut taps = Buf::stale(o * 4 * plane);
        for (x, out) in x.data().chunks_exact(c * plane).zip(out.chunks_exact_mut(o * 4 * plane)) {
            gemm(&mut taps, Mat::new(w.data(), c, o * 4).t(), Mat::new(x, c, plane), true, Bias::None);
            out.par_chunks_mut(4 * plane).zip(taps.par_chunks(4 * plane)).zip(b.data().par_iter()).for_each(
                |((out, taps), &b)| {
                    for (y, out) in out.chunks_exact_mut(2 * wd).enumerate() {
                        let row = |kx: usize| &taps[(y % 2 * 2 + kx) * plane + y / 2 * wd..][..wd];
                        let (even, odd) = (row(0), row(1));
                        for ((o, &e), &d) in out.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
                            *o = [e + b, d + b];
                        }
                    }
                },
            );
        }
        let (xv, wv) = (x.value.clone(), w.value.clone());
        self.outcome(&[n, o, 2 * h, 2 * wd], out, &[x, w, b], move |g, sink| {
            // The gradient laid out like the product's result, `[n, o * 4, plane]`.
            let mut taps = Buf::stale(n * o * 4 * plane);
            taps.par_chunks_mut(4 * plane).zip(g.par_chunks(4 * plane)).for_each(|(taps, g)| {
                for (y, g) in g.chunks_exact(2 * wd).enumerate() {
                    let at = y % 2 * 2 * plane + y / 2 * wd;
                    let (even, odd) = taps[at..].split_at_mut(plane);
                    for ((&[a, b], e), d) in g.as_chunks::<2>().0.iter().zip(even).zip(odd) {
                        *e = a;
                        *d = b;
                    }
                }
            });
            sink.emit(0, n * c * plane, |dx, fresh| {
                for (dx, taps) in dx.chunks_exact_mut(c * plane).zip(taps.chunks_exact(o * 4 * plane)) {
                    gemm(dx, Mat::new(&wv, c, o * 4), Mat::new(taps, o * 4, plane), fresh, Bias::None);
                }
            });
            sink.emit(1, c * o * 4, |dw, fresh| {
                for (i, (x, taps)) in xv.chunks_exact(c * plane).zip(taps.chunks_exact(o * 4 * plane)).enumerate() {
                    let (x, taps) = (Mat::new(x, c, plane), Mat::new(taps, o * 4, plane));
                    gemm(dw, x, taps.t(), fresh && i == 0, Bias::None);
                }
            });
            if sink.wants(2) {
                sink.add(2, sum_to(&g, &[n, o, 4 * plane], &[o, 1]));
            }
        })
    }
}

/// One group of one image: its number, channels of the input, values of the output.
fn each_group(s: &Conv, mut f: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
    let (inputs, outputs) = (s.c / s.groups * s.h * s.w, s.o / s.groups * s.plane());
    for i in 0..s.n * s.groups {
        f(i % s.groups, i * inputs..(i + 1) * inputs, i * outputs..(i + 1) * outputs);
    }
}

fn columns_buffer(s: &Conv) -> Buf {
    Buf::stale(if s.pointwise() { 0 } else { s.patch() * s.plane() })
}

fn forward(s: &Conv, x: &[f32], w: &[f32], b: Option<&[f32]>) -> Buf {
    let mut out = Buf::stale(s.n * s.o * s.plane());
    let mut columns = columns_buffer(s);
    let per_group = s.o / s.groups;
    each_group(s, |group, from, to| {
        let columns: &[f32] = if s.pointwise() {
            &x[from]
        } else {
            s.columns(&x[from], &mut columns);
            &columns
        };
        let w = Mat::new(&w[group * per_group * s.patch()..], per_group, s.patch());
        let bias = b.map_or(Bias::None, |b| Bias::PerRow(&b[group * per_group..(group + 1) * per_group]));
        gemm(&mut out[to], w, Mat::new(columns, s.patch(), s.plane()), true, bias);
    });
    out
}

fn input_gradient(s: &Conv, g: &[f32], w: &[f32], dx: &mut [f32], fresh: bool) {
    let mut columns = columns_buffer(s);
    let per_group = s.o / s.groups;
    each_group(s, |group, from, to| {
        let w = Mat::new(&w[group * per_group * s.patch()..], per_group, s.patch()).t();
        let g = Mat::new(&g[to], per_group, s.plane());
        if s.pointwise() {
            gemm(&mut dx[from], w, g, fresh, Bias::None);
        } else {
            gemm(&mut columns, w, g, true, Bias::None);
            let dx = &mut dx[from];
            if fresh {
                dx.fill(0.0);
            }
            s.add_columns(&columns, dx);
        }
    });
}

fn weight_gradient(s: &Conv, g: &[f32], x: &[f32], dw: &mut [f32], fresh: bool) {
    let mut columns = columns_buffer(s);
    let per_group = s.o / s.groups;
    let size = per_group * s.patch();
    let mut images = 0;
    each_group(s, |group, from, to| {
        let columns: &[f32] = if s.pointwise() {
            &x[from]
        } else {
            s.columns(&x[from], &mut columns);
            &columns
        };
        let g = Mat::new(&g[to], per_group, s.plane());
        let columns = Mat::new(columns, s.patch(), s.plane()).t();
        gemm(&mut dw[group * size..(group + 1) * size], g, columns, fresh && images < s.groups, Bias::None);
        images += 1;
    });
}
