use std::io::Write;

use super::super::negotiate::EXPLICIT_LE;
use super::*;

/// An element in Explicit VR Little Endian.
fn explicit(tag: (u16, u16), vr: &str, value: &[u8]) -> Vec<u8> {
    let mut out = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    out.extend_from_slice(vr.as_bytes());
    if is_long([vr.as_bytes()[0], vr.as_bytes()[1]]) {
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    } else {
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    }
    out.extend_from_slice(value);
    out
}

fn implicit(tag: (u16, u16), value: &[u8]) -> Vec<u8> {
    let mut out = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
    out
}

fn image() -> Vec<u8> {
    let item = implicit((0xFFFE, 0xE000), &explicit((0x0008, 0x0018), "UI", b"9.9.9\0"));
    [
        explicit((0x0008, 0x0016), "UI", b"1.2.840.10008.5.1.4.1.1.4\0"),
        explicit((0x0008, 0x0018), "UI", b"1.2.3\0"),
        explicit((0x0008, 0x1140), "SQ", &item),
        explicit((0x0020, 0x000D), "UI", b"1.2.5\0"),
        explicit((0x0020, 0x000E), "UI", b"1.2.66"),
        explicit((0x7FE0, 0x0010), "OW", &[1; 1000]),
    ]
    .concat()
}

fn run(syntax: &str, bytes: &[u8], piece: usize) -> Result<Ids, ScanError> {
    let mut s = Scanner::new(syntax, 1 << 20);
    for chunk in bytes.chunks(piece) {
        s.feed(chunk)?;
    }
    s.finish()
}

fn nested_undefined(depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..depth {
        out.extend_from_slice(&[0x08, 0, 0x40, 0x11, b'S', b'Q', 0, 0, 255, 255, 255, 255]);
        out.extend_from_slice(&[0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255]);
    }
    for _ in 0..depth {
        out.extend_from_slice(&[0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0]);
        out.extend_from_slice(&[0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]);
    }
    out
}

#[test]
fn the_top_levels_identifiers_are_found_in_pieces_of_any_size() {
    for piece in [1, 2, 3, 7, 64, 5000] {
        let ids = run(EXPLICIT_LE, &image(), piece).unwrap();
        assert_eq!(ids.sop_class.as_deref(), Some("1.2.840.10008.5.1.4.1.1.4"));
        assert_eq!(ids.sop_instance.as_deref(), Some("1.2.3"), "not the one within the sequence");
        assert_eq!((ids.study.as_deref(), ids.series.as_deref()), (Some("1.2.5"), Some("1.2.66")));
    }
}

#[test]
fn every_cut_within_an_element_is_seen() {
    let whole = image();
    let mut clean = 0;
    for cut in 1..whole.len() {
        match run(EXPLICIT_LE, &whole[..cut], 100) {
            Ok(_) => clean += 1,
            Err(e) => assert_eq!(e, ScanError::Truncated),
        }
    }
    assert_eq!(clean, 5, "only the borders between the six elements are clean");
}

#[test]
fn implicit_sequences_of_both_kinds_are_entered() {
    let inner = implicit((0x0008, 0x0018), b"9.9\0");
    let sq = implicit((0x0008, 0x1140), &implicit((0xFFFE, 0xE000), &inner));
    let mut bytes = [sq, implicit((0x0008, 0x0018), b"1.2\0")].concat();
    assert_eq!(run(IMPLICIT_LE, &bytes, 3).unwrap().sop_instance.as_deref(), Some("1.2"));
    // An item that claims more than its sequence.
    bytes[12] = 0x40;
    assert!(matches!(run(IMPLICIT_LE, &bytes, 3), Err(ScanError::Overlong(_))));
}

#[test]
fn big_endian_and_fragments() {
    let mut be = vec![0x00, 0x08, 0x00, 0x18, b'U', b'I', 0, 4];
    be.extend_from_slice(b"1.2\0");
    assert_eq!(run(EXPLICIT_BE, &be, 1).unwrap().sop_instance.as_deref(), Some("1.2"));
    let mut encapsulated = vec![0xE0, 0x7F, 0x10, 0, b'O', b'B', 0, 0, 255, 255, 255, 255];
    encapsulated.extend(implicit((0xFFFE, 0xE000), b""));
    encapsulated.extend(implicit((0xFFFE, 0xE000), &[0xFF; 30]));
    let open = encapsulated.clone();
    encapsulated.extend(implicit((0xFFFE, 0xE0DD), b""));
    assert!(run("1.2.840.10008.1.2.4.70", &encapsulated, 1).is_ok());
    assert_eq!(run("1.2.840.10008.1.2.4.70", &open, 1), Err(ScanError::Truncated));
}

#[test]
fn depth_is_capped_for_every_way_of_nesting() {
    assert!(run(EXPLICIT_LE, &nested_undefined(MAX_DEPTH), 9).is_ok());
    for depth in [MAX_DEPTH + 1, 1_000, 5_000, 20_000] {
        assert_eq!(run(EXPLICIT_LE, &nested_undefined(depth), 4096), Err(ScanError::TooDeep));
    }
    let (mut by_length, mut by_length_implicit) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        by_length = explicit((0x0008, 0x1140), "SQ", &implicit((0xFFFE, 0xE000), &by_length));
        by_length_implicit = implicit((0x0008, 0x1140), &implicit((0xFFFE, 0xE000), &by_length_implicit));
    }
    assert_eq!(run(EXPLICIT_LE, &by_length, 4096), Err(ScanError::TooDeep));
    assert_eq!(run(IMPLICIT_LE, &by_length_implicit, 4096), Err(ScanError::TooDeep));
    // Unknown VR of undefined length turns implicit.
    let mut unknown = vec![0x09, 0, 0x10, 0x10, b'U', b'N', 0, 0, 255, 255, 255, 255];
    unknown.extend_from_slice(&[0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255]);
    for _ in 0..100 {
        unknown.extend_from_slice(&[0x09, 0, 0x10, 0x10, 255, 255, 255, 255]);
        unknown.extend_from_slice(&[0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255]);
    }
    assert_eq!(run(EXPLICIT_LE, &unknown, 4096), Err(ScanError::TooDeep));
}

#[test]
fn garbage_is_refused_with_its_cause() {
    assert!(matches!(run(EXPLICIT_LE, &[0x5A; 500], 64), Err(ScanError::BadVr(_) | ScanError::Truncated)));
    assert!(matches!(run(EXPLICIT_LE, &[0xC3; 500], 64), Err(ScanError::BadVr(_))));
    assert!(matches!(run(IMPLICIT_LE, &[0xC3; 500], 64), Err(ScanError::Truncated)));
    // A whole file, preamble and all, where a data set is due.
    let file = super::super::part10::head("1.2", "1.3", EXPLICIT_LE);
    assert!(matches!(run(IMPLICIT_LE, &file, 64), Err(ScanError::WrongGroup(_))));
    let long = explicit((0x0008, 0x0018), "UI", &[b'1'; 500]);
    assert!(matches!(run(EXPLICIT_LE, &long, 64), Err(ScanError::BadUid(_))));
}

#[test]
fn deflate_is_inflated_within_its_limit() {
    let deflate = |bytes: &[u8]| {
        let mut e = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    };
    let mut packed = deflate(&image());
    packed.push(0);
    for piece in [1, 13, 4096] {
        assert_eq!(run(DEFLATED_LE, &packed, piece).unwrap().series.as_deref(), Some("1.2.66"));
    }
    assert_eq!(run(DEFLATED_LE, &packed[..packed.len() / 2], 13), Err(ScanError::Truncated));
    assert_eq!(run(DEFLATED_LE, &[0xFF; 64], 13), Err(ScanError::Deflate));
    let bomb = deflate(&explicit((0x7FE0, 0x0010), "OB", &vec![0; 64 << 20]));
    assert!(bomb.len() < 100_000);
    assert_eq!(run(DEFLATED_LE, &bomb, 4096), Err(ScanError::Bomb));
}

#[test]
fn random_bytes_never_panic() {
    use rand::{RngCore, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for round in 0..3_000 {
        let mut bytes = if round % 2 == 0 { image() } else { nested_undefined(10) };
        for _ in 0..(1 + round % 5) {
            let at = rng.next_u32() as usize % bytes.len();
            bytes[at] = rng.next_u32() as u8;
        }
        for syntax in [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE] {
            let _ = run(syntax, &bytes, 17);
        }
    }
}
