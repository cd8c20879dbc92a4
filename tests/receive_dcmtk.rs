//! DCMTK as our sender and as our archive.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod receive_common;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use receive_common::*;
use scanside::dicom::net::archive::Folder;
use scanside::dicom::net::negotiate::{Acceptor, Callers, Classes, EXPLICIT_LE};
use scanside::dicom::net::scp::{Scp, ScpOptions};
use scanside::dicom::net::scu::{self, ScuOptions, Sent, Target};
use scanside::dicom::net::{MR_IMAGE_STORAGE, part10};

fn run(program: &Path, address: SocketAddr, titles: [&str; 2], options: &[&str], files: &[PathBuf]) -> Output {
    Command::new(program)
        .args(["-aet", titles[0], "-aec", titles[1]])
        .args(options)
        .arg(address.ip().to_string())
        .arg(address.port().to_string())
        .args(files)
        .output()
        .unwrap()
}

const KNOWN: [&str; 2] = ["SENDER", "SCANSIDE"];

#[test]
fn echoscu_is_answered_and_strangers_are_not() {
    let Some(echoscu) = common::peer("echoscu") else { return };
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(dir.path());
    assert!(run(&echoscu, box_.address, KNOWN, &["--repeat", "5"], &[]).status.success());
    for titles in [["STRANGER", "SCANSIDE"], ["SENDER", "OTHER"]] {
        let out = run(&echoscu, box_.address, titles, &[], &[]);
        assert!(!out.status.success());
        let words = String::from_utf8_lossy(&out.stderr).to_string();
        assert!(words.contains("Title Not Recognized"), "{words}");
    }
}

#[test]
fn storescu_and_dcmsend_store() {
    for (program, options) in [
        ("storescu", &["-R"][..]),
        ("storescu", &["-xi"][..]),
        ("storescu", &["-xb", "--max-send-pdu", "4096"][..]),
        ("storescu", &["-xd"][..]),
        ("dcmsend", &[][..]),
    ] {
        let Some(program) = common::peer(program) else { return };
        let dir = tempfile::tempdir().unwrap();
        let box_ = Receiver::start(&dir.path().join("state"));
        let files = write_files(&dir.path().join("files"), 7, 256);
        let out = run(&program, box_.address, KNOWN, options, &files);
        assert!(out.status.success(), "{options:?} {}", String::from_utf8_lossy(&out.stderr));
        let rows = box_.rows();
        assert_eq!(rows.len(), 7, "{options:?}");
        // Stored as it was sent: DCMTK's own reader finds the pixels of the file that was sent.
        let Some(dcmdump) = common::peer("dcmdump") else { return };
        for (row, sent) in rows.iter().zip(&files) {
            let dump = |path: &Path| {
                let out = Command::new(&dcmdump).args(["-q", "+L", "+P", "7fe0,0010"]).arg(path).output().unwrap();
                assert!(out.status.success());
                let text = String::from_utf8_lossy(&out.stdout).to_string();
                text.split_whitespace().nth(2).unwrap_or_default().to_string()
            };
            assert_eq!(dump(&row.file(box_.store.dir())), dump(sent), "{options:?}");
        }
    }
}

#[test]
fn storescu_sees_the_stated_refusal_of_a_class() {
    let Some(storescu) = common::peer("storescu") else { return };
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(&dir.path().join("state"));
    let ct = "1.2.840.10008.5.1.4.1.1.2";
    let mut bytes = part10::head(ct, "1.2.3", EXPLICIT_LE);
    bytes.extend(element((0x0008, 0x0016), "UI", ct.as_bytes()));
    bytes.extend(element((0x0008, 0x0018), "UI", b"1.2.3"));
    let file = dir.path().join("ct.dcm");
    std::fs::write(&file, bytes).unwrap();
    let out = run(&storescu, box_.address, KNOWN, &["-R"], &[file]);
    let words = String::from_utf8_lossy(&out.stderr).to_string();
    assert!(
        words.contains("No Acceptable Presentation Contexts") || words.contains("No presentation context"),
        "{words}"
    );
    assert!(box_.rows().is_empty());
}

/// Real files of many vendors: each is stored, or refused with a status, and the box lives.
#[test]
fn the_variety_of_real_files_is_stored() {
    let Some(variety) = common::data("dicom_variety") else { return };
    let mut files = Vec::new();
    let mut dirs = vec![variety];
    while let Some(dir) = dirs.pop() {
        for path in list(&dir) {
            if path.is_dir() {
                dirs.push(path);
            } else if !path.extension().is_some_and(|e| e == "gz" || e == "md" || e == "txt" || e == "json") {
                files.push(path);
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(dir.path());
    let target = Target { ae_title: "SCANSIDE".into(), address: box_.address.to_string(), calling_ae: "SENDER".into() };
    let outcomes = scu::send(&files, &target, &ScuOptions::default());
    let mut stored = 0;
    for o in &outcomes {
        let name = o.path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&o.path).display().to_string();
        match &o.sent {
            Sent::Stored(_) => stored += 1,
            Sent::Permanent(why) => eprintln!("{name}: {why}"),
            Sent::Transient(why) => panic!("{name}: {why}"),
        }
    }
    eprintln!("{stored} of {} stored", outcomes.len());
    assert!(stored * 10 >= outcomes.len() * 8, "only {stored} of {}", outcomes.len());
    box_.assert_alive();
    for row in box_.rows() {
        assert!(row.file(box_.store.dir()).exists());
    }
}

struct Storescp(Child);

impl Drop for Storescp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn our_scu_sends_to_storescp() {
    let Some(storescp) = common::peer("storescp") else { return };
    let dir = tempfile::tempdir().unwrap();
    let received = dir.path().join("received");
    std::fs::create_dir(&received).unwrap();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let child = Command::new(storescp)
        .args(["-od"])
        .arg(&received)
        .arg(port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _storescp = Storescp(child);
    let target =
        Target { ae_title: "STORESCP".into(), address: format!("127.0.0.1:{port}"), calling_ae: "SCANSIDE".into() };
    let options = ScuOptions::default();
    let up = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        scu::echo(&target, &options).is_ok()
    });
    assert!(up, "storescp does not answer");
    // Classic MR, a segmentation, both structured reports and a secondary capture on one association.
    let mut files = write_files(&dir.path().join("files"), 3, 300);
    for (i, class) in ["66.4", "88.34", "88.11", "7"].iter().enumerate() {
        let class = format!("1.2.840.10008.5.1.4.1.1.{class}");
        let uid = format!("1.2.9.{i}");
        let mut bytes = part10::head(&class, &uid, EXPLICIT_LE);
        bytes.extend(element((0x0008, 0x0016), "UI", class.as_bytes()));
        bytes.extend(element((0x0008, 0x0018), "UI", uid.as_bytes()));
        bytes.extend(element((0x0020, 0x000D), "UI", b"1.2.3"));
        bytes.extend(element((0x0020, 0x000E), "UI", b"1.2.4"));
        let path = dir.path().join(format!("{i}.dcm"));
        std::fs::write(&path, bytes).unwrap();
        files.push(path);
    }
    let broken = dir.path().join("broken.dcm");
    std::fs::write(&broken, b"not DICOM").unwrap();
    files.insert(1, broken);
    let outcomes = scu::send(&files, &target, &options);
    assert!(matches!(&outcomes[1].sent, Sent::Permanent(why) if why.contains("not a DICOM file")));
    for o in outcomes.iter().filter(|o| o.path != files[1]) {
        assert_eq!(o.sent, Sent::Stored(0), "{}", o.path.display());
    }
    assert_eq!(list(&received).len(), 7);
}

#[test]
fn an_archive_that_is_away_or_rejects_is_transient_and_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(&dir.path().join("state"));
    let files = write_files(&dir.path().join("files"), 2, 16);
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    for (address, calling, want) in [
        (format!("127.0.0.1:{port}"), "SENDER", "cannot be reached"),
        (box_.address.to_string(), "STRANGER", "calling AE title not recognized"),
    ] {
        let target = Target { ae_title: "SCANSIDE".into(), address, calling_ae: calling.into() };
        for o in scu::send(&files, &target, &ScuOptions::default()) {
            assert!(matches!(&o.sent, Sent::Transient(why) if why.contains(want)), "{:?}", o.sent);
        }
        assert!(scu::echo(&target, &ScuOptions::default()).unwrap_err().to_string().contains(want));
    }
}

#[test]
fn the_folder_archive_takes_every_storage_class() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Arc::new(Folder::new(&dir.path().join("archive")).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = ScpOptions {
        acceptor: Acceptor {
            ae_title: "ARCHIVE".into(),
            callers: Callers::Anybody,
            classes: Classes::AnyStorage,
            max_pdu: 128 * 1024,
        },
        ..options()
    };
    let scp = runtime.block_on(Scp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options, folder.clone())).unwrap();
    let target =
        Target { ae_title: "ARCHIVE".into(), address: scp.local_addr().to_string(), calling_ae: "SCANSIDE".into() };
    let files = write_files(&dir.path().join("files"), 3, 64);
    assert!(scu::send(&files, &target, &ScuOptions::default()).iter().all(|o| o.sent == Sent::Stored(0)));
    let taken = folder.taken();
    assert_eq!(taken.len(), 3);
    assert!(taken.iter().all(|t| t.sop_class == MR_IMAGE_STORAGE && t.path.exists() && t.parents.series == SERIES));
    // The same data set arrives; the head is our own on both sides.
    assert_eq!(std::fs::read(&taken[0].path).unwrap(), std::fs::read(&files[0]).unwrap());
    runtime.block_on(scp.shutdown(Duration::from_secs(1)));
}

#[test]
fn a_taken_port_is_said_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let box_ = Receiver::start(dir.path());
    let folder = Arc::new(Folder::new(&dir.path().join("archive")).unwrap());
    let e = box_.runtime.block_on(Scp::bind(box_.address, options(), folder)).unwrap_err().to_string();
    assert!(e.contains("in use by another program") && e.contains("station.listen"), "{e}");
}
