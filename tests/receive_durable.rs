//! 0000 means durable: what was answered is on disk and in the database, whatever happens afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod receive_common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use receive_common::*;
use scanside::dicom::net::MR_IMAGE_STORAGE;
use scanside::dicom::net::command::Command;
use scanside::dicom::net::scu::{self, ScuOptions, Sent, Target};
use scanside::store::instances::{CONFLICT, MISSING};
use scanside::store::{Received, Spool};
use sha2::{Digest, Sha256};

fn store_one(box_: &Receiver, n: usize) -> u16 {
    let mut raw = box_.associate();
    let (status, _) = raw.store(MR_IMAGE_STORAGE, &instance_uid(n), &data_set(n, 32, &[]));
    raw.release();
    status
}

/// Every row's file is there with its hash, and every file has its row.
fn assert_whole(box_: &Receiver) {
    let rows = box_.rows();
    for row in &rows {
        let bytes = std::fs::read(row.file(box_.store.dir())).unwrap();
        assert_eq!(hex::encode(Sha256::digest(&bytes)), row.sha256);
        assert_eq!(bytes.len() as i64, row.size);
    }
    assert_eq!(box_.files().len(), rows.len());
}

#[test]
fn what_was_answered_is_there_and_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut box_ = Receiver::start(dir.path());
    assert_eq!(store_one(&box_, 1), 0);
    assert_whole(&box_);
    let row = box_.rows().remove(0);
    assert_eq!((row.calling_ae.as_str(), row.series_uid.as_str(), row.flags), ("SENDER", SERIES, 0));
    match box_.events.try_recv().unwrap() {
        Received::Stored { instance_id, series_uid, duplicate, .. } => {
            assert!(instance_id == row.id && series_uid == SERIES && !duplicate);
        }
        other => panic!("{other:?}"),
    }
    let next = box_.next_event();
    assert!(matches!(next, Some(Received::AssociationEnded { released: true, .. })));
}

#[test]
fn the_same_bytes_again_are_one_object_and_other_bytes_are_two() {
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(dir.path());
    assert_eq!((store_one(&box_, 1), store_one(&box_, 1)), (0, 0));
    assert_eq!(box_.rows().len(), 1);
    let other = data_set(1, 32, &element((0x0020, 0x4000), "LT", b"other"));
    assert_eq!(box_.associate().store(MR_IMAGE_STORAGE, &instance_uid(1), &other).0, 0);
    let flags: Vec<i64> = box_.rows().iter().map(|r| r.flags).collect();
    assert_eq!(flags, [CONFLICT, CONFLICT]);
    assert_whole(&box_);
}

#[test]
fn what_is_sent_again_takes_the_place_of_a_damaged_file() {
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(dir.path());
    assert_eq!(store_one(&box_, 1), 0);
    let row = box_.rows().remove(0);
    // The size is right, the bytes are not: as a sync that failed leaves it, of which the system tells once.
    std::fs::write(row.file(dir.path()), vec![0; row.size as usize]).unwrap();
    assert_eq!(store_one(&box_, 1), 0);
    assert_eq!(box_.rows().len(), 1);
    assert_whole(&box_);
    assert!(box_.unfinished().is_empty());
}

#[test]
fn a_full_disk_refuses_and_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    {
        let box_ = Receiver::start(dir.path());
        assert_eq!(store_one(&box_, 1), 0);
    }
    let box_ = Receiver::with(dir.path(), options(), u64::MAX);
    let mut raw = box_.associate();
    let (status, comment) = raw.store(MR_IMAGE_STORAGE, &instance_uid(2), &data_set(2, 32, &[]));
    assert!(status == 0xA700 && comment.contains("disk is full"), "{status:04X} {comment}");
    // One that is written before it is whole.
    assert_eq!(raw.store(MR_IMAGE_STORAGE, &instance_uid(3), &data_set(3, 1100, &[])).0, 0xA700);
    raw.release();
    assert_eq!(box_.rows().len(), 1);
    assert_whole(&box_);
    assert!(box_.unfinished().is_empty());
}

#[test]
fn a_broken_association_leaves_nothing_of_the_unfinished_object() {
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(dir.path());
    let mut raw = box_.associate();
    raw.send_command(3, &Command::store_request(1, MR_IMAGE_STORAGE, &instance_uid(1)));
    let data = data_set(1, 1500, &[]);
    for piece in data[..3 << 20].chunks(100_000) {
        raw.send_data(3, piece, false);
    }
    drop(raw);
    for _ in 0..1500 {
        std::thread::sleep(Duration::from_millis(20));
        if box_.unfinished().is_empty() {
            break;
        }
    }
    assert!(box_.unfinished().is_empty() && box_.files().is_empty() && box_.rows().is_empty());
    // Sent again, it arrives.
    assert_eq!(box_.associate().store(MR_IMAGE_STORAGE, &instance_uid(1), &data).0, 0);
    assert_whole(&box_);
}

#[test]
fn start_up_sweeps() {
    let dir = tempfile::tempdir().unwrap();
    {
        let box_ = Receiver::start(dir.path());
        for n in 1..=3 {
            assert_eq!(store_one(&box_, n), 0);
        }
    }
    let objects = dir.path().join("spool/objects");
    std::fs::write(dir.path().join("spool/incoming/7-7.part"), b"half").unwrap();
    std::fs::write(objects.join("junk.dcm"), b"junk").unwrap();
    let (lost, orphan) = {
        let store = open(dir.path());
        let (_, report) = Spool::open(&store, 0).unwrap();
        assert_eq!((report.unfinished, report.quarantined, report.adopted, report.missing), (1, 1, 0, 0));
        let rows = store.with_conn(|c| scanside::store::instances::of_series(c, SERIES)).unwrap();
        // A row is lost; another one's file is.
        store.with_conn(|c| c.execute("DELETE FROM instances WHERE id = ?1", [rows[0].id])).unwrap();
        std::fs::remove_file(rows[1].file(dir.path())).unwrap();
        (rows[1].clone(), rows[0].clone())
    };
    let box_ = Receiver::start(dir.path());
    assert_eq!((box_.sweep.adopted, box_.sweep.missing, box_.sweep.quarantined), (1, 1, 0));
    let rows = box_.rows();
    assert!(rows.iter().any(|r| r.sop_instance_uid == orphan.sop_instance_uid && r.sha256 == orphan.sha256));
    let flagged = rows.iter().find(|r| r.sop_instance_uid == lost.sop_instance_uid).unwrap();
    assert_eq!(flagged.flags, MISSING);
    // Sent again, the lost one is whole again.
    assert_eq!(store_one(&box_, 2), 0);
    assert!(box_.rows().iter().all(|r| r.flags == 0));
    assert_whole(&box_);
    assert_eq!(list(&dir.path().join("spool/quarantine")).len(), 1);
}

#[test]
fn a_row_committed_before_a_power_cut_without_its_bytes_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    {
        let box_ = Receiver::start(dir.path());
        assert_eq!((store_one(&box_, 1), store_one(&box_, 2)), (0, 0));
    }
    // As after a power cut within the last batch: the row is there, the file has its size and other bytes.
    let store = open(dir.path());
    let rows = store.with_conn(|c| scanside::store::instances::of_series(c, SERIES)).unwrap();
    let upto = rows[0].id.to_string();
    let set = "INSERT INTO meta VALUES ('synced-upto', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1";
    store.with_conn(|c| c.execute(set, [upto])).unwrap();
    let file = rows[1].file(dir.path());
    std::fs::write(&file, vec![0; rows[1].size as usize]).unwrap();
    drop(store);
    let box_ = Receiver::start(dir.path());
    assert_eq!((box_.sweep.unacknowledged, box_.sweep.quarantined), (1, 1));
    assert_eq!(box_.rows().len(), 1);
    assert_eq!(store_one(&box_, 2), 0);
    assert_whole(&box_);
}

const CHILD: &str = "SCANSIDE_TEST_RECEIVER";

/// The receiving process of the test below; on its own it does nothing.
#[test]
fn child_receiver() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let box_ = Receiver::start(Path::new(&dir));
    println!("\nlistening {}", box_.address);
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let files = write_files(&dir.path().join("files"), 120, 128);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let mut acknowledged = std::collections::BTreeSet::new();
    // How long a child may live, in milliseconds: longer where the machine is so slow (an emulator) that the kills come before any answer.
    let mut longest = 400;
    for _ in 0..12 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_receiver", "--nocapture"])
            .env(CHILD, &state)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let address = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .find_map(|l| l.unwrap().strip_prefix("listening ").map(str::to_string))
            .unwrap();
        let target = Target { ae_title: "SCANSIDE".into(), address, calling_ae: "SENDER".into() };
        let wait = Duration::from_millis(rng.random_range(5..longest));
        let outcomes = std::thread::scope(|scope| {
            let senders: Vec<_> =
                files.chunks(40).map(|part| scope.spawn(|| scu::send(part, &target, &ScuOptions::default()))).collect();
            std::thread::sleep(wait);
            child.kill().unwrap();
            child.wait().unwrap();
            senders.into_iter().flat_map(|s| s.join().unwrap()).collect::<Vec<_>>()
        });
        acknowledged.extend(outcomes.into_iter().filter(|o| o.sent == Sent::Stored(0)).map(|o| o.sop_instance));
        if acknowledged.is_empty() {
            longest = (2 * longest).min(10_000);
        }
        let box_ = Receiver::start(&state);
        assert_whole(&box_);
        let there: std::collections::BTreeSet<String> = box_.rows().into_iter().map(|r| r.sop_instance_uid).collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    }
    eprintln!("{} of {} acknowledged before the kills", acknowledged.len(), files.len());
    assert!(!acknowledged.is_empty(), "the kills came too early to test anything");
}
