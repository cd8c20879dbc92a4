//! A full disk: the bundle is refused, nothing stays behind, and once there is room the same command works.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kit::{NONE, SHORT, Site, count, releases};
use crate::lives::{end_well, lead};

/// A small file system of its own, unmounted at the end.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    /// A new folder `state` in `dir` with a file system of so many MiB; none, said aloud, where nothing can be mounted.
    fn mount(dir: &Path, mib: usize) -> Option<Tmpfs> {
        let state = dir.join("state");
        std::fs::create_dir(&state).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&state).output();
        if mounted.as_ref().is_ok_and(|o| o.status.success()) {
            return Some(Tmpfs(state));
        }
        println!("SKIPPED: no tmpfs can be mounted here (root is needed)");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tmpfs) = Tmpfs::mount(dir.path(), 24) else { return };
    let state = tmpfs.0.clone();
    let mut site =
        Site::start_in(dir, state.clone(), &NONE.replace("[sideload]", "[drift]\nenabled = false\n[sideload]"));
    let bundle = releases().bundle(2);
    let path = site.file("thigh-2.bundle", &bundle);
    // Asked beforehand, and then, where nothing is kept free, in the middle of copying.
    for (left, free) in [(bundle.len() + (1 << 19), 1), (bundle.len() / 2, 0)] {
        let s = rustix::fs::statvfs(&state).unwrap();
        let fill = (s.f_bavail * s.f_frsize) as usize - left;
        std::fs::write(state.join("filler"), vec![1; fill]).unwrap();
        let set = format!("storage.min_free_mb={free}");
        let out = site.scanside(&["sideload", "--set", &set, path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(63), "{said}");
        assert!(said.contains("nothing was changed; free space"), "{said}");
        assert_eq!(site.kept(), [""; 0]);
        assert_eq!(site.newest(), "none");
        std::fs::remove_file(state.join("filler")).unwrap();
    }
    // Full to the last byte while a candidate is verified: it waits, and goes on once there is room.
    site.kill();
    site.said(&["sideload", path.to_str().unwrap()]);
    assert_eq!(site.newest(), "parity-checked");
    let filler = state.join("filler");
    let s = rustix::fs::statvfs(&state).unwrap();
    std::fs::write(&filler, vec![1; (s.f_bavail * s.f_frsize) as usize - (1 << 20)]).unwrap();
    site.run();
    let rest = rustix::fs::statvfs(&state).unwrap();
    let _ = std::fs::write(state.join("filler2"), vec![1; (rest.f_bavail * rest.f_frsize) as usize]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    std::fs::remove_file(&filler).unwrap();
    let _ = std::fs::remove_file(state.join("filler2"));
    site.until("committed", || (site.newest() == "committed").then_some(()));
    drop(site);
    drop(tmpfs);
}

const SEED: u64 = 20_261_129;

/// Writes until nothing more fits.
fn fill(state: &Path) {
    let mut filler = std::fs::File::create(state.join("filler")).unwrap();
    for piece in [1 << 16, 1 << 8, 1] {
        let piece = vec![1; piece];
        while filler.write_all(&piece).is_ok() {}
    }
}

/// Full to the last byte in every state, for moments and for seconds, sometimes with a kill in it.
#[test]
fn full_in_every_state_goes_on() {
    let fills = count("SCANSIDE_FILLS", 7);
    let dir = tempfile::tempdir().unwrap();
    let Some(tmpfs) = Tmpfs::mount(dir.path(), 96) else { return };
    let state = tmpfs.0.clone();
    let mut site = Site::start_in(dir, state.clone(), SHORT);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut lives = lead(&mut site, fills, SEED, &mut |site, _, n| {
        fill(&state);
        std::thread::sleep(Duration::from_millis(rng.random_range(0..4000)));
        let killed = n % 3 == 2;
        if killed {
            site.kill();
        }
        std::fs::remove_file(state.join("filler")).unwrap();
        if killed {
            site.run();
        }
    });
    let said = end_well(&site, &mut lives);
    eprintln!("{fills} times full (seed {SEED}); the newest bundle was then: {said}");
    drop(site);
    drop(tmpfs);
}
