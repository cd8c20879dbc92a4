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
use scanside::train::{Adapted, Case, Data, Device, Entry, Event, Later, TrainSettings, Use, adapt};

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

#[test]
fn a_volume_that_is_loaded_when_it_is_drawn_teaches_the_same() {
    let base = BaseWeights::random(5);
    let task = Task { name: "t".into(), structures: ["VL", "RF"].map(|k| structure(k).unwrap()).to_vec() };
    let unlabelled = Entry { usage: Use::Unlabelled, ..case(3, vec![5, 6]) };
    // Their other slices are tested, so that pseudo-labels come from the volume between them alone.
    let tested = |phantom, slice| Entry { usage: Use::Both, ..case(phantom, vec![slice]) };
    let all: Vec<Case> =
        [tested(1, 4), unlabelled.clone(), tested(2, 7)].iter().map(|e| Case::load(e, &task).unwrap()).collect();
    let labelled: Vec<Case> = [0, 2].map(|i| all[i].clone()).to_vec();
    let later = [Later { after: 1, entry: unlabelled, slices: vec![5, 6] }];
    let settings = TrainSettings {
        coarse_steps: 0,
        input_size: 96,
        steps: 2,
        pseudo_steps: 3,
        pseudo_share: 1.0,
        pseudo_doubt: 1.0,
        seed: 9,
        ..TrainSettings::default()
    };
    let go = |data: Data| {
        adapt(base.tensors(), &task, data, CropRule::default(), &settings, Device::Cpu, None, &mut |_| {}).unwrap()
    };
    let (now, then) = (go(Data::from(&all)), go(Data { cases: &labelled, later: &later }));
    assert_eq!(now.pseudo, then.pseudo);
    assert!(now.pseudo > 0, "nothing was taken from the volume without labels");
    assert!(now.tensors == then.tensors, "the adapter differs");
}
