//! Softmax and layer normalisation over the last axis.

use std::sync::Arc;

use rayon::prelude::*;

use super::buffer::Buf;
use super::reduce::sum_rows;
use super::simd::{self, exp, map2, pieces, rows_per_piece, wide};
use super::{Eager, Var};

fn last(shape: &[usize]) -> usize {
    match shape.last() {
        Some(&n) if n > 0 => n,
        _ => panic!("no last axis in {shape:?}"),
    }
}

impl Eager {
    pub(super) fn softmax_op(&self, x: &Var) -> Var {
        let width = last(x.shape());
        let mut out = Buf::stale(x.data().len());
        let piece = rows_per_piece(width) * width;
        pieces(&mut out, piece, |start, out| {
            let x = &x.data()[start..start + out.len()];
            wide(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let top = simd::max(x);
                        for (o, &x) in out.iter_mut().zip(x) {
                            *o = x - top;
                        }
                    }
                    // Over all rows at once: short rows would waste most of the vector.
                    for o in out.iter_mut() {
                        *o = exp(*o);
                    }
                    for out in out.chunks_exact_mut(width) {
                        let k = 1.0 / simd::sum(out);
                        for o in out {
                            *o *= k;
                        }
                    }
                },
            );
        });
        let out = Arc::new(out);
        let y = out.clone();
        self.outcome(x.shape(), out, &[x], move |g, sink| {
            let mut dx = Buf::stale(g.len());
            pieces(&mut dx, piece, |start, dx| {
                let (g, y) = (&g[start..start + dx.len()], &y[start..start + dx.len()]);
                wide(
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(width).zip(g.chunks_exact(width)).zip(y.chunks_exact(width));
                        for ((dx, g), y) in rows {
                            let s = simd::dot(g, y);
                            for ((d, &g), &y) in dx.iter_mut().zip(g).zip(y) {
                                *d = simd::or_nothing(y * (g - s));
                            }
                        }
                    },
                );
            });
            sink.add(0, dx);
        })
    }

    pub(super) fn layer_norm_op(&self, x: &Var, gain: &Var, bias: &Var, eps: f32) -> Var {
        let width = last(x.shape());
        assert!(gain.shape() == [width] && bias.shape() == [width], "layer_norm of {:?}", x.shape());
        // The normalised values are what the backward pass needs, with each row's scale.
        let rows = x.data().len() / width;
        let mut hat = Buf::stale(rows * width);
        let mut scale = Buf::stale(rows);
        let per_piece = rows_per_piece(width);
        hat.par_chunks_mut(per_piece * width)
            .zip(scale.par_chunks_mut(per_piece))
            .zip(x.data().par_chunks(per_piece * width))
            .for_each(|((hat, scale), x)| {
                wide(
                    #[inline(always)]
                    || {
                        let rows = hat.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(scale);
                        for ((hat, x), scale) in rows {
                            let mean = simd::sum(x) / width as f32;
                            for (h, &x) in hat.iter_mut().zip(x) {
                                *h = x - mean;
                            }
                            let k = 1.0 / (simd::dot(hat, hat) / width as f32 + eps).sqrt();
                            for h in hat {
                                *h *= k;
                            }
                            *scale = k;
                        }
                    },
                );
            });
        let mut out = Buf::stale(rows * width);
        let (gain_v, hat) = (gain.value.clone(), Arc::new(hat));
        pieces(&mut out, per_piece * width, |start, out| {
            let hat = &hat[start..start + out.len()];
            let (gain, bias) = (gain.data(), bias.data());
            wide(
                #[inline(always)]
                || {
                    for (out, hat) in out.chunks_exact_mut(width).zip(hat.chunks_exact(width)) {
                        for (((o, &h), &g), &b) in out.iter_mut().zip(hat).zip(gain).zip(bias) {
                            *o = h * g + b;
                        }
                    }
                },
            );
        });
        self.outcome(x.shape(), out, &[x, gain, bias], move |g, sink| {
            if sink.wants(1) {
                sink.add(1, sum_rows(&map2(&g, &hat, |g, h| g * h), width));
            }
            if sink.wants(2) {
                sink.add(2, sum_rows(&g, width));
            }
            if !sink.wants(0) {
                return;
            }
            let mut dx = Buf::stale(g.len());
            pieces(&mut dx, per_piece * width, |start, dx| {
                let (g, hat) = (&g[start..start + dx.len()], &hat[start..start + dx.len()]);
                let scale = &scale[start / width..];
                let gain = &gain_v[..width];
                wide(
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(width).zip(g.chunks_exact(width)).zip(hat.chunks_exact(width));
                        for (((dx, g), hat), &k) in rows.zip(scale) {
                            for ((d, &g), &w) in dx.iter_mut().zip(g).zip(gain) {
                                *d = g * w;
                            }
                            let mean = simd::sum(dx) / width as f32;
                            let along = simd::dot(dx, hat) / width as f32;
                            for (d, &h) in dx.iter_mut().zip(hat) {
                                *d = k * (*d - mean - h * along);
                            }
                        }
                    },
                );
            });
            sink.add(0, dx);
        })
    }
}
