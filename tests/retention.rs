//! Retention by command: what was delivered long enough ago goes, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;

use scanside::clock::Clock;
use scanside::store::outbox::{self, Attempt};
use scanside::store::queue::{self, Ending, JobState, Output, Route};
use scanside::store::{Instance, Store, instances};

const HOUR: i64 = 3_600_000;

/// An object of a series of its own: its row and its file.
fn object(store: &Store, series: &str) -> (i64, std::path::PathBuf) {
    let instance = Instance {
        id: 0,
        sop_instance_uid: format!("{series}.1"),
        sop_class_uid: "1.2.840.10008.5.1.4.1.1.4".into(),
        series_uid: series.into(),
        study_uid: "1.2".into(),
        sha256: series.into(),
        path: format!("spool/objects/{series}"),
        size: 4,
        calling_ae: "MR1".into(),
        transfer_syntax: "1.2.840.10008.1.2.1".into(),
        received_ms: 1,
        association_id: 1,
        flags: 0,
    };
    let file = instance.file(store.dir());
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, b"DICM").unwrap();
    store.with_conn(|c| instances::insert(c, &instance)).unwrap();
    let rows = store.with_conn(|c| instances::of_series(c, series)).unwrap();
    (rows[0].id, file)
}

/// A job over the object that ended at `finished`, and whose result was sent at `sent`, if it was.
fn job(store: &Store, series: &str, object: i64, finished: i64, sent: Option<i64>) {
    let ending = Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" };
    let output =
        Output { kind: "seg".into(), sop_instance_uid: format!("{series}.9"), path: "r/seg.dcm".into(), held: false };
    let route = Route { archive: "PACS@host:104".into(), hold: false };
    let job = store.with_conn(|c| queue::open_job(c, series, &[object], "quiet", 1, 1)).unwrap().unwrap();
    store.with_conn(|c| queue::finish_job(c, job.id, &ending, &[output], &[route], finished, |_| Ok(()))).unwrap();
    if let Some(at) = sent {
        for d in store.with_conn(|c| outbox::deliveries(c, job.id)).unwrap() {
            store.with_conn(|c| outbox::record_attempt(c, d.id, &Attempt::Sent, at)).unwrap();
        }
    }
}

fn retention(state: &Path, more: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args(["retention", "--set", &format!("storage.state_dir={:?}", state.display().to_string())])
        .args(["--set", "storage.retention_hours=72"])
        .args(more)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn only_what_was_delivered_long_enough_ago_goes() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    assert!(retention(&state, &[]).contains("nothing was ever received"));
    // Held open, as by the daemon: the command works beside it.
    let store = Store::open(&state, Clock::System).unwrap();
    let now = Clock::System.now_ms();
    let (old, recent) = (now - 73 * HOUR, now - HOUR);
    let made = |series: &str, finished: Option<i64>, sent: Option<i64>| {
        let (id, file) = object(&store, series);
        if let Some(finished) = finished {
            job(&store, series, id, finished, sent);
        }
        file
    };
    let gone = made("1.1", Some(old), Some(old));
    let kept = [
        made("1.2", Some(recent), Some(recent)),
        // The archive was away for days: the time counts from the delivery.
        made("1.3", Some(old), Some(recent)),
        made("1.4", Some(old), None),
        made("1.5", None, None),
    ];
    assert!(retention(&state, &["--dry-run"]).starts_with("1 originals would be removed"));
    assert!(gone.exists());
    assert!(retention(&state, &[]).starts_with("1 originals removed"));
    assert!(!gone.exists());
    for file in &kept {
        assert!(file.exists(), "{}", file.display());
    }
    assert!(store.with_conn(|c| instances::of_series(c, "1.1")).unwrap().is_empty());
    assert!(retention(&state, &[]).starts_with("0 originals removed"));
}
