//! NIfTI-1 label volumes in one file (`.nii`, `.nii.gz`).

use super::{Kind, LabelImage, decode, geometry_of, voxels};
use crate::image::Geometry;

/// Length of a NIfTI-1 header.
const HEADER: usize = 348;

pub(super) fn read(bytes: &[u8]) -> Result<LabelImage, String> {
    if bytes.len() < HEADER + 4 {
        return Err("neither NRRD, NIfTI nor DICOM SEG".into());
    }
    let big = match [bytes[0], bytes[1], bytes[2], bytes[3]] {
        [0x5c, 1, 0, 0] => false,
        [0, 0, 1, 0x5c] => true,
        _ => return Err("neither NRRD, NIfTI nor DICOM SEG".into()),
    };
    if &bytes[344..347] != b"n+1" {
        return Err("a NIfTI header without its data (hdr/img pair); save as .nii or .nii.gz".into());
    }
    let h = Fields { bytes, big };
    let rank = h.i16(40);
    if !(3..=4).contains(&rank) || (rank == 4 && h.i16(48) != 1) {
        return Err(format!("has {rank} axes; a label volume has 3"));
    }
    let dims = [42, 44, 46].map(|o| usize::try_from(h.i16(o)).unwrap_or(0));
    let count = voxels(dims)?;
    let kind = match h.i16(70) {
        2 => Kind::U8,
        256 => Kind::I8,
        4 => Kind::I16,
        512 => Kind::U16,
        8 => Kind::I32,
        768 => Kind::U32,
        1024 => Kind::I64,
        1280 => Kind::U64,
        16 => Kind::F32,
        64 => Kind::F64,
        other => return Err(format!("data type {other} is not read")),
    };
    let offset = h.f32(108);
    if !(352.0..1e6).contains(&offset) {
        return Err(format!("data at byte {offset} is not possible"));
    }
    let needed = count * kind.width();
    let data = bytes
        .get(offset as usize..offset as usize + needed)
        .ok_or_else(|| format!("holds {} bytes, {} are needed: cut short?", bytes.len(), offset as usize + needed))?;
    let (slope, intercept) = (h.f32(112), h.f32(116));
    let scaled = slope != 0.0 && slope.is_finite() && intercept.is_finite();
    let values = decode(kind, big, data, |v| if scaled { v * f64::from(slope) + f64::from(intercept) } else { v })?;
    LabelImage::of_values(dims, geometry(&h, dims)?, values)
}

/// The sform where set, else the qform, else none. NIfTI's world is RAS, ours LPS.
fn geometry(h: &Fields<'_>, dims: [usize; 3]) -> Result<Option<Geometry>, String> {
    let flip = [-1.0, -1.0, 1.0];
    let mut columns = [[0.0; 3]; 3];
    let mut origin = [0.0; 3];
    if h.i16(254) > 0 {
        for row in 0..3 {
            for (a, column) in columns.iter_mut().enumerate() {
                column[row] = flip[row] * f64::from(h.f32(280 + 16 * row + 4 * a));
            }
            origin[row] = flip[row] * f64::from(h.f32(280 + 16 * row + 12));
        }
    } else if h.i16(252) > 0 {
        let [b, c, d] = [256, 260, 264].map(|o| f64::from(h.f32(o)));
        let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
        let r = [
            [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
            [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
            [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ];
        let handed = if h.f32(76) < 0.0 { -1.0 } else { 1.0 };
        for row in 0..3 {
            for (k, column) in columns.iter_mut().enumerate() {
                let step = f64::from(h.f32(80 + 4 * k)) * if k == 2 { handed } else { 1.0 };
                column[row] = flip[row] * r[row][k] * step;
            }
            origin[row] = flip[row] * f64::from(h.f32(268 + 4 * row));
        }
    } else {
        return Ok(None);
    }
    geometry_of(dims, columns, origin).map(Some)
}

struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl Fields<'_> {
    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut w = [0u8; N];
        // Every offset lies inside the header, whose length was checked.
        w.copy_from_slice(&self.bytes[at..at + N]);
        if self.big {
            w.reverse();
        }
        w
    }
    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.take(at))
    }
    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.take(at))
    }
}
