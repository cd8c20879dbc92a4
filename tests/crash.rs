//! `kill -9` of the running service at random moments: nothing acknowledged is lost, no result is made twice. SIGTERM while it
//! segments: it does not wait for the series, and nobody is to blame.
//!
//! `SCANSIDE_KILLS` sets how often (12 unless told otherwise; docs/evidence/kill-9.md was made with 100).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/serve.rs"]
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scanside::clock::Clock;
use scanside::dicom::net::archive::{Folder, open_to_all};
use scanside::dicom::net::scp::Scp;
use scanside::dicom::net::scu::{ScuOptions, Sent, Target, send};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::pipeline::write_dicom_series;
use scanside::store::outbox;
use scanside::store::queue::{self, JobState};
use scanside::store::{Store, instances};
use sha2::{Digest, Sha256};

const SEED: u64 = 20_261_123;

/// A small phantom series of so many slices: its UID and files.
fn series(dir: &Path, seed: u64, slices: usize) -> (String, Vec<PathBuf>) {
    let options = PhantomOptions {
        seed,
        dims: [256, 128, slices],
        spacing: [1.953_125, 1.953_125, 12.5],
        ..PhantomOptions::default()
    };
    let made = write_dicom_series(&dir.join(format!("s{seed}")), &Phantom::new(&options), &options).unwrap();
    (made.series_uid, made.files)
}

fn target(port: u16) -> Target {
    Target { ae_title: "SCANSIDE".into(), address: format!("127.0.0.1:{port}"), calling_ae: "MR1".into() }
}

/// Sends what was not acknowledged yet, as a scanner repeats it, and notes what is acknowledged now.
fn send_open(open: &mut BTreeMap<PathBuf, bool>, port: u16) {
    let files: Vec<PathBuf> = open.iter().filter(|(_, done)| !**done).map(|(f, _)| f.clone()).collect();
    if files.is_empty() {
        return;
    }
    for outcome in send(&files, &target(port), &ScuOptions::default()) {
        if outcome.sent == Sent::Stored(0) {
            open.insert(outcome.path, true);
        }
    }
}

/// What the dead process was doing: objects without a job, jobs begun, objects not delivered.
fn moment(state: &Path) -> (i64, usize, i64) {
    let store = Store::open_read_only(state, Clock::System).unwrap();
    let receiving = store.with_conn(|c| instances::series(c, true)).unwrap().iter().map(|s| s.pending).sum();
    let jobs = store.with_conn(|c| queue::jobs(c, 10_000)).unwrap();
    let segmenting = jobs.iter().filter(|j| j.state == JobState::Pending).count();
    let counts = store.with_conn(|c| outbox::counts(c)).unwrap();
    (receiving, segmenting, counts.iter().filter(|(s, _)| s == "pending").map(|(_, n)| n).sum())
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_made_twice() {
    let kills: usize = std::env::var("SCANSIDE_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(12);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = Arc::new(Folder::new(&dir.path().join("archive")).unwrap());
    let options = open_to_all("PACS");
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let archive = runtime.block_on(Scp::bind(loopback, options, folder.clone())).unwrap();
    let address = archive.local_addr().to_string();
    let state = dir.path().join("state");
    let files_dir = dir.path().join("files");

    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut uids = Vec::new();
    let mut open: BTreeMap<PathBuf, bool> = BTreeMap::new();
    let (mut receiving, mut segmenting, mut delivering, mut idle) = (0usize, 0usize, 0usize, 0usize);
    for kill in 0..kills {
        // Work never runs out: a new series every second life.
        if kill % 2 == 0 {
            let (uid, files) = series(&files_dir, kill as u64 + 1, 6);
            uids.push(uid);
            open.extend(files.into_iter().map(|f| (f, false)));
        }
        let served = serve::Served::start(dir.path(), "PACS", &address);
        let port = served.port;
        // Receiving takes a moment and segmenting seconds: a third of the kills come early.
        let wait = Duration::from_millis(rng.random_range(0..if kill % 3 == 0 { 250 } else { 5_000 }));
        std::thread::scope(|scope| {
            scope.spawn(|| send_open(&mut open, port));
            std::thread::sleep(wait);
            // SIGKILL, while whatever goes on goes on.
            drop(served);
        });
        let (r, s, d) = moment(&state);
        receiving += usize::from(r > 0);
        segmenting += usize::from(s > 0);
        delivering += usize::from(d > 0);
        idle += usize::from((r, s, d) == (0, 0, 0));
    }

    let served = serve::Served::start(dir.path(), "PACS", &address);
    let store = Store::open_read_only(&state, Clock::System).unwrap();
    let start = Instant::now();
    loop {
        send_open(&mut open, served.port);
        let (r, s, d) = moment(&state);
        if open.values().all(|done| *done) && (r, s, d) == (0, 0, 0) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(600), "stuck: {r} objects, {s} jobs, {d} deliveries");
        std::thread::sleep(Duration::from_millis(200));
    }

    // Every acknowledged object is there, whole.
    let mut there = BTreeSet::new();
    for uid in &uids {
        for row in store.with_conn(|c| instances::of_series(c, uid)).unwrap() {
            let bytes = std::fs::read(row.file(&state)).unwrap();
            assert_eq!(hex::encode(Sha256::digest(&bytes)), row.sha256, "{} is not whole", row.sop_instance_uid);
            there.insert(row.sop_instance_uid);
        }
    }
    assert_eq!(there.len(), open.len(), "acknowledged objects are missing");

    // Each series has one result that stands, over all of its objects.
    let jobs = store.with_conn(|c| queue::jobs(c, 10_000)).unwrap();
    for uid in &uids {
        let standing: Vec<_> = jobs.iter().filter(|j| &j.series_uid == uid && !j.superseded).collect();
        assert_eq!(standing.len(), 1, "{uid}: {standing:#?}");
        assert_eq!(standing[0].instances, 6, "{uid}");
        assert_ne!(standing[0].state, JobState::Failed, "{uid}: {}", standing[0].sentence);
    }

    // The archive has what the jobs made and nothing else; what came twice is the same object, byte for byte.
    let mut queued: BTreeMap<String, (i64, String)> = BTreeMap::new();
    for job in &jobs {
        for d in store.with_conn(|c| outbox::deliveries(c, job.id)).unwrap() {
            assert_eq!(d.state, "sent");
            queued.insert(d.sop_instance_uid, (job.id, d.kind));
        }
    }
    let mut copies: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for t in folder.taken() {
        copies.entry(t.sop_instance).or_default().push(t.path);
    }
    let mut repeats = 0;
    for (uid, paths) in &copies {
        assert!(queued.contains_key(uid), "the archive has {uid}, which no job made");
        // The file meta information may name another association; the object itself must not differ.
        let bytes: BTreeSet<Vec<u8>> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
        assert_eq!(bytes.len(), 1, "{uid} came in different versions");
        repeats += paths.len() - 1;
    }
    assert_eq!(copies.len(), queued.len(), "not everything queued reached the archive");
    let kinds: BTreeSet<&(i64, String)> = queued.values().collect();
    assert_eq!(kinds.len(), queued.len(), "a job made an object of one kind twice");
    eprintln!(
        "{kills} kills (seed {SEED}): in {receiving} objects waited for their series, in {segmenting} a job was begun, in \
         {delivering} objects waited for delivery, in {idle} nothing was open\n{} series, {} objects acknowledged, 0 lost; {} jobs, {} results in the archive, \
         0 made twice, {repeats} identical repeats",
        uids.len(),
        open.len(),
        jobs.len(),
        copies.len()
    );
}

#[test]
fn a_stop_does_not_wait_for_the_series_in_work() {
    let dir = tempfile::tempdir().unwrap();
    // Many slices, so that it is in work for a while; nobody listens where results would go.
    let (uid, files) = series(&dir.path().join("files"), 1, 60);
    let served = serve::Served::start(dir.path(), "PACS", "127.0.0.1:9");
    let state = served.state.clone();
    let sent = send(&files, &target(served.port), &ScuOptions::default());
    assert!(sent.iter().all(|o| o.sent == Sent::Stored(0)));
    let store = Store::open_read_only(&state, Clock::System).unwrap();
    let job = || store.with_conn(|c| queue::jobs(c, 10)).unwrap().into_iter().find(|j| j.series_uid == uid);
    let start = Instant::now();
    while job().is_none_or(|j| j.attempts == 0) {
        assert!(start.elapsed() < Duration::from_secs(600), "the series is not begun");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served.stop(), Some(0));
    let job = job().unwrap();
    let counts = (job.state, job.attempts, job.troubles, job.errors);
    assert_eq!(counts, (JobState::Pending, 1, 1, 0), "{}", job.sentence);
    assert!(job.sentence.contains("begins anew"), "{}", job.sentence);
}
