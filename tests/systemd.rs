//! The daemon under systemd: what it tells the service manager, and what the unit allows it. The units are read by systemd's own tools;
//! without them this test says SKIPPED. cross/ has the test in a booted system.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Kills the daemon when the test ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(daemon: &Daemon, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &daemon.0.id().to_string()]).status().unwrap().success());
}

/// Waits for a message with `part`; what came before it is dropped.
fn heard(socket: &UnixDatagram, part: &str, at_most: Duration) -> Option<String> {
    let end = Instant::now() + at_most;
    let mut buffer = [0; 4096];
    while Instant::now() < end {
        if let Ok(n) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.contains(part) {
                return Some(text);
            }
        }
    }
    None
}

#[test]
fn systemd_hears_that_it_is_ready_lives_hangs_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let config = dir.path().join("scanside.toml");
    let state = dir.path().join("state");
    std::fs::write(
        &config,
        format!(
            "[station]\nlisten = \"127.0.0.1:0\"\n[storage]\nstate_dir = {:?}\nmin_free_mb = 1\n",
            state.display().to_string()
        ),
    )
    .unwrap();
    let daemon = Daemon(
        Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["serve", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "900000")
            .env_remove("WATCHDOG_PID")
            .spawn()
            .unwrap(),
    );
    let ready = heard(&socket, "READY=1", Duration::from_secs(120)).expect("ready");
    assert!(ready.contains("STATUS=listening on 127.0.0.1:"), "{ready}");
    let soon = Duration::from_secs(20);
    let line = heard(&socket, "STATUS=", soon).expect("a status line");
    assert!(line.contains("STATUS=0 series coming in, 0 jobs to do, 0 objects to deliver"), "{line}");
    for _ in 0..3 {
        assert!(heard(&socket, "WATCHDOG=1", soon).is_some());
    }
    // A process that hangs feeds no watchdog: systemd would end it.
    signal(&daemon, "STOP");
    while heard(&socket, "WATCHDOG=1", Duration::from_millis(400)).is_some() {}
    assert_eq!(heard(&socket, "WATCHDOG=1", Duration::from_secs(2)), None);
    signal(&daemon, "CONT");
    assert!(heard(&socket, "WATCHDOG=1", soon).is_some());
    signal(&daemon, "TERM");
    assert!(heard(&socket, "STOPPING=1", soon).is_some());
    let mut daemon = daemon;
    assert!(daemon.0.wait().unwrap().success());
}

fn analyze(arguments: &[&str], units: &str) -> Option<std::process::Output> {
    let ran = Command::new("systemd-analyze").env("SYSTEMD_UNIT_PATH", units).args(arguments).output();
    if ran.is_err() {
        assert!(
            std::env::var_os("SCANSIDE_REQUIRE_PEERS").is_none(),
            "systemd-analyze is missing: tests/setup-peers.sh"
        );
        println!("SKIPPED: no systemd-analyze here");
    }
    ran.ok()
}

#[test]
fn the_units_are_clean_and_expose_little() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/usr/lib/systemd/system");
    let dir = tempfile::tempdir().unwrap();
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(&units).unwrap() {
        let unit = entry.unwrap().path();
        let text = std::fs::read_to_string(&unit).unwrap();
        // What systemd 249 (JetPack 6) does not know it ignores with a warning: then the box would lack what the file promises.
        for newer in [
            "LoadCredentialEncrypted=",
            "SetCredentialEncrypted=",
            "ImportCredential=",
            "RestrictFileSystems=",
            "TriggerLimit",
            "RestartSteps=",
            "OpenFile=",
            "MemoryPressureWatch=",
        ] {
            assert!(!text.contains(newer), "{}: {newer} is newer than systemd 249", unit.display());
        }
        // Verify looks for the program: any will do.
        let copy = dir.path().join(unit.file_name().unwrap());
        std::fs::write(&copy, text.replace("/usr/bin/scanside ", "/bin/true ")).unwrap();
        copies.push(copy.display().to_string());
    }
    // All of them together, as some name others. Verify exits with 0 on a misspelt key, so every word it says counts.
    let path = format!("{}:", dir.path().display());
    let arguments: Vec<&str> = ["verify", "--man=no"].into_iter().chain(copies.iter().map(String::as_str)).collect();
    let Some(out) = analyze(&arguments, &path) else { return };
    let said = String::from_utf8_lossy(&out.stderr);
    let own: Vec<&str> = said.lines().filter(|l| l.contains("scanside")).collect();
    assert!(out.status.success() && own.is_empty(), "{said}");
    for service in copies.iter().filter(|c| c.ends_with(".service")) {
        let Some(out) = analyze(&["security", "--offline=yes", "--threshold=20", service], &path) else { return };
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "exposure is 2.0 or more: {said}");
        println!("{}", said.lines().last().unwrap_or_default());
    }
}
