//! The committed plan of the experiments is what the program can run, and asks for what was promised.
#![cfg(feature = "train")]

use scanside::experiment::Plan;
use scanside::train::TrainSettings;

#[test]
fn the_plan_loads_and_its_first_arm_is_the_shipped_method() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/evidence/experiments.toml");
    let plan = Plan::load(&path).unwrap();
    assert_eq!(plan.settings(&plan.arm[0]).unwrap(), TrainSettings::default());
    let draws = |arm: &str, slices: usize| plan.runs().iter().filter(|k| k.arm == arm && k.slices == slices).count();
    for arm in ["full", "unet", "published", "published-feedback"] {
        assert_eq!(draws(arm, 5), 5, "{arm}");
    }
    for n in [10, 20, 50] {
        assert!(draws("full", n) >= 2 && draws("unet", n) >= 2, "{n} slices");
    }
    assert_eq!(plan.structures.len(), 9);
}
