//! Archives that somebody made to do harm, and damage of every kind: a bound, a clear refusal, nothing more.

use scanside::adapter::Reason;
use scanside::adapter::bundle::{Archive, BoxFacts, MAX_BUNDLE, Purpose, Unverified, verify};
use scanside::adapter::trust::{SecretKey, TrustState};

use crate::fixture::{BASE, Host, files, forge};
use crate::refusals::Box;
use crate::targets;

/// A header with anything in it and a checksum that fits.
fn header(name: &[u8], size: u64, kind: u8) -> Vec<u8> {
    let mut h = tar::Header::new_ustar();
    h.as_old_mut().name[..name.len()].copy_from_slice(name);
    h.set_size(size);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(0);
    h.set_entry_type(tar::EntryType::new(kind));
    h.set_cksum();
    h.as_bytes().to_vec()
}

fn entry(name: &str, data: &[u8], kind: u8) -> Vec<u8> {
    let mut out = header(name.as_bytes(), data.len() as u64, kind);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// A good bundle with something more before its end.
fn with(good: &[u8], more: &[u8]) -> Vec<u8> {
    let mut out = good[..good.len() - 1024].to_vec();
    out.extend_from_slice(more);
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn names_that_leave_the_bundle() {
    let host = Host::default();
    let (good, there) = (host.bundle(1), Box::new(&host));
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "roots/../../x.json",
        "roots\\..\\x",
        "C:x",
        "./roots/2.json",
        "roots/2\n.json",
    ] {
        there.refuses(&with(&good, &entry(name, b"x", b'0')), Reason::UnsafeName, "points out of the bundle");
    }
}

#[test]
fn links_folders_and_special_files() {
    let host = Host::default();
    let (good, there) = (host.bundle(1), Box::new(&host));
    for kind in *b"123456xgLKS" {
        let more = entry("roots/2.json", b"", kind);
        there.refuses(&with(&good, &more), Reason::UnsafeName, "a link, a folder or a special file");
    }
}

#[test]
fn an_extra_file() {
    let host = Host::default();
    let (good, there) = (host.bundle(1), Box::new(&host));
    // A name that no bundle has, one that a bundle could have, and one that is there twice.
    there.refuses(&with(&good, &entry("run-me.sh", b"x", b'0')), Reason::ExtraFile, "run-me.sh");
    let second = host.roots[0].to_bytes();
    let mut parts = files(&good);
    let parity = parts.iter().find(|f| f.0.starts_with("parity")).unwrap().1.clone();
    parts.push(("parity/2.safetensors".into(), parity));
    let listed: Vec<_> =
        files(&good).iter().map(|(n, b)| (n.clone(), scanside::adapter::bundle::Target::of(b))).collect();
    let forged = forge(&good, &host.release_keys[..2], parts, |m| m.targets = listed.into_iter().collect());
    there.refuses(&forged, Reason::ExtraFile, "parity/2.safetensors");
    there.refuses(&with(&good, &entry("roots/1.json", &second, b'0')), Reason::NotABundle, "twice or out of order");
    let mut behind = good.clone();
    behind.extend_from_slice(b"more");
    there.refuses(&behind, Reason::NotABundle, "behind the last file");
}

#[test]
fn archive_bombs() {
    let host = Host::default();
    let (good, there) = (host.bundle(1), Box::new(&host));
    // A length that no medium holds, more roots than there can be, and compressed files.
    there.refuses(&header(b"manifest.json", 1 << 62, b'0'), Reason::TooLarge, "manifest.json claims");
    there.refuses(&with(&good, &header(b"roots/2.json", 65_537, b'0')), Reason::TooLarge, "roots/2.json claims");
    there.refuses(&with(&good, &entry("roots/257.json", b"", b'0')), Reason::ExtraFile, "roots/257.json");
    there.refuses(&with(&good, &entry("roots/007.json", b"", b'0')), Reason::ExtraFile, "roots/007.json");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut gzip, &vec![0; 64 << 20]).unwrap();
    there.refuses(&gzip.finish().unwrap(), Reason::NotABundle, "compressed");
    there.refuses(&[b'x'; 100], Reason::NotABundle, "100 bytes");
    there.refuses(&vec![0; 4096], Reason::NotABundle, "no tar");
    // A sparse file of many times the limit costs no memory and no time.
    let path = there.dir.path().join("sparse.bundle");
    std::fs::File::create(&path).unwrap().set_len(MAX_BUNDLE * 100).unwrap();
    let (code, said) = crate::refusals::run(&mut there.command(&path));
    assert_eq!((code, &said["reason"]), (22, &"too-large".into()), "{said:#}");
}

#[test]
fn metadata_of_another_hand() {
    // The same files as another tar writes them: not the bytes that were made.
    let host = Host::default();
    let (good, there) = (host.bundle(1), Box::new(&host));
    for at in [100, 108, 116, 136, 265, 329, 500] {
        let mut other = good.clone();
        other[at] ^= 1;
        let mut h = tar::Header::from_byte_slice(&other[..512]).clone();
        h.set_cksum();
        other[..512].copy_from_slice(h.as_bytes());
        there.refuses(&other, Reason::NotABundle, "");
    }
}

#[test]
fn truncated() {
    let host = Host::default();
    let (good, there) = (host.bundle(1), Box::new(&host));
    for length in [512, 700, good.len() / 2, good.len() - 1025, good.len() - 1024, good.len() - 1] {
        there.refuses(&good[..length], Reason::Truncated, "ends early");
    }
    there.refuses(&[], Reason::NotABundle, "0 bytes");
}

/// Bundles that are small, so that many can be tried.
fn small(host: &Host) -> Vec<u8> {
    host.bundle(1)
}

/// The parts of a bundle in the order of `targets::bundle_parts`.
const PARTS: [&str; 5] =
    ["manifest.json", "roots/1.json", "evidence.json", "parity/1.safetensors", "adapter.safetensors"];

/// The bounded part of what `fuzz/` does without end: damage of the kinds that fuzzers find, at places that matter. Nothing but the
/// bundle itself is ever accepted, and nothing panics.
#[test]
fn ten_thousand_mutations_are_all_refused() {
    use rand::{Rng, SeedableRng};
    let host = Host::default();
    let good = small(&host);
    let trust = TrustState::new(host.roots[0].clone(), 0);
    let facts = BoxFacts::here(BASE, "ward-3");
    let now = crate::fixture::day("2026-06-01").ms();
    let judge = |bytes: Vec<u8>| verify(bytes, &trust, now, &facts, Purpose::Install).outcome;
    assert!(judge(good.clone()).is_ok());
    let archive = Archive::parse(good.clone()).unwrap();
    // Where headers, metadata and the ends of files lie.
    let mut places = vec![0usize];
    let mut at = 0;
    for name in archive.names() {
        let size = archive.get(name).unwrap().len();
        places.extend([at, at + 512, at + 512 + size.min(64), at + 512 + size]);
        at += 512 + size.next_multiple_of(512);
    }
    places.push(at);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    for round in 0..10_000 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let near = places[rng.random_range(0..places.len())] + rng.random_range(0..520usize);
            let at = near.min(bytes.len().saturating_sub(1));
            match rng.random_range(0..7) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes[at] = rng.random(),
                2 => drop(bytes.drain(at..(at + rng.random_range(1..600usize)).min(bytes.len()))),
                3 => drop(bytes.splice(at..at, vec![rng.random(); rng.random_range(1..600)])),
                4 => {
                    let from = rng.random_range(0..bytes.len());
                    let piece = bytes[from..(from + rng.random_range(1..1100usize)).min(bytes.len())].to_vec();
                    drop(bytes.splice(at..at, piece));
                }
                5 => bytes.truncate(at.max(1)),
                _ => {
                    // A header that is believed, since its checksum is made to fit.
                    let h = at / 512 * 512;
                    if let Some(block) = bytes.get_mut(h..h + 512) {
                        block[rng.random_range(0..512)] = rng.random();
                        let mut header = tar::Header::from_byte_slice(block).clone();
                        header.set_cksum();
                        block.copy_from_slice(header.as_bytes());
                    }
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        targets::bundle(&bytes);
        assert!(bytes == good || judge(bytes).is_err(), "round {round}: something else than the bundle was accepted");
    }
}

/// Mutations of the parts behind signatures that count: holders of keys make mistakes too.
#[test]
fn mutated_parts_under_good_signatures_never_panic() {
    use rand::{Rng, SeedableRng};
    let host = Host::default();
    let good = small(&host);
    let keys: Vec<SecretKey> = Host::default().release_keys.into_iter().take(2).collect();
    let trust = TrustState::new(host.roots[0].clone(), 0);
    let facts = BoxFacts::here(BASE, "ward-3");
    let now = crate::fixture::day("2026-06-01").ms();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(10);
    let (mut refused, mut reached) = (0, 0);
    for _ in 0..500 {
        let mut parts = files(&good);
        let which = rng.random_range(0..parts.len());
        let data = &mut parts[which].1;
        // Headers of safetensors and JSON, where what is read is decided.
        let at = rng.random_range(0..data.len().min(3000));
        match rng.random_range(0..3) {
            0 => data[at] = rng.random(),
            1 => data.truncate(at),
            _ => data[at] ^= 1 << rng.random_range(0..8),
        }
        // The same target as libFuzzer's, which asks for the kind of part in its first byte.
        if let Some(kind) = PARTS.iter().position(|n| *n == parts[which].0) {
            targets::bundle_parts(&[&[kind as u8], parts[which].1.as_slice()].concat());
        }
        let forged = forge(&good, &keys, parts, |_| {});
        let Ok(unverified) = Unverified::parse(forged.clone()) else {
            refused += 1;
            continue;
        };
        reached += 1;
        let outcome = verify(forged, &trust, now, &facts, Purpose::Install).outcome;
        refused += usize::from(outcome.is_err());
        assert_eq!(outcome.is_ok(), unverified.contents().is_ok());
    }
    assert!(refused > 200 && reached > 200, "{refused} refused, {reached} reached the parts");
}

/// Not a check: writes the corpus that `fuzz/` begins with.
#[test]
#[ignore = "writes fuzz/corpus for cargo-fuzz"]
fn seeds_for_fuzzing() {
    let host = Host::default();
    let good = host.bundle(1);
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(corpus.join(target)).unwrap();
        std::fs::write(corpus.join(target).join(name), bytes).unwrap();
    };
    write("bundle", "good", &good);
    write("bundle", "unsigned", &host.draft(1).to_bytes().unwrap());
    let archive = Archive::parse(good).unwrap();
    for (which, name) in PARTS.iter().enumerate() {
        let bytes = [&[which as u8], archive.get(name).unwrap()].concat();
        write("bundle_parts", &name.replace('/', "-"), &bytes);
    }
    let manifest = archive.get("manifest.json").unwrap();
    let both =
        [&[5], &(manifest.len() as u16).to_le_bytes()[..], manifest, archive.get("roots/1.json").unwrap()].concat();
    write("bundle_parts", "container", &both);
}
