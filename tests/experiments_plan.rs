//! The committed plan of the experiments is what the program can run, and asks for what was promised.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "train")]

use scanside::experiment::Plan;
use scanside::pipeline::Prompting;
use scanside::train::TrainSettings;

#[test]
fn the_plan_loads_and_its_first_arm_is_the_shipped_method() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/evidence/experiments.toml");
    let plan = Plan::load(&path).unwrap();
    let mut first = plan.settings(&plan.arm[0]).unwrap();
    assert_eq!(first.prompting.crops, 0);
    first.prompting = Prompting { crops: Prompting::default().crops, ..first.prompting };
    assert_eq!(first, TrainSettings::default());
    // The same adapters, asked as they serve.
    let shipped = plan.arm.iter().find(|a| a.name == "shipped").unwrap();
    assert_eq!(
        (plan.settings(shipped).unwrap(), shipped.tensors_of.as_deref()),
        (TrainSettings::default(), Some("full"))
    );
    assert_eq!(shipped.runs, plan.arm[0].runs);
    let draws = |arm: &str, slices: usize| plan.runs().iter().filter(|k| k.arm == arm && k.slices == slices).count();
    for arm in ["full", "unet", "published", "published-feedback"] {
        assert_eq!(draws(arm, 5), 5, "{arm}");
    }
    for n in [10, 20, 50] {
        assert!(draws("full", n) >= 2 && draws("unet", n) >= 2, "{n} slices");
    }
    assert_eq!(plan.structures.len(), 9);
}
