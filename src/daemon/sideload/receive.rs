//! How a bundle's file comes onto the box: read once, within bounds, copied, synced, then its row.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Here;
use crate::adapter::bundle::MAX_BUNDLE;
use crate::adapter::{Reason, Refused};
use crate::store::StoreError;
use crate::store::bundles::{self, Arrival, Bundle, State};

/// How the names of bundles end that are taken from a folder.
pub const DROP_SUFFIX: &str = ".bundle";
/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Most bundles that are taken from a folder at once.
const MAX_TAKEN: usize = 16;
/// A file that has not changed for so long is whole.
const QUIET: Duration = Duration::from_secs(1);
/// So often that is tried.
const QUIET_TRIES: usize = 240;
const CHUNK: usize = 1 << 20;

/// What became of a file.
#[derive(Debug)]
pub struct Received {
    /// The file.
    pub from: PathBuf,
    /// Its row, or why there is none.
    pub outcome: Result<Arrival, Refused>,
}

/// Opens an ordinary file for reading. A named pipe is not waited for; with `links` false a link is not followed.
fn open(path: &Path, links: bool) -> Result<File, Refused> {
    use rustix::fs::OFlags;
    let io = |e: std::io::Error| Refused::io(Reason::Unreadable, format!("cannot read {}", path.display()), &e);
    let follow = if links { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY | follow).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        let what = format!("{} is no ordinary file", path.display());
        return Err(Refused::new(Reason::Unreadable, what, "name the bundle's file"));
    }
    if meta.len() > MAX_BUNDLE {
        return Err(too_large(path));
    }
    Ok(file)
}

fn too_large(path: &Path) -> Refused {
    Refused::new(
        Reason::TooLarge,
        format!("{} is larger than {} MiB, which no bundle is", path.display(), MAX_BUNDLE >> 20),
        "do not use this file; ask for the bundle again",
    )
}

/// Takes a file named by a person. It is on the box, whole and synced, before its row is written; whatever fails leaves nothing.
///
/// # Errors
/// [`Reason::Unreadable`], [`Reason::TooLarge`], [`Reason::DiskFull`]; [`Reason::OlderVersion`] for one that was committed here and does
/// not serve any more.
pub fn receive(here: Here<'_>, path: &Path) -> Result<Arrival, Refused> {
    take(here, path, open(path, true)?, false)
}

/// Takes the bundles of a folder, a mounted stick: plain files of the folder itself, none of which is executed, no link followed.
/// What this box has seen before, whatever became of it, is left alone. With `empty` the folder is the box's own: every plain file
/// is taken, once nobody writes it any more, and removed whatever becomes of it, as one that stayed would be taken again and again.
///
/// # Errors
/// [`Reason::Unreadable`] where the folder cannot be read.
pub fn drop_in(here: Here<'_>, folder: &Path, empty: bool) -> Result<Vec<Received>, Refused> {
    let io =
        |e: std::io::Error| Refused::io(Reason::Unreadable, format!("cannot read the folder {}", folder.display()), &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)?.take(MAX_ENTRIES) {
        let entry = entry.map_err(io)?;
        let plain = entry.file_type().is_ok_and(|t| t.is_file());
        let named = entry.file_name().to_str().is_some_and(|n| n.ends_with(DROP_SUFFIX) && !n.starts_with('.'));
        if plain && (named || empty) {
            names.push(entry.path());
        }
    }
    names.sort();
    if names.len() > MAX_TAKEN {
        log::warn!("{} has {} bundles; the first {MAX_TAKEN} by name are taken", folder.display(), names.len());
    }
    let mut out = Vec::new();
    for from in names.into_iter().take(MAX_TAKEN) {
        if empty && !quiet(&from) {
            log::warn!("{} is still being written; it is left alone", from.display());
            continue;
        }
        let outcome = open(&from, false).and_then(|file| take(here, &from, file, true));
        // A full disk is no fault of the file.
        let stays = matches!(&outcome, Err(e) if e.reason == Reason::DiskFull);
        if empty
            && !stays
            && let Err(e) = std::fs::remove_file(&from)
        {
            log::error!("{} cannot be removed from the drop folder: {e}", from.display());
        }
        out.push(Received { from, outcome });
    }
    Ok(out)
}

/// Waits until a file has not changed for a while; false where it does not come to rest.
fn quiet(path: &Path) -> bool {
    let look = || std::fs::symlink_metadata(path).ok().map(|m| (m.len(), m.mtime(), m.mtime_nsec()));
    let mut seen = look();
    for _ in 0..QUIET_TRIES {
        std::thread::sleep(QUIET);
        let now = look();
        if now.is_some() && now == seen {
            return true;
        }
        seen = now;
    }
    false
}

fn take(here: Here<'_>, path: &Path, file: File, only_new: bool) -> Result<Arrival, Refused> {
    let folder = here.store.dir().join(bundles::FOLDER);
    let io = |e: std::io::Error| Refused::io(Reason::Unreadable, format!("cannot copy {}", path.display()), &e);
    std::fs::create_dir_all(&folder).map_err(io)?;
    // A start of the service removes files without a row, but not while this is held.
    let lock = super::open_lock(&super::lock_path(here.store)).map_err(io)?;
    lock.lock().map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if let Ok(s) = rustix::fs::statvfs(&folder) {
        let after = (s.f_bavail * s.f_frsize).saturating_sub(size);
        if after < here.config.storage.min_free_mb << 20 {
            return Err(Refused::new(
                Reason::DiskFull,
                format!(
                    "the disk has {} MiB left, storage.min_free_mb asks for {}",
                    after >> 20,
                    here.config.storage.min_free_mb
                ),
                "nothing was changed; free space on this disk and repeat",
            ));
        }
    }
    let mut part = tempfile::Builder::new().prefix("in-").suffix(bundles::PART).tempfile_in(&folder).map_err(io)?;
    let (sha256, size) = copy(file, part.as_file_mut(), path)?;
    part.as_file().sync_all().map_err(io)?;
    give_to_owner(&folder, part.path()).map_err(io)?;
    let sql = |e: StoreError| {
        let full = e.to_string().contains("full");
        let reason = if full { Reason::DiskFull } else { Reason::Unreadable };
        Refused::new(
            reason,
            format!("the bundle cannot be noted: {e}"),
            "nothing was changed; repeat once that is mended",
        )
    };
    let name = format!("{sha256}.bundle");
    let relative = format!("{}/{name}", bundles::FOLDER);
    let seen = here.store.with_conn(|c| bundles::of_file(c, &sha256)).map_err(sql)?;
    if let Some(known) = seen.filter(|b| only_new || b.state.under_way()) {
        return Ok(Arrival::Known(known));
    }
    let place = folder.join(&name);
    // The same bytes may lie there for a row that ended; they are the same after this too.
    let was_there = place.exists();
    part.persist(&place).map_err(|e| io(e.error))?;
    File::open(&folder).and_then(|f| f.sync_all()).map_err(io)?;
    // A record of trust that was begun anew knows nothing of it: then it is a bundle like any other.
    let remembered = |b: &Bundle| here.trust().load().is_ok_and(|t| t.committed(&b.name, &b.identity));
    if let Some(known) = here.store.with_conn(|c| bundles::committed_of_file(c, &sha256)).map_err(sql)?
        && remembered(&known)
    {
        return again(here, &known, &relative).map_err(sql)?;
    }
    let source: String = path
        .file_name()
        .map(|n| n.to_string_lossy().chars().filter(|c| !c.is_control()).take(100).collect())
        .unwrap_or_default();
    let noted = here.store.with_conn(|c| bundles::receive(c, &sha256, &relative, size, &source, here.now()));
    let named = noted.as_ref().is_ok_and(|a| !row(a).path.is_empty());
    if !named && !was_there {
        let _ = std::fs::remove_file(&place);
    }
    noted.map_err(sql)
}

/// The file of a bundle that was committed here came again, and lies in its place: whole, whatever had become of it there. Whether it
/// is to serve again is for a person to say.
fn again(here: Here<'_>, known: &Bundle, relative: &str) -> Result<Result<Arrival, Refused>, StoreError> {
    let now = here.now();
    let (known, serving, title) = here.store.with_conn(|c| {
        bundles::keep_file(c, known.id, relative, now)?;
        let serving = bundles::serving(c)?.and_then(|s| s.bundle_id);
        let title = serving.map(|id| bundles::get(c, id)).transpose()?.flatten().map(|b| b.title());
        Ok((bundles::get(c, known.id)?.unwrap_or_else(|| known.clone()), serving, title))
    })?;
    if known.state == State::Committed && serving != Some(known.id) {
        return Ok(Err(Refused::new(
            Reason::OlderVersion,
            format!(
                "{} was committed here before, and {} serves now",
                known.title(),
                title.as_deref().unwrap_or("the configuration's adapter")
            ),
            format!("to let it serve again, use the box's own rollback: `{}`", known.rollback()),
        )));
    }
    Ok(Ok(Arrival::Known(known)))
}

fn copy(file: File, to: &mut File, path: &Path) -> Result<(String, u64), Refused> {
    let mut from = file.take(MAX_BUNDLE + 1);
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    let mut chunk = vec![0u8; CHUNK];
    loop {
        let n = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Refused::io(Reason::Unreadable, format!("cannot read {}", path.display()), &e)),
        };
        size += n as u64;
        if size > MAX_BUNDLE {
            return Err(too_large(path));
        }
        hash.update(&chunk[..n]);
        to.write_all(&chunk[..n])
            .map_err(|e| Refused::io(Reason::Unreadable, "cannot write the bundle to this disk", &e))?;
    }
    Ok((hex::encode(hash.finalize()), size))
}

/// A command that root runs must leave files that the service's own user can read: bundles and the record of trust.
pub(crate) fn give_state_to_owner(state_dir: &Path) {
    for folder in [bundles::FOLDER, "trust"].map(|f| state_dir.join(f)) {
        let inside = std::fs::read_dir(&folder).into_iter().flatten().filter_map(|e| e.ok().map(|e| e.path()));
        for path in std::iter::once(folder.clone()).chain(inside) {
            if let Err(e) = give_to_owner(state_dir, &path)
                && path.exists()
            {
                log::warn!("{} cannot be given to the service's user: {e}", path.display());
            }
        }
    }
}

/// Gives a file to the owner of a folder, where root made it.
fn give_to_owner(folder: &Path, file: &Path) -> std::io::Result<()> {
    let (of, own) = (std::fs::metadata(folder)?, std::fs::metadata(file)?);
    if (of.uid(), of.gid()) != (own.uid(), own.gid()) && rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(file, Some(of.uid()), Some(of.gid()))?;
    }
    Ok(())
}

/// The row of an arrival.
pub(crate) fn row(arrival: &Arrival) -> &Bundle {
    match arrival {
        Arrival::New(b) | Arrival::Known(b) => b,
    }
}
