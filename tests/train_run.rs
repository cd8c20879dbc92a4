//! A training run is repeatable: the same seed gives the same bytes, and one that was interrupted ends the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use scanside::image::Plane;
use scanside::model::weights::BaseWeights;
use scanside::train::{Device, Material, Sample, TrainSettings, train};

fn samples() -> Vec<Sample> {
    (0..3)
        .map(|s| {
            let inside = |i: usize| ((i % 64) as f32 - 24.0 - 4.0 * s as f32).hypot((i / 64) as f32 - 30.0) < 11.0;
            let other = |i: usize| ((i % 64) as f32 - 48.0).hypot((i / 64) as f32 - 44.0) < 7.0;
            let label = |i: usize| if inside(i) { 1u8 } else { 2 * u8::from(other(i)) };
            Sample {
                grey: Plane {
                    width: 64,
                    height: 64,
                    data: (0..4096).map(|i| 60.0 + 70.0 * f32::from(label(i))).collect(),
                },
                labels: Plane { width: 64, height: 64, data: (0..4096).map(label).collect() },
            }
        })
        .collect()
}

fn material(labelled: &[Sample]) -> Material<'_> {
    Material { structures: 2, labelled, pseudo: &[], start: None }
}

#[test]
fn an_interrupted_run_resumes_to_the_very_same_adapter() {
    let base = BaseWeights::random(5);
    let settings = TrainSettings { input_size: 64, steps: 56, warm_up: 5, seed: 9, ..TrainSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("run");
    let go = |checkpoint: Option<&std::path::Path>, stop: usize| {
        catch_unwind(AssertUnwindSafe(|| {
            train(base.tensors(), &material(&samples()), &settings, Device::Cpu, checkpoint, &mut |p| {
                assert!(p.step < stop, "pulled the plug")
            })
        }))
    };
    let whole = go(None, usize::MAX).unwrap().unwrap();
    assert!(go(Some(&checkpoint), 53).is_err(), "the run was to be interrupted");
    let mut first = None;
    let resumed = train(base.tensors(), &material(&samples()), &settings, Device::Cpu, Some(&checkpoint), &mut |p| {
        first.get_or_insert(p.step);
    })
    .unwrap();
    assert_eq!(first, Some(51), "it did not resume from its checkpoint");
    assert!(resumed == whole, "the resumed run differs");
    let other = TrainSettings { seed: 10, ..settings };
    let refused =
        train(base.tensors(), &material(&samples()), &other, Device::Cpu, Some(&checkpoint), &mut |_| {}).unwrap_err();
    assert!(refused.to_string().contains("other settings"), "{refused}");
    let settings = TrainSettings { seed: 9, ..other };
    let go = |base: &BaseWeights| {
        train(base.tensors(), &material(&samples()), &settings, Device::Cpu, Some(&checkpoint), &mut |_| {})
    };
    let refused = go(&BaseWeights::random(6)).unwrap_err().to_string();
    assert!(refused.contains("base weights"), "another base's checkpoint was taken: {refused}");
    let bytes = std::fs::read(&checkpoint).unwrap();
    std::fs::write(&checkpoint, &bytes[..bytes.len() / 2]).unwrap();
    let refused = go(&base).unwrap_err().to_string();
    assert!(refused.contains("run: cannot be read") && refused.contains("remove it"), "{refused}");
}
