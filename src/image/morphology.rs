//! Connected components, holes, exact distances and the openings built on them, for binary masks in two or three
//! dimensions.
//!
//! A mask is a slice of `bool` with `dims` (columns, rows, slices), indexed as a volume; a plane is a mask with one
//! slice. Conventions that measures elsewhere rely on: components join over faces only unless said otherwise, holes
//! are searched slice by slice, and outside the grid is background.

/// Which voxels touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connectivity {
    /// Over faces: 4 neighbours in a plane, 6 in a volume.
    Faces,
    /// Over faces, edges and corners: 8 neighbours in a plane, 26 in a volume.
    Corners,
}

/// Connected components of a mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Components {
    /// Component of each voxel, from 1; 0 is background.
    pub labels: Vec<u32>,
    /// Voxels of component `i + 1`.
    pub sizes: Vec<usize>,
}

impl Components {
    /// The label of the largest component (the first of equals), or `None` for an empty mask.
    pub fn largest(&self) -> Option<u32> {
        let mut best: Option<(usize, usize)> = None;
        for (i, &n) in self.sizes.iter().enumerate() {
            if best.is_none_or(|(_, m)| n > m) {
                best = Some((i, n));
            }
        }
        best.map(|(i, _)| i as u32 + 1)
    }
    /// The mask of one component.
    pub fn mask(&self, label: u32) -> Vec<bool> {
        self.labels.iter().map(|&l| l == label).collect()
    }
}

/// Labels the connected components of a mask, in the order of their first voxel.
pub fn components(mask: &[bool], dims: [usize; 3], connectivity: Connectivity) -> Components {
    let mut labels = vec![0u32; mask.len()];
    let mut sizes = Vec::new();
    let mut stack = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || labels[start] != 0 {
            continue;
        }
        let label = sizes.len() as u32 + 1;
        let mut size = 0;
        labels[start] = label;
        stack.push(start);
        while let Some(i) = stack.pop() {
            size += 1;
            neighbours(i, dims, connectivity, |j| {
                if mask[j] && labels[j] == 0 {
                    labels[j] = label;
                    stack.push(j);
                }
            });
        }
        sizes.push(size);
    }
    Components { labels, sizes }
}

fn neighbours(i: usize, dims: [usize; 3], connectivity: Connectivity, mut visit: impl FnMut(usize)) {
    let [nx, ny, nz] = dims;
    let (x, y, z) = (i % nx, i / nx % ny, i / (nx * ny));
    match connectivity {
        Connectivity::Faces => {
            if x > 0 {
                visit(i - 1);
            }
            if x + 1 < nx {
                visit(i + 1);
            }
            if y > 0 {
                visit(i - nx);
            }
            if y + 1 < ny {
                visit(i + nx);
            }
            if z > 0 {
                visit(i - nx * ny);
            }
            if z + 1 < nz {
                visit(i + nx * ny);
            }
        }
        Connectivity::Corners => {
            for c in z.saturating_sub(1)..=(z + 1).min(nz - 1) {
                for b in y.saturating_sub(1)..=(y + 1).min(ny - 1) {
                    for a in x.saturating_sub(1)..=(x + 1).min(nx - 1) {
                        let j = (c * ny + b) * nx + a;
                        if j != i {
                            visit(j);
                        }
                    }
                }
            }
        }
    }
}

/// Fills the holes of each slice: background that does not reach the slice's border over faces. Returns how many
/// voxels were filled.
pub fn fill_holes(mask: &mut [bool], dims: [usize; 3]) -> usize {
    let [nx, ny, _] = dims;
    let mut filled = 0;
    if nx == 0 || ny == 0 {
        return 0;
    }
    for plane in mask.chunks_mut(nx * ny) {
        let mut outside = vec![false; plane.len()];
        let mut stack: Vec<usize> = Vec::new();
        let border =
            (0..nx).flat_map(|x| [x, (ny - 1) * nx + x]).chain((0..ny).flat_map(|y| [y * nx, y * nx + nx - 1]));
        for i in border {
            if !plane[i] && !outside[i] {
                outside[i] = true;
                stack.push(i);
            }
        }
        while let Some(i) = stack.pop() {
            neighbours(i, [nx, ny, 1], Connectivity::Faces, |j| {
                if !plane[j] && !outside[j] {
                    outside[j] = true;
                    stack.push(j);
                }
            });
        }
        for (m, o) in plane.iter_mut().zip(&outside) {
            if !*m && !*o {
                *m = true;
                filled += 1;
            }
        }
    }
    filled
}

/// Exact Euclidean distance in millimetres from each voxel centre to the nearest voxel centre of the mask (0 inside);
/// infinite where the mask is empty. `spacing` is that of columns, rows, slices.
///
/// The lower envelope of parabolas, one axis after the other (Felzenszwalb and Huttenlocher 2012).
pub fn distance(mask: &[bool], dims: [usize; 3], spacing: [f64; 3]) -> Vec<f32> {
    let mut d: Vec<f64> = mask.iter().map(|&m| if m { 0.0 } else { f64::INFINITY }).collect();
    let [nx, ny, nz] = dims;
    let longest = nx.max(ny).max(nz);
    let mut work = Envelope::new(longest);
    for (axis, (count, stride)) in [(nx, 1), (ny, nx), (nz, nx * ny)].into_iter().enumerate() {
        if count < 2 {
            continue;
        }
        for start in 0..d.len() {
            if (start / stride).is_multiple_of(count) {
                work.line(&mut d, start, stride, count, spacing[axis]);
            }
        }
    }
    d.into_iter().map(|v| v.sqrt() as f32).collect()
}

struct Envelope {
    line: Vec<f64>,
    at: Vec<usize>,
    from: Vec<f64>,
}

impl Envelope {
    fn new(longest: usize) -> Self {
        Envelope { line: vec![0.0; longest], at: vec![0; longest], from: vec![0.0; longest + 1] }
    }

    fn line(&mut self, d: &mut [f64], start: usize, stride: usize, count: usize, step: f64) {
        let f = &mut self.line[..count];
        for (i, v) in f.iter_mut().enumerate() {
            *v = d[start + i * stride];
        }
        let mut top: Option<usize> = None;
        for q in 0..count {
            if !f[q].is_finite() {
                continue;
            }
            let xq = q as f64 * step;
            loop {
                let Some(k) = top else {
                    self.at[0] = q;
                    self.from[0] = f64::NEG_INFINITY;
                    top = Some(0);
                    break;
                };
                let p = self.at[k];
                let xp = p as f64 * step;
                let meet = ((f[q] + xq * xq) - (f[p] + xp * xp)) / (2.0 * (xq - xp));
                if meet <= self.from[k] {
                    top = k.checked_sub(1);
                } else {
                    self.at[k + 1] = q;
                    self.from[k + 1] = meet;
                    top = Some(k + 1);
                    break;
                }
            }
        }
        let Some(last) = top else { return };
        let mut k = 0;
        for i in 0..count {
            let x = i as f64 * step;
            while k < last && self.from[k + 1] < x {
                k += 1;
            }
            let p = self.at[k];
            let dx = x - p as f64 * step;
            d[start + i * stride] = dx * dx + f[p];
        }
    }
}

/// The voxels whose distance to the mask is at most `mm`.
pub fn dilate(mask: &[bool], dims: [usize; 3], spacing: [f64; 3], mm: f64) -> Vec<bool> {
    distance(mask, dims, spacing).into_iter().map(|d| f64::from(d) <= mm).collect()
}

/// The voxels whose distance to the background inside the grid is more than `mm`.
pub fn erode(mask: &[bool], dims: [usize; 3], spacing: [f64; 3], mm: f64) -> Vec<bool> {
    let outside: Vec<bool> = mask.iter().map(|&m| !m).collect();
    distance(&outside, dims, spacing).into_iter().map(|d| f64::from(d) > mm).collect()
}

/// Erosion followed by dilation: removes what is narrower than `2 mm`. Never adds a voxel.
pub fn open(mask: &[bool], dims: [usize; 3], spacing: [f64; 3], mm: f64) -> Vec<bool> {
    let mut grown = dilate(&erode(mask, dims, spacing, mm), dims, spacing, mm);
    for (g, m) in grown.iter_mut().zip(mask) {
        *g &= *m;
    }
    grown
}

/// The mask's voxels that touch background (or the grid's edge in the plane) over a face within their slice.
pub fn contour(mask: &[bool], dims: [usize; 3]) -> Vec<bool> {
    let [nx, ny, _] = dims;
    (0..mask.len())
        .map(|i| {
            if !mask[i] {
                return false;
            }
            let (x, y) = (i % nx, i / nx % ny);
            x == 0
                || y == 0
                || x + 1 == nx
                || y + 1 == ny
                || !mask[i - 1]
                || !mask[i + 1]
                || !mask[i - nx]
                || !mask[i + nx]
        })
        .collect()
}

/// Area of the convex hull of one plane's mask, in pixels: the hull of the pixels' corners. 0 for an empty mask.
pub fn hull_area(mask: &[bool], width: usize) -> f64 {
    let mut points: Vec<(i64, i64)> = Vec::new();
    for (y, row) in mask.chunks(width.max(1)).enumerate() {
        let (Some(a), Some(b)) = (row.iter().position(|&m| m), row.iter().rposition(|&m| m)) else { continue };
        for x in [a as i64, b as i64 + 1] {
            points.push((x, y as i64));
            points.push((x, y as i64 + 1));
        }
    }
    points.sort_unstable();
    points.dedup();
    if points.len() < 3 {
        return 0.0;
    }
    let cross = |o: (i64, i64), a: (i64, i64), b: (i64, i64)| (a.0 - o.0) * (b.1 - o.1) - (a.1 - o.1) * (b.0 - o.0);
    let half = |points: &mut dyn Iterator<Item = (i64, i64)>| {
        let mut hull: Vec<(i64, i64)> = Vec::new();
        for p in points {
            while hull.len() >= 2 && cross(hull[hull.len() - 2], hull[hull.len() - 1], p) <= 0 {
                hull.pop();
            }
            hull.push(p);
        }
        hull.pop();
        hull
    };
    let mut hull = half(&mut points.iter().copied());
    hull.extend(half(&mut points.iter().rev().copied()));
    let twice: i64 = (0..hull.len())
        .map(|i| {
            let (a, b) = (hull[i], hull[(i + 1) % hull.len()]);
            a.0 * b.1 - b.0 * a.1
        })
        .sum();
    twice.abs() as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn brute(mask: &[bool], dims: [usize; 3], s: [f64; 3]) -> Vec<f64> {
        let at = |i: usize| [i % dims[0], i / dims[0] % dims[1], i / (dims[0] * dims[1])];
        (0..mask.len())
            .map(|i| {
                (0..mask.len())
                    .filter(|&j| mask[j])
                    .map(|j| {
                        let (a, b) = (at(i), at(j));
                        (0..3).map(|k| ((a[k] as f64 - b[k] as f64) * s[k]).powi(2)).sum::<f64>().sqrt()
                    })
                    .fold(f64::INFINITY, f64::min)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn distance_equals_exhaustive_search(mask in proptest::collection::vec(proptest::bool::weighted(0.1), 7 * 6 * 4)) {
            let (dims, s) = ([7, 6, 4], [0.8, 1.3, 5.0]);
            for (a, b) in distance(&mask, dims, s).iter().zip(brute(&mask, dims, s)) {
                prop_assert!((f64::from(*a) - b).abs() < 1e-4 || (a.is_infinite() && b.is_infinite()));
            }
        }

        #[test]
        fn components_partition_the_mask(mask in proptest::collection::vec(any::<bool>(), 6 * 5 * 3)) {
            let dims = [6, 5, 3];
            let c = components(&mask, dims, Connectivity::Faces);
            prop_assert_eq!(c.sizes.iter().sum::<usize>(), mask.iter().filter(|&&m| m).count());
            for i in 0..mask.len() {
                prop_assert_eq!(mask[i], c.labels[i] > 0);
                neighbours(i, dims, Connectivity::Faces, |j| {
                    assert!(!mask[i] || !mask[j] || c.labels[i] == c.labels[j]);
                });
            }
            prop_assert!(components(&mask, dims, Connectivity::Corners).sizes.len() <= c.sizes.len());
        }

        #[test]
        fn opening_never_adds(mask in proptest::collection::vec(any::<bool>(), 9 * 9)) {
            let o = open(&mask, [9, 9, 1], [1.0, 1.0, 1.0], 1.0);
            prop_assert!(o.iter().zip(&mask).all(|(o, m)| !o || *m));
        }
    }

    fn picture(rows: &[&str]) -> (Vec<bool>, [usize; 3]) {
        (rows.iter().flat_map(|r| r.chars().map(|c| c == '#')).collect(), [rows[0].len(), rows.len(), 1])
    }

    #[test]
    fn a_ring_is_filled_and_an_open_bay_is_not() {
        let (mut ring, dims) = picture(&[".....", ".###.", ".#.#.", ".###.", "....."]);
        assert_eq!(fill_holes(&mut ring, dims), 1);
        assert!(ring[12]);
        let (mut bay, dims) = picture(&[".....", ".###.", ".#.#.", ".#.#.", ".#.#."]);
        assert_eq!(fill_holes(&mut bay, dims), 0);
    }

    #[test]
    fn diagonal_voxels_touch_at_corners_only() {
        let (m, dims) = picture(&["#..", ".#.", "..#"]);
        assert_eq!(components(&m, dims, Connectivity::Faces).sizes, vec![1, 1, 1]);
        assert_eq!(components(&m, dims, Connectivity::Corners).sizes, vec![3]);
    }

    #[test]
    fn hull_of_an_l_is_larger_than_the_l() {
        let (l, _) = picture(&["#..", "#..", "###"]);
        assert_eq!(hull_area(&l, 3), 7.0);
        let (full, _) = picture(&["###", "###"]);
        assert_eq!(hull_area(&full, 3), 6.0);
        assert_eq!(hull_area(&[false; 6], 3), 0.0);
    }

    #[test]
    fn contour_of_a_square_is_its_rim() {
        let (m, dims) = picture(&[".....", ".###.", ".###.", ".###.", "....."]);
        assert_eq!(contour(&m, dims).iter().filter(|&&c| c).count(), 8);
    }
}
