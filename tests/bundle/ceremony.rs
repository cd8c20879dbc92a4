//! The whole way through the commands: keys, a root, a bundle from a real adapter and the CPU engine, signatures, a box, rotation.

use std::path::Path;
use std::process::{Command, Output};

use scanside::adapter::Adapter;

fn scanside(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scanside")).args(args).current_dir(dir).output().unwrap()
}

/// Runs a command that must succeed; what it printed.
fn done(dir: &Path, args: &[&str]) -> String {
    let out = scanside(dir, args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "scanside {}: {said}", args.join(" "));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a command that must fail; its exit code and message.
fn fails(dir: &Path, args: &[&str]) -> (i32, String) {
    let out = scanside(dir, args);
    assert!(!out.status.success(), "scanside {} succeeded", args.join(" "));
    (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// What `scanside evaluate` writes of the adapter, as far as a bundle takes it.
fn evaluation(adapter: &Path, sha256: &str) -> String {
    let adapter = Adapter::load(adapter).unwrap();
    let spread = serde_json::json!({ "mean": 0.91, "sd": 0.02, "min": 0.85, "n": 4 });
    let row = |key: &str, prompt: &str| {
        serde_json::json!({ "structure": key, "prompt": prompt, "legs": 4, "absent": 0, "missing": 0, "dice": spread,
            "iou": null, "hd95_mm": null, "assd_mm": null, "nsd": null, "verdicts": [3, 1, 0, 0] })
    };
    let keys = adapter.meta.task.structures.iter().map(|s| s.key.as_str());
    let rows: Vec<_> = keys.flat_map(|k| [row(k, "automatic"), row(k, "true-box")]).collect();
    let facts = [["adapter", &format!("thigh-phantom 1, sha256 {sha256}")], ["tested", "4 slices of 2 volumes"]];
    serde_json::json!({ "facts": facts, "rows": rows }).to_string()
}

#[test]
fn keys_root_bundle_signatures_box_and_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // Base weights that the whole test suite shares.
    done(d, &["weights", "fetch"]);
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters/thigh-phantom.safetensors");
    let adapter_path = adapter.display().to_string();
    let sha256 = Adapter::load(&adapter).unwrap().sha256().unwrap();

    for name in ["root-a", "root-b", "root-c", "rel-a", "rel-b", "rel-c", "rel-d"] {
        done(d, &["keys", "generate", name]);
    }
    let (_, said) = fails(d, &["keys", "generate", "root-a"]);
    assert!(said.contains("already"), "{said}");
    let mut make = vec!["keys", "root", "make", "--expires", "2099-01-01"];
    for key in ["root-a.pub.pem", "root-b.pub.pem", "root-c.pub.pem"] {
        make.extend(["--root-key", key]);
    }
    for key in ["rel-a.pub.pem", "rel-b.pub.pem", "rel-c.pub.pem"] {
        make.extend(["--release-key", key]);
    }
    let said = done(d, &make);
    assert!(said.contains("missing: 2 more signature(s)") && said.contains("rel-c ("), "{said}");
    let (_, said) = fails(d, &["keys", "root", "sign", "--key", "rel-a.pem"]);
    assert!(said.contains("count for nothing"), "{said}");
    done(d, &["keys", "root", "sign", "--key", "root-a.pem"]);
    let said = done(d, &["keys", "root", "sign", "--key", "root-b.pem"]);
    assert!(said.contains("complete"), "{said}");

    // A bundle needs the evaluation of this very adapter.
    let make = |out: &str, version: &str| -> Vec<String> {
        let args =
            ["bundle", "make", "--adapter", &adapter_path, "--evidence", "e.json", "--roots", "roots", "--version"];
        let more = [
            version,
            "--issued",
            "2026-01-01",
            "--expires",
            "2090-01-01",
            "--parity-seeds",
            "1",
            "--note",
            "first",
            "--out",
            out,
        ];
        args.iter().chain(&more).map(|s| s.to_string()).collect()
    };
    fn of(v: &[String]) -> Vec<&str> {
        v.iter().map(String::as_str).collect()
    }
    std::fs::write(d.join("e.json"), evaluation(&adapter, &"0".repeat(64))).unwrap();
    let (code, said) = fails(d, &of(&make("one.bundle", "1")));
    assert!(code == 1 && said.contains("another adapter"), "{said}");
    std::fs::write(d.join("e.json"), evaluation(&adapter, &sha256)).unwrap();
    done(d, &of(&make("one.bundle", "1")));
    done(d, &of(&make("again.bundle", "1")));
    let bytes = |name: &str| std::fs::read(d.join(name)).unwrap();
    assert!(bytes("one.bundle") == bytes("again.bundle"), "the engine and the file must give the same bytes twice");
    println!("{} bytes", bytes("one.bundle").len());

    // The parity images show every structure, and this machine reproduces them.
    let inside = scanside::adapter::bundle::Unverified::parse(bytes("one.bundle")).unwrap();
    let (read, _, parity) = inside.contents().unwrap();
    assert!(!parity[0].every_structure);
    let base = scanside::model::weights::load(&scanside::model::weights::cached_path().unwrap()).unwrap();
    let networks = scanside::pipeline::EngineNetworks::cpu(&base, &read, 1).unwrap();
    let segmenter = scanside::pipeline::Segmenter::new(Box::new(networks), read.model_info().unwrap()).unwrap();
    let figures = parity[0].check(&segmenter, 2).unwrap();
    assert!(figures.len() >= read.meta.task.structures.len() && figures.iter().all(|f| f.dice == 1.0), "{figures:?}");
    let mut other = parity[0].clone();
    other.expected.data.rotate_right(2);
    let failed = other.check(&segmenter, 2).unwrap_err();
    assert_eq!(failed.reason, scanside::adapter::Reason::ParityFailed, "{failed}");

    done(d, &["bundle", "sign", "one.bundle", "--key", "rel-a.pem"]);
    let said = done(d, &["bundle", "sign", "one.bundle", "--key", "rel-b.pem"]);
    assert!(said.contains("enough: 2 valid, 2 of 3"), "{said}");

    // A box takes its first root with a fingerprint that came another way.
    std::fs::write(d.join("box.toml"), "[storage]\nstate_dir = \"state\"\n").unwrap();
    let (code, said) = fails(d, &["bundle", "verify", "-c", "box.toml", "one.bundle"]);
    assert!(code == 60 && said.contains("scanside keys trust"), "{said}");
    let (_, said) = fails(d, &["keys", "trust", "-c", "box.toml", "roots/1.root.json"]);
    let print = said.split("root 1 is ").nth(1).unwrap()[..79].to_string();
    assert!(print.split(' ').count() == 16 && print.split(' ').all(|g| g.len() == 4), "groups of four: {print}");
    let trust = |told: &str| -> Vec<String> {
        ["keys", "trust", "-c", "box.toml", "roots/1.root.json", "--fingerprint", told].map(String::from).into()
    };
    let (_, said) = fails(d, &of(&trust(&"0".repeat(32))));
    assert!(said.contains("another file"), "{said}");
    // Few digits, right as they are, could be those of a forged file too.
    let (_, said) = fails(d, &of(&trust(&print[..38])));
    assert!(said.contains("at least 32 digits, these are 31"), "{said}");
    done(d, &of(&trust(&print[..39].replace(' ', ":").to_uppercase())));
    let said = done(d, &["bundle", "verify", "-c", "box.toml", "one.bundle"]);
    assert!(said.contains("thigh-phantom 1 may be installed") && said.contains("rel-a ("), "{said}");

    // What a person sees before.
    let said = done(d, &["bundle", "inspect", "-c", "box.toml", "one.bundle"]);
    for words in [
        "root 1 that this box trusts",
        "rel-b (",
        "release key",
        "first",
        "2090-01-01",
        "Dice 0.910",
        "enough: 2 valid",
        "steps in the main phase",
    ] {
        assert!(said.contains(words), "{words:?} is missing from\n{said}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&done(d, &["bundle", "inspect", "-c", "box.toml", "--json", "one.bundle"])).unwrap();
    assert_eq!(json["judged"]["enough"], true);

    // A key is lost: a new root, a bundle with it, and the box follows; the old keys are of no use any more.
    let said =
        done(d, &["keys", "root", "revoke", "rel-a.pub.pem", "--why", "stick lost", "--replace-by", "rel-d.pub.pem"]);
    assert!(said.contains("withdrawn in root 2: rel-a"), "{said}");
    let (_, said) = fails(d, &of(&make("two.bundle", "2")));
    assert!(said.contains("root 2"), "an unsigned root goes into no bundle: {said}");
    done(d, &["keys", "root", "sign", "--key", "root-b.pem"]);
    done(d, &["keys", "root", "sign", "--key", "root-c.pem"]);
    done(d, &of(&make("two.bundle", "2")));
    done(d, &["bundle", "sign", "two.bundle", "--key", "rel-b.pem"]);
    let signer = format!("{} keys show rel-d.pub.pem", env!("CARGO_BIN_EXE_scanside"));
    let (code, said) = fails(d, &["bundle", "sign", "two.bundle", "--signer", &signer, "--public", "rel-d.pub.pem"]);
    assert!(code == 66 && said.contains("no signature"), "{said}");
    std::fs::copy(d.join("two.bundle"), d.join("stolen.bundle")).unwrap();
    done(d, &["bundle", "sign", "stolen.bundle", "--key", "rel-a.pem"]);
    done(d, &["bundle", "sign", "two.bundle", "--key", "rel-d.pem"]);
    let (code, said) = fails(d, &["bundle", "verify", "-c", "box.toml", "stolen.bundle"]);
    assert!(code == 33 && said.contains("rel-a"), "{said}");
    done(d, &["bundle", "verify", "-c", "box.toml", "two.bundle"]);
    let (code, _) = fails(d, &["bundle", "verify", "-c", "box.toml", "one.bundle"]);
    assert_eq!(code, 33, "signed by a key that was withdrawn since");
    let said = done(d, &["bundle", "diff", "one.bundle", "two.bundle"]);
    assert!(said.contains("version") && said.contains("1 -> 2") && said.contains("newest root inside"), "{said}");
    assert!(done(d, &["keys", "trust", "-c", "box.toml"]).contains("root 2, expires 2099"));

    // Root keys change too.
    done(d, &["keys", "generate", "root-d"]);
    let rotate = [
        "keys",
        "root",
        "rotate",
        "--add-root-key",
        "root-d.pub.pem",
        "--remove",
        "root-a.pub.pem",
        "--expires",
        "2098-01-01",
    ];
    let said = done(d, &rotate);
    assert!(said.contains("by the former root keys") && said.contains("by its own root keys"), "{said}");
    done(d, &["keys", "root", "sign", "--key", "root-a.pem"]);
    done(d, &["keys", "root", "sign", "--key", "root-b.pem"]);
    let said = done(d, &["keys", "root", "sign", "--key", "root-d.pem"]);
    assert!(said.contains("complete"), "{said}");
    done(d, &["keys", "trust", "-c", "box.toml", "roots/3.root.json"]);
    assert!(done(d, &["keys", "trust", "-c", "box.toml"]).contains("root 3, expires 2098"));
    done(d, &["keys", "trust", "-c", "box.toml", "--set-clock"]);
}

#[test]
fn a_secret_key_that_others_may_read_signs_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    done(d, &["keys", "generate", "k"]);
    std::fs::set_permissions(d.join("k.pem"), PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(d.join("b.bundle"), crate::fixture::Host::default().draft(1).to_bytes().unwrap()).unwrap();
    let (code, said) = fails(d, &["bundle", "sign", "b.bundle", "--key", "k.pem"]);
    assert!(code == 65 && said.contains("mode 644") && said.contains("chmod 600 k.pem"), "{said}");
    assert_eq!(
        std::fs::read(d.join("b.bundle")).unwrap(),
        crate::fixture::Host::default().draft(1).to_bytes().unwrap()
    );
}
