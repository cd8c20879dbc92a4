//! What training needs beyond the network's operations: dropout and losses.

use rand::Rng;

use super::simd::{exp, map2, or_nothing};
use super::{Eager, Var};

impl Eager {
    /// Zeroes each value with probability `p` and scales the rest by `1 / (1 - p)`; reproducible from the seed.
    pub fn dropout(&self, x: &Var, p: f32) -> Var {
        if p <= 0.0 {
            return x.clone();
        }
        let mask = self.dropout_mask(x.shape(), p);
        self.mul_op(x, &mask)
    }

    /// The factor of [`Eager::dropout`]: 0 with probability `p`, else `1 / (1 - p)`.
    pub fn dropout_mask(&self, shape: &[usize], p: f32) -> Var {
        let keep = 1.0 / (1.0 - p);
        let count = shape.iter().product();
        let mut rng = self.rng();
        let data = (0..count).map(|_| if rng.random::<f32>() < p { 0.0 } else { keep }).collect();
        Var::constant(shape, data)
    }

    /// Binary cross entropy of each logit against a target in 0..1, same shape, not reduced. No gradient to the target.
    pub fn bce_with_logits(&self, logits: &Var, target: &Var) -> Var {
        assert_eq!(logits.shape(), target.shape(), "binary cross entropy");
        let out = map2(
            logits.data(),
            target.data(),
            // max(x, 0) - x t + ln(1 + e^-|x|): no overflow on either side.
            |x, t| x.max(0.0) - x * t + (-x.abs()).exp().ln_1p(),
        );
        let (x, t) = (logits.value.clone(), target.value.clone());
        self.outcome(logits.shape(), out, &[logits], move |g, sink| {
            let slope = map2(
                &x,
                &t,
                #[inline(always)]
                |x, t| 1.0 / (1.0 + exp(-x)) - t,
            );
            sink.add(0, map2(&g, &slope, |g, s| or_nothing(g * s)));
        })
    }

    /// Mean of all values, as a tensor of shape `[1]`.
    pub fn mean_all(&self, x: &Var) -> Var {
        let flat = self.reshape_op(x, &[x.data().len()]);
        self.mean_op(&flat, &[0])
    }

    /// Sum of all values, as a tensor of shape `[1]`.
    pub fn sum_all(&self, x: &Var) -> Var {
        let flat = self.reshape_op(x, &[x.data().len()]);
        self.sum_op(&flat, &[0], 1.0)
    }
}
