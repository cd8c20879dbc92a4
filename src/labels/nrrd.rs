//! NRRD with attached data, raw or gzip, and Slicer's seg.nrrd with its segments and layers.

use std::collections::HashMap;

use super::{Kind, LabelImage, MAX_BYTES, Segment, decode, geometry_of, inflate, voxels};
use crate::image::Geometry;
use crate::terms::{Code, Side};

/// Longest header that is read.
const MAX_HEADER: usize = 4 << 20;
/// Most segments of a file.
const MAX_SEGMENTS: usize = 1024;

pub(super) fn read(bytes: &[u8]) -> Result<LabelImage, String> {
    let header = Header::parse(bytes)?;
    let sizes: Vec<usize> = header.list("sizes")?;
    // A leading axis without direction lists the layers of a segmentation.
    let layered = match sizes.len() {
        3 => false,
        4 => true,
        n => return Err(format!("has {n} axes; a label volume has 3, a layered segmentation 4")),
    };
    let layers = if layered { sizes[0] } else { 1 };
    let dims: [usize; 3] = sizes[sizes.len() - 3..].try_into().map_err(|_| "has no sizes".to_string())?;
    let count = voxels(dims)?;
    if layers == 0 || layers > MAX_SEGMENTS || count.saturating_mul(layers) > super::MAX_VOXELS {
        return Err(format!("{layers} layers of {dims:?} voxels are not possible"));
    }
    let kind = kind(header.field("type")?)?;
    let needed = count * layers * kind.width();
    let raw;
    let data: &[u8] = match header.field("encoding")?.to_ascii_lowercase().as_str() {
        "raw" => header.data,
        "gzip" | "gz" => {
            raw = inflate(header.data, (needed as u64).min(MAX_BYTES))?;
            &raw
        }
        other => return Err(format!("encoding {other:?} is not read; raw and gzip are")),
    };
    if data.len() < needed {
        return Err(format!("holds {} bytes of data, {needed} are needed: cut short?", data.len()));
    }
    let big = match header.fields.get("endian").map(String::as_str) {
        Some("big") => true,
        None if kind.width() > 1 => return Err("does not say its byte order (endian)".into()),
        _ => false,
    };
    let values = decode(kind, big, &data[..needed], |v| v)?;
    let geometry = geometry(&header, dims, layered)?;
    if !layered && !header.pairs.contains_key("Segment0_ID") {
        return LabelImage::of_values(dims, geometry, values);
    }
    let layers: Vec<Vec<u16>> = (0..layers).map(|l| values.iter().skip(l).step_by(layers).copied().collect()).collect();
    let segments = segments(&header, layers.len())?;
    Ok(LabelImage { dims, geometry, segments, levels: Vec::new(), remarks: Vec::new(), layers })
}

/// Segments of a seg.nrrd: `SegmentN_Layer` and `SegmentN_LabelValue`; older files have one layer per segment.
fn segments(header: &Header, layers: usize) -> Result<Vec<Segment>, String> {
    let get = |i: usize, what: &str| header.pairs.get(&format!("Segment{i}_{what}"));
    let number = |i: usize, what: &str| {
        get(i, what).map(|v| v.trim().parse::<u16>().map_err(|_| format!("Segment{i}_{what} is no number"))).transpose()
    };
    let mut found = Vec::new();
    let listed = (0..MAX_SEGMENTS).take_while(|&i| get(i, "ID").is_some()).count();
    for i in 0..listed.max(if listed == 0 { layers } else { 0 }) {
        let layer = number(i, "Layer")?.map_or(if layers == 1 { 0 } else { i }, usize::from);
        if layer >= layers {
            return Err(format!("Segment{i} lies in layer {layer} of {layers}"));
        }
        let value = number(i, "LabelValue")?.unwrap_or(1);
        let name = get(i, "Name").map(|n| n.trim().to_string()).unwrap_or_default();
        let (code, side) = get(i, "Tags").map_or((None, None), |t| terminology(t));
        found.push(Segment { id: i as u32 + 1, name, code, side, layer, value });
    }
    Ok(found)
}

/// Type and side of Slicer's tag `TerminologyEntry:context~category~type~modifier~...|`, each as `scheme^value^meaning`.
fn terminology(tags: &str) -> (Option<Code>, Option<Side>) {
    let entry = tags.split('|').find_map(|t| t.strip_prefix("TerminologyEntry:")).unwrap_or_default();
    let code = |i: usize| {
        let mut parts = entry.split('~').nth(i)?.splitn(3, '^');
        let (scheme, value, meaning) = (parts.next()?, parts.next()?, parts.next()?);
        (!value.is_empty()).then(|| Code::new(value, scheme, meaning))
    };
    (code(2), code(3).and_then(|c| super::names::side_of(&c)))
}

fn geometry(header: &Header, dims: [usize; 3], layered: bool) -> Result<Option<Geometry>, String> {
    let (Some(space), Some(directions), Some(origin)) =
        (header.fields.get("space"), header.fields.get("space directions"), header.fields.get("space origin"))
    else {
        return Ok(None);
    };
    // Sign of each world axis towards left, posterior, superior.
    let sign: [f64; 3] = match space.to_ascii_lowercase().as_str() {
        "left-posterior-superior" | "lps" => [1.0, 1.0, 1.0],
        "right-anterior-superior" | "ras" => [-1.0, -1.0, 1.0],
        "left-anterior-superior" | "las" => [1.0, -1.0, 1.0],
        other => return Err(format!("space {other:?} is not read; LPS, RAS and LAS are")),
    };
    let words = directions.trim();
    let words = if layered { words.strip_prefix("none").ok_or("the layers' axis has a direction")? } else { words };
    let columns = vectors(words)?;
    let origin = vectors(origin)?;
    let ([a, b, c], [o]) = (columns.as_slice(), origin.as_slice()) else {
        return Err("space directions and origin do not give a grid".into());
    };
    let lps = |v: &[f64; 3]| [v[0] * sign[0], v[1] * sign[1], v[2] * sign[2]];
    geometry_of(dims, [lps(a), lps(b), lps(c)], lps(o)).map(Some)
}

/// `(1,2,3) (4,5,6)` as vectors.
fn vectors(text: &str) -> Result<Vec<[f64; 3]>, String> {
    let bad = || format!("{text:?} is no list of vectors");
    text.split(')')
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .map(|p| {
            let numbers: Result<Vec<f64>, _> =
                p.strip_prefix('(').ok_or_else(bad)?.split(',').map(|n| n.trim().parse::<f64>()).collect();
            numbers.map_err(|_| bad())?.try_into().map_err(|_| bad())
        })
        .collect()
}

fn kind(word: &str) -> Result<Kind, String> {
    Ok(match word.to_ascii_lowercase().as_str() {
        "uchar" | "unsigned char" | "uint8" | "uint8_t" => Kind::U8,
        "signed char" | "int8" | "int8_t" | "char" => Kind::I8,
        "short" | "short int" | "signed short" | "int16" | "int16_t" => Kind::I16,
        "ushort" | "unsigned short" | "uint16" | "uint16_t" => Kind::U16,
        "int" | "signed int" | "int32" | "int32_t" => Kind::I32,
        "uint" | "unsigned int" | "uint32" | "uint32_t" => Kind::U32,
        "longlong" | "long long" | "int64" | "int64_t" => Kind::I64,
        "ulonglong" | "unsigned long long" | "uint64" | "uint64_t" => Kind::U64,
        "float" => Kind::F32,
        "double" => Kind::F64,
        other => return Err(format!("type {other:?} is not read")),
    })
}

struct Header<'a> {
    fields: HashMap<String, String>,
    pairs: HashMap<String, String>,
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (mut fields, mut pairs) = (HashMap::new(), HashMap::new());
        let mut rest = bytes;
        loop {
            let bound = rest.len().min(MAX_HEADER);
            let Some(end) = rest[..bound].iter().position(|&b| b == b'\n') else {
                return Err("the header has no end: a detached header, or not NRRD".into());
            };
            let line = String::from_utf8_lossy(&rest[..end]);
            let line = line.trim_end_matches('\r');
            rest = &rest[end + 1..];
            if line.is_empty() {
                break;
            }
            if bytes.len() - rest.len() > MAX_HEADER {
                return Err("the header is longer than any".into());
            }
            if line.starts_with('#') {
                continue;
            }
            if let Some((k, v)) = line.split_once(":=") {
                pairs.insert(k.to_string(), v.to_string());
            } else if let Some((k, v)) = line.split_once(": ") {
                fields.insert(k.trim().to_ascii_lowercase(), v.trim().to_string());
            }
        }
        if fields.contains_key("data file") || fields.contains_key("datafile") {
            return Err("its data lie in another file; attach them (save as .nrrd, not .nhdr)".into());
        }
        Ok(Header { fields, pairs, data: rest })
    }

    fn field(&self, name: &str) -> Result<&str, String> {
        self.fields.get(name).map(String::as_str).ok_or_else(|| format!("the header lacks {name:?}"))
    }

    fn list(&self, name: &str) -> Result<Vec<usize>, String> {
        let text = self.field(name)?;
        text.split_whitespace().map(|w| w.parse().map_err(|_| format!("{name} {text:?} are no numbers"))).collect()
    }
}
