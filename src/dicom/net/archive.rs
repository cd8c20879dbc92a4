//! A small archive for demonstrations and tests: takes every storage class into a folder.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::negotiate::{Acceptor, Callers, Classes};
use super::part10;
use super::scp::{Incoming, Parents, ScpOptions, Sink, StoreRequest};
use super::status::{OUT_OF_RESOURCES, Refusal};

/// An archive that takes everything from anybody: for loopback only.
pub fn open_to_all(ae_title: &str) -> ScpOptions {
    ScpOptions {
        acceptor: Acceptor {
            ae_title: ae_title.into(),
            callers: Callers::Anybody,
            classes: Classes::AnyStorage,
            max_pdu: 256 * 1024,
        },
        max_associations: 8,
        idle: Duration::from_secs(60),
        max_object: 1 << 30,
        first_association: 1,
    }
}

/// An object that the archive took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// SOP class.
    pub sop_class: String,
    /// SOP instance.
    pub sop_instance: String,
    /// Its study and series.
    pub parents: Parents,
    /// Its file.
    pub path: PathBuf,
}

/// A [`Sink`] that writes numbered DICOM files into a folder and remembers what it took.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    taken: Arc<Mutex<Vec<Taken>>>,
    next: Mutex<u64>,
}

impl Folder {
    /// A sink into `dir`, which is made.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(dir: &Path) -> std::io::Result<Folder> {
        std::fs::create_dir_all(dir)?;
        Ok(Folder { dir: dir.to_path_buf(), taken: Arc::default(), next: Mutex::new(1) })
    }

    /// What was taken so far, in order.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Writing {
    file: File,
    temporary: PathBuf,
    taken: Arc<Mutex<Vec<Taken>>>,
    entry: Taken,
    done: bool,
}

fn refusal(e: std::io::Error) -> Refusal {
    Refusal::new(OUT_OF_RESOURCES, format!("cannot write: {}", e.kind()))
}

impl Sink for Folder {
    fn begin(&self, request: &StoreRequest) -> Result<Box<dyn Incoming>, Refusal> {
        let number = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        let path = self.dir.join(format!("{number:05}.dcm"));
        let temporary = self.dir.join(format!("{number:05}.part"));
        let mut file = File::create(&temporary).map_err(refusal)?;
        let head = part10::head(&request.sop_class, &request.sop_instance, &request.transfer_syntax);
        file.write_all(&head).map_err(refusal)?;
        let entry = Taken {
            sop_class: request.sop_class.clone(),
            sop_instance: request.sop_instance.clone(),
            parents: Parents { study: String::new(), series: String::new() },
            path,
        };
        Ok(Box::new(Writing { file, temporary, taken: self.taken.clone(), entry, done: false }))
    }
}

impl Incoming for Writing {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.file.write_all(bytes).map_err(refusal)
    }

    fn finish(mut self: Box<Self>, parents: &Parents) -> Result<(), Refusal> {
        std::fs::rename(&self.temporary, &self.entry.path).map_err(refusal)?;
        self.done = true;
        self.entry.parents = parents.clone();
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(self.entry.clone());
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
