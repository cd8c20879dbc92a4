//! Start-up: brings spool and database together again after whatever ended the last run.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rusqlite::OptionalExtension;
use sha2::{Digest, Sha256};

use super::commit::set_synced_upto;
use super::db::{Store, StoreError, io};
use super::instances::{self, Instance, MISSING};
use crate::dicom::net::is_uid;
use crate::dicom::net::part10::read_head;
use crate::dicom::net::scan::Scanner;

/// What the sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Unfinished objects removed; none was acknowledged.
    pub unfinished: usize,
    /// Rows removed that a power cut left without their file; none was acknowledged.
    pub unacknowledged: usize,
    /// Acknowledged objects whose file is gone or has another size: flagged.
    pub missing: usize,
    /// Whole objects without a row: taken up.
    pub adopted: usize,
    /// Files that are none of this: moved to `spool/quarantine`.
    pub quarantined: usize,
}

/// An inflated data set may be this many times as large as the file, when it is adopted.
const MAX_INFLATED: u64 = 4 << 30;

pub(super) fn run(store: &Store) -> Result<SweepReport, StoreError> {
    let mut report = SweepReport::default();
    let spool = store.dir().join("spool");
    let incoming = spool.join("incoming");
    for name in names(&incoming)? {
        let path = incoming.join(name);
        std::fs::remove_file(&path).map_err(io(&path))?;
        report.unfinished += 1;
    }
    let known = rows(store, &mut report)?;
    let objects = spool.join("objects");
    for name in names(&objects)? {
        if known.contains(&format!("spool/objects/{name}")) {
            continue;
        }
        let path = objects.join(&name);
        match adopt(store, &path, &name) {
            Some(instance) => {
                store.with_conn(|c| instances::insert(c, &instance))?;
                report.adopted += 1;
            }
            None => {
                let to = spool.join("quarantine").join(format!("{}-{name}", store.clock().now_ms()));
                std::fs::rename(&path, &to).map_err(io(&path))?;
                report.quarantined += 1;
            }
        }
    }
    if report.adopted > 0 {
        File::open(&objects).and_then(|d| d.sync_all()).map_err(io(&objects))?;
    }
    store.with_conn(|c| {
        let newest: Option<i64> = c.query_row("SELECT max(id) FROM instances", [], |r| r.get(0))?;
        set_synced_upto(c, newest.unwrap_or(0))
    })?;
    if report != SweepReport::default() {
        log::warn!("the spool was swept: {report:?}");
    }
    Ok(report)
}

/// Checks every row's file; returns the paths that are accounted for.
fn rows(store: &Store, report: &mut SweepReport) -> Result<HashSet<String>, StoreError> {
    let (synced_upto, rows) = store.with_conn(|c| {
        let synced_upto: Option<String> =
            c.query_row("SELECT value FROM meta WHERE key = 'synced-upto'", [], |r| r.get(0)).optional()?;
        let rows: Vec<(i64, String, i64, String, i64)> = c
            .prepare("SELECT id, path, size, sha256, flags FROM instances ORDER BY id")?
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)))?
            .collect::<rusqlite::Result<_>>()?;
        Ok((synced_upto.and_then(|v| v.parse::<i64>().ok()).unwrap_or(0), rows))
    })?;
    let mut known = HashSet::new();
    for (id, path, size, sha256, flags) in rows {
        let file = store.dir().join(&path);
        let whole = match std::fs::metadata(&file) {
            Ok(found) if found.len() == size as u64 => {
                // Rows of the last batches may have been committed before their files were whole.
                id <= synced_upto || hash(&file).is_some_and(|h| h == sha256)
            }
            _ => false,
        };
        if whole {
            known.insert(path);
            if flags & MISSING != 0 {
                store.with_conn(|c| {
                    c.execute("UPDATE instances SET flags = flags & ~?2 WHERE id = ?1", [id, MISSING])
                })?;
            }
        } else if id > synced_upto {
            store.with_conn(|c| c.execute("DELETE FROM instances WHERE id = ?1", [id]))?;
            report.unacknowledged += 1;
        } else if flags & MISSING == 0 {
            log::error!("the file of row {id} is gone or damaged: {path}");
            store.with_conn(|c| c.execute("UPDATE instances SET flags = flags | ?2 WHERE id = ?1", [id, MISSING]))?;
            report.missing += 1;
        }
    }
    Ok(known)
}

fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let entry = entry.map_err(io(dir))?;
        if entry.file_type().map_err(io(dir))?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn hash(path: &Path) -> Option<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(path).ok()?, &mut hasher).ok()?;
    Some(hex::encode(hasher.finalize()))
}

/// The row of a whole object, read from its file.
fn adopt(store: &Store, path: &Path, name: &str) -> Option<Instance> {
    let sha256 = hash(path)?;
    if name != format!("{sha256}.dcm") {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let head = read_head(&mut file).ok()?;
    file.seek(SeekFrom::Start(head.data_offset)).ok()?;
    let mut scanner = Scanner::new(&head.transfer_syntax, MAX_INFLATED);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => break,
            n => scanner.feed(&buffer[..n]).ok()?,
        }
    }
    let ids = scanner.finish().ok()?;
    file.sync_all().ok()?;
    Some(Instance {
        id: 0,
        sop_instance_uid: ids.sop_instance.filter(|u| is_uid(u))?,
        sop_class_uid: ids.sop_class.filter(|u| is_uid(u))?,
        series_uid: ids.series.filter(|u| is_uid(u))?,
        study_uid: ids.study.filter(|u| is_uid(u))?,
        sha256,
        path: format!("spool/objects/{name}"),
        size: size as i64,
        calling_ae: String::new(),
        transfer_syntax: head.transfer_syntax,
        received_ms: store.clock().now_ms(),
        association_id: 0,
        flags: 0,
    })
}
