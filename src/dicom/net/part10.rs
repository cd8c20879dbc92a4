//! The head of a DICOM file (PS3.10): written before a received data set, read before one is sent.

use std::io::Read;

use super::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, trim_uid};

/// What a file's head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Media Storage SOP Class UID.
    pub sop_class: String,
    /// Media Storage SOP Instance UID.
    pub sop_instance: String,
    /// Transfer Syntax UID of the data set.
    pub transfer_syntax: String,
    /// Where the data set starts, bytes from the file's start.
    pub data_offset: u64,
}

/// Why a file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// It cannot be read.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    /// No `DICM` after the preamble.
    #[error("not a DICOM file: no DICM after 128 bytes")]
    NoMagic,
    /// The meta information is cut short or garbled.
    #[error("the file meta information is broken")]
    Broken,
    /// An element that every file must have is missing.
    #[error("the file meta information has no {0}")]
    Missing(&'static str),
}

/// The head of a file: a zero preamble (whatever the sender's file had there is not kept: a preamble can make the file an
/// executable), `DICM`, and meta information that depends on nothing but these three identifiers.
pub fn head(sop_class: &str, sop_instance: &str, transfer_syntax: &str) -> Vec<u8> {
    let mut meta = Vec::with_capacity(256);
    meta.extend_from_slice(&[2, 0, 1, 0, b'O', b'B', 0, 0, 2, 0, 0, 0, 0, 1]);
    let mut short = |element: u8, vr: &[u8; 2], value: &str, pad: u8| {
        let odd = value.len() % 2;
        meta.extend_from_slice(&[2, 0, element, 0, vr[0], vr[1]]);
        meta.extend_from_slice(&((value.len() + odd) as u16).to_le_bytes());
        meta.extend_from_slice(value.as_bytes());
        if odd == 1 {
            meta.push(pad);
        }
    };
    short(0x02, b"UI", sop_class, 0);
    short(0x03, b"UI", sop_instance, 0);
    short(0x10, b"UI", transfer_syntax, 0);
    short(0x12, b"UI", IMPLEMENTATION_CLASS_UID, 0);
    short(0x13, b"SH", IMPLEMENTATION_VERSION_NAME, b' ');
    let mut out = vec![0; 128];
    out.extend_from_slice(b"DICM\x02\0\0\0UL\x04\0");
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    out.extend_from_slice(&meta);
    out
}

/// Largest meta information that is read.
const MAX_META: u64 = 256 * 1024;

/// Reads a file's head; `file` stands somewhere behind it afterwards.
///
/// # Errors
/// [`HeadError`].
pub fn read_head(file: &mut impl Read) -> Result<Head, HeadError> {
    let mut start = [0u8; 132];
    file.read_exact(&mut start).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => HeadError::NoMagic,
        _ => HeadError::Io(e),
    })?;
    if &start[128..] != b"DICM" {
        return Err(HeadError::NoMagic);
    }
    let mut bytes = Vec::new();
    let mut take = file.take(MAX_META);
    // Most heads fit into the first piece.
    let mut at = 0usize;
    let (mut class, mut instance, mut syntax) = (None, None, None);
    loop {
        while bytes.len() < at + 12 && grow(&mut take, &mut bytes)? {}
        let Some(&[g0, g1, e0, e1, v0, v1, l0, l1]) = bytes.get(at..at + 8) else {
            // A file may hold no data set at all.
            if at == bytes.len() {
                break;
            }
            return Err(HeadError::Broken);
        };
        if [g0, g1] != [2, 0] {
            break;
        }
        let long = matches!(&[v0, v1], b"OB" | b"UN" | b"OW" | b"UT" | b"SQ");
        let (from, length) = if long {
            let Some(&[a, b, c, d]) = bytes.get(at + 8..at + 12) else { return Err(HeadError::Broken) };
            (at + 12, u32::from_le_bytes([a, b, c, d]) as usize)
        } else {
            (at + 8, usize::from(u16::from_le_bytes([l0, l1])))
        };
        let end = from.checked_add(length).filter(|&e| e as u64 <= MAX_META).ok_or(HeadError::Broken)?;
        while bytes.len() < end && grow(&mut take, &mut bytes)? {}
        let value = bytes.get(from..end).ok_or(HeadError::Broken)?;
        match u16::from_le_bytes([e0, e1]) {
            0x02 => class = Some(trim_uid(value)),
            0x03 => instance = Some(trim_uid(value)),
            0x10 => syntax = Some(trim_uid(value)),
            _ => {}
        }
        at = end;
    }
    Ok(Head {
        sop_class: class.ok_or(HeadError::Missing("Media Storage SOP Class UID"))?,
        sop_instance: instance.ok_or(HeadError::Missing("Media Storage SOP Instance UID"))?,
        transfer_syntax: syntax.ok_or(HeadError::Missing("Transfer Syntax UID"))?,
        data_offset: 132 + at as u64,
    })
}

/// Reads a little more; `false` at the end.
fn grow(from: &mut impl Read, bytes: &mut Vec<u8>) -> Result<bool, HeadError> {
    let before = bytes.len();
    from.take(1024).read_to_end(bytes)?;
    Ok(bytes.len() > before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_and_ends_where_the_data_set_starts() {
        let mut file = head("1.2.840.10008.5.1.4.1.1.4", "1.2.3.44", "1.2.840.10008.1.2.1");
        let length = file.len() as u64;
        for data in [&b""[..], b"\x08\0\x16\0UI\0\0", &[8; 5000]] {
            file.truncate(length as usize);
            file.extend_from_slice(data);
            let h = read_head(&mut &file[..]).unwrap();
            assert_eq!((h.data_offset, h.sop_instance.as_str()), (length, "1.2.3.44"));
            assert_eq!(h.transfer_syntax, "1.2.840.10008.1.2.1");
        }
        assert!(file[..128].iter().all(|b| *b == 0));
    }

    #[test]
    fn cut_and_flipped_heads_are_refused_or_read() {
        let file = head("1.2", "1.2.3", "1.2.840.10008.1.2.1");
        // Only the borders after the transfer syntax, the last element that is needed, are clean.
        let clean = (0..file.len()).filter(|&cut| read_head(&mut &file[..cut]).is_ok()).count();
        assert_eq!(clean, 2);
        for i in 132..file.len() {
            let mut bad = file.clone();
            bad[i] ^= 0xFF;
            let _ = read_head(&mut &bad[..]);
        }
    }
}
