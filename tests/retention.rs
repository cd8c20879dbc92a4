//! Retention by command: what was delivered long enough ago goes, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;

use scanside::clock::Clock;
use scanside::store::outbox::{self, Attempt};
use scanside::store::queue::{self, Ending, JobState, Output, Route};
use scanside::store::review::{self, Decision, Waiting};
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
    said(state, "retention", &[&["--set", "storage.retention_hours=72"], more].concat())
}

fn said(state: &Path, command: &str, more: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args([command, "--set", &format!("storage.state_dir={:?}", state.display().to_string())])
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

/// A job over the objects that ended at 10 and whose result waits on the box for a person.
fn held(store: &Store, series: &str, objects: &[i64]) -> i64 {
    let ending = Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" };
    let job = store.with_conn(|c| queue::open_job(c, series, objects, "quiet", 1, 1)).unwrap().unwrap();
    let output = Output {
        kind: "seg".into(),
        sop_instance_uid: format!("{series}.{}", job.generation),
        path: "r/seg.dcm".into(),
        held: true,
    };
    let route = Route { archive: "PACS@host:104".into(), hold: false };
    let waiting =
        Waiting { adapter: "a".into(), pilot: false, reason: "below the bar".into(), verdict: "C".into(), score: 50.0 };
    let also = |tx: &rusqlite::Transaction<'_>| review::wait(tx, job.id, &waiting, 10);
    store.with_conn(|c| queue::finish_job(c, job.id, &ending, &[output], &[route], 10, also)).unwrap();
    job.id
}

/// Row ids of the originals that may go at a time when everything before `before` is old.
fn removable(store: &Store, before: i64) -> Vec<i64> {
    let all = store.with_conn(|c| instances::removable(c, before, 100)).unwrap();
    all.into_iter().map(|(id, _)| id).collect()
}

fn decide(store: &Store, job: i64, accepted: bool, release: bool, now: i64) -> usize {
    let d = Decision { accepted, by: "MM", note: "", release };
    store.with_conn(|c| review::decide(c, job, &d, now)).unwrap()
}

#[test]
fn originals_stay_until_a_person_has_decided_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Clock::System).unwrap();
    let (first, _) = object(&store, "1.1");
    let (second, _) = object(&store, "1.2");
    let (rejected, accepted) = (held(&store, "1.1", &[first]), held(&store, "1.2", &[second]));
    assert!(removable(&store, 1_000).is_empty(), "nobody has decided");
    decide(&store, rejected, false, false, 500);
    decide(&store, accepted, true, true, 500);
    assert!(removable(&store, 500).is_empty(), "the time counts from the decision");
    assert_eq!(
        removable(&store, 1_000),
        [first],
        "what was rejected is not waited for; the accepted one is on its way"
    );
    for d in store.with_conn(|c| outbox::deliveries(c, accepted)).unwrap() {
        store.with_conn(|c| outbox::record_attempt(c, d.id, &Attempt::Sent, 600)).unwrap();
    }
    assert_eq!(removable(&store, 1_000), [first, second]);
}

#[test]
fn an_open_review_keeps_originals_though_everything_was_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Clock::System).unwrap();
    let (id, _) = object(&store, "1.1");
    let job = held(&store, "1.1", &[id]);
    // As a result below the bar that is marked and sent, or the researcher's in the pilot.
    store.with_conn(|c| c.execute("UPDATE outbox SET state = 'sent', sent_ms = 20", [])).unwrap();
    assert!(removable(&store, 1_000).is_empty());
    decide(&store, job, true, true, 30);
    assert_eq!(removable(&store, 1_000), [id]);
}

#[test]
fn a_superseded_result_waits_for_no_person() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Clock::System).unwrap();
    let (first, _) = object(&store, "1.1");
    held(&store, "1.1", &[first]);
    let mut late = store.with_conn(|c| instances::of_series(c, "1.1")).unwrap().remove(0);
    late.sop_instance_uid = "1.1.2".into();
    late.sha256 = "late".into();
    store.with_conn(|c| instances::insert(c, &late)).unwrap();
    let second = store.with_conn(|c| instances::of_series(c, "1.1")).unwrap()[1].id;
    let newer = held(&store, "1.1", &[first, second]);
    assert!(removable(&store, 1_000).is_empty(), "the newer one is open");
    decide(&store, newer, false, false, 500);
    assert_eq!(removable(&store, 1_000), [first, second]);
}

#[test]
fn what_an_archive_refused_keeps_originals_until_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Clock::System).unwrap();
    let (id, _) = object(&store, "1.1");
    job(&store, "1.1", id, 10, None);
    let delivery = store.with_conn(|c| outbox::due(c, "PACS@host:104", 20, 1)).unwrap().remove(0);
    let refused = Attempt::Failed("no such class".into());
    store.with_conn(|c| outbox::record_attempt(c, delivery.id, &refused, 20)).unwrap();
    assert!(removable(&store, 1_000).is_empty());
    let number = delivery.job_id.to_string();
    let text = said(dir.path(), "outbox", &["retry", &number]);
    assert!(text.contains("1 objects go to the archives again"), "{text}");
    store.with_conn(|c| outbox::record_attempt(c, delivery.id, &refused, 30)).unwrap();
    let text = said(dir.path(), "outbox", &["drop", &number]);
    assert!(text.contains("seg (r/seg.dcm) is not sent to PACS@host:104"), "{text}");
    assert_eq!(removable(&store, 1_000), [id]);
}

#[test]
fn originals_stay_while_their_series_is_segmented_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Clock::System).unwrap();
    let (id, _) = object(&store, "1.1");
    job(&store, "1.1", id, 10, Some(20));
    assert_eq!(removable(&store, 1_000), [id]);
    let first = store.with_conn(|c| queue::jobs(c, 1)).unwrap()[0].id;
    let text = said(dir.path(), "again", &[&first.to_string()]);
    let second = store.with_conn(|c| queue::jobs(c, 1)).unwrap().remove(0);
    let words = format!("job {first}: its series is segmented again as job {}, generation 2", second.id);
    assert!(text.contains(&words) && !text.contains("no daemon"), "{text}");
    assert_eq!((second.state, second.instances), (JobState::Pending, 1));
    assert!(removable(&store, 1_000).is_empty());
}
