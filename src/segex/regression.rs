//! Ridge regression, and the division of a number into ordered classes.

/// Inputs and the target.
pub(super) type Row = (Vec<f64>, f64);

/// Weighted ridge regression on standardised inputs: weights and constant for the inputs as they are. `penalties`, one for each
/// input, are shares of the rows' weight.
pub(super) fn ridge(rows: &[Row], weights: &[f64], penalties: &[f64]) -> Option<(Vec<f64>, f64)> {
    let n: f64 = weights.iter().sum();
    let d = rows.first()?.0.len();
    let mean_of = |f: &dyn Fn(&Row) -> f64| rows.iter().zip(weights).map(|(r, w)| w * f(r)).sum::<f64>() / n;
    let mean: Vec<f64> = (0..d).map(|k| mean_of(&|r| r.0[k])).collect();
    let sd: Vec<f64> = (0..d).map(|k| mean_of(&|r| (r.0[k] - mean[k]).powi(2)).sqrt()).collect();
    let target = mean_of(&|r| r.1);
    // What never changes says nothing.
    let scale = |k: usize, v: f64| if sd[k] > 1e-9 { (v - mean[k]) / sd[k] } else { 0.0 };
    let mut a = vec![vec![0.0; d + 1]; d];
    for (r, w) in rows.iter().zip(weights) {
        let x: Vec<f64> = (0..d).map(|k| scale(k, r.0[k])).collect();
        for i in 0..d {
            for j in 0..d {
                a[i][j] += w * x[i] * x[j] / n;
            }
            a[i][d] += w * x[i] * (r.1 - target) / n;
        }
    }
    for (i, row) in a.iter_mut().enumerate() {
        row[i] += penalties[i];
    }
    let beta = solve(a)?;
    let w: Vec<f64> = (0..d).map(|k| if sd[k] > 1e-9 { beta[k] / sd[k] } else { 0.0 }).collect();
    let constant = target - w.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>();
    Some((w, constant))
}

/// Gaussian elimination with pivoting of `[A | b]`; none for a singular matrix.
fn solve(mut a: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let d = a.len();
    for c in 0..d {
        let pivot = (c..d).max_by(|&i, &j| a[i][c].abs().total_cmp(&a[j][c].abs()))?;
        if a[pivot][c].abs() < 1e-12 {
            return None;
        }
        a.swap(c, pivot);
        let row = a[c].clone();
        for r in (0..d).filter(|&r| r != c) {
            let f = a[r][c] / row[c];
            a[r].iter_mut().zip(&row).for_each(|(v, p)| *v -= f * p);
        }
    }
    Some((0..d).map(|i| a[i][d] / a[i][i]).collect())
}

/// The four cuts of a sorted index (index, grade, weight) that give the least weighted squared error of the grade: the best
/// way to divide the row into five pieces, some of which may be empty.
pub(super) fn cuts(sorted: &[(f64, f64, f64)]) -> [f64; 4] {
    let n = sorted.len();
    // least[g][i]: error of the first i with grades up to g + 1; from[g][i]: where grade g + 1 begins in it.
    let mut least = vec![vec![0.0f64; n + 1]; 5];
    let mut from = vec![vec![0usize; n + 1]; 5];
    for g in 0..5 {
        let cost = |i: usize| sorted[i].2 * (sorted[i].1 - (g + 1) as f64).powi(2);
        for i in 1..=n {
            // Equal indices are never parted.
            let may_begin = i == 1 || sorted[i - 1].0 > sorted[i - 2].0;
            let stay = least[g][i - 1] + cost(i - 1);
            let begin = if g > 0 && may_begin { least[g - 1][i - 1] + cost(i - 1) } else { f64::INFINITY };
            let (mut best, mut start) = if begin < stay { (begin, i - 1) } else { (stay, from[g][i - 1]) };
            // No piece of this grade at all.
            if g > 0 && (i == n || sorted[i].0 > sorted[i - 1].0) && least[g - 1][i] <= best {
                (best, start) = (least[g - 1][i], i);
            }
            least[g][i] = best;
            from[g][i] = start;
        }
    }
    let mut out = [0.0; 4];
    let mut end = n;
    for g in (1..5).rev() {
        let start = from[g][end].min(end);
        out[g - 1] = match (start.checked_sub(1).map(|i| sorted[i].0), sorted.get(start).map(|s| s.0)) {
            (Some(a), Some(b)) => (a + b) / 2.0,
            // Never reached, or always: one unit beyond what was seen.
            (Some(a), None) => a + 1.0,
            (None, Some(b)) => b - 1.0,
            (None, None) => 0.0,
        };
        end = start;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ridge_finds_a_line_and_ignores_what_never_changes() {
        let rows: Vec<Row> =
            (0..50).map(|i| (vec![f64::from(i), 7.0, f64::from(i * i % 11)], 3.0 + 0.5 * f64::from(i))).collect();
        let (w, c) = ridge(&rows, &[1.0; 50], &[1e-9; 3]).unwrap();
        assert!((w[0] - 0.5).abs() < 1e-6 && w[1] == 0.0 && w[2].abs() < 1e-6 && (c - 3.0).abs() < 1e-5, "{w:?} {c}");
        // A penalty draws it towards the mean.
        let (shrunk, _) = ridge(&rows, &[1.0; 50], &[1.0; 3]).unwrap();
        assert!(shrunk[0] > 0.0 && shrunk[0] < 0.3, "{shrunk:?}");
        assert_eq!(ridge(&[], &[], &[]), None);
    }

    #[test]
    fn cuts_part_grades_that_can_be_parted() {
        let row = |all: &[(f64, f64)]| all.iter().map(|&(i, g)| (i, g, 1.0)).collect::<Vec<_>>();
        let c = cuts(&row(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]));
        assert_eq!(c, [0.5, 1.5, 2.5, 3.5]);
        // Only 2 and 4 occur: 3 gets no piece, 5 is never reached, 1 lies below all.
        let c = cuts(&row(&[(0.0, 2.0), (1.0, 2.0), (2.0, 4.0), (3.0, 4.0)]));
        assert_eq!((c[1], c[2]), (1.5, 1.5));
        assert!(c[0] < 0.0 && c[3] > 3.0, "{c:?}");
        // Equal indices stay together.
        let c = cuts(&row(&[(1.0, 1.0), (1.0, 5.0), (1.0, 5.0)]));
        assert!(c.iter().all(|c| *c != 1.0), "{c:?}");
    }
}
