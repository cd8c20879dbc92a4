//! A whole adaptation (coarse, pseudo-labels, fine) is repeatable, and one that was killed in any phase ends the same.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use scanside::engine::Tensor;
use scanside::model::weights::BaseWeights;
use scanside::pipeline::CropRule;
use scanside::terms::{Task, structure};
use scanside::train::{Adapted, Case, Device, Entry, Event, TrainSettings, Use, adapt};

fn case(phantom: u64, slices: Vec<usize>) -> Entry {
    Entry {
        name: format!("phantom {phantom}"),
        images: None,
        labels: None,
        phantom: Some(phantom),
        map: BTreeMap::new(),
        offset: None,
        slices: Some(slices),
        side: None,
        usage: Use::Train,
    }
}

#[test]
fn a_kill_in_any_phase_changes_nothing() {
    let base = BaseWeights::random(5);
    let task = Task { name: "t".into(), structures: ["VL", "RF"].map(|k| structure(k).unwrap()).to_vec() };
    let cases: Vec<Case> =
        [case(1, vec![4, 9]), case(2, vec![7])].iter().map(|e| Case::load(e, &task).unwrap()).collect();
    let settings = TrainSettings {
        coarse_size: 64,
        coarse_steps: 4,
        input_size: 96,
        steps: 4,
        pseudo_steps: 4,
        pseudo_volumes: 1,
        pseudo_doubt: 1.0,
        seed: 9,
        ..TrainSettings::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let go = |checkpoint: Option<&Path>, stop: (&'static str, usize)| -> Option<Adapted> {
        let mut phase = "";
        catch_unwind(AssertUnwindSafe(|| {
            adapt(base.tensors(), &task, &cases, CropRule::default(), &settings, Device::Cpu, checkpoint, &mut |e| {
                match e {
                    Event::Phase(name) => phase = name,
                    Event::Step(p) => assert!((phase, p.step) != stop, "pulled the plug"),
                    _ => {}
                }
            })
            .unwrap()
        }))
        .ok()
    };
    let never = ("", 0);
    let whole = go(None, never).unwrap();
    assert!(whole.pseudo > 0, "the teacher gave nothing, so the last phase was not what it is meant to be");
    let same = |a: &BTreeMap<String, Tensor>| a == &whole.tensors;
    assert!(same(&go(None, never).unwrap().tensors), "a second run differs");
    let checkpoint = folder.path().join("run");
    for stop in [("coarse", 3), ("fine", 2), ("pseudo", 3)] {
        assert!(go(Some(&checkpoint), stop).is_none(), "the run was to be killed in {stop:?}");
    }
    assert!(same(&go(Some(&checkpoint), never).unwrap().tensors), "the resumed run differs");
}
