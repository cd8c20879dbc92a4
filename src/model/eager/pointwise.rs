//! Arithmetic with broadcasting, and functions of one value.

use std::sync::Arc;

use super::buffer::Buf;
use super::reduce::sum_to;
use super::shape::{Axes, broadcast, strides_as};
use super::simd::{self, CHUNK, erf_and_gauss, exp, map, map2, or_nothing, pieces, rows_per_piece, sigmoid, wide};
use super::{Eager, Var};

/// `f` over pairs of values with NumPy broadcasting, into `shape`, the common shape.
fn zip(
    x: &[f32],
    xs: &[usize],
    y: &[f32],
    ys: &[usize],
    shape: &[usize],
    f: impl Fn(f32, f32) -> f32 + Sync + Copy,
) -> Buf {
    let len = shape.iter().product::<usize>();
    if x.len() == len && y.len() == len {
        return map2(x, y, f);
    }
    let (sx, sy) = (strides_as(xs, shape), strides_as(ys, shape));
    let axes = Axes::merged(shape, [&sx, &sy]);
    let inner = axes.inner();
    let [ix, iy] = axes.inner_strides();
    let mut out = Buf::stale(len);
    if axes.dims.len() == 1 {
        // One of the two is a single value.
        pieces(&mut out, CHUNK, |start, out| {
            zip_row(out, &x[start * ix..], ix, &y[start * iy..], iy, f);
        });
        return out;
    }
    pieces(&mut out, rows_per_piece(inner) * inner, |start, out| {
        let mut chunks = out.chunks_exact_mut(inner);
        let count = chunks.len();
        axes.for_rows(start / inner, count, |[ox, oy]| {
            if let Some(out) = chunks.next() {
                zip_row(out, &x[ox..], ix, &y[oy..], iy, f);
            }
        });
    });
    out
}

#[inline]
fn zip_row(out: &mut [f32], x: &[f32], ix: usize, y: &[f32], iy: usize, f: impl Fn(f32, f32) -> f32 + Copy) {
    wide(
        #[inline(always)]
        || match (ix, iy) {
            (0, 0) => out.fill(f(x[0], y[0])),
            (0, _) => {
                let x = x[0];
                for (o, &y) in out.iter_mut().zip(y) {
                    *o = f(x, y);
                }
            }
            (_, 0) => {
                let y = y[0];
                for (o, &x) in out.iter_mut().zip(x) {
                    *o = f(x, y);
                }
            }
            _ => {
                for ((o, &x), &y) in out.iter_mut().zip(x).zip(y) {
                    *o = f(x, y);
                }
            }
        },
    );
}

/// A gradient of the common shape as the gradient of an operand.
fn onto(g: Arc<Buf>, from: &[usize], to: &[usize]) -> Arc<Buf> {
    if g.len() == to.iter().product::<usize>() { g } else { Arc::new(sum_to(&g, from, to)) }
}

/// The operands of a broadcast operation, as its backward pass needs them.
struct Pair {
    x: Arc<Buf>,
    y: Arc<Buf>,
    xs: Vec<usize>,
    ys: Vec<usize>,
    shape: Vec<usize>,
}

impl Pair {
    fn new(a: &Var, b: &Var) -> Self {
        Pair {
            x: a.value.clone(),
            y: b.value.clone(),
            xs: a.shape().to_vec(),
            ys: b.shape().to_vec(),
            shape: broadcast(a.shape(), b.shape()),
        }
    }

    fn zip(&self, f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Buf {
        zip(&self.x, &self.xs, &self.y, &self.ys, &self.shape, f)
    }

    /// `f(g, other operand)` in the common shape.
    fn with_x(&self, g: &[f32], f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Buf {
        zip(g, &self.shape, &self.x, &self.xs, &self.shape, f)
    }

    fn with_y(&self, g: &[f32], f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Buf {
        zip(g, &self.shape, &self.y, &self.ys, &self.shape, f)
    }
}

impl Eager {
    /// `a + sign * b`.
    pub(super) fn add_op(&self, a: &Var, b: &Var, sign: f32) -> Var {
        let pair = Pair::new(a, b);
        let out = if sign == 1.0 { pair.zip(|x, y| x + y) } else { pair.zip(|x, y| x - y) };
        let Pair { xs, ys, shape, .. } = pair;
        self.outcome(&shape.clone(), out, &[a, b], move |g, sink| {
            if sink.wants(1) {
                let db = onto(g.clone(), &shape, &ys);
                sink.add(1, if sign == 1.0 { db } else { Arc::new(map(&db, |g| -g)) });
            }
            if sink.wants(0) {
                sink.add(0, onto(g, &shape, &xs));
            }
        })
    }

    pub(super) fn mul_op(&self, a: &Var, b: &Var) -> Var {
        let pair = Pair::new(a, b);
        self.outcome(&pair.shape.clone(), pair.zip(|x, y| x * y), &[a, b], move |g, sink| {
            if sink.wants(0) {
                sink.add(0, onto(Arc::new(pair.with_y(&g, |g, y| g * y)), &pair.shape, &pair.xs));
            }
            if sink.wants(1) {
                sink.add(1, onto(Arc::new(pair.with_x(&g, |g, x| g * x)), &pair.shape, &pair.ys));
            }
        })
    }

    pub(super) fn div_op(&self, a: &Var, b: &Var) -> Var {
        let pair = Pair::new(a, b);
        self.outcome(&pair.shape.clone(), pair.zip(|x, y| x / y), &[a, b], move |g, sink| {
            let by_y = pair.with_y(&g, |g, y| g / y);
            if sink.wants(1) {
                let quotient = pair.zip(|x, y| x / y);
                sink.add(1, onto(Arc::new(map2(&by_y, &quotient, |g, q| -g * q)), &pair.shape, &pair.ys));
            }
            if sink.wants(0) {
                sink.add(0, onto(Arc::new(by_y), &pair.shape, &pair.xs));
            }
        })
    }

    /// A function of each value and its derivative as a function of upstream gradient and input.
    pub(super) fn unary(
        &self,
        x: &Var,
        f: impl Fn(f32) -> f32 + Sync + Copy,
        back: impl Fn(f32, f32) -> f32 + Send + Sync + Copy + 'static,
    ) -> Var {
        let xv = x.value.clone();
        self.outcome(x.shape(), map(x.data(), f), &[x], move |g, sink| sink.add(0, map2(&g, &xv, back)))
    }

    /// Like [`Eager::unary`], with the derivative given by the outcome: the input need not be kept.
    fn unary_by_outcome(
        &self,
        x: &Var,
        f: impl Fn(f32) -> f32 + Sync + Copy,
        back: impl Fn(f32, f32) -> f32 + Send + Sync + Copy + 'static,
    ) -> Var {
        let out = Arc::new(map(x.data(), f));
        let y = out.clone();
        self.outcome(x.shape(), out, &[x], move |g, sink| sink.add(0, map2(&g, &y, back)))
    }

    pub(super) fn scale_op(&self, x: &Var, k: f32) -> Var {
        self.outcome(x.shape(), map(x.data(), |x| x * k), &[x], move |g, sink| sink.add(0, map(&g, |g| g * k)))
    }

    pub(super) fn offset_op(&self, x: &Var, k: f32) -> Var {
        self.outcome(x.shape(), map(x.data(), |x| x + k), &[x], move |g, sink| sink.add(0, g))
    }

    pub(super) fn gelu_op(&self, x: &Var) -> Var {
        const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2 pi)
        self.unary(
            x,
            #[inline(always)]
            |x| 0.5 * x * (1.0 + erf_and_gauss(x).0),
            #[inline(always)]
            |g, x| {
                let (erf, gauss) = erf_and_gauss(x);
                or_nothing(g * (0.5 * (1.0 + erf) + x * gauss * DENSITY))
            },
        )
    }

    pub(super) fn relu_op(&self, x: &Var) -> Var {
        self.unary_by_outcome(x, |x| if x > 0.0 { x } else { 0.0 }, |g, y| if y > 0.0 { g } else { 0.0 })
    }

    pub(super) fn sigmoid_op(&self, x: &Var) -> Var {
        self.unary_by_outcome(
            x,
            sigmoid,
            #[inline(always)]
            |g, y| or_nothing(g * y * (1.0 - y)),
        )
    }

    pub(super) fn sin_op(&self, x: &Var) -> Var {
        self.unary(x, f32::sin, |g, x| g * x.cos())
    }

    pub(super) fn cos_op(&self, x: &Var) -> Var {
        self.unary(x, f32::cos, |g, x| -g * x.sin())
    }

    pub(super) fn log_op(&self, x: &Var) -> Var {
        self.unary(x, f32::ln, |g, x| g / x)
    }

    /// e^x.
    pub fn exp(&self, x: &Var) -> Var {
        self.unary_by_outcome(x, exp, |g, y| g * y)
    }

    /// Square root; the gradient at 0 is that at the smallest normal number.
    pub fn sqrt(&self, x: &Var) -> Var {
        self.unary_by_outcome(x, f32::sqrt, |g, y| 0.5 * g / y.max(1e-19))
    }

    /// ln(1 + e^x), without overflow.
    pub fn softplus(&self, x: &Var) -> Var {
        self.unary(
            x,
            |x| x.max(0.0) + (-x.abs()).exp().ln_1p(),
            #[inline(always)]
            |g, x| g * simd::sigmoid(x),
        )
    }
}
