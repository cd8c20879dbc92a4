//! Shapes reduced to their essence: broadcasting strides and the merging of axes that lie contiguously.

/// NumPy's common shape.
///
/// # Panics
/// When the shapes cannot be broadcast together.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let axis = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (axis(a, i), axis(b, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => panic!("shapes {a:?} and {b:?} do not broadcast"),
        })
        .collect()
}

/// Row-major strides.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Strides of a row-major tensor of `shape` seen as `to`: 0 along repeated axes.
///
/// # Panics
/// When `shape` does not broadcast to `to`.
pub(super) fn strides_as(shape: &[usize], to: &[usize]) -> Vec<usize> {
    assert!(shape.len() <= to.len(), "shape {shape:?} does not broadcast to {to:?}");
    let lead = to.len() - shape.len();
    let own = strides(shape);
    (0..to.len())
        .map(|i| {
            if i < lead {
                return 0;
            }
            let extent = shape[i - lead];
            assert!(extent == to[i] || extent == 1, "shape {shape:?} does not broadcast to {to:?}");
            if extent == to[i] { own[i - lead] } else { 0 }
        })
        .collect()
}

/// Axes with the strides of `K` tensors along each.
pub(super) struct Axes<const K: usize> {
    pub dims: Vec<usize>,
    pub strides: Vec<[usize; K]>,
}

impl<const K: usize> Axes<K> {
    /// Drops axes of extent 1 and merges neighbours that are one run in every tensor. At least one axis remains.
    pub fn merged(dims: &[usize], strides: [&[usize]; K]) -> Self {
        let mut out = Axes { dims: Vec::new(), strides: Vec::new() };
        for (i, &d) in dims.iter().enumerate() {
            if d == 1 {
                continue;
            }
            let s: [usize; K] = std::array::from_fn(|k| strides[k][i]);
            if let (Some(last_d), Some(last_s)) = (out.dims.last_mut(), out.strides.last_mut())
                && (0..K).all(|k| last_s[k] == s[k] * d)
            {
                *last_d *= d;
                *last_s = s;
                continue;
            }
            out.dims.push(d);
            out.strides.push(s);
        }
        if out.dims.is_empty() {
            out.dims.push(1);
            out.strides.push([1; K]);
        }
        out
    }

    /// Extent of the last axis.
    pub fn inner(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// Strides along the last axis.
    pub fn inner_strides(&self) -> [usize; K] {
        self.strides[self.strides.len() - 1]
    }

    /// Offsets of the rows (runs along the last axis) `first..first + count`, in order.
    pub fn for_rows(&self, first: usize, count: usize, mut f: impl FnMut([usize; K])) {
        let outer = &self.dims[..self.dims.len() - 1];
        let mut at = vec![0usize; outer.len()];
        let mut rest = first;
        for i in (0..outer.len()).rev() {
            at[i] = rest % outer[i];
            rest /= outer[i];
        }
        let mut offset: [usize; K] =
            std::array::from_fn(|k| at.iter().zip(&self.strides).map(|(&i, s)| i * s[k]).sum());
        for _ in 0..count {
            f(offset);
            for i in (0..outer.len()).rev() {
                at[i] += 1;
                offset.iter_mut().zip(&self.strides[i]).for_each(|(o, s)| *o += s);
                if at[i] < outer[i] {
                    break;
                }
                offset.iter_mut().zip(&self.strides[i]).for_each(|(o, s)| *o -= s * outer[i]);
                at[i] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_every_offset() {
        let dims = [2, 3, 1, 4, 5];
        let a = strides_as(&[3, 1, 1, 5], &dims);
        let b = strides(&dims);
        let axes = Axes::merged(&dims, [&a, &b]);
        assert_eq!(axes.dims, [2, 3, 4, 5]);
        let mut got = Vec::new();
        axes.for_rows(0, 24, |[x, y]| got.push((x, y)));
        let mut tail = Vec::new();
        axes.for_rows(7, 5, |[x, y]| tail.push((x, y)));
        assert_eq!(tail, got[7..12]);
        for (row, &(x, y)) in got.iter().enumerate() {
            assert_eq!(y, row * 5);
            assert_eq!(x, (row / 4 % 3) * 5);
        }
        assert_eq!(Axes::merged(&dims, [&b]).dims, [120]);
        assert_eq!(Axes::merged(&[1, 1], [&[1, 1]]).dims, [1]);
    }

    #[test]
    #[should_panic(expected = "do not broadcast")]
    fn unequal_shapes_are_refused() {
        broadcast(&[2, 3], &[2, 4]);
    }
}
