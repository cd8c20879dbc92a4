//! The reader of bundles on any bytes: it never panics, and whatever it reads it would write in the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scanside::adapter::bundle::{Archive, Unverified};

fuzz_target!(|data: &[u8]| {
    if let Ok(archive) = Archive::parse(data.to_vec()) {
        let files: Vec<(String, Vec<u8>)> =
            archive.names().map(|n| (n.to_string(), archive.get(n).unwrap_or_default().to_vec())).collect();
        assert_eq!(Archive::write(&files).ok().as_deref(), Some(data), "two ways to write one bundle");
    }
    if let Ok(unverified) = Unverified::parse(data.to_vec()) {
        let _ = unverified.contents();
    }
});
