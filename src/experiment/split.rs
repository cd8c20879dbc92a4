//! The split by subject and the draws of labelled slices, the same for every arm.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Subjects by their place in the sorted list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Labelled slices come from these, and unlabelled ones.
    pub pool: Vec<usize>,
    /// Never looked at while training.
    pub test: Vec<usize>,
}

/// Labelled slices of one draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Subject and slice; sorted.
    pub slices: Vec<(usize, usize)>,
}

impl Split {
    /// `test` subjects of `subjects`, chosen by the seed.
    pub fn new(subjects: usize, test: usize, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..subjects).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let mut pool = order.split_off(test.min(subjects));
        order.sort_unstable();
        pool.sort_unstable();
        Split { pool, test: order }
    }

    /// Draw number `draw` of `n` slices: over as many subjects as there are first, and along the limb, one slice in each of as many
    /// equal parts of the stack as slices are drawn in a round over the subjects. `depth(subject)` counts a subject's slices.
    pub fn draw(&self, n: usize, draw: usize, seed: u64, depth: impl Fn(usize) -> usize) -> Draw {
        use rand::Rng;
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ ((n as u64) << 40) ^ ((draw as u64 + 1) << 20));
        let mut slices: Vec<(usize, usize)> = Vec::with_capacity(n);
        while slices.len() < n {
            let mut subjects = self.pool.clone();
            subjects.shuffle(&mut rng);
            let round = (n - slices.len()).min(subjects.len());
            let mut parts: Vec<usize> = (0..round).collect();
            parts.shuffle(&mut rng);
            let before = slices.len();
            for (subject, part) in subjects.into_iter().zip(parts) {
                let count = depth(subject);
                let at = ((part as f64 + rng.random::<f64>()) / round as f64 * count as f64) as usize;
                // A slice already drawn gives its place to the nearest free one.
                let free = (0..count).filter(|z| !slices.contains(&(subject, *z)));
                if let Some(z) = free.min_by_key(|z| (z.abs_diff(at), *z)) {
                    slices.push((subject, z));
                }
            }
            if slices.len() == before {
                break;
            }
        }
        slices.sort_unstable();
        Draw { slices }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_and_test_share_nobody() {
        let s = Split::new(32, 16, 7);
        assert_eq!((s.pool.len(), s.test.len()), (16, 16));
        assert!(s.pool.iter().all(|p| !s.test.contains(p)));
        assert_ne!(s, Split::new(32, 16, 8));
    }

    #[test]
    fn five_slices_are_spread_over_subjects_and_the_limb() {
        let s = Split::new(32, 16, 7);
        for d in 0..5 {
            let draw = s.draw(5, d, 7, |_| 15);
            let mut subjects: Vec<usize> = draw.slices.iter().map(|x| x.0).collect();
            subjects.dedup();
            assert_eq!(subjects.len(), 5);
            let mut parts: Vec<usize> = draw.slices.iter().map(|x| x.1 / 3).collect();
            parts.sort_unstable();
            assert_eq!(parts, [0, 1, 2, 3, 4]);
            assert!(draw.slices.iter().all(|x| s.pool.contains(&x.0)));
        }
        assert_ne!(s.draw(5, 0, 7, |_| 15), s.draw(5, 1, 7, |_| 15));
    }

    #[test]
    fn no_slice_is_drawn_twice_and_too_many_are_all() {
        let s = Split::new(4, 2, 1);
        let mut all = s.draw(50, 0, 1, |_| 15).slices;
        assert_eq!(all.len(), 30);
        all.dedup();
        assert_eq!(all.len(), 30);
    }
}
