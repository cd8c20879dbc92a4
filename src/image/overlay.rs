//! Two outlines over one slice: where a segmentation and the truth agree and where they part.

use super::render::{self, Rgb};
use super::{LabelMap, Volume};

/// Colour of the truth's outline.
const TRUTH: [u8; 3] = [0, 220, 110];
/// Colour of the segmentation's outline.
const FOUND: [u8; 3] = [255, 60, 170];
/// Where both outlines run together.
const BOTH: [u8; 3] = [255, 235, 60];
/// Edge of a tile's image, pixels.
const EDGE: usize = 208;
/// Height of a line of text, pixels.
const LINE: usize = 11;
/// Gap between tiles, pixels.
const GAP: usize = 4;
/// What is shown round the outlines, millimetres.
const MARGIN_MM: f64 = 12.0;

/// One label of two label maps on one slice of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Contours<'a> {
    /// The images.
    pub volume: &'a Volume,
    /// The truth, on the volume's grid.
    pub truth: &'a LabelMap,
    /// The segmentation, on the volume's grid.
    pub found: &'a LabelMap,
    /// The label.
    pub label: u8,
    /// The slice.
    pub slice: usize,
}

/// A square picture with lines of text above it.
#[derive(Clone, Debug)]
pub struct Tile {
    /// The picture.
    pub picture: Rgb,
    /// Text, about 25 characters a line; it must carry no patient data.
    pub caption: Vec<String>,
}

impl Contours<'_> {
    /// The slice round both outlines, square pixels, the outlines one pixel wide along the voxels' edges: truth green,
    /// segmentation pink, both yellow.
    pub fn picture(&self) -> Rgb {
        let g = &self.volume.geometry;
        let [columns, rows, _] = g.dims;
        let from = self.slice * g.plane();
        let truth: Vec<bool> = self.truth.data[from..from + g.plane()].iter().map(|&v| v == self.label).collect();
        let found: Vec<bool> = self.found.data[from..from + g.plane()].iter().map(|&v| v == self.label).collect();
        let grey = &self.volume.data[from..from + g.plane()];
        let (middle, mm) = self.square(&truth, &found);
        let (low, high) = render::window(self.volume);
        // Source pixel coordinates of a picture pixel's centre; pixel centres are whole numbers.
        let at = |t: usize, axis: usize| middle[axis] + ((t as f64 + 0.5) / EDGE as f64 - 0.5) * mm / g.spacing[axis];
        let inside = |mask: &[bool], tx: usize, ty: usize| {
            let (x, y) = (at(tx, 0).round(), at(ty, 1).round());
            x >= 0.0
                && y >= 0.0
                && (x as usize) < columns
                && (y as usize) < rows
                && mask[y as usize * columns + x as usize]
        };
        let rim = |mask: &[bool], tx: usize, ty: usize| {
            let here = inside(mask, tx, ty);
            here != inside(mask, tx + 1, ty) || here != inside(mask, tx, ty + 1)
        };
        let mut out = Rgb::black(EDGE, EDGE);
        for ty in 0..EDGE {
            for tx in 0..EDGE {
                let v = bilinear(grey, columns, rows, at(tx, 0), at(ty, 1)).unwrap_or(low);
                let v = ((v - low) / (high - low) * 255.0).clamp(0.0, 255.0) as u8;
                let rgb = match (rim(&truth, tx, ty), rim(&found, tx, ty)) {
                    (true, true) => BOTH,
                    (true, false) => TRUTH,
                    (false, true) => FOUND,
                    (false, false) => [v; 3],
                };
                out.put(tx, ty, rgb);
            }
        }
        out
    }

    /// Middle (source pixels) and edge (mm) of the square round both masks; the whole slice where there is none.
    fn square(&self, truth: &[bool], found: &[bool]) -> ([f64; 2], f64) {
        let g = &self.volume.geometry;
        let columns = g.dims[0];
        let (mut low, mut high) = ([usize::MAX; 2], [0usize; 2]);
        for i in (0..truth.len()).filter(|&i| truth[i] || found[i]) {
            for (a, v) in [i % columns, i / columns].into_iter().enumerate() {
                low[a] = low[a].min(v);
                high[a] = high[a].max(v);
            }
        }
        let mut margin = MARGIN_MM;
        if low[0] > high[0] {
            (low, high, margin) = ([0, 0], [g.dims[0] - 1, g.dims[1] - 1], 0.0);
        }
        let middle = [0, 1].map(|a| (low[a] + high[a]) as f64 / 2.0);
        let mm = [0, 1].map(|a| (high[a] - low[a] + 1) as f64 * g.spacing[a]);
        (middle, mm[0].max(mm[1]) + 2.0 * margin)
    }
}

/// Tiles in rows of `across` with their captions, and lines of text at the foot.
pub fn sheet(tiles: &[Tile], across: usize, foot: &[String]) -> Rgb {
    let lines = tiles.iter().map(|t| t.caption.len()).max().unwrap_or(0);
    let down = tiles.len().div_ceil(across.max(1));
    let high = EDGE + lines * LINE + GAP;
    let longest = foot.iter().map(|l| l.chars().count() * 8 + 2 * GAP).max().unwrap_or(0);
    let width = (across.max(1) * (EDGE + GAP) + GAP).max(longest);
    let mut out = Rgb::black(width, down * high + GAP + foot.len() * LINE + GAP);
    for (i, tile) in tiles.iter().enumerate() {
        let (x0, y0) = (GAP + (i % across.max(1)) * (EDGE + GAP), GAP + i / across.max(1) * high);
        for (l, line) in tile.caption.iter().enumerate() {
            out.text(x0, y0 + l * LINE, &line.chars().take(EDGE / 8).collect::<String>(), [230, 230, 230]);
        }
        for y in 0..tile.picture.height.min(EDGE) {
            for x in 0..tile.picture.width.min(EDGE) {
                let at = (y * tile.picture.width + x) * 3;
                let rgb = [tile.picture.data[at], tile.picture.data[at + 1], tile.picture.data[at + 2]];
                out.put(x0 + x, y0 + lines * LINE + y, rgb);
            }
        }
    }
    for (l, line) in foot.iter().enumerate() {
        out.text(GAP, down * high + GAP + l * LINE, line, [180, 180, 180]);
    }
    out
}

/// Bilinear; none outside the grid.
fn bilinear(grey: &[f32], columns: usize, rows: usize, x: f64, y: f64) -> Option<f32> {
    if x < 0.0 || y < 0.0 || x > (columns - 1) as f64 || y > (rows - 1) as f64 {
        return None;
    }
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(columns - 1), (y0 + 1).min(rows - 1));
    let (fx, fy) = ((x - x0 as f64) as f32, (y - y0 as f64) as f32);
    let at = |x: usize, y: usize| grey[y * columns + x];
    let (a, b) = (at(x0, y0) * (1.0 - fx) + at(x1, y0) * fx, at(x0, y1) * (1.0 - fx) + at(x1, y1) * fx);
    Some(a * (1.0 - fy) + b * fy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;

    #[test]
    fn outlines_show_where_two_masks_part() {
        let g = Geometry::axial([60, 50, 2], [1.0, 1.5, 5.0]);
        let volume = Volume { data: vec![100.0; g.voxels()], geometry: g.clone() };
        let block = |x0: usize, x1: usize| {
            let mut labels = LabelMap::empty(g.clone());
            for i in 0..g.plane() {
                if (x0..x1).contains(&(i % 60)) && (15..30).contains(&(i / 60)) {
                    labels.data[g.plane() + i] = 2;
                }
            }
            labels
        };
        let (truth, found) = (block(20, 40), block(20, 35));
        let count = |p: &Rgb, c: [u8; 3]| p.data.chunks(3).filter(|v| **v == c).count();
        let picture = Contours { volume: &volume, truth: &truth, found: &found, label: 2, slice: 1 }.picture();
        // Left, top and bottom edge in common, the right edges apart: 22.5 mm high in a square of 46.5 mm.
        let edge = (22.5 / 46.5 * EDGE as f64) as usize;
        assert!(count(&picture, FOUND).abs_diff(edge) < 4, "{} {edge}", count(&picture, FOUND));
        assert!(count(&picture, TRUTH) > edge && count(&picture, BOTH) > 2 * edge);
        let same = Contours { volume: &volume, truth: &truth, found: &truth, label: 2, slice: 1 }.picture();
        assert_eq!((count(&same, TRUTH), count(&same, FOUND)), (0, 0));
        let none = Contours { volume: &volume, truth: &truth, found: &found, label: 2, slice: 0 }.picture();
        assert_eq!(count(&none, TRUTH) + count(&none, FOUND) + count(&none, BOTH), 0);
        let all = sheet(&vec![Tile { picture, caption: vec!["VL".into()] }; 3], 2, &["foot".into()]);
        assert_eq!(all.data.len(), all.width * all.height * 3);
        assert!(count(&all, BOTH) > 6 * edge);
        assert!(all.png().unwrap().starts_with(b"\x89PNG"));
    }
}
