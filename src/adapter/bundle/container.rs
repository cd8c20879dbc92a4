//! The container: a tar of plain files with fixed metadata, read within bounds and in one form only.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use tar::{EntryType, Header};

use super::super::trust::MAX_ROOT_BYTES;
use super::super::{MAX_BYTES, Reason, Refused};

/// Largest bundle, bytes.
pub const MAX_BUNDLE: u64 = 80 << 20;
/// Parity images at most.
pub(super) const MAX_PARITY: u32 = 16;
/// Roots at most.
pub(super) const MAX_ROOTS: u32 = 256;
/// Name of the manifest.
pub(super) const MANIFEST: &str = "manifest.json";
/// Name of the adapter.
pub(super) const ADAPTER: &str = "adapter.safetensors";
/// Name of the evidence.
pub(super) const EVIDENCE: &str = "evidence.json";
const BLOCK: usize = 512;
/// Two empty blocks end a tar.
const END: usize = 2 * BLOCK;

/// What a name may be, and how large that may get; none for a name that no bundle has.
pub(super) fn bound(name: &str) -> Option<u64> {
    let numbered = |prefix: &str, suffix: &str, most: u32| {
        let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        let n: u32 = digits.parse().ok()?;
        ((1..=most).contains(&n) && n.to_string() == digits).then_some(())
    };
    match name {
        MANIFEST | EVIDENCE => Some(256 << 10),
        ADAPTER => Some(MAX_BYTES),
        _ if numbered("parity/", ".safetensors", MAX_PARITY).is_some() => Some(4 << 20),
        _ if numbered("roots/", ".json", MAX_ROOTS).is_some() => Some(MAX_ROOT_BYTES as u64),
        _ => None,
    }
}

/// Reads a bundle's file into memory, within bounds.
///
/// # Errors
/// [`Reason::Unreadable`], [`Reason::TooLarge`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, Refused> {
    let io = |e: std::io::Error| Refused::io(Reason::Unreadable, format!("cannot read {}", path.display()), &e);
    // A named pipe would be waited for without end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Refused::new(
            Reason::Unreadable,
            format!("{} is no ordinary file", path.display()),
            "name the bundle's file",
        ));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|f| f.take(MAX_BUNDLE + 1).read_to_end(&mut bytes)).map_err(io)?;
    if bytes.len() as u64 > MAX_BUNDLE {
        return Err(too_large(format!("{} is larger than {} MiB", path.display(), MAX_BUNDLE >> 20)));
    }
    Ok(bytes)
}

fn too_large(what: String) -> Refused {
    Refused::new(
        Reason::TooLarge,
        format!("{what}, which no bundle is"),
        "do not use this file; ask for the bundle again",
    )
}

/// A bundle's files by name, still unverified. Holds the bytes of the whole file.
#[derive(Clone, Debug)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: Vec<(String, Range<usize>)>,
}

impl Archive {
    /// Finds the files in a bundle's bytes. Every header must be, byte by byte, the one that [`Archive::write`] makes for the name
    /// and length, names must be those of a bundle, in order, and nothing may stand between or after the files.
    ///
    /// # Errors
    /// [`Reason::NotABundle`], [`Reason::TooLarge`], [`Reason::Truncated`], [`Reason::UnsafeName`], [`Reason::ExtraFile`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Refused> {
        if bytes.len() as u64 > MAX_BUNDLE {
            return Err(too_large(format!("{} bytes", bytes.len())));
        }
        let mut entries: Vec<(String, Range<usize>)> = Vec::new();
        let mut at = 0;
        loop {
            let block = bytes.get(at..at + BLOCK).ok_or_else(|| cut(entries.len(), bytes.len()))?;
            if block.iter().all(|b| *b == 0) && !entries.is_empty() {
                break;
            }
            let (name, size) = entry(block, entries.last().map(|e| e.0.as_str()))?;
            let start = at + BLOCK;
            let end = start + size;
            let padded = start + size.next_multiple_of(BLOCK);
            let padding = bytes.get(end..padded).ok_or_else(|| cut(entries.len(), bytes.len()))?;
            if padding.iter().any(|b| *b != 0) {
                return Err(foreign(format!("something stands behind {name}")));
            }
            entries.push((name, start..end));
            at = padded;
        }
        let rest = &bytes[at..];
        if rest.iter().any(|b| *b != 0) || rest.len() > END {
            return Err(foreign("something stands behind the last file".into()));
        }
        if rest.len() < END {
            return Err(cut(entries.len(), bytes.len()));
        }
        Ok(Archive { bytes, entries })
    }

    /// The bytes of a bundle with these files, `manifest.json` among them.
    ///
    /// # Errors
    /// [`Reason::TooLarge`], [`Reason::UnsafeName`] for what [`Archive::parse`] would refuse.
    pub fn write(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, Refused> {
        let mut sorted: Vec<&(String, Vec<u8>)> = files.iter().collect();
        sorted.sort_by(|a, b| order(&a.0).cmp(&order(&b.0)));
        let mut out = Vec::new();
        for (name, data) in sorted {
            let most = bound(name).ok_or_else(|| no_name(name))?;
            if data.len() as u64 > most {
                return Err(too_large(format!("{name} of {} bytes", data.len())));
            }
            out.extend_from_slice(header(name, data.len() as u64).as_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + END, 0);
        if out.len() as u64 > MAX_BUNDLE {
            return Err(too_large(format!("{} bytes", out.len())));
        }
        Ok(out)
    }

    /// A file's bytes.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let (_, range) = self.entries.iter().find(|(n, _)| n == name)?;
        self.bytes.get(range.clone())
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(n, _)| n.as_str())
    }

    /// The whole file, given away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The manifest goes first, so that nothing else need be looked at before who signed it is known.
fn order(name: &str) -> (bool, &str) {
    (name != MANIFEST, name)
}

/// The one header of a file.
fn header(name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    // Names are ours and short: this cannot fail, and a header without a name would be refused.
    let _ = header.set_path(name);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    header
}

/// Name and size of a header, where it is the one that we would write after `last`.
fn entry(block: &[u8], last: Option<&str>) -> Result<(String, usize), Refused> {
    if block.starts_with(&[0x1f, 0x8b]) || block.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || block.starts_with(b"PK") {
        return Err(foreign("it is compressed; bundles never are".into()));
    }
    let read = Header::from_byte_slice(block);
    if read.as_ustar().is_none() {
        return Err(foreign(if last.is_some() {
            "a header is damaged".into()
        } else {
            "no tar begins like this".into()
        }));
    }
    let raw = read.path_bytes();
    let Some(name) = std::str::from_utf8(&raw).ok().filter(|n| n.len() <= 100) else {
        return Err(no_name(&String::from_utf8_lossy(&raw)));
    };
    if read.entry_type() != EntryType::Regular {
        return Err(Refused::new(
            Reason::UnsafeName,
            format!("{name:.100?} is a link, a folder or a special file"),
            "do not use this file; somebody made it to do harm, or it is no bundle",
        ));
    }
    let most = bound(name).ok_or_else(|| no_name(name))?;
    let size = read.entry_size().map_err(|_| foreign(format!("the length of {name} is unreadable")))?;
    if size > most {
        return Err(too_large(format!("{name} claims {size} bytes")));
    }
    if header(name, size).as_bytes()[..] != *block {
        return Err(foreign(format!("the header of {name} is not as this program writes it")));
    }
    match last {
        None if name != MANIFEST => Err(foreign(format!("it begins with {name} instead of {MANIFEST}"))),
        Some(last) if order(last) >= order(name) => Err(foreign(format!("{name} is there twice or out of order"))),
        _ => Ok((name.to_string(), size as usize)),
    }
}

fn foreign(what: String) -> Refused {
    Refused::new(
        Reason::NotABundle,
        format!("this is no bundle: {what}"),
        "name a file that `scanside bundle make` wrote",
    )
}

fn cut(files: usize, length: usize) -> Refused {
    if files == 0 && length < BLOCK {
        return foreign(format!("it has {length} bytes"));
    }
    Refused::new(
        Reason::Truncated,
        format!("the bundle ends early, after {files} whole files ({length} bytes)"),
        "copy it again, and let the stick finish writing before it is taken out",
    )
}

fn no_name(name: &str) -> Refused {
    let shown: String = name.chars().take(100).collect();
    let unsafe_name = name.starts_with('/')
        || name.split(['/', '\\']).any(|p| p == ".." || p == ".")
        || name.chars().any(|c| c.is_control() || c == '\\' || c == ':');
    if unsafe_name {
        return Refused::new(
            Reason::UnsafeName,
            format!("a file in it is named {shown:?}, which points out of the bundle"),
            "do not use this file; somebody made it to do harm",
        );
    }
    Refused::new(
        Reason::ExtraFile,
        format!("a file in it is named {shown:?}, which no bundle of this release has"),
        "update this program, or ask for the bundle again",
    )
}
