//! Bilinear resizing with half-pixel centres, and its transpose.

use super::buffer::Buf;
use super::simd::{self, CHUNK, pieces, wide};
use super::{Eager, Var};

/// For each output position: lower and upper sample and the upper one's weight.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let ratio = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let at = ((i as f32 + 0.5) * ratio - 0.5).max(0.0);
            let low = (at as usize).min(from - 1);
            (low, (low + 1).min(from - 1), at - low as f32)
        })
        .collect()
}

impl Eager {
    pub(super) fn resize_bilinear_op(&self, x: &Var, height: usize, width: usize) -> Var {
        let mut shape = x.shape().to_vec();
        let rank = shape.len();
        assert!(rank >= 2, "resize of {shape:?}");
        let (h, w) = (shape[rank - 2], shape[rank - 1]);
        (shape[rank - 2], shape[rank - 1]) = (height, width);
        let planes: usize = shape[..rank - 2].iter().product();
        let (rows, columns) = (taps(h, height), taps(w, width));
        let mut out = Buf::stale(planes * height * width);
        let data = x.data();
        pieces(&mut out, (CHUNK / (height * width)).max(1) * height * width, |start, out| {
            let mut row = vec![0.0; w];
            let first = start / (height * width);
            for (x, out) in data[first * h * w..].chunks_exact(h * w).zip(out.chunks_exact_mut(height * width)) {
                for (out, &(y0, y1, t)) in out.chunks_exact_mut(width).zip(&rows) {
                    let (low, high) = (&x[y0 * w..(y0 + 1) * w], &x[y1 * w..(y1 + 1) * w]);
                    wide(
                        #[inline(always)]
                        || {
                            for ((r, &a), &b) in row.iter_mut().zip(low).zip(high) {
                                *r = a + t * (b - a);
                            }
                        },
                    );
                    for (o, &(x0, x1, t)) in out.iter_mut().zip(&columns) {
                        *o = row[x0] + t * (row[x1] - row[x0]);
                    }
                }
            }
        });
        self.outcome(&shape, out, &[x], move |g, sink| {
            let mut dx = Buf::zeros(planes * h * w);
            pieces(&mut dx, (CHUNK / (height * width)).max(1) * h * w, |start, dx| {
                let mut row = vec![0.0; w];
                let first = start / (h * w);
                let g = &g[first * height * width..];
                for (dx, g) in dx.chunks_exact_mut(h * w).zip(g.chunks_exact(height * width)) {
                    for (g, &(y0, y1, t)) in g.chunks_exact(width).zip(&rows) {
                        row.fill(0.0);
                        for (&g, &(x0, x1, t)) in g.iter().zip(&columns) {
                            row[x0] += (1.0 - t) * g;
                            row[x1] += t * g;
                        }
                        simd::axpy(&mut dx[y0 * w..(y0 + 1) * w], 1.0 - t, &row);
                        simd::axpy(&mut dx[y1 * w..(y1 + 1) * w], t, &row);
                    }
                }
            });
            sink.add(0, dx);
        })
    }
}
