//! What is fuzzed, by libFuzzer without end (`fuzz_targets/`) and by mutations of a good bundle in the test suite (`tests/bundle/hostile.rs`).

use scanside::adapter::Adapter;
use scanside::adapter::bundle::{Archive, Evidence, Manifest, ParityCase, Unverified};
use scanside::adapter::trust::{Root, Signed};

/// The reader of bundles on any bytes: it never panics, and whatever it reads it would write in the same bytes.
pub fn bundle(data: &[u8]) {
    if let Ok(archive) = Archive::parse(data.to_vec()) {
        let files: Vec<(String, Vec<u8>)> =
            archive.names().map(|n| (n.to_string(), archive.get(n).unwrap_or_default().to_vec())).collect();
        assert_eq!(Archive::write(&files).ok().as_deref(), Some(data), "two ways to write one bundle");
    }
    if let Ok(unverified) = Unverified::parse(data.to_vec()) {
        let _ = unverified.contents();
    }
}

/// The readers behind the signatures, and the container under a checksum that fits. The first byte chooses.
pub fn bundle_parts(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    match which % 6 {
        0 => {
            if let Ok(m) = Manifest::read(data) {
                assert_eq!(m.to_bytes(), data, "two ways to write one manifest");
                let _ = m.signed.id();
            }
        }
        1 => {
            if let Ok(root) = Signed::<Root>::read(data) {
                assert_eq!(root.to_bytes(), data, "two ways to write one root");
                let _ = root.advance(&root);
            }
        }
        2 => drop(Evidence::from_bytes(data)),
        3 => {
            if let Ok(case) = ParityCase::from_bytes(data) {
                assert_eq!(case.volume.data.len(), case.expected.data.len());
                let _ = case.to_bytes();
            }
        }
        4 => drop(Adapter::from_bytes(data)),
        _ => drop(container(data).map(|bytes| Unverified::parse(bytes).and_then(|u| u.contents()))),
    }
}

/// A bundle of two files whose bytes are the input's.
fn container(data: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = data.split_at_checked(2)?;
    let at = usize::from(u16::from_le_bytes([length[0], length[1]])).min(rest.len());
    let files = [("manifest.json", &rest[..at]), ("roots/1.json", &rest[at..])];
    Archive::write(&files.map(|(n, b)| (n.to_string(), b.to_vec()))).ok()
}
