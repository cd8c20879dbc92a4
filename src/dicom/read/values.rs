//! Typed access to the values of a parsed data set.

use dicom_core::{Tag, VR};

use super::error::ReadCause;
use super::parse::{Element, Parsed, Value};

/// Items looked into for numbers in text are cut at this length; a decimal string has 16 characters.
const LONGEST_NUMBER: usize = 64;
/// Most values of one element; what is read here has at most some ten. A frame without a value of its own copies the shared
/// one, so an element must not grow with the object.
const MOST_VALUES: usize = 64;
/// Longest text that is matched or shown, bytes; a description has 64 characters.
const LONGEST_TEXT: usize = 1024;

/// One item of a parsed object.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    parsed: &'a Parsed,
    id: usize,
}

impl<'a> Item<'a> {
    pub fn root(parsed: &'a Parsed) -> Self {
        Item { parsed, id: 0 }
    }

    pub fn elements(self) -> &'a [Element] {
        self.parsed.items.get(self.id).map_or(&[], Vec::as_slice)
    }

    pub fn find(self, tag: Tag) -> Option<&'a Element> {
        self.elements().iter().find(|e| e.tag == tag)
    }

    /// The value's bytes as they came.
    pub fn bytes(self, tag: Tag) -> Option<&'a [u8]> {
        match &self.find(tag)?.value {
            Value::Bytes(r) => self.parsed.bytes.get(r.clone()),
            _ => None,
        }
    }

    /// The items of a sequence; none where it is absent.
    pub fn items(self, tag: Tag) -> impl Iterator<Item = Item<'a>> {
        let list: &'a [u32] = match self.find(tag).map(|e| &e.value) {
            Some(Value::Items(_, list)) => list,
            _ => &[],
        };
        let parsed = self.parsed;
        list.iter().map(move |&id| Item { parsed, id: id as usize })
    }

    /// The first item of a sequence.
    pub fn item(self, tag: Tag) -> Option<Item<'a>> {
        self.items(tag).next()
    }

    /// The value, up to [`LONGEST_TEXT`], as trimmed text; bytes that are not UTF-8 are read as Latin-1. For matching and
    /// messages only: results copy the bytes.
    pub fn text(self, tag: Tag) -> String {
        let Some(bytes) = self.bytes(tag) else { return String::new() };
        let bytes = &bytes[..bytes.len().min(LONGEST_TEXT)];
        let text = std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|&b| b as char).collect(), String::from);
        text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_string()
    }

    /// The text where it is not empty.
    pub fn some_text(self, tag: Tag) -> Option<String> {
        Some(self.text(tag)).filter(|t| !t.is_empty())
    }

    /// The values of a multi-valued text. More of them than any image has are an error: a value that was cut off could be the
    /// one that tells a map from an image.
    pub fn texts(self, tag: Tag, name: &'static str) -> Result<Vec<String>, ReadCause> {
        let bytes = self.bytes(tag).unwrap_or(&[]);
        let values = bytes.iter().filter(|&&b| b == b'\\').count() + 1;
        if values > MOST_VALUES || bytes.len() > LONGEST_TEXT {
            let value = format!("{values} values in {} bytes", bytes.len());
            return Err(ReadCause::Value { name, value, problem: "no image has so many; export it again" });
        }
        let text = self.text(tag);
        Ok(if text.is_empty() { Vec::new() } else { text.split('\\').map(|t| t.trim().to_string()).collect() })
    }

    /// The first [`MOST_VALUES`] numbers of any numeric or number-text VR. Values that are not finite numbers end the list.
    pub fn numbers(self, tag: Tag) -> Vec<f64> {
        let Some(element) = self.find(tag) else { return Vec::new() };
        let Some(b) = self.bytes(tag) else { return Vec::new() };
        let b = &b[..b.len().min(MOST_VALUES * LONGEST_NUMBER)];
        let big = self.parsed.encoding.big;
        macro_rules! binary {
            ($t:ty) => {
                b.chunks_exact(size_of::<$t>())
                    .map(|c| {
                        let mut a = [0u8; size_of::<$t>()];
                        a.copy_from_slice(c);
                        if big { <$t>::from_be_bytes(a) as f64 } else { <$t>::from_le_bytes(a) as f64 }
                    })
                    .collect()
            };
        }
        let list: Vec<f64> = match element.vr {
            VR::US | VR::OW => binary!(u16),
            VR::SS => binary!(i16),
            VR::UL | VR::OL => binary!(u32),
            VR::SL => binary!(i32),
            VR::FL | VR::OF => binary!(f32),
            VR::FD | VR::OD => binary!(f64),
            VR::UV => binary!(u64),
            VR::SV => binary!(i64),
            _ => b
                .split(|&c| c == b'\\')
                .map_while(|t| std::str::from_utf8(t.get(..t.len().min(LONGEST_NUMBER))?).ok())
                .map_while(|t| t.trim_matches(|c: char| c == '\0' || c.is_whitespace()).parse().ok())
                .collect(),
        };
        list.into_iter().take(MOST_VALUES).take_while(|v| v.is_finite()).collect()
    }

    pub fn number(self, tag: Tag) -> Option<f64> {
        self.numbers(tag).first().copied()
    }

    /// A whole number from 0 to 2^32 - 1.
    pub fn count(self, tag: Tag) -> Option<u32> {
        self.number(tag).filter(|v| *v >= 0.0 && *v <= f64::from(u32::MAX)).map(|v| v as u32)
    }

    pub fn u16(self, tag: Tag) -> Option<u16> {
        self.number(tag).filter(|v| *v >= 0.0 && *v <= 65535.0).map(|v| v as u16)
    }

    pub fn triple(self, tag: Tag) -> Option<[f64; 3]> {
        self.numbers(tag).try_into().ok()
    }
}
