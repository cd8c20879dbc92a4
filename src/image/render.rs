//! Pictures for people: slices with their labels drawn over them, as one montage.

use std::io::Write;
use std::path::Path;

use font8x8::UnicodeFonts;

use super::{LabelMap, Volume};

/// A true-colour picture, row by row, three bytes per pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

/// A label's colour and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legend {
    /// Value in the label map.
    pub label: u8,
    /// sRGB.
    pub rgb: [u8; 3],
    /// What stands beside the colour.
    pub name: String,
}

/// Largest edge of a montage, pixels: a Secondary Capture's rows and columns are 16 bit, and viewers are happier below.
const MAX_EDGE: usize = 4096;
/// Height of a line of text, pixels.
const LINE: usize = 12;
/// Legend entries side by side.
const COLUMNS: usize = 2;

impl Rgb {
    /// A black picture.
    pub fn black(width: usize, height: usize) -> Self {
        Rgb { width, height, data: vec![0; width * height * 3] }
    }

    pub(super) fn put(&mut self, x: usize, y: usize, rgb: [u8; 3]) {
        if x < self.width && y < self.height {
            let i = (y * self.width + x) * 3;
            self.data[i..i + 3].copy_from_slice(&rgb);
        }
    }

    /// Draws text, 8 pixels a character, with its top left corner at `x`, `y`; what does not fit is cut off.
    pub fn text(&mut self, x: usize, y: usize, text: &str, rgb: [u8; 3]) {
        for (i, c) in text.chars().enumerate() {
            let Some(glyph) = font8x8::BASIC_FONTS.get(c).or_else(|| font8x8::BASIC_FONTS.get('?')) else { continue };
            for (dy, bits) in glyph.iter().enumerate() {
                for dx in 0..8 {
                    if bits & (1 << dx) != 0 {
                        self.put(x + i * 8 + dx, y + dy, rgb);
                    }
                }
            }
        }
    }

    /// Writes a PNG.
    ///
    /// # Errors
    /// The file's.
    pub fn write_png(&self, path: &Path) -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        self.encode(&mut file)?;
        file.flush()
    }

    /// The picture as a PNG in memory.
    ///
    /// # Errors
    /// The encoder's: a picture without pixels.
    pub fn png(&self) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.encode(&mut out)?;
        Ok(out)
    }

    fn encode(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut encoder = png::Encoder::new(out, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(std::io::Error::other)?;
        writer.write_image_data(&self.data).map_err(std::io::Error::other)?;
        writer.finish().map_err(std::io::Error::other)
    }
}

/// All slices in a grid, labels filled and outlined in their colours, captions and a legend. Slices are trimmed to what
/// lies round the labels (the whole slice where there are none) and drawn with square pixels. `caption` stands at the foot;
/// it must carry no patient data.
pub fn montage(volume: &Volume, labels: &LabelMap, legend: &[Legend], caption: &[String]) -> Rgb {
    let g = &volume.geometry;
    let [columns, rows, slices] = g.dims;
    let [x0, y0, x1, y1] = extent(labels);
    // Square pixels of the finer spacing, about 260 pixels a tile.
    let mm = [(x1 - x0) as f64 * g.spacing[0], (y1 - y0) as f64 * g.spacing[1]];
    let across = (slices as f64).sqrt().ceil() as usize;
    let across = if mm[0] > 1.6 * mm[1] { across.div_ceil(2).max(1) } else { across.max(1) };
    let down = slices.div_ceil(across);
    let edge = 320.0_f64.min((MAX_EDGE / across.max(down)) as f64 - 4.0).max(32.0);
    let scale = edge / mm[0].max(mm[1]).max(1.0);
    let tile = [(mm[0] * scale).ceil().max(1.0) as usize, (mm[1] * scale).ceil().max(1.0) as usize];
    let foot = LINE * (legend.len().div_ceil(COLUMNS) + caption.len()) + 8;
    let longest = caption.iter().map(|c| c.chars().count() * 8 + 8).max().unwrap_or(0);
    let width = (across * (tile[0] + 2)).max(longest.min(1024)).max(480);
    let mut out = Rgb::black(width, down * (tile[1] + 2) + foot);
    let (low, high) = window(volume);
    let colour = |v: u8| legend.iter().find(|l| l.label == v).map(|l| l.rgb);
    for z in 0..slices {
        let (ox, oy) = ((z % across) * (tile[0] + 2), (z / across) * (tile[1] + 2));
        let at = |x: usize, y: usize| (z * rows + y) * columns + x;
        for ty in 0..tile[1] {
            for tx in 0..tile[0] {
                let x = (x0 + (tx as f64 / scale / g.spacing[0]) as usize).min(columns - 1);
                let y = (y0 + (ty as f64 / scale / g.spacing[1]) as usize).min(rows - 1);
                let grey = ((volume.data[at(x, y)] - low) / (high - low) * 255.0).clamp(0.0, 255.0) as u8;
                let label = labels.data[at(x, y)];
                let mut rgb = [grey; 3];
                if let Some(c) = colour(label) {
                    let differs = |x: usize, y: usize| labels.data[at(x, y)] != label;
                    let rim = (x > 0 && differs(x - 1, y))
                        || (y > 0 && differs(x, y - 1))
                        || (x + 1 < columns && differs(x + 1, y))
                        || (y + 1 < rows && differs(x, y + 1));
                    let share = if rim { 0.9 } else { 0.35 };
                    for i in 0..3 {
                        rgb[i] = (f32::from(c[i]) * share + f32::from(grey) * (1.0 - share)) as u8;
                    }
                }
                out.put(ox + tx, oy + ty, rgb);
            }
        }
        out.text(ox + 3, oy + 3, &(z + 1).to_string(), [255, 255, 255]);
        // The patient's left lies at growing x; the letter stands at the side of the tile where it belongs.
        let (left, right) = if g.axes[0][0] >= 0.0 { ("R", "L") } else { ("L", "R") };
        out.text(ox + 3, oy + tile[1] / 2, left, [200, 200, 200]);
        out.text(ox + tile[0].saturating_sub(11), oy + tile[1] / 2, right, [200, 200, 200]);
    }
    let mut y = down * (tile[1] + 2) + 4;
    let column = out.width / COLUMNS;
    for (i, l) in legend.iter().enumerate() {
        let x = (i % COLUMNS) * column + 4;
        for dy in 0..8 {
            for dx in 0..8 {
                out.put(x + dx, y + dy, l.rgb);
            }
        }
        let fits = (column.saturating_sub(18)) / 8;
        out.text(x + 12, y, &l.name.chars().take(fits).collect::<String>(), [230, 230, 230]);
        if i % COLUMNS == COLUMNS - 1 || i + 1 == legend.len() {
            y += LINE;
        }
    }
    for line in caption {
        out.text(4, y, line, [180, 180, 180]);
        y += LINE;
    }
    out
}

/// Columns and rows round all labels with a margin, or everything.
fn extent(labels: &LabelMap) -> [usize; 4] {
    let [columns, rows, _] = labels.geometry.dims;
    let (mut x0, mut y0, mut x1, mut y1) = (columns, rows, 0, 0);
    for (i, v) in labels.data.iter().enumerate() {
        if *v != 0 {
            let (x, y) = (i % columns, (i / columns) % rows);
            (x0, y0, x1, y1) = (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1));
        }
    }
    if x0 >= x1 {
        return [0, 0, columns, rows];
    }
    let m = columns.max(rows) / 20;
    [x0.saturating_sub(m), y0.saturating_sub(m), (x1 + m).min(columns), (y1 + m).min(rows)]
}

/// 1st and 99.5th percentile of the volume.
pub(super) fn window(volume: &Volume) -> (f32, f32) {
    let mut values: Vec<f32> = volume.data.iter().copied().filter(|v| v.is_finite()).step_by(7).collect();
    if values.is_empty() {
        return (0.0, 1.0);
    }
    values.sort_by(f32::total_cmp);
    let low = values[values.len() / 100];
    let high = values[(values.len() - 1) * 995 / 1000];
    (low, if high > low { high } else { low + 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;

    #[test]
    fn a_label_is_drawn_in_its_colour_and_nothing_else_is() {
        let g = Geometry::axial([40, 40, 2], [1.0, 1.0, 5.0]);
        let volume = Volume { data: vec![100.0; g.voxels()], geometry: g.clone() };
        let mut labels = LabelMap::empty(g);
        for y in 10..20 {
            for x in 10..20 {
                labels.data[y * 40 + x] = 3;
            }
        }
        let legend = [Legend { label: 3, rgb: [255, 0, 0], name: "VL right".into() }];
        let picture = montage(&volume, &labels, &legend, &["score 90".into()]);
        assert_eq!(picture.data.len(), picture.width * picture.height * 3);
        let red = |p: &Rgb| p.data.chunks(3).filter(|c| c[0] > c[1].saturating_add(60)).count();
        assert!(red(&picture) > 100);
        let bare = montage(&volume, &LabelMap::empty(volume.geometry.clone()), &[], &[]);
        assert_eq!(red(&bare), 0);
    }
}
