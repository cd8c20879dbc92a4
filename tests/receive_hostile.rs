//! Hostile and odd input at the network door: each item is a named test on a raw socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod receive_common;

use std::io::Write;
use std::time::Duration;

use dicom_ul::pdu::{AssociationRJServiceProviderPresentationReason, AssociationRJSource, Pdu};
use receive_common::*;
use scanside::dicom::net::command::{Command, RESPONDED_TO, STATUS};
use scanside::dicom::net::message::pdata_header;
use scanside::dicom::net::negotiate::{DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE};
use scanside::dicom::net::{MR_IMAGE_STORAGE, VERIFICATION};

fn receiver() -> (tempfile::TempDir, Receiver) {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path());
    (dir, receiver)
}

/// The object is refused with this status and a cause, nothing is kept, and the association goes on.
fn assert_refused(data: &[u8], instance: &str, status: u16, cause: &str) {
    let (_dir, box_) = receiver();
    let mut raw = box_.associate();
    let (got, comment) = raw.store(MR_IMAGE_STORAGE, instance, data);
    assert_eq!(got, status, "{got:04X} {comment}");
    assert!(comment.contains(cause), "{comment}");
    assert!(box_.files().is_empty() && box_.rows().is_empty() && box_.unfinished().is_empty());
    assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(900), &data_set(900, 8, &[])).0, 0);
    raw.release();
}

#[test]
fn command_over_two_pdvs_and_data_in_the_same_pdu() {
    let (_dir, box_) = receiver();
    let mut raw = box_.associate();
    let command = Command::store_request(5, MR_IMAGE_STORAGE, &instance_uid(1)).encode();
    let data = data_set(1, 16, &[]);
    let parts: [(bool, bool, &[u8]); 4] = [
        (true, false, &command[..11]),
        (true, true, &command[11..]),
        (false, false, &data[..77]),
        (false, true, &data[77..]),
    ];
    // In one PDU.
    let mut body = Vec::new();
    for (is_command, last, bytes) in parts {
        body.extend_from_slice(&pdata_header(3, is_command, last, bytes.len())[6..]);
        body.extend_from_slice(bytes);
    }
    raw.bytes(&[&[4, 0][..], &(body.len() as u32).to_be_bytes(), &body].concat());
    assert_eq!(raw.answer().u16(STATUS), Some(0));
    // In four PDUs, the same object again.
    for (is_command, last, bytes) in parts {
        raw.bytes(&[&pdata_header(3, is_command, last, bytes.len())[..], bytes].concat());
    }
    assert_eq!(raw.answer().u16(STATUS), Some(0));
    assert_eq!(box_.rows().len(), 1);
    raw.release();
}

#[test]
fn two_messages_in_one_pdu_are_both_answered() {
    let (_dir, box_) = receiver();
    let mut raw = box_.associate();
    let mut body = Vec::new();
    for id in [3, 4] {
        let bytes = Command::echo_request(id).encode();
        body.extend_from_slice(&pdata_header(1, true, true, bytes.len())[6..]);
        body.extend_from_slice(&bytes);
    }
    raw.bytes(&[&[4, 0][..], &(body.len() as u32).to_be_bytes(), &body].concat());
    assert_eq!(raw.answer().u16(RESPONDED_TO), Some(3));
    assert_eq!(raw.answer().u16(RESPONDED_TO), Some(4));
}

#[test]
fn repeated_echoes_are_answered_with_their_own_message_id() {
    let (_dir, box_) = receiver();
    let mut raw = box_.associate();
    for id in [1, 2, 7, 65535, 0, 2] {
        raw.send_command(1, &Command::echo_request(id));
        let answer = raw.answer();
        assert_eq!((answer.field(), answer.u16(STATUS), answer.u16(RESPONDED_TO)), (0x8030, Some(0), Some(id)));
    }
    raw.release();
}

#[test]
fn garbage_data_sets_are_refused_with_their_cause() {
    assert_refused(&[0xC3; 5_000], &instance_uid(1), 0xC000, "no valid VR");
    assert_refused(&[0; 5_000], &instance_uid(1), 0xC000, "does not belong");
    assert_refused(&[], &instance_uid(1), 0xA900, "SOP Class UID");
}

#[test]
fn truncated_data_sets_are_refused() {
    let whole = data_set(1, 64, &[]);
    for cut in [3, 20, 101, whole.len() - 1] {
        assert_refused(&whole[..cut], &instance_uid(1), 0xC000, "cut short");
    }
}

#[test]
fn command_uid_differs_from_data_set_uid() {
    assert_refused(&data_set(1, 8, &[]), &instance_uid(2), 0xA900, "SOP Instance UID");
}

#[test]
fn data_set_without_series_is_refused() {
    let ids = [
        element((0x0008, 0x0016), "UI", MR_IMAGE_STORAGE.as_bytes()),
        element((0x0008, 0x0018), "UI", instance_uid(1).as_bytes()),
        element((0x0020, 0x000D), "UI", b"1.2"),
    ]
    .concat();
    assert_refused(&ids, &instance_uid(1), 0xC000, "Series Instance UID");
}

#[test]
fn a_large_association_request_is_taken() {
    let (_dir, box_) = receiver();
    // 128 contexts with long private names, about 61 KB.
    let classes: Vec<String> = (0..126).map(|i| format!("1.3.12.2.1107.5.{:0>450}.{i}", 9)).collect();
    let mut contexts: Vec<(&str, &str)> = vec![(VERIFICATION, EXPLICIT_LE), (MR_IMAGE_STORAGE, EXPLICIT_LE)];
    contexts.extend(classes.iter().map(|c| (c.as_str(), EXPLICIT_LE)));
    let mut bytes = Vec::new();
    dicom_ul::pdu::write_pdu(&mut bytes, &request("SENDER", "SCANSIDE", &contexts)).unwrap();
    assert!(bytes.len() > 61_000, "{}", bytes.len());
    let mut raw = box_.associate_on(&contexts);
    assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(1), &data_set(1, 8, &[])).0, 0);
    raw.release();
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap().to_string();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_pdu_that_claims_a_gigabyte_and_a_half_is_aborted() {
    let (_dir, box_) = receiver();
    let claim = 1_610_612_736u32.to_be_bytes();
    for kind in [1u8, 4] {
        let mut raw = if kind == 1 { Raw::connect(box_.address) } else { box_.associate() };
        let before = rss_kib();
        raw.bytes(&[&[kind, 0][..], &claim].concat());
        // The peer may close while we are still sending.
        for _ in 0..8_192 {
            if raw.stream.write_all(&[0; 65_536]).is_err() {
                break;
            }
        }
        raw.assert_ended();
        assert!(rss_kib() < before + 300_000, "memory grew");
    }
    box_.assert_alive();
}

#[test]
fn deep_nesting_is_refused() {
    for depth in [1_000, 5_000, 20_000] {
        let mut nested = Vec::new();
        for _ in 0..depth {
            nested.extend_from_slice(&[0x40, 0, 0x60, 2, b'S', b'Q', 0, 0, 255, 255, 255, 255]);
            nested.extend_from_slice(&[0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255]);
        }
        for _ in 0..depth {
            nested.extend_from_slice(&[0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0]);
            nested.extend_from_slice(&[0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]);
        }
        assert_refused(&data_set(1, 8, &nested), &instance_uid(1), 0xC000, "nested deeper");
    }
}

#[test]
fn a_path_in_a_uid_leads_nowhere() {
    for uid in ["../../../../tmp/scanside-escaped", "1.2/../../3", "..", ".", "/etc/passwd", "1.2.3\n4", ""] {
        assert_refused(&data_set(1, 8, &[]), uid, 0x0117, "no UID");
    }
    let data = [
        element((0x0008, 0x0016), "UI", MR_IMAGE_STORAGE.as_bytes()),
        element((0x0008, 0x0018), "UI", instance_uid(1).as_bytes()),
        element((0x0020, 0x000D), "UI", b"../x"),
        element((0x0020, 0x000E), "UI", b"1.2"),
    ]
    .concat();
    assert_refused(&data, &instance_uid(1), 0xC000, "Study Instance UID");
}

#[test]
fn connect_and_close() {
    let (_dir, box_) = receiver();
    for _ in 0..200 {
        drop(Raw::connect(box_.address));
    }
    box_.assert_alive();
}

#[test]
fn a_slow_sender_is_served_and_holds_nobody_up() {
    let (_dir, box_) = receiver();
    let mut slow = box_.associate();
    slow.send_command(3, &Command::store_request(5, MR_IMAGE_STORAGE, &instance_uid(1)));
    let data = data_set(1, 8, &[]);
    let wire = [&pdata_header(3, false, true, data.len())[..], &data].concat();
    for (i, byte) in wire.chunks(7).enumerate() {
        slow.bytes(byte);
        if i % 16 == 0 {
            std::thread::sleep(Duration::from_millis(20));
            box_.assert_alive();
        }
    }
    assert_eq!(slow.answer().u16(STATUS), Some(0));
    slow.release();
}

#[test]
fn half_open_associations_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut few = options();
    few.idle = Duration::from_secs(1);
    few.max_associations = 2;
    let box_ = Receiver::with(dir.path(), few, 0);
    // Silent before the request, silent after it, and silent within an object and a PDU.
    let mut before = Raw::connect(box_.address);
    let mut after = box_.associate();
    let mut within = box_.associate();
    within.send_command(3, &Command::store_request(5, MR_IMAGE_STORAGE, &instance_uid(1)));
    within.send_data(3, &data_set(1, 64, &[])[..4_000], false);
    within.bytes(&[4, 0, 0, 0, 99, 0, 1]);
    for raw in [&mut before, &mut after, &mut within] {
        raw.assert_ended();
    }
    std::thread::sleep(Duration::from_millis(200));
    box_.assert_alive();
    assert!(box_.files().is_empty() && box_.unfinished().is_empty() && box_.rows().is_empty());
}

#[test]
fn one_association_too_many_is_rejected_as_transient() {
    let dir = tempfile::tempdir().unwrap();
    let mut few = options();
    few.max_associations = 2;
    let box_ = Receiver::with(dir.path(), few, 0);
    let (_a, b) = (box_.associate(), box_.associate());
    let mut third = Raw::connect(box_.address);
    third.send_pdu(&request("SENDER", "SCANSIDE", &[(VERIFICATION, EXPLICIT_LE)]));
    match third.pdu() {
        Some(Pdu::AssociationRJ(rj)) => assert_eq!(
            rj.source,
            AssociationRJSource::ServiceProviderPresentation(
                AssociationRJServiceProviderPresentationReason::LocalLimitExceeded
            )
        ),
        other => panic!("{other:?}"),
    }
    b.release();
    std::thread::sleep(Duration::from_millis(200));
    box_.assert_alive();
}

#[test]
fn a_private_class_beside_a_standard_one() {
    let (_dir, box_) = receiver();
    let mut raw = Raw::connect(box_.address);
    raw.send_pdu(&request(
        "SENDER",
        "SCANSIDE",
        &[("1.3.12.2.1107.5.9.1", EXPLICIT_LE), (MR_IMAGE_STORAGE, EXPLICIT_LE)],
    ));
    let Some(Pdu::AssociationAC(ac)) = raw.pdu() else { panic!("not accepted") };
    let reasons: Vec<u8> = ac.presentation_contexts.iter().map(|c| c.reason.clone() as u8).collect();
    assert_eq!(reasons, [3, 0], "abstract syntax not supported, accepted");
    assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(1), &data_set(1, 8, &[])).0, 0);
    raw.release();
}

#[test]
fn an_unsupported_class_in_a_command_is_refused_with_a_status() {
    let (_dir, box_) = receiver();
    let mut raw = box_.associate();
    let ct = "1.2.840.10008.5.1.4.1.1.2";
    let (status, comment) = raw.store(ct, &instance_uid(1), &data_set(1, 8, &[]));
    assert!(status == 0x0122 && comment.contains(ct), "{status:04X} {comment}");
    // A class that is taken, but on another context.
    assert_eq!(raw.store("1.2.840.10008.5.1.4.1.1.4.1", &instance_uid(1), &data_set(1, 8, &[])).0, 0x0122);
    assert_eq!(raw.store_on(1, MR_IMAGE_STORAGE, &instance_uid(1), &data_set(1, 8, &[])).0, 0x0122);
    // An operation that is not ours, with a data set.
    let find = Command::store_request(9, MR_IMAGE_STORAGE, "1.2").with_u16(0x0100, 0x0020);
    raw.send_command(3, &find);
    raw.send_data(3, b"1234", true);
    assert_eq!(raw.answer().u16(STATUS), Some(0x0211));
    raw.release();
}

#[test]
fn strangers_and_blank_titles_are_rejected() {
    let (_dir, box_) = receiver();
    for (calling, called, reason) in [("STRANGER", "SCANSIDE", 3u8), ("SENDER", "OTHER", 7)] {
        let mut raw = Raw::connect(box_.address);
        raw.send_pdu(&request(calling, called, &[(VERIFICATION, EXPLICIT_LE)]));
        assert_rejected(&mut raw, reason);
    }
    // Blank, and not ASCII: our encoder would not write them.
    for (offset, reason) in [(10usize, 7u8), (26, 3)] {
        for fill in [b' ', 0, 0xFF] {
            let mut bytes = Vec::new();
            let rq = request("SENDER", "SCANSIDE", &[(VERIFICATION, EXPLICIT_LE)]);
            dicom_ul::pdu::write_pdu(&mut bytes, &rq).unwrap();
            bytes[offset..offset + 16].fill(fill);
            let mut raw = Raw::connect(box_.address);
            raw.bytes(&bytes);
            assert_rejected(&mut raw, reason);
        }
    }
}

fn assert_rejected(raw: &mut Raw, reason: u8) {
    use std::io::Read;
    let mut rj = [0u8; 10];
    raw.stream.read_exact(&mut rj).unwrap();
    assert_eq!((rj[0], rj[7], rj[8], rj[9]), (3, 1, 1, reason), "rejected, permanent, service user, reason");
}

#[test]
fn explicit_big_endian_and_implicit_are_kept_as_they_come() {
    let be = |tag: (u16, u16), vr: &str, value: &[u8]| {
        let mut out = [tag.0.to_be_bytes(), tag.1.to_be_bytes()].concat();
        out.extend_from_slice(vr.as_bytes());
        let pad = value.len() % 2;
        out.extend_from_slice(&((value.len() + pad) as u16).to_be_bytes());
        out.extend_from_slice(value);
        out.extend(std::iter::repeat_n(0, pad));
        out
    };
    let le = |tag: (u16, u16), _: &str, value: &[u8]| {
        let mut out = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        let pad = value.len() % 2;
        out.extend_from_slice(&((value.len() + pad) as u32).to_le_bytes());
        out.extend_from_slice(value);
        out.extend(std::iter::repeat_n(0, pad));
        out
    };
    type Encoder<'a> = &'a dyn Fn((u16, u16), &str, &[u8]) -> Vec<u8>;
    for (n, syntax, encode) in [(1, EXPLICIT_BE, &be as Encoder<'_>), (2, IMPLICIT_LE, &le as Encoder<'_>)] {
        let data = [
            encode((0x0008, 0x0016), "UI", MR_IMAGE_STORAGE.as_bytes()),
            encode((0x0008, 0x0018), "UI", instance_uid(n).as_bytes()),
            encode((0x0020, 0x000D), "UI", b"1.2.3"),
            encode((0x0020, 0x000E), "UI", SERIES.as_bytes()),
        ]
        .concat();
        let (_dir, box_) = receiver();
        let mut raw = box_.associate_on(&[(VERIFICATION, EXPLICIT_LE), (MR_IMAGE_STORAGE, syntax)]);
        assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(n), &data).0, 0);
        let row = box_.rows().remove(0);
        assert_eq!((row.transfer_syntax.as_str(), row.series_uid.as_str()), (syntax, SERIES));
        assert!(std::fs::read(row.file(box_.store.dir())).unwrap().ends_with(&data));
    }
}

#[test]
fn one_association_per_image() {
    let (_dir, mut box_) = receiver();
    for n in 0..40 {
        let mut raw = box_.associate();
        assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(n), &data_set(n, 16, &[])).0, 0);
        raw.release();
    }
    let rows = box_.rows();
    assert_eq!(rows.len(), 40);
    let associations: std::collections::BTreeSet<i64> = rows.iter().map(|r| r.association_id).collect();
    assert_eq!(associations.len(), 40);
    // 40 objects and 40 releases were told.
    for _ in 0..80 {
        let next = box_.next_event();
        assert!(next.is_some());
    }
}

#[test]
fn a_polyglot_preamble_is_not_kept() {
    // A peer that sends a whole file as data set gets a refusal; a stored file has a zero preamble.
    let mut file = vec![0x4D; 128];
    file[..2].copy_from_slice(b"MZ");
    file.extend_from_slice(b"DICM");
    file.extend(data_set(1, 8, &[]));
    assert_refused(&file, &instance_uid(1), 0xC000, "");
    let (_dir, box_) = receiver();
    assert_eq!(box_.associate().store(MR_IMAGE_STORAGE, &instance_uid(1), &data_set(1, 8, &[])).0, 0);
    let bytes = std::fs::read(&box_.files()[0]).unwrap();
    assert!(bytes[..128].iter().all(|b| *b == 0) && &bytes[128..132] == b"DICM");
}

#[test]
fn a_deflate_bomb_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = options();
    small.max_object = 1 << 20;
    let box_ = Receiver::with(dir.path(), small, 0);
    let deflate = |bytes: &[u8]| {
        let mut e = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    };
    // Made before the association, which is given up while a slow machine (an emulator) compresses.
    let bomb = deflate(&data_set(1, 8, &element((0x0028, 0x0001), "OB", &vec![0; 8 << 20])));
    assert!(bomb.len() < 50_000);
    let mut raw = box_.associate_on(&[(VERIFICATION, EXPLICIT_LE), (MR_IMAGE_STORAGE, DEFLATED_LE)]);
    let (status, comment) = raw.store(MR_IMAGE_STORAGE, &instance_uid(1), &bomb);
    assert!(status == 0xC000 && comment.contains("inflates"), "{status:04X} {comment}");
    assert!(box_.files().is_empty());
    assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(1), &deflate(&data_set(1, 8, &[]))).0, 0);
}

#[test]
fn an_oversized_object_is_refused_and_the_association_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = options();
    small.max_object = 2 << 20;
    let box_ = Receiver::with(dir.path(), small, 0);
    let mut raw = box_.associate();
    let (status, comment) = raw.store(MR_IMAGE_STORAGE, &instance_uid(1), &data_set(1, 1200, &[]));
    assert!(status == 0xA700 && comment.contains("larger than 2 MiB"), "{status:04X} {comment}");
    assert!(box_.files().is_empty() && box_.unfinished().is_empty());
    assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(2), &data_set(2, 1000, &[])).0, 0);
}

#[test]
fn absurd_dimensions_cost_nothing_at_the_door() {
    let (_dir, box_) = receiver();
    let mut data = data_set(1, 8, &[]);
    // Rows and columns of 65535 over 128 bytes of pixels: kept as it came, for the reader to refuse.
    for element in [0x10u8, 0x11] {
        let at = data.windows(6).position(|w| w == [0x28, 0, element, 0, b'U', b'S']).unwrap();
        data[at + 8..at + 10].copy_from_slice(&[255, 255]);
    }
    let before = rss_kib();
    assert_eq!(box_.associate().store(MR_IMAGE_STORAGE, &instance_uid(1), &data).0, 0);
    assert!(rss_kib() < before + 300_000);
}

#[test]
fn breaches_of_the_protocol_end_the_association_only() {
    let (_dir, box_) = receiver();
    let echo = Command::echo_request(1).encode();
    let store = Command::store_request(1, MR_IMAGE_STORAGE, &instance_uid(1)).encode();
    let pdv =
        |context, command, last, bytes: &[u8]| [&pdata_header(context, command, last, bytes.len())[..], bytes].concat();
    let cases: Vec<Vec<u8>> = vec![
        pdv(3, false, true, b"data before a command"),
        pdv(9, true, true, &echo),
        [pdv(3, true, true, &store), pdv(3, true, true, &store)].concat(),
        [pdv(3, true, true, &store), pdv(1, false, true, b"other context")].concat(),
        vec![4, 0, 0, 0, 0, 6, 0, 0, 0, 99, 1, 3],
        vec![4, 0, 0, 0, 0, 6, 0, 0, 0, 1, 1, 3],
        pdv(1, true, true, &[1; 40]),
        [pdv(1, true, false, &[0; 16_000]), pdv(1, true, false, &[0; 16_000])].concat(),
        vec![99, 0, 0, 0, 0, 4, 0, 0, 0, 0],
        vec![2, 0, 0, 0, 0, 4, 0, 0, 0, 0],
        [pdv(3, true, true, &store), vec![5, 0, 0, 0, 0, 4, 0, 0, 0, 0]].concat(),
    ];
    for (i, case) in cases.iter().enumerate() {
        let mut raw = box_.associate();
        raw.bytes(case);
        match raw.pdu() {
            None | Some(Pdu::AbortRQ { .. }) => {}
            other => panic!("case {i}: {other:?}"),
        }
    }
    box_.assert_alive();
    assert!(box_.unfinished().is_empty() && box_.files().is_empty());
}

#[test]
fn random_bytes_instead_of_a_request() {
    use rand::{RngCore, SeedableRng};
    let (_dir, box_) = receiver();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let mut good = Vec::new();
    dicom_ul::pdu::write_pdu(&mut good, &request("SENDER", "SCANSIDE", &[(MR_IMAGE_STORAGE, EXPLICIT_LE)])).unwrap();
    for round in 0..150 {
        let mut raw = Raw::connect(box_.address);
        let mut bytes = good.clone();
        for _ in 0..1 + round % 8 {
            let at = rng.next_u32() as usize % bytes.len();
            bytes[at] = rng.next_u32() as u8;
        }
        let _ = raw.stream.write_all(&bytes);
    }
    box_.assert_alive();
}
