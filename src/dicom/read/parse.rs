//! An iterative, bounded parser of DICOM data sets: no recursion, so that nesting cannot exhaust the stack.
//!
//! `dicom-object` recurses and aborts the process on 1,500 nested sequences; whatever comes from the network passes
//! here first. The result is an arena of items over one buffer; values stay bytes until they are asked for, so that
//! patient strings can be copied verbatim with their character set.

use std::io::Read;
use std::ops::Range;

use dicom_core::Tag;
use dicom_core::VR;
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_dictionary_std::StandardDataDictionary;

use super::error::ReadCause;

/// Bounds of parsing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest file and largest inflated data set, bytes.
    pub max_bytes: u64,
    /// Deepest nesting of sequences; real objects stay under 10.
    pub max_depth: usize,
    /// Most elements and items; an Enhanced MR object of 5,000 frames has some 300,000.
    pub max_elements: usize,
    /// Largest decoded pixel data, bytes.
    pub max_pixel_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_bytes: 1 << 30, max_depth: 64, max_elements: 2_000_000, max_pixel_bytes: 1 << 30 }
    }
}

/// How the data set is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    pub explicit: bool,
    pub big: bool,
}

/// A value: bytes in the buffer, items in the arena, or fragments in the buffer.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Bytes(Range<usize>),
    Items(Range<usize>, Vec<u32>),
    Fragments(Vec<Range<usize>>),
    /// Length runs over the end of the buffer (pixel data only).
    Beyond {
        start: usize,
        claimed: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Element {
    pub tag: Tag,
    pub vr: VR,
    pub value: Value,
}

/// A parsed object: meta and data set over one buffer.
#[derive(Debug)]
pub(super) struct Parsed {
    pub bytes: Vec<u8>,
    pub encoding: Encoding,
    pub transfer_syntax: String,
    /// Arena; item 0 is the data set itself. Elements in the order of the file.
    pub items: Vec<Vec<Element>>,
}

/// What the parser found.
pub(super) enum Outcome {
    Done(Box<Parsed>),
    /// The prefix ended before the pixel data did begin: read more.
    More(Vec<u8>),
}

pub(super) const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);
const UNDEFINED: u32 = u32::MAX;

pub(super) fn name(tag: Tag) -> String {
    format!("({:04X},{:04X})", tag.0, tag.1)
}

/// Parses a file's bytes. `whole` says whether the buffer holds the whole file; `pixels` whether the pixel data is
/// wanted (else parsing stops before it).
pub(super) fn parse(bytes: Vec<u8>, whole: bool, pixels: bool, limits: &Limits) -> Result<Outcome, ReadCause> {
    if bytes.len() < 132 || &bytes[128..132] != b"DICM" {
        return Err(ReadCause::NotDicom);
    }
    let Some((transfer_syntax, start)) = meta(&bytes, whole)? else { return Ok(Outcome::More(bytes)) };
    let encoding = match transfer_syntax.as_str() {
        "" => return Err(ReadCause::NoTransferSyntax),
        "1.2.840.10008.1.2" => Encoding { explicit: false, big: false },
        "1.2.840.10008.1.2.2" => Encoding { explicit: true, big: true },
        _ => Encoding { explicit: true, big: false },
    };
    let (bytes, start) = if transfer_syntax == DEFLATED {
        if !whole {
            return Ok(Outcome::More(bytes));
        }
        (inflate(&bytes[start..], limits.max_bytes)?, 0)
    } else {
        (bytes, start)
    };
    match data_set(&bytes, start, encoding, whole, pixels, limits)? {
        None => Ok(Outcome::More(bytes)),
        Some(items) => Ok(Outcome::Done(Box::new(Parsed { bytes, encoding, transfer_syntax, items }))),
    }
}

/// The transfer syntax of the file meta information, and where the data set begins; `None` to ask for more.
fn meta(bytes: &[u8], whole: bool) -> Result<Option<(String, usize)>, ReadCause> {
    let meta = Encoding { explicit: true, big: false };
    let mut cursor = Cursor { bytes, at: 132, end: bytes.len() };
    let mut transfer_syntax = String::new();
    // Group 2 ends where another group begins; the group length is not trusted.
    while cursor.end - cursor.at >= 8 && cursor.u16(meta, 0) == 2 {
        let (tag, _, length) = match cursor.header(meta)? {
            Some(h) => h,
            None if whole => return Err(cursor.short(Tag(2, 0))),
            None => return Ok(None),
        };
        if u64::from(length) > (cursor.end - cursor.at) as u64 {
            if !whole {
                return Ok(None);
            }
            return Err(cursor.truncated(tag, length));
        }
        let value = cursor.at..cursor.at + length as usize;
        if tag == Tag(0x0002, 0x0010) {
            transfer_syntax = trim_uid(&bytes[value.clone()]);
        }
        cursor.at = value.end;
    }
    Ok(Some((transfer_syntax, cursor.at)))
}

/// Holds a whole file against the default limits, for readers without limits of their own.
///
/// # Errors
/// What [`parse`] refuses, and a File Meta Information Group Length that lies about where the data set begins: who trusts it
/// would read another one than was looked at here.
pub fn check(bytes: Vec<u8>) -> Result<(), ReadCause> {
    let said = bytes.get(132..144).and_then(|b| {
        let length = u32::from_le_bytes([b[8], b[9], b[10], b[11]]);
        (b[..8] == [2, 0, 0, 0, b'U', b'L', 4, 0]).then_some(144 + length as usize)
    });
    if said.is_some() && meta(&bytes, true)?.map(|(_, start)| start) != said {
        return Err(ReadCause::Encoding { at: 132, what: "the length of the file meta information is wrong".into() });
    }
    parse(bytes, true, true, &Limits::default()).map(|_| ())
}

pub(super) const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

fn inflate(data: &[u8], limit: u64) -> Result<Vec<u8>, ReadCause> {
    let mut out = Vec::new();
    let mut reader = flate2::read::DeflateDecoder::new(data).take(limit + 1);
    reader
        .read_to_end(&mut out)
        .map_err(|e| ReadCause::Encoding { at: 0, what: format!("the deflated data set does not inflate ({e})") })?;
    if out.len() as u64 > limit {
        return Err(ReadCause::TooLarge { bytes: out.len() as u64, limit });
    }
    Ok(out)
}

/// Where the parser is: in an item's elements or between a sequence's items.
enum Level {
    Item { id: usize, end: Option<usize> },
    Sequence { parent: usize, element: usize, end: Option<usize>, encoding: Encoding },
}

#[allow(clippy::too_many_lines)]
fn data_set(
    bytes: &[u8],
    start: usize,
    outer: Encoding,
    whole: bool,
    pixels: bool,
    limits: &Limits,
) -> Result<Option<Vec<Vec<Element>>>, ReadCause> {
    let mut items: Vec<Vec<Element>> = vec![Vec::new()];
    let mut levels = vec![Level::Item { id: 0, end: None }];
    let mut encoding = outer;
    let mut c = Cursor { bytes, at: start, end: bytes.len() };
    let mut count = 0usize;
    while let Some(level) = levels.last() {
        count += 1;
        if count > limits.max_elements {
            return Err(ReadCause::TooMany { limit: limits.max_elements });
        }
        let (end, at_root) = match level {
            Level::Item { end, .. } => (*end, levels.len() == 1),
            Level::Sequence { end, .. } => (*end, false),
        };
        if end.is_some_and(|e| c.at >= e) || (at_root && c.at >= c.end) {
            if end.is_some_and(|e| c.at > e) {
                return Err(c.broken("an element reaches over the end of its item or sequence"));
            }
            if at_root && !whole {
                return Ok(None);
            }
            levels.pop();
            restore(&levels, &mut encoding, outer);
            continue;
        }
        if c.end - c.at < 8 {
            // A few stray bytes (padding) after the last element harm nobody.
            if at_root && whole && bytes[c.at..].iter().all(|&b| b == 0) {
                break;
            }
            if !whole {
                return Ok(None);
            }
            return Err(c.short(Tag(0, 0)));
        }
        match *level {
            Level::Sequence { parent, element, .. } => {
                let tag = c.tag(encoding);
                let at = c.at;
                let length = c.u32(encoding, 4);
                c.at += 8;
                match tag {
                    ITEM => {
                        let end = c.bounded(tag, length, whole)?;
                        let Some(end) = end else { return Ok(None) };
                        let id = items.len();
                        items.push(Vec::new());
                        if let Some(Element { value: Value::Items(_, list), .. }) = items[parent].get_mut(element) {
                            list.push(id as u32);
                        }
                        levels.push(Level::Item { id, end });
                    }
                    SEQUENCE_END => {
                        close(&mut items, parent, element, at);
                        levels.pop();
                        restore(&levels, &mut encoding, outer);
                    }
                    _ => {
                        c.at = at;
                        return Err(c.broken(&format!("{} where a sequence item was expected", name(tag))));
                    }
                }
            }
            Level::Item { id, .. } => {
                let at = c.at;
                let Some((tag, vr, length)) = c.header(encoding)? else {
                    if !whole {
                        return Ok(None);
                    }
                    c.at = at;
                    return Err(c.short(Tag(0, 0)));
                };
                if tag == ITEM_END {
                    if at_root {
                        return Err(c.broken("an item delimiter outside an item"));
                    }
                    levels.pop();
                    restore(&levels, &mut encoding, outer);
                    continue;
                }
                if tag.0 == 0xFFFE {
                    return Err(c.broken(&format!("{} inside an item", name(tag))));
                }
                let is_pixels = at_root && tag == PIXEL_DATA;
                if is_pixels {
                    let value = if length == UNDEFINED {
                        if !pixels { Value::Fragments(Vec::new()) } else { Value::Fragments(fragments(&mut c)?) }
                    } else if u64::from(length) > (c.end - c.at) as u64 {
                        Value::Beyond { start: c.at, claimed: u64::from(length) }
                    } else {
                        let range = c.at..c.at + length as usize;
                        c.at = range.end;
                        Value::Bytes(range)
                    };
                    let stop = !pixels || matches!(value, Value::Beyond { .. });
                    items[id].push(Element { tag, vr, value });
                    if stop {
                        return Ok(Some(items));
                    }
                    continue;
                }
                if tag == PIXEL_DATA && length == UNDEFINED {
                    // Compressed pixels of an icon, inside an item: stepped over.
                    match fragments(&mut c) {
                        Ok(list) => items[id].push(Element { tag, vr, value: Value::Fragments(list) }),
                        Err(_) if !whole => return Ok(None),
                        Err(e) => return Err(e),
                    }
                    continue;
                }
                let sequence = vr == VR::SQ || (vr == VR::UN && length == UNDEFINED);
                if sequence {
                    let Some(end) = c.bounded(tag, length, whole)? else { return Ok(None) };
                    let depth = levels.iter().filter(|l| matches!(l, Level::Sequence { .. })).count() + 1;
                    if depth > limits.max_depth {
                        return Err(ReadCause::TooDeep { limit: limits.max_depth, at });
                    }
                    // A sequence of unknown VR is implicit little endian inside (PS3.5, 6.2.2).
                    if vr == VR::UN {
                        encoding = Encoding { explicit: false, big: false };
                    }
                    let range = c.at..end.unwrap_or(c.at);
                    items[id].push(Element { tag, vr: VR::SQ, value: Value::Items(range, Vec::new()) });
                    let element = items[id].len() - 1;
                    levels.push(Level::Sequence { parent: id, element, end, encoding });
                    continue;
                }
                if length == UNDEFINED {
                    return Err(c.broken(&format!("{} has an undefined length but is no sequence", name(tag))));
                }
                if u64::from(length) > (c.end - c.at) as u64 {
                    if !whole {
                        return Ok(None);
                    }
                    c.at = at;
                    return Err(c.truncated(tag, length));
                }
                let range = c.at..c.at + length as usize;
                c.at = range.end;
                items[id].push(Element { tag, vr, value: Value::Bytes(range) });
            }
        }
    }
    if levels.len() > 1 {
        return Err(c.broken("the data set ends inside a sequence"));
    }
    Ok(Some(items))
}

fn close(items: &mut [Vec<Element>], parent: usize, element: usize, at: usize) {
    if let Some(Element { value: Value::Items(range, _), .. }) = items[parent].get_mut(element) {
        range.end = at;
    }
}

/// The encoding in force after a level was left: that of the innermost open sequence, else the data set's.
fn restore(levels: &[Level], encoding: &mut Encoding, outer: Encoding) {
    *encoding = levels
        .iter()
        .rev()
        .find_map(|l| if let Level::Sequence { encoding, .. } = l { Some(*encoding) } else { None })
        .unwrap_or(outer);
}

/// Encapsulated pixel data: the first fragment is the basic offset table.
fn fragments(c: &mut Cursor<'_>) -> Result<Vec<Range<usize>>, ReadCause> {
    let little = Encoding { explicit: true, big: false };
    let mut list = Vec::new();
    loop {
        if c.end - c.at < 8 {
            // Without the delimiter nobody can tell that the last fragment is whole.
            return Err(c.short(PIXEL_DATA));
        }
        let (tag, length) = (c.tag(little), c.u32(little, 4));
        c.at += 8;
        match tag {
            ITEM => {
                if u64::from(length) > (c.end - c.at) as u64 {
                    return Err(c.truncated(PIXEL_DATA, length));
                }
                list.push(c.at..c.at + length as usize);
                c.at += length as usize;
            }
            SEQUENCE_END => return Ok(list),
            _ => return Err(c.broken(&format!("{} among the pixel data's fragments", name(tag)))),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl Cursor<'_> {
    fn u16(&self, e: Encoding, skip: usize) -> u16 {
        let b = &self.bytes[self.at + skip..];
        let b = [b[0], b[1]];
        if e.big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) }
    }

    fn u32(&self, e: Encoding, skip: usize) -> u32 {
        let b = &self.bytes[self.at + skip..];
        let b = [b[0], b[1], b[2], b[3]];
        if e.big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    }

    fn tag(&self, e: Encoding) -> Tag {
        Tag(self.u16(e, 0), self.u16(e, 2))
    }

    /// Reads an element's header and stands at its value; `None` where the buffer ends inside it.
    fn header(&mut self, e: Encoding) -> Result<Option<(Tag, VR, u32)>, ReadCause> {
        if self.end - self.at < 8 {
            return Ok(None);
        }
        let tag = self.tag(e);
        if tag.0 == 0xFFFE {
            let length = self.u32(e, 4);
            self.at += 8;
            return Ok(Some((tag, VR::UN, length)));
        }
        if !e.explicit {
            let length = self.u32(e, 4);
            self.at += 8;
            return Ok(Some((tag, implicit_vr(tag, length), length)));
        }
        let letters = [self.bytes[self.at + 4], self.bytes[self.at + 5]];
        let Some(vr) = VR::from_binary(letters) else {
            if letters.iter().all(u8::is_ascii_uppercase) {
                // A VR newer than this reader: long form, kept as unknown bytes (PS3.5, 6.2.2).
                return Ok(self.long(e).map(|length| (tag, VR::UN, length)));
            }
            return Err(self.broken(&format!("{} has no value representation", name(tag))));
        };
        let long = matches!(
            vr,
            VR::OB
                | VR::OD
                | VR::OF
                | VR::OL
                | VR::OV
                | VR::OW
                | VR::SQ
                | VR::SV
                | VR::UC
                | VR::UN
                | VR::UR
                | VR::UT
                | VR::UV
        );
        if long {
            return Ok(self.long(e).map(|length| (tag, vr, length)));
        }
        let length = u32::from(self.u16(e, 6));
        self.at += 8;
        Ok(Some((tag, vr, length)))
    }

    fn long(&mut self, e: Encoding) -> Option<u32> {
        if self.end - self.at < 12 {
            return None;
        }
        let length = self.u32(e, 8);
        self.at += 12;
        Some(length)
    }

    /// The end of a sequence or item of this length: `Some(None)` for an undefined length, `None` to ask for more.
    #[allow(clippy::option_option)]
    fn bounded(&self, tag: Tag, length: u32, whole: bool) -> Result<Option<Option<usize>>, ReadCause> {
        if length == UNDEFINED {
            return Ok(Some(None));
        }
        if u64::from(length) > (self.end - self.at) as u64 {
            return if whole { Err(self.truncated(tag, length)) } else { Ok(None) };
        }
        Ok(Some(Some(self.at + length as usize)))
    }

    fn truncated(&self, tag: Tag, length: u32) -> ReadCause {
        ReadCause::Truncated {
            tag: name(tag),
            at: self.at,
            claimed: u64::from(length),
            left: (self.end - self.at) as u64,
        }
    }

    fn short(&self, tag: Tag) -> ReadCause {
        ReadCause::Truncated { tag: name(tag), at: self.at, claimed: 8, left: (self.end - self.at) as u64 }
    }

    fn broken(&self, what: &str) -> ReadCause {
        ReadCause::Encoding { at: self.at, what: what.to_string() }
    }
}

fn implicit_vr(tag: Tag, length: u32) -> VR {
    if tag == PIXEL_DATA {
        return VR::OW;
    }
    match StandardDataDictionary.by_tag(tag) {
        Some(entry) => entry.vr().relaxed(),
        // A private sequence of defined length stays bytes: nothing in it is needed.
        None if length == UNDEFINED => VR::UN,
        None if tag.1 == 0 => VR::UL,
        None => VR::UN,
    }
}

pub(super) fn trim_uid(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|&b| b as char).collect();
    text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn file(transfer_syntax: &str, body: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; 128];
        out.extend_from_slice(b"DICM");
        let mut uid = transfer_syntax.as_bytes().to_vec();
        if uid.len() % 2 == 1 {
            uid.push(0);
        }
        out.extend_from_slice(&[2, 0, 0x10, 0, b'U', b'I']);
        out.extend_from_slice(&(uid.len() as u16).to_le_bytes());
        out.extend_from_slice(&uid);
        out.extend_from_slice(body);
        out
    }

    fn nested(depth: usize) -> Vec<u8> {
        let mut body = Vec::new();
        for _ in 0..depth {
            body.extend_from_slice(&[0x40, 0, 0x30, 0xA7, b'S', b'Q', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
            body.extend_from_slice(&[0xFE, 0xFF, 0, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF]);
        }
        body
    }

    #[test]
    fn nesting_is_refused_whatever_its_depth() {
        for depth in [65, 1_000, 1_500, 5_000, 20_000] {
            let bytes = file("1.2.840.10008.1.2.1", &nested(depth));
            let result = parse(bytes, true, true, &Limits::default());
            assert!(matches!(result, Err(ReadCause::TooDeep { .. })), "depth {depth}");
        }
    }

    #[test]
    fn a_deflate_bomb_is_stopped_at_the_bound() {
        use std::io::Write;
        let mut e = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(&vec![0u8; 8 << 20]).unwrap();
        let bytes = file(DEFLATED, &e.finish().unwrap());
        let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
        assert!(matches!(parse(bytes, true, true, &limits), Err(ReadCause::TooLarge { .. })));
    }

    #[test]
    fn an_element_that_claims_too_much_is_truncated() {
        let body = [0x10, 0, 0x10, 0, b'P', b'N', 200, 0, b'A', b'B'];
        let bytes = file("1.2.840.10008.1.2.1", &body);
        assert!(matches!(parse(bytes, true, true, &Limits::default()), Err(ReadCause::Truncated { .. })));
    }
}
