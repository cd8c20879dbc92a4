//! Each refusal through the real command: its reason, its exit code, one sentence and a remedy.

use std::path::{Path, PathBuf};
use std::process::Command;

use scanside::adapter::Reason;
use scanside::adapter::bundle::Target;
use scanside::adapter::trust::TrustStore;
use scanside::clock::Clock;

use crate::fixture::{BASE, Host, adapter, day, files, forge, sign};

/// A box: a state folder and a configuration, trusting a host's first root.
pub struct Box {
    pub dir: tempfile::TempDir,
    pub store: TrustStore,
}

impl Box {
    pub fn new(host: &Host) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = TrustStore::new(&dir.path().join("state"));
        store.init(host.roots[0].clone(), Clock::System.now_ms()).unwrap();
        std::fs::write(dir.path().join("box.toml"), config(&dir.path().join("state"))).unwrap();
        Box { dir, store }
    }

    pub fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("update.bundle");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn command(&self, file: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scanside"));
        command.args(["bundle", "verify", "--json", "-c"]).arg(self.dir.path().join("box.toml")).arg(file);
        command
    }

    /// The command's exit code and what it printed.
    pub fn verify(&self, bytes: &[u8]) -> (i32, serde_json::Value) {
        run(&mut self.command(&self.file(bytes)))
    }

    /// The bundle is refused for this reason, and the record of versions and time is as it was.
    pub fn refuses(&self, bytes: &[u8], reason: Reason, words: &str) {
        let before = self.store.load().ok();
        let (code, said) = self.verify(bytes);
        assert_eq!(said["reason"], reason.name(), "{said:#}");
        assert_eq!(code, i32::from(reason.exit_code()), "{said:#}");
        assert!(said["sentence"].as_str().unwrap().contains(words), "{words:?} is missing from {said:#}");
        assert!(said["remedy"].as_str().unwrap().len() > 10, "{said:#}");
        let after = self.store.load().ok();
        assert_eq!(before.map(|s| (s.lines, s.latest_ms)), after.map(|s| (s.lines, s.latest_ms)));
    }

    pub fn accepts(&self, bytes: &[u8]) {
        let (code, said) = self.verify(bytes);
        assert_eq!((code, &said["accepted"]), (0, &true.into()), "{said:#}");
    }
}

fn config(state: &Path) -> String {
    format!("[station]\nsite = \"ward-3\"\n[storage]\nstate_dir = {state:?}\n")
}

pub fn run(command: &mut Command) -> (i32, serde_json::Value) {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let value = serde_json::from_str(&text);
    let said = String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), value.unwrap_or_else(|e| panic!("{e}: {text}\n{said}")))
}

fn both() -> (Host, Box) {
    let host = Host::default();
    let there = Box::new(&host);
    (host, there)
}

#[test]
fn a_good_bundle_is_accepted_and_the_time_is_remembered() {
    let (host, there) = both();
    there.store.set_clock(0).unwrap();
    there.accepts(&host.bundle(1));
    assert!(there.store.load().unwrap().latest_ms > 1_700_000_000_000);
    assert!(there.store.load().unwrap().lines.is_empty(), "verifying commits nothing");
}

#[test]
fn unsigned() {
    let (host, there) = both();
    there.refuses(&host.draft(1).to_bytes().unwrap(), Reason::Unsigned, "no signature");
}

#[test]
fn signed_with_the_wrong_keys() {
    let (host, there) = both();
    let stranger = Host::new(50);
    there.refuses(&sign(host.draft(1).to_bytes().unwrap(), &stranger.release_keys), Reason::WrongKey, "does not trust");
    // The keys that decide about keys release nothing.
    there.refuses(&sign(host.draft(1).to_bytes().unwrap(), &host.root_keys), Reason::WrongKey, "does not trust");
    // A whole foreign host, with a root of its own inside.
    there.refuses(&stranger.bundle(1), Reason::RootChain, "another root 1");
}

#[test]
fn one_of_two_signatures() {
    let (host, there) = both();
    let one = sign(host.draft(1).to_bytes().unwrap(), &host.release_keys[2..]);
    there.refuses(&one, Reason::TooFewSignatures, "1 of 2");
    let stranger = Host::new(50);
    there.refuses(&sign(one.clone(), &stranger.release_keys), Reason::TooFewSignatures, "1 of 2");
    there.accepts(&sign(one, &host.release_keys[..1]));
}

#[test]
fn a_revoked_key() {
    let (mut host, there) = both();
    let old = host.draft(1).to_bytes().unwrap();
    host.revoke(0);
    // The bundle that brings the new root is taken, and from then on the withdrawn key counts no more.
    there.accepts(&sign(host.draft(1).to_bytes().unwrap(), &host.release_keys[1..]));
    assert_eq!(there.store.load().unwrap().root.signed.version, 2);
    there.refuses(&sign(old.clone(), &host.release_keys[..2]), Reason::RevokedKey, "holder-4");
    there.refuses(&host.bundle(2), Reason::RevokedKey, "withdrawn");
    there.accepts(&sign(old, &host.release_keys));
}

#[test]
fn a_refused_bundle_still_brings_the_root_that_withdraws_a_key() {
    let (mut host, there) = both();
    host.revoke(0);
    there.refuses(&host.bundle(1), Reason::RevokedKey, "withdrawn");
    assert_eq!(there.store.load().unwrap().root.signed.version, 2);
}

#[test]
fn a_rotated_key_is_good_by_the_new_root() {
    let (mut host, there) = both();
    let new = host.revoke(0);
    let keys = [new, scanside::adapter::trust::SecretKey::from_seed(&[5; 32])];
    there.accepts(&sign(host.draft(1).to_bytes().unwrap(), &keys));
    // Without the root that names it, the same key is a stranger's.
    let elsewhere = Box::new(&host);
    let mut draft = host.draft(1);
    draft.roots = scanside::adapter::trust::Chain::new(host.roots[..1].to_vec()).unwrap();
    elsewhere.refuses(&sign(draft.to_bytes().unwrap(), &keys[..1]), Reason::WrongKey, "does not trust");
}

#[test]
fn a_root_that_the_old_keys_did_not_sign() {
    let (host, there) = both();
    let mut usurper =
        Host { root_keys: Host::new(50).root_keys, release_keys: Host::new(50).release_keys, roots: host.roots };
    let keys = |k: &[scanside::adapter::trust::SecretKey]| {
        let each = k.iter().map(|k| scanside::adapter::trust::Key::new(k.public()));
        each.map(|k| (k.id(), k)).collect::<std::collections::BTreeMap<_, _>>()
    };
    let mut root = usurper.next_root();
    root.set_role(scanside::adapter::trust::RoleName::Root, &keys(&usurper.root_keys), 2);
    root.set_role(scanside::adapter::trust::RoleName::Release, &keys(&usurper.release_keys), 2);
    usurper.publish(root);
    let good = Host::default();
    let files = files(&good.bundle(1));
    let mut with: Vec<(String, Vec<u8>)> = files;
    with.push(("roots/2.json".into(), usurper.root().to_bytes()));
    let forged = forge(&good.bundle(1), &usurper.release_keys[..2], with, |_| {});
    there.refuses(&forged, Reason::RootChain, "root 2");
}

#[test]
fn an_expired_root() {
    let (mut host, _) = both();
    let mut root = host.next_root();
    root.version = 1;
    root.expires = day("2026-01-02");
    host.roots.clear();
    host.publish(root);
    Box::new(&host).refuses(&host.bundle(1), Reason::RootExpired, "2026-01-02");
}

#[test]
fn an_older_version_and_the_same_again() {
    let (host, there) = both();
    let seven = host.bundle(7);
    let id = scanside::adapter::bundle::Unverified::parse(seven.clone()).unwrap().manifest.signed.id();
    there.store.update(|s| s.commit("thigh", 7, &id)).unwrap();
    there.refuses(&host.bundle(6), Reason::OlderVersion, "older than version 7");
    there.refuses(&seven, Reason::AlreadyCommitted, "already committed");
    let mut other = host.draft(7);
    other.note = "another".into();
    there.refuses(&host.sign(&other), Reason::VersionReused, "differs");
    there.accepts(&host.bundle(8));
}

#[test]
fn expired() {
    let (host, there) = both();
    let mut draft = host.draft(1);
    draft.expires = day("2026-02-01");
    there.refuses(&host.sign(&draft), Reason::Expired, "2026-02-01");
}

#[test]
fn the_clock_was_set_back() {
    let (host, there) = both();
    let year = 365 * 86_400_000;
    there.store.update(|s| s.see(Clock::System.now_ms() + year)).unwrap();
    there.refuses(&host.bundle(1), Reason::ClockSetBack, "already seen");
    // Also where only the maker knows better.
    let (host, there) = both();
    let mut draft = host.draft(1);
    draft.issued = day("2034-01-01");
    there.refuses(&host.sign(&draft), Reason::ClockSetBack, "issued on 2034");
}

#[test]
fn a_swapped_tensor() {
    let (host, there) = both();
    let good = host.bundle(1);
    let mut parts = files(&good);
    let manifest = scanside::adapter::bundle::Archive::parse(good).unwrap().get("manifest.json").unwrap().to_vec();
    // One value of one tensor, which is still a valid adapter.
    let mut other = adapter(1);
    other.tensors.get_mut("class_tokens").unwrap().data[3] = 0.5;
    parts.iter_mut().find(|f| f.0 == "adapter.safetensors").unwrap().1 = other.to_bytes().unwrap();
    parts.push(("manifest.json".into(), manifest));
    let swapped = scanside::adapter::bundle::Archive::write(&parts).unwrap();
    there.refuses(&swapped, Reason::ChangedFile, "adapter.safetensors");
}

#[test]
fn a_changed_manifest() {
    let (host, there) = both();
    let mut bytes = host.bundle(1);
    let at = bytes.windows(9).position(|w| w == b"for tests").unwrap();
    bytes[at] = b'F';
    there.refuses(&bytes, Reason::BadSignature, "does not fit");
    let at = bytes.windows(6).position(|w| w == b"_type\"").unwrap();
    bytes[at + 1] = b'T';
    there.refuses(&bytes, Reason::Manifest, "manifest");
}

#[test]
fn a_missing_file() {
    let (host, there) = both();
    let good = host.bundle(1);
    let mut parts = files(&good);
    parts.retain(|f| !f.0.starts_with("evidence"));
    let listed = files(&good).into_iter().map(|(n, b)| (n, Target::of(&b))).collect();
    let forged = forge(&good, &host.release_keys[..2], parts, |m| m.targets = listed);
    there.refuses(&forged, Reason::MissingFile, "evidence.json");
}

#[test]
fn other_base_weights() {
    let (host, there) = both();
    let mut draft = host.draft(1);
    draft.adapter.meta.base_sha256 = BASE.chars().rev().collect();
    there.refuses(&host.sign(&draft), Reason::WrongBase, "base weights");
}

#[test]
fn another_version_of_the_network() {
    let (host, there) = both();
    let good = host.bundle(1);
    let forged = forge(&good, &host.release_keys[..2], files(&good), |m| m.scanside.network_version += 1);
    there.refuses(&forged, Reason::WrongNetwork, "version 3 of the network");
}

#[test]
fn requirements_that_this_box_does_not_meet() {
    let (host, there) = both();
    let with = |change: &dyn Fn(&mut scanside::adapter::bundle::Requires)| {
        let mut draft = host.draft(1);
        change(&mut draft.requires);
        host.sign(&draft)
    };
    there.refuses(&with(&|r| r.scanside = "99.0.0".into()), Reason::Requirement, "scanside 99.0.0");
    there.refuses(&with(&|r| r.memory_mb = u32::MAX), Reason::Requirement, "MiB of memory");
    there.refuses(&with(&|r| r.features.extend(["holography".into()])), Reason::Requirement, "holography");
}

#[test]
fn a_foreign_site() {
    let (host, there) = both();
    let with = |sites: &[&str]| {
        let mut draft = host.draft(1);
        draft.sites = sites.iter().map(|s| s.to_string()).collect();
        host.sign(&draft)
    };
    there.refuses(&with(&["ward-4", "ward-33"]), Reason::ForeignSite, "this site is ward-3");
    there.accepts(&with(&["ward-4", "ward-3"]));
}

#[test]
fn an_adapter_and_parity_images_that_cannot_be() {
    let (host, there) = both();
    let good = host.bundle(1);
    let with = |name: &str, bytes: Vec<u8>| {
        let mut parts = files(&good);
        parts.iter_mut().find(|f| f.0 == name).unwrap().1 = bytes;
        forge(&good, &host.release_keys[..2], parts, |_| {})
    };
    let mut other = adapter(1);
    other.tensors.remove("class_tokens");
    there.refuses(&with("adapter.safetensors", other.to_bytes().unwrap()), Reason::Adapter, "class_tokens");
    there.refuses(&with("adapter.safetensors", adapter(2).to_bytes().unwrap()), Reason::Adapter, "thigh 2");
    there.refuses(&with("parity/1.safetensors", b"none".to_vec()), Reason::Parity, "parity/1");
    there.refuses(&with("evidence.json", b"{}".to_vec()), Reason::Manifest, "evidence");
}

#[test]
fn no_root_and_a_damaged_record() {
    let (host, there) = both();
    std::fs::write(there.store.path(), b"{").unwrap();
    there.refuses(&host.bundle(1), Reason::TrustDamaged, "damaged");
    std::fs::remove_file(there.store.path()).unwrap();
    there.refuses(&host.bundle(1), Reason::NoRoot, "trusts nobody");
}

#[test]
fn a_file_that_cannot_be_read() {
    let (_, there) = both();
    for path in [Path::new("/nowhere/x.bundle"), there.dir.path(), Path::new("/dev/zero")] {
        let (code, said) = run(&mut there.command(path));
        assert_eq!((code, &said["reason"]), (20, &"unreadable".into()), "{said:#}");
    }
}

#[test]
fn no_room_to_remember_the_time() {
    let (host, there) = both();
    there.store.set_clock(0).unwrap();
    let before = std::fs::read(there.store.path()).unwrap();
    let file = there.file(&host.bundle(1));
    // A process that may write no file at all, as on a disk without room.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
    let inner = there.command(&file);
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    let (code, said) = run(&mut command);
    assert_eq!((code, &said["reason"]), (63, &"disk-full".into()), "{said:#}");
    assert_eq!(std::fs::read(there.store.path()).unwrap(), before);
}

#[test]
fn without_json_the_one_message_has_sentence_reason_and_remedy() {
    let (host, there) = both();
    let file = there.file(&host.draft(1).to_bytes().unwrap());
    let out = Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args(["bundle", "verify", "-c"])
        .arg(there.dir.path().join("box.toml"))
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(30));
    assert!(said.starts_with("scanside: the bundle carries no signature [unsigned]; have it signed"), "{said}");
}
