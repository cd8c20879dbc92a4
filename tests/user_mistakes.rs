//! A new user's mistakes: each gives one clear message that names the thing and the remedy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/serve.rs"]
mod serve;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scanside::dicom::net::archive::{Folder, open_to_all};
use scanside::dicom::net::scp::Scp;
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::pipeline::write_dicom_series;

fn scanside(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scanside"));
    command.args(args);
    command
}

/// The command fails with one message that has all the words.
fn fails(out: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "it succeeded: {said}");
    let messages = said.lines().filter(|l| l.starts_with("scanside: ")).count();
    assert_eq!(messages, 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing from: {said}");
    }
}

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("box.toml");
    std::fs::write(&path, format!("[storage]\nstate_dir = {:?}\n{text}", dir.join("state"))).unwrap();
    path.display().to_string()
}

#[test]
fn an_unknown_key() {
    let dir = tempfile::tempdir().unwrap();
    let c = config(dir.path(), "min_fre_mb = 3\n");
    fails(&scanside(&["validate", "-c", &c]).output().unwrap(), &["min_fre_mb", "line 3", "box.toml", "min_free_mb"]);
}

#[test]
fn a_reader_that_goes_away_as_head_does() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = scanside(&["validate", "--print"]).stdout(writer).output().unwrap();
    assert_eq!(out.status.code(), Some(141), "as SIGPIPE");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}

#[test]
fn a_configuration_that_is_not_there() {
    fails(&scanside(&["validate", "-c", "/nowhere/box.toml"]).output().unwrap(), &["/nowhere/box.toml", "--config"]);
}

#[test]
fn the_port_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("[station]\nlisten = \"{}\"\n", taken.local_addr().unwrap());
    let c = config(dir.path(), &listen);
    fails(
        &scanside(&["serve", "-c", &c]).output().unwrap(),
        &["in use", &taken.local_addr().unwrap().to_string(), "station.listen"],
    );
}

#[test]
fn the_state_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve::Served::start(dir.path(), "PACS", "127.0.0.1:9");
    let c = config(dir.path(), "[station]\nlisten = \"127.0.0.1:0\"\n");
    assert_eq!(served.state, dir.path().join("state"));
    fails(&scanside(&["serve", "-c", &c]).output().unwrap(), &["state"]);
}

#[test]
fn no_weights_and_no_network() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("cache");
    let c = config(dir.path(), "");
    let serve = scanside(&["serve", "-c", &c]).env("SCANSIDE_CACHE", &empty).output().unwrap();
    fails(&serve, &["scanside weights fetch"]);
    // With a configuration of its own: on a machine with the package installed there is one, whose weights may be there.
    let fetch = scanside(&["weights", "fetch", "-c", &c])
        .env("SCANSIDE_CACHE", &empty)
        .env("PIP_NO_INDEX", "1")
        .env_remove("PIP_FIND_LINKS")
        .env("PIP_CONFIG_FILE", "/dev/null")
        .output()
        .unwrap();
    fails(&fetch, &["--from"]);
    assert!(!empty.join("mobile_sam.safetensors").exists());
}

#[test]
fn nobody_told_the_box_who_may_send() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve::Served::start(dir.path(), "PACS", "127.0.0.1:9");
    let address = format!("127.0.0.1:{}", served.port);
    let out = scanside(&["send", "--from", "STRANGER", &address]).output().unwrap();
    fails(&out, &["rejects", "calling AE"]);
    let out = scanside(&["send", "--from", "MR1", "--to", "OTHER", &address]).output().unwrap();
    fails(&out, &["rejects", "called AE"]);
    assert!(scanside(&["send", "--from", "MR1", &address]).output().unwrap().status.success());
    let log = std::fs::read_to_string(dir.path().join("serve.log")).unwrap();
    assert!(log.contains("STRANGER") && log.contains("modality"), "the box's log names the remedy: {log}");
}

#[test]
fn the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let text = "min_free_mb = 1000000000\n[station]\nlisten = \"127.0.0.1:0\"\n[[modality]]\nae_title = \"MR1\"\n";
    let c = config(dir.path(), text);
    let mut child = scanside(&["serve", "-c", &c]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let child = serve::Running(child);
    let options = PhantomOptions { dims: [64, 32, 3], spacing: [7.8, 7.8, 25.0], ..PhantomOptions::default() };
    let files = dir.path().join("files");
    write_dicom_series(&files, &Phantom::new(&options), &options).unwrap();
    let address = line.strip_prefix("ready on ").unwrap();
    let out = scanside(&["send", "--from", "MR1", address, &files.display().to_string()]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("A700"), "{said}");
    drop(child);
    let doctor = scanside(&["doctor", "-c", &c]).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert_eq!(doctor.status.code(), Some(1));
    assert!(said.contains("[FAIL]") && said.contains("0xA700"), "{said}");
}

#[test]
fn the_archive_is_down_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let port = serve::free_port();
    let served = serve::Served::start(dir.path(), "PACS", &format!("127.0.0.1:{port}"));
    let options = PhantomOptions { dims: [256, 128, 6], spacing: [1.953_125, 1.953_125, 12.5], ..Default::default() };
    let files = dir.path().join("files");
    let series = write_dicom_series(&files, &Phantom::new(&options), &options).unwrap();
    let address = format!("127.0.0.1:{}", served.port);
    let sent = scanside(&["send", "--from", "MR1", &address, &files.display().to_string()]).output().unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let start = Instant::now();
    loop {
        let status = served.status();
        let waiting = status["jobs"][0]["deliveries"].as_array().and_then(|d| d.first().cloned());
        if let Some(d) = waiting
            && d["attempts"].as_i64() > Some(0)
        {
            assert_eq!(d["state"], "pending");
            assert!(d["last_error"].as_str().unwrap().contains("cannot be reached"), "{d}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(300), "never tried: {status:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = Arc::new(Folder::new(&dir.path().join("archive")).unwrap());
    let options = open_to_all("PACS");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let _archive = runtime.block_on(Scp::bind(address, options, folder.clone())).unwrap();
    let job = served.wait_for(&series.series_uid);
    assert_eq!(job["deliveries"].as_array().unwrap().len(), folder.taken().len());
}
