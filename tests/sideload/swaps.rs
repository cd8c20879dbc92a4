//! Series while the adapter changes every few seconds: none is turned away, and each result is, voxel for voxel, what its adapter makes
//! of that series alone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scanside::dicom::read::read_header;
use scanside::labels::LabelImage;
use scanside::pipeline::SegmentOptions;
use scanside::series::{AssembleOptions, Rules, assemble_for, load};
use scanside::store::Store;
use scanside::store::queue::{self, JobState};
use serde_json::Value;

use crate::kit::{NONE, Site, count, phantom_adapter, phantom_series, releases};

const SEED: u64 = 20_261_128;

#[test]
fn each_result_is_that_of_one_adapter_alone() {
    let series = count("SCANSIDE_SWAP_SERIES", 4);
    let site = Site::start(NONE);
    for version in [2, 3] {
        site.take(version);
        site.until("committed", || (site.newest() == "committed").then_some(()));
    }
    let done = AtomicBool::new(false);
    let mut uids = Vec::new();
    let changed = std::thread::scope(|scope| {
        // Whatever ends this ends the changes too, a failed check included.
        let done = SetAtEnd(&done);
        let changes = scope.spawn(|| {
            let mut rng = ChaCha8Rng::seed_from_u64(SEED);
            let mut n = 0;
            while n < 6 || !done.0.load(Ordering::SeqCst) {
                let to = ["2", "3", "--factory"][n % 3];
                let said = site.said(&["adapters", "rollback", to]);
                assert!(said.contains("serves from the next series on"), "{said}");
                n += 1;
                std::thread::sleep(std::time::Duration::from_millis(rng.random_range(1000..5000)));
            }
            n
        });
        for seed in 900..900 + series as u64 {
            // Every object of every association is taken: `send` asserts it.
            uids.push((seed, site.send(seed).series_uid));
        }
        let ended = || {
            let jobs = site.store().with_conn(|c| queue::jobs(c, 10_000)).unwrap();
            jobs.iter().filter(|j| j.state != JobState::Pending).count()
        };
        // One by one, since all of them take as long as they are many.
        for n in 1..=series {
            site.until("the next result", || (ended() >= n).then_some(()));
        }
        done.0.store(true, Ordering::SeqCst);
        changes.join().unwrap()
    });
    let by = judge(&site.state, &site.store(), &uids);
    eprintln!(
        "{changed} changes of the adapter (seed {SEED}), {series} series: {by:?} by the three adapters, each bit-equal to it alone"
    );
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Each series (seed, UID) has one result, made by exactly the adapter that it names; how many by which.
fn judge(state: &Path, store: &Store, uids: &[(u64, String)]) -> [usize; 3] {
    let dir = tempfile::tempdir().unwrap();
    let jobs = store.with_conn(|c| queue::jobs(c, 10_000)).unwrap();
    let adapters = [phantom_adapter(), releases().adapter(2), releases().adapter(3)];
    let mut by = [0usize; 3];
    for (seed, uid) in uids {
        let job = jobs.iter().find(|j| &j.series_uid == uid && !j.superseded).unwrap();
        assert_eq!((job.state, job.attempts), (JobState::Done, 1), "{job:#?}");
        let summary: Value = serde_json::from_str(&job.summary).unwrap();
        let which = adapters.iter().position(|a| a.sha256().unwrap() == summary["adapter_sha256"]).unwrap();
        by[which] += 1;
        let alone = releases().segmenter(&adapters[which]);
        let files = phantom_series(&dir.path().join(format!("again-{seed}")), *seed).files;
        let headers: Vec<_> = files.iter().map(|f| read_header(f).unwrap()).collect();
        let plan = assemble_for(&headers, &Rules::new(&[], &[]), &AssembleOptions::default()).unwrap();
        let volume = load(&plan).unwrap();
        let hint = volume.header.laterality;
        let expected = alone.segment(&volume.volume, hint, &SegmentOptions::default(), &|_| {}).unwrap();
        assert_eq!(summary["score"].as_f64(), Some(expected.report.score), "series {seed}");
        let path = state.join(format!("results/{}/seg.dcm", job.id));
        let image = LabelImage::load(&path).unwrap();
        let masks = image.masks(&volume.volume.geometry, None, &path).unwrap();
        assert_eq!(image.segments.len(), expected.segments.len());
        for (segment, mask) in image.segments.iter().zip(&masks) {
            let same = mask.iter().zip(&expected.labels.data).all(|(m, l)| *m == (u32::from(*l) == segment.id));
            assert!(same, "series {seed}: {} is not what its adapter makes of it alone", segment.name);
        }
    }
    by
}
