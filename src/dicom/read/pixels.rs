//! Pixel data to stored values, frame by frame.

use std::ops::Range;
use std::path::Path;

use dicom_core::Tag;
use rayon::prelude::*;

use super::codec;
use super::error::{ReadCause, ReadError};
use super::header::{self, InstanceHeader};
use super::parse::{DEFLATED, Limits, PIXEL_DATA, Parsed, Value};
use super::values::Item;

/// A decoded frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// From 1.
    pub number: u32,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Stored values, row by row: Bits Stored wide, sign extended.
    pub stored: Vec<i32>,
    /// Rescale Slope.
    pub slope: f64,
    /// Rescale Intercept.
    pub intercept: f64,
    /// Where low stored values are bright (MONOCHROME1): what a stored value and the one as dark as it is bright add up to.
    pub mirror: Option<f64>,
}

impl Frame {
    /// Values after the modality's rescale, row by row. Of a MONOCHROME1 image the stored values are mirrored first, so that
    /// what is bright on the scanner's screen is high here as well.
    pub fn rescaled(&self) -> Vec<f32> {
        let bright = |v: i32| self.mirror.map_or(f64::from(v), |sum| sum - f64::from(v));
        self.stored.iter().map(|&v| (bright(v) * self.slope + self.intercept) as f32).collect()
    }
}

/// Reads all frames of an object with the default limits.
///
/// # Errors
/// [`ReadError`], which names the file, the cause and the remedy.
pub fn decode_frames(path: &Path) -> Result<Vec<Frame>, ReadError> {
    decode_frames_with(path, None, &Limits::default()).map(|(_, frames)| frames)
}

/// Reads one frame (from 1) with the default limits.
///
/// # Errors
/// [`ReadError`].
pub fn decode_frame(path: &Path, number: u32) -> Result<Frame, ReadError> {
    let (header, mut frames) = decode_frames_with(path, Some(&[number]), &Limits::default())?;
    frames
        .pop()
        .ok_or_else(|| ReadError::new(path, ReadCause::NoSuchFrame { frame: number, frames: header.number_of_frames }))
}

/// Reads the header and the frames asked for (from 1; `None`: all), in the order asked for.
///
/// # Errors
/// [`ReadError`].
pub fn decode_frames_with(
    path: &Path,
    numbers: Option<&[u32]>,
    limits: &Limits,
) -> Result<(InstanceHeader, Vec<Frame>), ReadError> {
    let read = || {
        let (parsed, size) = header::open(path, true, limits)?;
        let header = header::header(path, &parsed, size)?;
        let frames = decode(&parsed, &header, numbers, limits)?;
        Ok((header, frames))
    };
    read().map_err(|cause| ReadError::new(path, cause))
}

fn decode(
    parsed: &Parsed,
    header: &InstanceHeader,
    numbers: Option<&[u32]>,
    limits: &Limits,
) -> Result<Vec<Frame>, ReadCause> {
    let root = Item::root(parsed);
    let element =
        root.find(PIXEL_DATA).ok_or_else(|| ReadCause::NoPixelData { sop_class: header.sop_class_uid.clone() })?;
    let layout = Layout::of(header, limits)?;
    let all: Vec<u32>;
    let numbers = match numbers {
        Some(n) => n,
        None => {
            all = (1..=layout.frames).collect();
            &all
        }
    };
    if let Some(&frame) = numbers.iter().find(|&&n| n == 0 || n > layout.frames) {
        return Err(ReadCause::NoSuchFrame { frame, frames: layout.frames });
    }
    let raw: Vec<Vec<i32>> = match &element.value {
        Value::Bytes(range) => {
            if !is_native(&parsed.transfer_syntax) {
                let what = "the transfer syntax is a compressed one, the pixel data is not encapsulated";
                return Err(ReadCause::Encoding { at: range.start, what: what.into() });
            }
            let bytes = parsed.bytes.get(range.clone()).unwrap_or(&[]);
            layout.enough(bytes.len() as u64)?;
            let size = layout.frame_bytes();
            numbers
                .par_iter()
                .map(|&n| {
                    let at = (n as usize - 1) * size;
                    layout.native(bytes.get(at..at + size).unwrap_or(&[]), parsed.encoding.big)
                })
                .collect()
        }
        Value::Beyond { start, .. } => {
            layout.enough((parsed.bytes.len() - start) as u64)?;
            // The pixels are whole, only the length field is wrong: which of the two is right cannot be told.
            return Err(ReadCause::Encoding {
                at: *start,
                what: "the pixel data's length runs over the end of the file".into(),
            });
        }
        Value::Fragments(list) => {
            let syntax = codec::Syntax::of(&parsed.transfer_syntax)?;
            let streams = streams(parsed, list, layout.frames)?;
            numbers
                .par_iter()
                .map(|&n| {
                    let ranges = streams.get(n as usize - 1).map_or(&[][..], Vec::as_slice);
                    let joined: Vec<u8>;
                    let data = match ranges {
                        [one] => parsed.bytes.get(one.clone()).unwrap_or(&[]),
                        many => {
                            joined =
                                many.iter().flat_map(|r| parsed.bytes.get(r.clone()).unwrap_or(&[])).copied().collect();
                            &joined
                        }
                    };
                    codec::decode(syntax, data, &layout).map_err(|what| ReadCause::Decode {
                        frame: n,
                        syntax: syntax.name(),
                        what,
                    })
                })
                .collect::<Result<_, _>>()?
        }
        Value::Items(range, _) => {
            return Err(ReadCause::Encoding { at: range.start, what: "the pixel data is a sequence of items".into() });
        }
    };
    let frames = numbers.iter().zip(raw).map(|(&number, mut stored)| {
        layout.narrow(&mut stored);
        let scale = header.frames.get(number as usize - 1).or(header.frames.first());
        Frame {
            number,
            rows: usize::from(layout.rows),
            columns: usize::from(layout.columns),
            stored,
            slope: scale.map_or(1.0, |f| f.slope),
            intercept: scale.map_or(0.0, |f| f.intercept),
            mirror: layout.mirror(header),
        }
    });
    Ok(frames.collect())
}

fn is_native(uid: &str) -> bool {
    matches!(uid, "1.2.840.10008.1.2" | "1.2.840.10008.1.2.1" | "1.2.840.10008.1.2.2" | DEFLATED)
}

/// The shape of the pixels, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub rows: u16,
    pub columns: u16,
    pub frames: u32,
    pub allocated: u16,
    pub stored: u16,
    pub high: u16,
    pub signed: bool,
}

impl Layout {
    fn of(header: &InstanceHeader, limits: &Limits) -> Result<Layout, ReadCause> {
        let missing = |tag, name| Err(ReadCause::Missing { tag, name });
        if header.samples_per_pixel != 1 {
            return Err(ReadCause::Colour {
                samples: header.samples_per_pixel,
                photometric: header.photometric.clone(),
            });
        }
        if header.rows == 0 {
            return missing("(0028,0010)", "Rows");
        }
        if header.columns == 0 {
            return missing("(0028,0011)", "Columns");
        }
        let value = |name, value: u16, problem| Err(ReadCause::Value { name, value: value.to_string(), problem });
        match header.bits_allocated {
            0 => return missing("(0028,0100)", "Bits Allocated"),
            8 | 16 | 32 => {}
            b => return value("Bits Allocated (0028,0100)", b, "an MR image has 8, 16 or 32"),
        }
        if header.bits_stored > header.bits_allocated {
            return value("Bits Stored (0028,0101)", header.bits_stored, "more than Bits Allocated; export it again");
        }
        if header.high_bit >= header.bits_allocated || header.high_bit + 1 < header.bits_stored {
            return value("High Bit (0028,0102)", header.high_bit, "does not fit Bits Stored; export it again");
        }
        if !header.photometric.is_empty() && !header.photometric.starts_with("MONOCHROME") {
            return Err(ReadCause::Value {
                name: "Photometric Interpretation (0028,0004)",
                value: header.photometric.clone(),
                problem: "only MONOCHROME1 and MONOCHROME2 are read",
            });
        }
        let pixels = u64::from(header.rows) * u64::from(header.columns) * u64::from(header.number_of_frames);
        // Decoded values are held as 32 bits.
        let bytes = pixels.saturating_mul(4);
        if bytes > limits.max_pixel_bytes {
            return Err(ReadCause::TooManyPixels {
                columns: header.columns.into(),
                rows: header.rows.into(),
                frames: header.number_of_frames.into(),
                bytes,
                limit: limits.max_pixel_bytes,
            });
        }
        Ok(Layout {
            rows: header.rows,
            columns: header.columns,
            frames: header.number_of_frames,
            allocated: header.bits_allocated,
            stored: header.bits_stored,
            high: header.high_bit,
            signed: header.signed,
        })
    }

    pub fn pixels(&self) -> usize {
        usize::from(self.rows) * usize::from(self.columns)
    }

    fn frame_bytes(&self) -> usize {
        self.pixels() * usize::from(self.allocated / 8)
    }

    fn enough(&self, have: u64) -> Result<(), ReadCause> {
        let need = self.frame_bytes() as u64 * u64::from(self.frames);
        if have >= need {
            return Ok(());
        }
        Err(ReadCause::ShortPixels {
            have,
            need,
            columns: self.columns,
            rows: self.rows,
            frames: self.frames,
            bits: self.allocated,
        })
    }

    /// Values of `allocated` bits, not yet cut to the bits stored.
    pub fn native(&self, bytes: &[u8], big: bool) -> Vec<i32> {
        match self.allocated {
            8 => bytes.iter().map(|&b| i32::from(b)).collect(),
            16 if big => bytes.chunks_exact(2).map(|c| i32::from(u16::from_be_bytes([c[0], c[1]]))).collect(),
            16 => bytes.chunks_exact(2).map(|c| i32::from(u16::from_le_bytes([c[0], c[1]]))).collect(),
            _ if big => bytes.chunks_exact(4).map(|c| i32::from_be_bytes([c[0], c[1], c[2], c[3]])).collect(),
            _ => bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
        }
    }

    /// See [`Frame::mirror`].
    fn mirror(&self, header: &InstanceHeader) -> Option<f64> {
        (header.photometric == "MONOCHROME1")
            .then(|| if self.signed { -1.0 } else { f64::from(self.stored).exp2() - 1.0 })
    }

    /// Cuts values to the bits stored below the high bit (the rest may hold overlays) and extends the sign.
    fn narrow(&self, values: &mut [i32]) {
        let shift = u32::from(self.high + 1 - self.stored);
        let left = 32 - u32::from(self.stored);
        for v in values {
            let bits = (*v as u32 >> shift) << left;
            *v = if self.signed { bits as i32 >> left } else { (bits >> left) as i32 };
        }
    }
}

/// The fragments of each frame. The first fragment is the basic offset table.
fn streams(parsed: &Parsed, list: &[Range<usize>], frames: u32) -> Result<Vec<Vec<Range<usize>>>, ReadCause> {
    let Some((table, fragments)) = list.split_first() else {
        return Err(ReadCause::Fragments { fragments: 0, frames });
    };
    if frames == 1 {
        return Ok(vec![fragments.to_vec()]);
    }
    if fragments.len() == frames as usize {
        return Ok(fragments.iter().map(|f| vec![f.clone()]).collect());
    }
    let refuse = || ReadCause::Fragments { fragments: fragments.len(), frames };
    let offsets = offsets(parsed, table, frames).ok_or_else(refuse)?;
    // Offsets count from the first fragment's item tag.
    let base = fragments.first().map(|f| f.start).ok_or_else(refuse)? as u64;
    let mut streams = vec![Vec::new(); frames as usize];
    for f in fragments {
        let at = f.start as u64 - base;
        let frame = offsets.partition_point(|&o| o <= at);
        streams.get_mut(frame.wrapping_sub(1)).ok_or_else(refuse)?.push(f.clone());
    }
    if streams.iter().any(Vec::is_empty) {
        return Err(refuse());
    }
    Ok(streams)
}

/// The basic offset table or, where it is empty, the extended one.
fn offsets(parsed: &Parsed, table: &Range<usize>, frames: u32) -> Option<Vec<u64>> {
    let basic = parsed.bytes.get(table.clone())?;
    let offsets: Vec<u64> = if basic.is_empty() {
        let extended = Item::root(parsed).bytes(Tag(0x7FE0, 0x0001))?;
        extended.chunks_exact(8).map(|c| c.iter().rev().fold(0, |a, &b| (a << 8) | u64::from(b))).collect()
    } else {
        basic.chunks_exact(4).map(|c| u64::from(u32::from_le_bytes([c[0], c[1], c[2], c[3]]))).collect()
    };
    (offsets.len() == frames as usize && offsets.is_sorted()).then_some(offsets)
}
