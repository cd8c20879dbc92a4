//! Which slices to annotate next: spread over series and along the limb, and where a model is unsure.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Share of the slices at each end that are not proposed: the field of view often ends within a structure there.
const MARGIN: f64 = 0.05;
/// Slices of one series nearer than this share of its length tell almost the same.
const NEAR: f64 = 0.15;

/// A third of the limb that a series shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stratum {
    /// Towards the head.
    Proximal,
    /// The middle.
    Middle,
    /// Towards the foot.
    Distal,
}

impl Stratum {
    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            Stratum::Proximal => "proximal",
            Stratum::Middle => "middle",
            Stratum::Distal => "distal",
        }
    }

    fn of(position: f64) -> Stratum {
        if position < 1.0 / 3.0 {
            Stratum::Distal
        } else if position < 2.0 / 3.0 {
            Stratum::Middle
        } else {
            Stratum::Proximal
        }
    }
}

/// One series to choose from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Where each slice lies along the limb, 0 at the distal end of the series to 1 at its proximal end.
    pub positions: Vec<f64>,
    /// Slices that show a leg.
    pub usable: Vec<bool>,
    /// Slices that are annotated already.
    pub taken: Vec<usize>,
    /// How unsure a model is of each slice; empty without a model.
    pub doubt: Vec<f64>,
}

/// A slice that is proposed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// Index of the series.
    pub series: usize,
    /// Its slice.
    pub slice: usize,
    /// Where along the limb.
    pub stratum: Stratum,
    /// How unsure the model is of it, where there is one.
    pub doubt: Option<f64>,
}

/// Proposes `count` slices, most useful first; fewer where there are no more. A series with fewer annotated slices goes
/// before one with more; then the third of the limb that is annotated least; then, with a model, the slice that it is least
/// sure of, and without one the slice that lies farthest from all others. Series with equal claims come in the order of their
/// doubt, else in an order drawn from `seed`; the same input gives the same proposal.
pub fn propose(series: &[Candidates], count: usize, seed: u64) -> Vec<Pick> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..series.len()).collect();
    order.shuffle(&mut rng);
    let mut strata = [Stratum::Middle, Stratum::Proximal, Stratum::Distal];
    strata.shuffle(&mut rng);
    let mut chosen: Vec<Vec<usize>> = series.iter().map(|s| s.taken.clone()).collect();
    let mut picks = Vec::new();
    while picks.len() < count {
        let Some(pick) = next(series, &chosen, &order, &strata) else { break };
        chosen[pick.series].push(pick.slice);
        picks.push(pick);
    }
    picks
}

fn next(series: &[Candidates], chosen: &[Vec<usize>], order: &[usize], strata: &[Stratum]) -> Option<Pick> {
    let free = |s: usize| -> Vec<usize> {
        let c = &series[s];
        let usable = |z: usize| c.usable.get(z).copied().unwrap_or(true) && !chosen[s].contains(&z);
        let inner = |z: usize| (MARGIN..=1.0 - MARGIN).contains(&c.positions[z]);
        let all: Vec<usize> = (0..c.positions.len()).filter(|&z| usable(z)).collect();
        // In a short series the ends are all there is.
        let inside: Vec<usize> = all.iter().copied().filter(|&z| inner(z)).collect();
        if inside.is_empty() { all } else { inside }
    };
    let most = |s: usize| series[s].doubt.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let rank = |s: usize| order.iter().position(|&o| o == s).unwrap_or(0);
    let s = (0..series.len()).filter(|&s| !free(s).is_empty()).min_by(|&a, &b| {
        let key = chosen[a].len().cmp(&chosen[b].len());
        key.then(most(b).total_cmp(&most(a))).then(rank(a).cmp(&rank(b)))
    })?;
    let c = &series[s];
    let slices = free(s);
    let held = |stratum: Stratum, of: Option<usize>| -> usize {
        (0..series.len())
            .filter(|i| of.is_none_or(|o| o == *i))
            .map(|i| {
                chosen[i]
                    .iter()
                    .filter(|&&z| series[i].positions.get(z).is_some_and(|p| Stratum::of(*p) == stratum))
                    .count()
            })
            .sum()
    };
    let stratum = strata
        .iter()
        .copied()
        .filter(|t| slices.iter().any(|&z| Stratum::of(c.positions[z]) == *t))
        .min_by_key(|t| (held(*t, Some(s)), held(*t, None)))?;
    let within: Vec<usize> = slices.into_iter().filter(|&z| Stratum::of(c.positions[z]) == stratum).collect();
    let gap = |z: usize, of: &dyn Fn(usize) -> bool| {
        (0..series.len())
            .filter(|i| of(*i))
            .flat_map(|i| chosen[i].iter().filter_map(move |&o| series[i].positions.get(o)))
            .map(|p| (p - c.positions[z]).abs())
            .fold(1.0, f64::min)
    };
    let centre = match stratum {
        Stratum::Distal => 1.0 / 6.0,
        Stratum::Middle => 0.5,
        Stratum::Proximal => 5.0 / 6.0,
    };
    let slice = within.into_iter().max_by(|&a, &b| {
        let own = |z: usize| gap(z, &|i| i == s);
        // A neighbour of an annotated slice comes last however unsure the model is of it.
        let far = (own(a) >= NEAR).cmp(&(own(b) >= NEAR));
        let doubt = |z: usize| c.doubt.get(z).copied().unwrap_or(0.0);
        let wide = |z: usize| gap(z, &|_| true).min(0.5);
        let middle = |z: usize| -(c.positions[z] - centre).abs();
        far.then(doubt(a).total_cmp(&doubt(b)))
            .then(wide(a).total_cmp(&wide(b)))
            .then(middle(a).total_cmp(&middle(b)))
            .then(b.cmp(&a))
    })?;
    Some(Pick { series: s, slice, stratum, doubt: c.doubt.get(slice).copied() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(slices: usize) -> Candidates {
        let positions = (0..slices).map(|z| z as f64 / (slices - 1) as f64).collect();
        Candidates { positions, usable: vec![true; slices], ..Candidates::default() }
    }

    #[test]
    fn series_first_then_the_limb() {
        let five = vec![series(15); 5];
        let picks = propose(&five, 5, 1);
        let mut of: Vec<usize> = picks.iter().map(|p| p.series).collect();
        of.sort_unstable();
        assert_eq!(of, [0, 1, 2, 3, 4]);
        for t in [Stratum::Proximal, Stratum::Middle, Stratum::Distal] {
            let n = picks.iter().filter(|p| p.stratum == t).count();
            assert!((1..=2).contains(&n), "{t:?} {picks:?}");
        }
        // The same seed the same proposal; another seed another one.
        assert_eq!(picks, propose(&five, 5, 1));
        assert!((2..9).any(|seed| propose(&five, 5, seed) != picks));
        // One series: the whole limb, no neighbours.
        let one = propose(&[series(15)], 5, 3);
        let mut slices: Vec<usize> = one.iter().map(|p| p.slice).collect();
        slices.sort_unstable();
        assert_eq!(slices.len(), 5);
        assert!(slices.windows(2).all(|w| w[1] - w[0] >= 2) && slices[0] > 0 && slices[4] < 14, "{slices:?}");
    }

    #[test]
    fn what_is_annotated_counts_and_what_shows_nothing_is_left_out() {
        let mut a = series(15);
        a.taken = vec![7, 3];
        let mut b = series(15);
        b.usable = (0..15).map(|z| z < 8).collect();
        let picks = propose(&[a, b], 3, 1);
        assert_eq!(picks.iter().map(|p| p.series).take(2).collect::<Vec<_>>(), [1, 1]);
        assert!(picks.iter().all(|p| p.series == 0 || p.slice < 8));
        assert!(picks.iter().all(|p| p.series == 1 || ![7, 3].contains(&p.slice)));
        assert_eq!(propose(&[series(3)], 9, 1).len(), 3);
        assert!(propose(&[], 5, 1).is_empty());
    }

    #[test]
    fn doubt_decides_within_the_spread() {
        let mut a = series(15);
        a.doubt = vec![0.1; 15];
        a.doubt[11] = 0.9;
        a.doubt[12] = 0.8;
        let mut b = series(15);
        b.doubt = vec![0.2; 15];
        b.doubt[2] = 0.5;
        let picks = propose(&[a, b], 6, 4);
        assert_eq!(picks[0].series, 0, "the series with the most doubtful slice goes first");
        assert!(
            picks.iter().any(|p| (p.series, p.slice) == (0, 11)) && picks.iter().any(|p| (p.series, p.slice) == (1, 2))
        );
        assert!(!picks.iter().any(|p| (p.series, p.slice) == (0, 12)), "a neighbour tells almost the same: {picks:?}");
        assert_eq!(picks.iter().filter(|p| p.series == 0).count(), 3);
    }
}
