//! What must not serve is refused by its name, the adapter before it serves on, and nothing stays behind.

use std::os::unix::fs::symlink;

use crate::bundle::{Host, day, sign};
use crate::kit::{NONE, Site, releases};

#[test]
fn each_refusal_leaves_the_old_adapter_and_nothing_behind() {
    let site = Site::start(NONE);
    let host = &releases().host;
    let good = releases().bundle(2);
    let draft = host.draft(2);
    let unsigned = draft.to_bytes().unwrap();
    let mut expired = host.draft(2);
    (expired.issued, expired.expires) = (day("2020-01-01"), day("2021-01-01"));
    let mut foreign = host.draft(2);
    foreign.sites = vec!["elsewhere".into()];
    let mut greedy = host.draft(2);
    greedy.requires.memory_mb = u32::MAX;
    let mut changed = good.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let mut truth = host.draft(2);
    truth.adapter = releases().adapter(2);
    truth.evidence = crate::bundle::evidence(&truth.adapter);
    truth.parity = vec![crate::bundle::parity(&truth.adapter, 1)];
    let cases: Vec<(&str, Vec<u8>, i32)> = vec![
        ("empty", Vec::new(), 21),
        ("noise", vec![7; 5000], 21),
        ("truncated", good[..good.len() / 2].to_vec(), 23),
        ("changed", changed, 27),
        ("unsigned", unsigned.clone(), 30),
        ("one-signature", sign(unsigned, &host.release_keys[..1]), 32),
        ("stranger", Host::new(101).bundle(2), 35),
        ("expired", host.sign(&expired), 40),
        ("foreign", host.sign(&foreign), 53),
        ("greedy", host.sign(&greedy), 52),
        ("parity", host.sign(&truth), 56),
    ];
    for (name, bytes, code) in &cases {
        let path = site.file(&format!("{name}.bundle"), bytes);
        let out = site.sideload(&path);
        let said = String::from_utf8_lossy(&out.stderr);
        let messages = said.lines().filter(|l| l.starts_with("scanside: ")).count();
        assert_eq!((out.status.code(), messages), (Some(*code), 1), "{name}: {said}\n{}", site.log());
        assert_eq!(site.kept(), [""; 0], "{name} left something");
        let (a, alert) = site.adapters();
        assert!(a["serving"]["bundle_id"].is_null(), "{name}: {a:#}");
        // A file that is no bundle at all is told of too.
        assert_eq!((a["bundles"][0]["state"].as_str(), alert), (Some("refused"), 3), "{name}: {a:#}");
    }
    // No ordinary file: nothing is even noted.
    let before = site.adapters().0["bundles"].as_array().unwrap().len();
    let dir = site.dir.path();
    let pipe = dir.join("pipe.bundle");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let huge = dir.join("huge.bundle");
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    for (path, code) in [(&pipe, 20), (&huge, 22), (&dir.join("nowhere.bundle"), 20), (&dir.to_path_buf(), 20)] {
        let out = site.sideload(path);
        assert_eq!(out.status.code(), Some(code), "{}: {out:?}", path.display());
    }
    assert_eq!(site.adapters().0["bundles"].as_array().unwrap().len(), before);
    assert_eq!(site.kept(), [""; 0]);

    // A stick: plain files of its own folder, each once.
    let stick = dir.join("stick");
    std::fs::create_dir_all(stick.join("deeper")).unwrap();
    let good = site.file("good.bundle", &good);
    symlink(&good, stick.join("link.bundle")).unwrap();
    std::fs::copy(&good, stick.join("deeper/x.bundle")).unwrap();
    std::fs::copy(&good, stick.join("notes.txt")).unwrap();
    let drop = ["sideload", "--drop", stick.to_str().unwrap()];
    assert!(site.said(&drop).contains("no bundle in"));
    std::fs::write(stick.join("a-bad.bundle"), vec![7; 5000]).unwrap();
    let out = site.scanside(&drop);
    assert_eq!(out.status.code(), Some(0), "it was refused before, and is left alone: {out:?}");
    std::fs::write(stick.join("b-bad.bundle"), vec![8; 5000]).unwrap();
    assert_eq!(site.scanside(&drop).status.code(), Some(21));
    std::fs::copy(&good, stick.join("thigh-2.bundle")).unwrap();
    let said = site.said(&drop);
    assert!(said.contains("thigh 2, signed by"), "{said}");
    site.until("committed", || (site.newest() == "committed").then_some(()));
    assert!(site.said(&drop).contains("was here before: committed"));
    let (_, job) = site.serve(721);
    assert_eq!(job["bundle"]["release"], "thigh 2");

    // The box's own folder is emptied, whatever lies in it: what stayed would be taken over and over.
    let own = site.state.join("drop");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("notes.txt"), "hello").unwrap();
    std::fs::write(own.join("thigh-3.bundle"), releases().bundle(3)).unwrap();
    let out = site.scanside(&["sideload", "--drop"]);
    assert!(out.status.code() == Some(23) || out.status.code() == Some(21), "the note is refused: {out:?}");
    assert!(std::fs::read_dir(&own).unwrap().next().is_none(), "the folder is empty");
    site.until("version 3", || {
        let (a, _) = site.adapters();
        (a["bundles"][0]["version"] == 3 && a["bundles"][0]["state"] == "committed").then_some(())
    });
}

#[test]
fn a_box_without_a_root_and_a_box_without_state() {
    let site = Site::start(NONE);
    std::fs::remove_dir_all(site.state.join("trust")).unwrap();
    let path = site.file("x.bundle", &releases().bundle(2));
    let out = site.sideload(&path);
    assert_eq!(out.status.code(), Some(60), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("scanside keys trust"), "{out:?}");
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args(["sideload", "--set", "storage.state_dir=/nowhere"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("start `scanside serve` once"), "{said}");
}
