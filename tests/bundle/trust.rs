//! The record of trust: it never goes back, survives a crash at any point, and is never begun anew by itself.

use scanside::adapter::Reason;
use scanside::adapter::trust::{Chain, Root, SecretKey, Signed, TrustState, TrustStore};

use crate::fixture::Host;

fn store() -> (tempfile::TempDir, TrustStore, Host) {
    let (dir, host) = (tempfile::tempdir().unwrap(), Host::default());
    let store = TrustStore::new(dir.path());
    store.init(host.roots[0].clone(), 1000).unwrap();
    (dir, store, host)
}

#[test]
fn it_is_read_back_and_a_second_first_root_is_refused() {
    let (_dir, store, host) = store();
    store.update(|s| s.commit("thigh", 3, &"a".repeat(64))).unwrap();
    let state = store.load().unwrap();
    assert_eq!((state.version("thigh"), state.serial, state.latest_ms), (Some(3), 1, 1000));
    assert!(state.committed("thigh", &"a".repeat(64)) && !state.committed("calf", &"a".repeat(64)));
    assert_eq!(store.init(host.roots[0].clone(), 2000).unwrap_err().reason, Reason::TrustConflict);
    assert_eq!(store.load().unwrap(), state);
}

#[test]
fn nothing_goes_back() {
    let (_dir, store, mut host) = store();
    host.revoke(0);
    store.update(|s| s.root = host.root().clone()).unwrap();
    store.update(|s| s.commit("thigh", 3, &"a".repeat(64))).unwrap();
    let before = store.load().unwrap();
    let first = host.roots[0].clone();
    let lowering: [&dyn Fn(&mut TrustState); 4] = [
        &|s| s.root = first.clone(),
        &|s| s.latest_ms -= 1,
        &|s| s.lines.get_mut("thigh").unwrap().version = 2,
        &|s| s.lines.clear(),
    ];
    for change in lowering {
        assert_eq!(store.update(change).unwrap_err().reason, Reason::TrustConflict);
    }
    assert_eq!(store.load().unwrap(), before);
    // Going back to what was committed before keeps the highest version.
    store.update(|s| s.commit("thigh", 1, &"b".repeat(64))).unwrap();
    assert_eq!(store.load().unwrap().version("thigh"), Some(3));
    // Only a person sets the clock back.
    assert_eq!(store.set_clock(5).unwrap().latest_ms, 5);
}

#[test]
fn tufs_version_is_three_numbers_and_nothing_else() {
    let host = Host::default();
    let with = |version: &str| {
        let mut value = serde_json::to_value(&host.root().signed).unwrap();
        value["spec_version"] = version.into();
        serde_json::from_value::<Root>(value).unwrap().check()
    };
    for good in ["1.0.31", "1.0.0", "1.12.3"] {
        assert_eq!(with(good), Ok(()), "{good}");
    }
    for bad in ["1", "1.0", "1.0.31.5", "1.0.31-8f3a", "1.0.31 ", "1.0.x", "1..1", "1.0.0000000031", "1.+0.1", "2.0.0"]
    {
        assert!(with(bad).unwrap_err().contains("TUF"), "{bad}");
    }
}

#[test]
fn an_unchanged_record_is_not_written_again() {
    let (_dir, store, _) = store();
    let before = std::fs::metadata(store.path()).unwrap().modified().unwrap();
    store.update(|s| s.see(10)).unwrap();
    assert_eq!(std::fs::metadata(store.path()).unwrap().modified().unwrap(), before);
}

#[test]
fn damage_is_refused_and_never_repaired_by_forgetting() {
    let (_dir, store, host) = store();
    let good = std::fs::read(store.path()).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(store.path(), &bad).unwrap();
        assert_eq!(store.load().unwrap_err().reason, Reason::TrustDamaged, "byte {at}");
        assert_eq!(store.update(|s| s.see(i64::MAX)).unwrap_err().reason, Reason::TrustDamaged);
        assert_eq!(store.init(host.roots[0].clone(), 1).unwrap_err().reason, Reason::TrustDamaged);
        std::fs::write(store.path(), &good[..at]).unwrap();
        assert_eq!(store.load().unwrap_err().reason, Reason::TrustDamaged);
    }
    // What a crash leaves beside it is no record.
    std::fs::write(store.path(), &good).unwrap();
    std::fs::write(store.path().with_file_name(".tmp-half"), &good[..good.len() / 2]).unwrap();
    assert!(store.load().is_ok());
}

#[test]
fn changes_at_once_are_all_kept() {
    let (_dir, store, _) = store();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let store = store.clone();
            scope.spawn(move || {
                for i in 0..5 {
                    let name = format!("line-{thread}-{i}");
                    store.update(|s| s.commit(&name, 1, &"c".repeat(64))).unwrap();
                }
            });
        }
    });
    let state = store.load().unwrap();
    assert_eq!((state.lines.len(), state.serial), (20, 20));
}

#[test]
fn a_full_disk_leaves_the_record_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(dir.path())
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: no small file system can be mounted here (needs root)");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let host = Host::default();
        let store = TrustStore::new(dir.path());
        store.init(host.roots[0].clone(), 1000).unwrap();
        let before = std::fs::read(store.path()).unwrap();
        std::fs::write(dir.path().join("filler"), vec![0; 64 << 10]).unwrap_err();
        assert_eq!(store.update(|s| s.see(2000)).unwrap_err().reason, Reason::DiskFull);
        assert_eq!(std::fs::read(store.path()).unwrap(), before);
        std::fs::remove_file(dir.path().join("filler")).unwrap();
        store.update(|s| s.see(2000)).unwrap();
    });
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    outcome.unwrap();
}

#[test]
fn roots_follow_each_other_step_by_step() {
    let mut host = Host::default();
    host.revoke(0);
    host.revoke(1);
    let all = Chain::new(host.roots.clone()).unwrap();
    assert_eq!(all.from_trusted(&host.roots[0]).unwrap().unwrap().signed.version, 3);
    assert_eq!(all.from_trusted(&host.roots[2]).unwrap(), None);
    let gap = Chain::new(vec![host.roots[2].clone()]).unwrap();
    assert_eq!(gap.from_trusted(&host.roots[0]).unwrap_err().reason, Reason::RootChain);
    let reason = |r: Result<Chain, scanside::adapter::Refused>| r.unwrap_err().reason;
    assert_eq!(reason(Chain::new(vec![host.roots[0].clone(), host.roots[2].clone()])), Reason::RootChain);
    assert_eq!(reason(Chain::new(vec![host.roots[1].clone(), host.roots[1].clone()])), Reason::RootChain);
}

#[test]
fn a_new_root_needs_old_and_new_keys_and_keeps_what_was_withdrawn() {
    let mut host = Host::default();
    host.revoke(0);
    let fork = |change: &dyn Fn(&mut Root), keys: &[&SecretKey]| -> Result<(), scanside::adapter::Refused> {
        let mut root = host.next_root();
        change(&mut root);
        let mut signed = Signed::new(root);
        for key in keys {
            signed.sign(*key).unwrap();
        }
        host.root().advance(&Signed::<Root>::read(&signed.to_bytes())?)
    };
    let k = &host.root_keys;
    assert!(fork(&|_| {}, &[&k[0], &k[2]]).is_ok());
    type Bad<'a> = (&'a dyn Fn(&mut Root), Vec<&'a SecretKey>);
    let bad: [Bad; 7] = [
        (&|_| {}, vec![]),
        (&|_| {}, vec![&k[0]]),
        (&|_| {}, vec![&k[0], &host.release_keys[0]]),
        (&|r| r.version += 1, vec![&k[0], &k[1]]),
        (&|r| r.scanside.revoked.clear(), vec![&k[0], &k[1]]),
        (&|r| r.roles.root.threshold = 0, vec![&k[0], &k[1]]),
        (&|r| r.roles.root.threshold = 4, vec![&k[0], &k[1]]),
    ];
    for (i, (change, keys)) in bad.iter().enumerate() {
        assert_eq!(fork(change, keys).unwrap_err().reason, Reason::RootChain, "{i}");
    }
    // A key that was withdrawn cannot come back.
    let back = |r: &mut Root| {
        let key = scanside::adapter::trust::Key::new(host.release_keys[0].public());
        r.keys.insert(key.id(), key);
    };
    assert_eq!(fork(&back, &[&k[0], &k[1]]).unwrap_err().reason, Reason::RootChain);
}

#[test]
fn a_secret_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.pem");
    let key = SecretKey::generate().unwrap();
    key.save(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(SecretKey::load(&path).unwrap().public(), key.public());
    assert_ne!(SecretKey::generate().unwrap().public(), key.public());
    assert_eq!(key.save(&path).unwrap_err().reason, Reason::KeyFile, "it never overwrites a key");
    for mode in [0o640, 0o604, 0o666, 0o620] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let refused = SecretKey::load(&path).unwrap_err();
        assert!(refused.reason == Reason::KeyFile && refused.remedy.contains("chmod 600"), "{refused}");
    }
    std::fs::write(&path, "hello").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(SecretKey::load(&path).unwrap_err().reason, Reason::KeyFile);
    assert!(format!("{key:?}").len() < 40, "a key is never printed");
}

#[test]
fn what_root_makes_belongs_to_the_owner_of_the_state_folder() {
    use std::os::unix::fs::{MetadataExt, chown};
    let dir = tempfile::tempdir().unwrap();
    if chown(dir.path(), Some(12345), Some(12345)).is_err() {
        eprintln!("SKIPPED: only root can give a folder away");
        return;
    }
    let store = TrustStore::new(dir.path());
    store.init(Host::default().roots[0].clone(), 1000).unwrap();
    for name in ["", "lock", "state.json"] {
        let found = std::fs::metadata(dir.path().join("trust").join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (12345, 12345), "trust/{name}");
    }
}
