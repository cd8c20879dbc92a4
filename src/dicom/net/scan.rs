//! Judges a data set as it streams by: well-formed, not nested beyond reason, and whose it is.
//!
//! Parsers recurse over nested sequences, so the depth is capped here, before any of them sees the bytes. Nothing is kept
//! but four UIDs and the stack of open sequences.

use dicom_core::VR;
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::header::Tag;
use dicom_dictionary_std::StandardDataDictionary;
use flate2::{Decompress, FlushDecompress, Status};

use super::negotiate::{DEFLATED_LE, EXPLICIT_BE, IMPLICIT_LE};
use super::trim_uid;

/// Sequences within sequences that are taken. Real objects have fewer than ten.
pub const MAX_DEPTH: usize = 32;

/// What is wrong with a data set. No message holds a value, so none holds patient data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// It ends within an element or a sequence.
    #[error("data set is cut short")]
    Truncated,
    /// An element with a VR that is none.
    #[error("element {0} has no valid VR")]
    BadVr(Tag),
    /// An element of undefined length that cannot have one.
    #[error("element {0} has undefined length")]
    UndefinedLength(Tag),
    /// An element that leaves the sequence or item it is in.
    #[error("element {0} is longer than what it is in")]
    Overlong(Tag),
    /// An item or delimiter out of place.
    #[error("item or delimiter {0} out of place")]
    Misplaced(Tag),
    /// Command or file meta elements in a data set.
    #[error("element {0} does not belong into a data set")]
    WrongGroup(Tag),
    /// More nested sequences than [`MAX_DEPTH`].
    #[error("sequences are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// A UID element of impossible length.
    #[error("element {0} is no UID")]
    BadUid(Tag),
    /// The compressed stream is broken.
    #[error("deflated data set is broken")]
    Deflate,
    /// The compressed stream grows beyond the limit.
    #[error("deflated data set inflates beyond the limit")]
    Bomb,
}

/// The identifiers of a data set; absent ones are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// (0008,0016).
    pub sop_class: Option<String>,
    /// (0008,0018).
    pub sop_instance: Option<String>,
    /// (0020,000D).
    pub study: Option<String>,
    /// (0020,000E).
    pub series: Option<String>,
}

const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);
const UNDEFINED: u32 = u32::MAX;
/// Longest UID value with padding; a little more than the standard's 64 is seen in the field.
const MAX_UID: u32 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sequence,
    Item,
    Fragments,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    kind: Kind,
    /// Offset of its end; `None`: ends with a delimiter.
    end: Option<u64>,
    coding: Coding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    ImplicitLe,
    ExplicitLe,
    ExplicitBe,
}

#[derive(Debug)]
enum State {
    Header,
    Skip(u64),
    Uid { tag: Tag, left: u32, bytes: Vec<u8> },
}

/// Walks over a data set given in pieces.
#[derive(Debug)]
struct Walker {
    coding: Coding,
    state: State,
    header: [u8; 12],
    have: usize,
    offset: u64,
    levels: Vec<Level>,
    depth: usize,
    ids: Ids,
}

impl Walker {
    fn new(coding: Coding) -> Self {
        Walker {
            coding,
            state: State::Header,
            header: [0; 12],
            have: 0,
            offset: 0,
            levels: Vec::new(),
            depth: 0,
            ids: Ids::default(),
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ScanError> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Skip(left) => {
                    let n = (*left).min(bytes.len() as u64);
                    *left -= n;
                    self.offset += n;
                    bytes = &bytes[n as usize..];
                    if *left == 0 {
                        self.state = State::Header;
                        self.close_levels();
                    }
                }
                State::Uid { tag, left, bytes: value } => {
                    let n = (*left as usize).min(bytes.len());
                    value.extend_from_slice(&bytes[..n]);
                    *left -= n as u32;
                    self.offset += n as u64;
                    bytes = &bytes[n..];
                    if *left == 0 {
                        let (tag, uid) = (*tag, trim_uid(value));
                        self.state = State::Header;
                        match tag {
                            Tag(0x0008, 0x0016) => self.ids.sop_class = Some(uid),
                            Tag(0x0008, 0x0018) => self.ids.sop_instance = Some(uid),
                            Tag(0x0020, 0x000D) => self.ids.study = Some(uid),
                            _ => self.ids.series = Some(uid),
                        }
                    }
                }
                State::Header => {
                    let coding = self.levels.last().map_or(self.coding, |l| l.coding);
                    let need = header_length(coding, &self.header[..self.have]);
                    let n = (need - self.have).min(bytes.len());
                    self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                    self.have += n;
                    self.offset += n as u64;
                    bytes = &bytes[n..];
                    // The VR may show that the header is longer than it seemed.
                    if self.have == need && need == header_length(coding, &self.header[..self.have]) {
                        self.have = 0;
                        self.element(coding)?;
                        self.close_levels();
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves what ends here.
    fn close_levels(&mut self) {
        while let Some(level) = self.levels.last() {
            if !matches!(self.state, State::Header) || level.end != Some(self.offset) {
                break;
            }
            self.pop();
        }
    }

    fn pop(&mut self) {
        if self.levels.pop().is_some_and(|l| l.kind == Kind::Sequence) {
            self.depth -= 1;
        }
    }

    fn push(&mut self, tag: Tag, kind: Kind, length: u32, coding: Coding) -> Result<(), ScanError> {
        let end = if length == UNDEFINED { None } else { Some(self.within(tag, length)?) };
        if kind == Kind::Sequence {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(ScanError::TooDeep);
            }
        }
        self.levels.push(Level { kind, end, coding });
        Ok(())
    }

    /// The offset at which a value of this length ends, if that lies within what encloses it.
    fn within(&self, tag: Tag, length: u32) -> Result<u64, ScanError> {
        let end = self.offset + u64::from(length);
        let limit = self.levels.iter().rev().find_map(|l| l.end);
        if limit.is_some_and(|limit| end > limit) { Err(ScanError::Overlong(tag)) } else { Ok(end) }
    }

    fn element(&mut self, coding: Coding) -> Result<(), ScanError> {
        let h = self.header;
        let u16_at = |i: usize| {
            if coding == Coding::ExplicitBe {
                u16::from_be_bytes([h[i], h[i + 1]])
            } else {
                u16::from_le_bytes([h[i], h[i + 1]])
            }
        };
        let u32_at = |i: usize| {
            let b = [h[i], h[i + 1], h[i + 2], h[i + 3]];
            if coding == Coding::ExplicitBe { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
        };
        let tag = Tag(u16_at(0), u16_at(2));
        // The header itself may already have left its item.
        self.within(tag, 0)?;
        let here = self.levels.last().map(|l| (l.kind, l.end.is_none()));
        if tag.group() == 0xFFFE {
            let length = u32_at(4);
            return match (tag, here) {
                (ITEM, Some((Kind::Sequence, _))) => self.push(tag, Kind::Item, length, coding),
                (ITEM, Some((Kind::Fragments, _))) if length != UNDEFINED => self.skip(tag, length),
                (ITEM_END, Some((Kind::Item, true)))
                | (SEQUENCE_END, Some((Kind::Sequence | Kind::Fragments, true))) => {
                    self.pop();
                    Ok(())
                }
                _ => Err(ScanError::Misplaced(tag)),
            };
        }
        if matches!(here, Some((Kind::Sequence | Kind::Fragments, _))) {
            return Err(ScanError::Misplaced(tag));
        }
        if matches!(tag.group(), 0x0000 | 0x0002) {
            return Err(ScanError::WrongGroup(tag));
        }
        let (vr, length) = match coding {
            Coding::ImplicitLe => (None, u32_at(4)),
            _ => {
                let vr = [h[4], h[5]];
                if !vr.iter().all(u8::is_ascii_uppercase) {
                    return Err(ScanError::BadVr(tag));
                }
                (Some(vr), if is_long(vr) { u32_at(8) } else { u32::from(u16_at(6)) })
            }
        };
        if length == UNDEFINED {
            let pixels = tag == Tag(0x7FE0, 0x0010);
            return match vr.as_ref() {
                Some(b"SQ") => self.push(tag, Kind::Sequence, length, coding),
                // Unknown of undefined length is a sequence in Implicit VR Little Endian (PS3.5 6.2.2).
                Some(b"UN") => self.push(tag, Kind::Sequence, length, Coding::ImplicitLe),
                Some(b"OB" | b"OW") if pixels => self.push(tag, Kind::Fragments, length, coding),
                None if !pixels => self.push(tag, Kind::Sequence, length, coding),
                _ => Err(ScanError::UndefinedLength(tag)),
            };
        }
        let sequence = match vr.as_ref() {
            Some(vr) => vr == b"SQ",
            None => implicit_sequence(tag),
        };
        if sequence {
            return self.push(tag, Kind::Sequence, length, coding);
        }
        let wanted =
            matches!(tag, Tag(0x0008, 0x0016) | Tag(0x0008, 0x0018) | Tag(0x0020, 0x000D) | Tag(0x0020, 0x000E));
        if wanted && self.levels.is_empty() && length > 0 {
            if length > MAX_UID {
                return Err(ScanError::BadUid(tag));
            }
            self.state = State::Uid { tag, left: length, bytes: Vec::with_capacity(length as usize) };
            return Ok(());
        }
        self.skip(tag, length)
    }

    fn skip(&mut self, tag: Tag, length: u32) -> Result<(), ScanError> {
        self.within(tag, length)?;
        if length > 0 {
            self.state = State::Skip(u64::from(length));
        }
        Ok(())
    }

    fn finish(self) -> Result<Ids, ScanError> {
        if self.have == 0 && self.levels.is_empty() && matches!(self.state, State::Header) {
            Ok(self.ids)
        } else {
            Err(ScanError::Truncated)
        }
    }
}

/// Bytes of an element's header, as far as its first bytes tell.
fn header_length(coding: Coding, have: &[u8]) -> usize {
    let item = match coding {
        Coding::ExplicitBe => have.starts_with(&[0xFF, 0xFE]),
        _ => have.starts_with(&[0xFE, 0xFF]),
    };
    match have.get(4..6) {
        Some(&[a, b]) if coding != Coding::ImplicitLe && !item && is_long([a, b]) => 12,
        _ => 8,
    }
}

fn is_long(vr: [u8; 2]) -> bool {
    matches!(&vr, b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV")
}

/// Whether a parser will take this element for a sequence in Implicit VR.
fn implicit_sequence(tag: Tag) -> bool {
    StandardDataDictionary.by_tag(tag).is_some_and(|e| e.vr().exact() == Some(VR::SQ))
}

/// Inflates, within a limit, what it hands to the walker.
struct Inflater {
    stream: Decompress,
    out: Vec<u8>,
    limit: u64,
    ended: bool,
}

/// Judges a data set given in pieces, whatever its transfer syntax.
pub struct Scanner {
    walker: Walker,
    inflater: Option<Inflater>,
}

impl Scanner {
    /// A scanner of a data set in this transfer syntax; a deflated one may inflate to `limit` bytes.
    pub fn new(transfer_syntax: &str, limit: u64) -> Scanner {
        let coding = match transfer_syntax {
            IMPLICIT_LE => Coding::ImplicitLe,
            EXPLICIT_BE => Coding::ExplicitBe,
            _ => Coding::ExplicitLe,
        };
        let inflater = (transfer_syntax == DEFLATED_LE).then(|| Inflater {
            stream: Decompress::new(false),
            out: vec![0; 32 * 1024],
            limit,
            ended: false,
        });
        Scanner { walker: Walker::new(coding), inflater }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// [`ScanError`]; nothing more must be fed afterwards.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ScanError> {
        let Some(inflater) = &mut self.inflater else { return self.walker.feed(bytes) };
        // What follows the end of the stream is padding.
        while !inflater.ended {
            let (taken, made) = (inflater.stream.total_in(), inflater.stream.total_out());
            let status = inflater
                .stream
                .decompress(bytes, &mut inflater.out, FlushDecompress::None)
                .map_err(|_| ScanError::Deflate)?;
            if inflater.stream.total_out() > inflater.limit {
                return Err(ScanError::Bomb);
            }
            let taken = (inflater.stream.total_in() - taken) as usize;
            let made = (inflater.stream.total_out() - made) as usize;
            self.walker.feed(&inflater.out[..made])?;
            bytes = &bytes[taken..];
            inflater.ended = status == Status::StreamEnd;
            if taken == 0 && made == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The data set is complete.
    ///
    /// # Errors
    /// It was cut short.
    pub fn finish(self) -> Result<Ids, ScanError> {
        if self.inflater.is_some_and(|i| !i.ended) {
            return Err(ScanError::Truncated);
        }
        self.walker.finish()
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
