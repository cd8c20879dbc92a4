//! The record of trust on disk: `trust/state.json` in the state folder, replaced as a whole or not at all.
//!
//! A change is written to a file beside it and synced, renamed over it, and the folder is synced. A crash before the rename leaves
//! the old record, one after it the new: never half of one. Changes are made under a lock on `trust/lock`, from what is on disk
//! at that moment, so that the service and a command never undo each other; one that would lower a root, a version or the latest
//! time is refused. The record carries its own sha256: a damaged one is refused rather than begun anew, which would forget
//! everything that must not be forgotten.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::envelope::{Signed, canonical};
use super::root::Root;
use super::state::TrustState;
use crate::adapter::{Reason, Refused};

/// Largest record that is read, bytes.
const MAX_RECORD: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    sha256: String,
    state: TrustState,
}

/// Where the record lies.
#[derive(Clone, Debug)]
pub struct TrustStore {
    folder: PathBuf,
}

impl TrustStore {
    /// The record in a state folder (`storage.state_dir`); nothing is read yet.
    pub fn new(state_dir: &Path) -> Self {
        TrustStore { folder: state_dir.join("trust") }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`Reason::NoRoot`] before [`TrustStore::init`], [`Reason::TrustDamaged`], [`Reason::TrustUnwritable`].
    pub fn load(&self) -> Result<TrustState, Refused> {
        let path = self.path();
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|f| f.take(MAX_RECORD + 1).read_to_end(&mut bytes));
        if let Err(e) = read {
            if e.kind() == std::io::ErrorKind::NotFound {
                return Err(Refused::new(
                    Reason::NoRoot,
                    format!("this box trusts nobody yet: there is no {}", path.display()),
                    "give it the root of your training host once: `scanside keys trust 1.root.json`",
                ));
            }
            return Err(Refused::io(Reason::TrustUnwritable, format!("record of trust {}", path.display()), &e));
        }
        let damaged = |what: String| {
            Refused::new(
                Reason::TrustDamaged,
                format!("the record of trust {} is damaged: {what}", path.display()),
                "restore it from a backup that is no older than the last update, or move it away and begin anew with \
                 `scanside keys trust` (the box then forgets which versions it has had)",
            )
        };
        if bytes.len() as u64 > MAX_RECORD {
            return Err(damaged("too large".into()));
        }
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if record.sha256 != hex::encode(Sha256::digest(canonical(&record.state))) {
            return Err(damaged("its sha256 does not fit".into()));
        }
        match record.state.problem() {
            Some(problem) => Err(damaged(problem)),
            None => Ok(record.state),
        }
    }

    /// Gives the box its first root. One that trusts already is left as it is.
    ///
    /// # Errors
    /// [`Reason::TrustConflict`] where there is a record; as for writing.
    pub fn init(&self, root: Signed<Root>, now_ms: i64) -> Result<TrustState, Refused> {
        let _lock = self.lock()?;
        match self.load() {
            Err(e) if e.reason == Reason::NoRoot => {}
            Err(e) => return Err(e),
            Ok(state) => {
                return Err(Refused::new(
                    Reason::TrustConflict,
                    format!("this box already trusts root {}", state.root.signed.version),
                    "newer roots are taken as updates; to begin anew, move the folder `trust` away",
                ));
            }
        }
        let state = TrustState::new(root, now_ms);
        self.write(&state)?;
        Ok(state)
    }

    /// Changes the record: reads it, applies `change`, and makes the result durable before it returns.
    ///
    /// # Errors
    /// As [`TrustStore::load`]; [`Reason::TrustConflict`] where something would go back; [`Reason::DiskFull`],
    /// [`Reason::TrustUnwritable`]. The record is then as it was.
    pub fn update(&self, change: impl FnOnce(&mut TrustState)) -> Result<TrustState, Refused> {
        self.replace(change, false)
    }

    /// Sets the latest time seen, also back: for a person who knows that it was wrong.
    ///
    /// # Errors
    /// As [`TrustStore::update`].
    pub fn set_clock(&self, now_ms: i64) -> Result<TrustState, Refused> {
        self.replace(|s| s.latest_ms = now_ms, true)
    }

    fn replace(&self, change: impl FnOnce(&mut TrustState), clock: bool) -> Result<TrustState, Refused> {
        let _lock = self.lock()?;
        let old = self.load()?;
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            return Ok(old);
        }
        new.serial = old.serial.saturating_add(1);
        if let Some(what) = old.backwards(&new, clock).or_else(|| new.problem()) {
            return Err(Refused::new(Reason::TrustConflict, what, "nothing was changed; report this"));
        }
        self.write(&new)?;
        Ok(new)
    }

    fn lock(&self) -> Result<File, Refused> {
        let unwritable =
            |e: std::io::Error| Refused::io(Reason::TrustUnwritable, format!("folder {}", self.folder.display()), &e);
        std::fs::create_dir_all(&self.folder).map_err(unwritable)?;
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join("lock"));
        let file = file.map_err(unwritable)?;
        like_parent(&self.folder);
        like_parent(&self.folder.join("lock"));
        file.lock().map_err(unwritable)?;
        Ok(file)
    }

    fn write(&self, state: &TrustState) -> Result<(), Refused> {
        let record = Record { sha256: hex::encode(Sha256::digest(canonical(state))), state: state.clone() };
        write_durably(&self.path(), &canonical(&record)).map_err(|e| {
            Refused::io(Reason::TrustUnwritable, format!("record of trust {}", self.path().display()), &e)
        })?;
        like_parent(&self.path());
        Ok(())
    }
}

/// Gives a file or folder to the owner of the folder that it lies in: what an administrator's command made must be the service's.
/// Without the right to do so nothing changes, and the service says what it cannot write.
fn like_parent(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        let parent = path.parent().map(std::fs::metadata);
        let (Some(Ok(parent)), Ok(own)) = (parent, std::fs::metadata(path)) else { return };
        if (own.uid(), own.gid()) != (parent.uid(), parent.gid())
            && let Err(e) = chown(path, Some(parent.uid()), Some(parent.gid()))
        {
            log::debug!("{} keeps its owner: {e}", path.display());
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// Replaces a file: synced beside its place, renamed there, and the folder synced.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    // A temporary file is private; these are read by the service's own user.
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}
