//! Plain loops at full vector width, threads above a size, and the few functions that vectorise only when written for it.

use rayon::prelude::*;
use rten_simd::{Isa, SimdOp};

use super::buffer::Buf;

/// Values per parallel piece. Fixed, so that results never depend on the number of threads.
pub(super) const CHUNK: usize = 16 * 1024;

/// Runs `f` compiled for the widest vector unit of this machine (AVX-512, AVX2, NEON).
/// `f` and what it calls must be `#[inline(always)]` to be compiled for it.
#[inline]
pub(super) fn wide<R>(f: impl FnOnce() -> R) -> R {
    struct Plain<F>(F);
    impl<R, F: FnOnce() -> R> SimdOp for Plain<F> {
        type Output = R;
        #[inline(always)]
        fn eval<I: Isa>(self, _: I) -> R {
            (self.0)()
        }
    }
    Plain(f).dispatch()
}

/// Calls `f(start, piece)` for pieces of `out` of at most `piece` values, in parallel when there are several.
pub(super) fn pieces(out: &mut [f32], piece: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let piece = piece.max(1);
    if out.len() <= piece {
        f(0, out);
    } else {
        out.par_chunks_mut(piece).enumerate().for_each(|(i, chunk)| f(i * piece, chunk));
    }
}

/// Rows per parallel piece for rows of `width` values.
pub(super) fn rows_per_piece(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// `f` of every value.
pub(super) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync + Copy) -> Buf {
    let mut out = Buf::stale(x.len());
    pieces(&mut out, CHUNK, |start, out| {
        let x = &x[start..start + out.len()];
        wide(
            #[inline(always)]
            || {
                for (o, &x) in out.iter_mut().zip(x) {
                    *o = f(x);
                }
            },
        );
    });
    out
}

/// `f` of every pair of values.
pub(super) fn map2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Buf {
    debug_assert_eq!(x.len(), y.len());
    let mut out = Buf::stale(x.len());
    pieces(&mut out, CHUNK, |start, out| {
        let (x, y) = (&x[start..start + out.len()], &y[start..start + out.len()]);
        wide(
            #[inline(always)]
            || {
                for ((o, &x), &y) in out.iter_mut().zip(x).zip(y) {
                    *o = f(x, y);
                }
            },
        );
    });
    out
}

/// `out += x`.
pub(super) fn add_assign(out: &mut [f32], x: &[f32]) {
    debug_assert_eq!(x.len(), out.len());
    pieces(out, CHUNK, |start, out| {
        let x = &x[start..start + out.len()];
        wide(
            #[inline(always)]
            || axpy(out, 1.0, x),
        );
    });
}

/// `out += k * x`.
#[inline(always)]
pub(super) fn axpy(out: &mut [f32], k: f32, x: &[f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o += k * x;
    }
}

const LANES: usize = 32;

#[inline(always)]
fn fold_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// Sum in a fixed order of lanes.
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    if x.len() < LANES {
        return x.iter().sum();
    }
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += block[i];
        }
    }
    for (l, &x) in lanes.iter_mut().zip(rest) {
        *l += x;
    }
    fold_lanes(lanes)
}

/// Inner product in a fixed order of lanes.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    if x.len() < LANES {
        return x.iter().zip(y).map(|(x, y)| x * y).sum();
    }
    let mut lanes = [0.0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for ((l, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *l += x * y;
    }
    fold_lanes(lanes)
}

/// Largest value.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    if x.len() < LANES {
        return x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(block[i]);
        }
    }
    for (l, &x) in lanes.iter_mut().zip(rest) {
        *l = l.max(x);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// e^x to about 1e-7 relative; below e^-87 it stays at the smallest normal numbers (no denormals), above e^88 it saturates.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `clamp`: this form keeps NaN and vectorises.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts (Cody and Waite), so that the remainder keeps its digits.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r * r + r) + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// Logistic function.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// A gradient, or nothing where it is too small to change any sum. What saturates (a mask that is sure of its background, a softmax)
/// leaves denormal numbers there, and a matrix product over denormal numbers takes ten times as long.
#[inline(always)]
pub(super) fn or_nothing(g: f32) -> f32 {
    if g.abs() < 1e-24 { 0.0 } else { g }
}

/// erf(x / sqrt 2) and exp(-x^2 / 2), from one exponential (Abramowitz and Stegun 7.1.26, 1.5e-7).
#[inline(always)]
pub(super) fn erf_and_gauss(x: f32) -> (f32, f32) {
    let gauss = exp(-0.5 * x * x);
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = 1.061_405_4;
    let p = p * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = p * t + 0.254_829_6;
    let erf = 1.0 - p * t * gauss;
    (erf.copysign(x), gauss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= want * 4e-7, "{x}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NEG_INFINITY) >= f32::MIN_POSITIVE);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn nothing_is_what_no_sum_would_notice() {
        assert_eq!([1e-25, -1e-38, 0.0, 1e-40].map(or_nothing), [0.0; 4]);
        assert_eq!([1e-23, -1e-23, 3.0].map(or_nothing), [1e-23, -1e-23, 3.0]);
        assert!(or_nothing(f32::NAN).is_nan());
    }

    #[test]
    fn erf_agrees_with_an_integral() {
        // Simpson's rule on the Gaussian: independent of any closed form.
        for i in -50..=50 {
            let x = f64::from(i) * 0.1;
            let n = 2000;
            let h = x / f64::from(n);
            let g = |t: f64| (-0.5 * t * t).exp();
            let mut s = g(0.0) + g(x);
            for k in 1..n {
                s += g(f64::from(k) * h) * if k % 2 == 1 { 4.0 } else { 2.0 };
            }
            let want = s * h / 3.0 * (2.0 / std::f64::consts::PI).sqrt();
            let (erf, gauss) = erf_and_gauss(x as f32);
            assert!((f64::from(erf) - want).abs() < 4e-7, "{x}: {erf} {want}");
            assert!((f64::from(gauss) - g(x)).abs() < 3e-7);
        }
    }

    #[test]
    fn reductions_agree_with_plain_ones() {
        for n in [0usize, 1, 31, 32, 33, 49, 100, 1000] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0).collect();
            let y: Vec<f32> = (0..n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 16.0).collect();
            assert!((sum(&x) - x.iter().sum::<f32>()).abs() < 1e-2);
            let plain: f32 = x.iter().zip(&y).map(|(a, b)| a * b).sum();
            assert!((dot(&x, &y) - plain).abs() < 1e-2);
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
