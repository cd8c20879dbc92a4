//! Decoders of compressed frames: RLE and JPEG-LS here, JPEG by `jpeg-decoder`, JPEG 2000 by `openjp2`.
//!
//! Each stream's own header is held against the object's rows and columns before a decoder allocates for it. The third
//! party decoders run under `catch_unwind`: `openjp2` is translated C and `jpeg-decoder` indexes tables by stream
//! content; a broken stream that makes them panic must cost a frame, not the service. (The release profile therefore
//! keeps `panic = "unwind"`.)

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::ReadCause;
use super::jpegls;
use super::pixels::Layout;

/// A compressed transfer syntax with a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Rle,
    Jpeg,
    JpegLs,
    Jpeg2000,
}

impl Syntax {
    pub fn of(uid: &str) -> Result<Syntax, ReadCause> {
        match uid {
            "1.2.840.10008.1.2.5" => Ok(Syntax::Rle),
            // Baseline, Extended, Lossless, Lossless SV1.
            "1.2.840.10008.1.2.4.50"
            | "1.2.840.10008.1.2.4.51"
            | "1.2.840.10008.1.2.4.57"
            | "1.2.840.10008.1.2.4.70" => Ok(Syntax::Jpeg),
            "1.2.840.10008.1.2.4.80" | "1.2.840.10008.1.2.4.81" => Ok(Syntax::JpegLs),
            "1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91" => Ok(Syntax::Jpeg2000),
            _ => Err(ReadCause::TransferSyntax { uid: uid.to_string(), name: known(uid).to_string() }),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Syntax::Rle => "RLE",
            Syntax::Jpeg => "JPEG",
            Syntax::JpegLs => "JPEG-LS",
            Syntax::Jpeg2000 => "JPEG 2000",
        }
    }
}

fn known(uid: &str) -> &'static str {
    match uid {
        "1.2.840.10008.1.2.4.110" | "1.2.840.10008.1.2.4.111" | "1.2.840.10008.1.2.4.112" => "JPEG XL",
        "1.2.840.10008.1.2.4.201" | "1.2.840.10008.1.2.4.202" | "1.2.840.10008.1.2.4.203" => {
            "High-Throughput JPEG 2000"
        }
        _ if uid.starts_with("1.2.840.10008.1.2.4.10") => "MPEG video",
        _ => "not a known grey image syntax",
    }
}

/// Decodes one frame to `allocated`-bit values, not yet cut to the bits stored.
pub(super) fn decode(syntax: Syntax, data: &[u8], layout: &Layout) -> Result<Vec<i32>, String> {
    if data.is_empty() {
        return Err("the frame has no bytes".into());
    }
    let values = match syntax {
        Syntax::Rle => rle(data, layout),
        Syntax::Jpeg => guarded(|| jpeg(data, layout)),
        Syntax::JpegLs => {
            let image = jpegls::decode(data, layout.columns, layout.rows)?;
            bits(image.bits.into(), layout)?;
            Ok(image.values)
        }
        Syntax::Jpeg2000 => guarded(|| jpeg2000(data, layout)),
    }?;
    if values.len() != layout.pixels() {
        return Err(format!("{} values decoded where {} are due", values.len(), layout.pixels()));
    }
    Ok(values)
}

fn guarded(run: impl FnOnce() -> Result<Vec<i32>, String>) -> Result<Vec<i32>, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("the stream is broken (its decoder gave up)".into()))
}

fn same_size(columns: u32, rows: u32, layout: &Layout) -> Result<(), String> {
    if columns == u32::from(layout.columns) && rows == u32::from(layout.rows) {
        return Ok(());
    }
    Err(format!("the stream is {columns} x {rows}, the object says {} x {}", layout.columns, layout.rows))
}

fn bits(bits: u32, layout: &Layout) -> Result<(), String> {
    if bits <= u32::from(layout.allocated) {
        return Ok(());
    }
    Err(format!("the stream has {bits} bits per value, the object allocates {}", layout.allocated))
}

/// RLE Lossless (PS3.5, annex G): byte planes, the most significant first, each packed.
fn rle(data: &[u8], layout: &Layout) -> Result<Vec<i32>, String> {
    let word = |i: usize| -> Option<usize> {
        let b = data.get(4 * i..4 * i + 4)?;
        Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let planes = usize::from(layout.allocated / 8);
    let count = word(0).ok_or("the RLE header is cut")?;
    if count != planes || data.len() < 64 {
        return Err(format!("{count} RLE segments where {planes} are due"));
    }
    let mut values = vec![0i32; layout.pixels()];
    for p in 0..planes {
        let start = word(1 + p).unwrap_or(usize::MAX);
        let end = if p + 1 < planes { word(2 + p).unwrap_or(usize::MAX) } else { data.len() };
        let segment = data.get(start..end).ok_or("an RLE segment lies outside the frame")?;
        unpack(segment, &mut values, 8 * (planes - 1 - p) as u32)?;
    }
    Ok(values)
}

fn unpack(segment: &[u8], values: &mut [i32], shift: u32) -> Result<(), String> {
    let mut out = values.iter_mut();
    let mut at = 0;
    while out.len() > 0 {
        let n = *segment.get(at).ok_or("an RLE segment ends too early")? as i8;
        at += 1;
        if n >= 0 {
            let run = usize::from(n as u8) + 1;
            // A run may reach over the last pixel by padding.
            let run = run.min(out.len());
            let bytes = segment.get(at..at + run).ok_or("an RLE segment ends too early")?;
            at += usize::from(n as u8) + 1;
            for (&b, v) in bytes.iter().zip(&mut out) {
                *v |= i32::from(b) << shift;
            }
        } else if n != -128 {
            let b = *segment.get(at).ok_or("an RLE segment ends too early")?;
            at += 1;
            for v in out.by_ref().take(usize::from(n.unsigned_abs()) + 1) {
                *v |= i32::from(b) << shift;
            }
        }
    }
    Ok(())
}

/// Size, precision and components of a JPEG stream, from its frame header: (marker, bits, columns, rows, components).
fn frame_header(data: &[u8]) -> Result<(u8, u8, u32, u32, u8), String> {
    let mut at = 2;
    if !data.starts_with(&[0xFF, 0xD8]) {
        return Err("no start of image".into());
    }
    while let Some(&[a, marker, l0, l1]) = data.get(at..at + 4) {
        if a != 0xFF {
            return Err("a marker was expected".into());
        }
        if marker == 0xFF {
            at += 1;
            continue;
        }
        if (0xC0..=0xCF).contains(&marker) && ![0xC4, 0xC8, 0xCC].contains(&marker) {
            let Some(&[bits, h0, h1, w0, w1, n]) = data.get(at + 4..at + 10) else { break };
            let be = |a, b| u32::from(u16::from_be_bytes([a, b]));
            return Ok((marker, bits, be(w0, w1), be(h0, h1), n));
        }
        at += 2 + usize::from(u16::from_be_bytes([l0, l1]));
    }
    Err("no frame header".into())
}

fn jpeg(data: &[u8], layout: &Layout) -> Result<Vec<i32>, String> {
    let (marker, precision, columns, rows, components) = frame_header(data)?;
    same_size(columns, rows, layout)?;
    bits(precision.into(), layout)?;
    if components != 1 {
        return Err(format!("the stream has {components} components"));
    }
    if marker != 0xC3 && precision != 8 {
        return Err(format!("{precision}-bit lossy JPEG (Extended, process 4): only 8-bit lossy JPEG is decoded"));
    }
    let mut decoder = jpeg_decoder::Decoder::new(data);
    decoder.set_max_decoding_buffer_size(layout.pixels() * 2);
    let bytes = decoder.decode().map_err(|e| e.to_string())?;
    match decoder.info().map(|i| i.pixel_format) {
        Some(jpeg_decoder::PixelFormat::L8) => Ok(bytes.into_iter().map(i32::from).collect()),
        Some(jpeg_decoder::PixelFormat::L16) => {
            Ok(bytes.chunks_exact(2).map(|c| i32::from(u16::from_ne_bytes([c[0], c[1]]))).collect())
        }
        _ => Err("the stream is not grey".into()),
    }
}

/// A JPEG 2000 code stream, and columns, rows and components from its SIZ marker.
fn siz(data: &[u8]) -> Option<(&[u8], u32, u32, u16)> {
    let at = data.windows(4).position(|w| w == [0xFF, 0x4F, 0xFF, 0x51])?;
    let word = |i: usize| {
        let b = data.get(at + i..at + i + 4)?;
        Some(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    };
    let (x1, y1, x0, y0) = (word(8)?, word(12)?, word(16)?, word(20)?);
    let n = data.get(at + 40..at + 42)?;
    Some((data.get(at..)?, x1.checked_sub(x0)?, y1.checked_sub(y0)?, u16::from_be_bytes([n[0], n[1]])))
}

/// The code stream whose size was held against the object's. What stands before it (the boxes of a JP2 file, which DICOM does
/// not want) is not handed on: a decoder could find another code stream by them.
fn checked<'a>(data: &'a [u8], layout: &Layout) -> Result<&'a [u8], String> {
    let (stream, columns, rows, components) = siz(data).ok_or("no JPEG 2000 size marker")?;
    same_size(columns, rows, layout)?;
    if components != 1 {
        return Err(format!("the stream has {components} components"));
    }
    Ok(stream)
}

fn jpeg2000(data: &[u8], layout: &Layout) -> Result<Vec<i32>, String> {
    let stream = checked(data, layout)?;
    // Strict: a cut code stream is an error, not a blurred image.
    let parameters = jpeg2k::DecodeParameters::new().strict(true);
    let image = jpeg2k::Image::from_bytes_with(stream, parameters).map_err(|e| e.to_string())?;
    let component = image.components().first().ok_or("no component")?;
    same_size(component.width(), component.height(), layout)?;
    bits(component.precision(), layout)?;
    Ok(component.data().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(columns: u16, rows: u16) -> Layout {
        Layout { rows, columns, frames: 1, allocated: 16, stored: 16, high: 15, signed: false }
    }

    #[test]
    fn packed_bytes_unpack_by_plane() {
        let mut data = vec![0u8; 64];
        data[0] = 2;
        data[4] = 64;
        data[8] = 66;
        data.extend_from_slice(&[253, 1, 3, 5, 6, 7, 8]);
        let values = rle(&data, &layout(2, 2)).unwrap();
        assert_eq!(values, [0x105, 0x106, 0x107, 0x108]);
        data.truncate(69);
        assert!(rle(&data, &layout(2, 2)).is_err());
    }

    #[test]
    fn streams_of_another_size_are_refused_before_decoding() {
        let jpeg_header = [0xFF, 0xD8, 0xFF, 0xC3, 0, 11, 16, 0xFF, 0xFF, 0xFF, 0xFF, 1];
        assert!(jpeg(&jpeg_header, &layout(4, 4)).unwrap_err().contains("65535 x 65535"));
        let mut j2k = vec![0xFF, 0x4F, 0xFF, 0x51, 0, 41, 0, 0];
        j2k.extend_from_slice(&[0xFF; 8]);
        j2k.extend_from_slice(&[0; 30]);
        assert!(jpeg2000(&j2k, &layout(4, 4)).unwrap_err().contains("4294967295"));
    }

    #[test]
    fn the_code_stream_that_was_checked_is_the_one_that_is_decoded() {
        let stream = |side: u32| {
            let mut s = vec![0xFF, 0x4F, 0xFF, 0x51, 0, 41, 0, 0];
            s.extend([side, side, 0, 0, side, side, 0, 0].iter().flat_map(|v| v.to_be_bytes()));
            s.extend([0, 1, 15, 1, 1]);
            s
        };
        // A box before the code stream that looks like a smaller one.
        let box_ = [&b"\0\0\0\x35uuid"[..], &stream(4)].concat();
        let data = [&b"\0\0\0\x0cjP  \r\n\x87\n"[..], &box_, &stream(60_000)].concat();
        let checked = checked(&data, &layout(4, 4)).unwrap();
        assert!(checked.starts_with(&stream(4)), "{checked:?}");
    }

    #[test]
    fn garbage_never_panics() {
        let l = layout(16, 16);
        for seed in 0..200u8 {
            let mut data: Vec<u8> = (0..400u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
            for syntax in [Syntax::Rle, Syntax::Jpeg, Syntax::JpegLs, Syntax::Jpeg2000] {
                let _ = decode(syntax, &data, &l);
            }
            data[..2].copy_from_slice(&[0xFF, 0xD8]);
            let _ = decode(Syntax::Jpeg, &data, &l);
        }
    }
}
