//! Part 10 files, written whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

use crate::dicom::net::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME};

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object could not be encoded.
    #[error("cannot encode the {what}: {cause}")]
    Encode {
        /// Which object.
        what: String,
        /// The library's words.
        cause: String,
    },
    /// The file could not be written.
    #[error("cannot write {}: {cause}; check free space and permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
}

/// Writes an object as Explicit VR Little Endian: to a temporary file, synced, renamed, and the folder synced, so that a
/// row that names the file never names half of one.
///
/// # Errors
/// [`WriteError`].
pub fn write_atomically(object: &InMemDicomObject, path: &Path) -> Result<(), WriteError> {
    let encode = |cause: String| WriteError::Encode { what: path.display().to_string(), cause };
    let io = |cause| WriteError::Io { path: path.to_path_buf(), cause };
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax("1.2.840.10008.1.2.1")
        .implementation_class_uid(IMPLEMENTATION_CLASS_UID)
        .implementation_version_name(IMPLEMENTATION_VERSION_NAME);
    let file = object.clone().with_meta(meta).map_err(|e| encode(e.to_string()))?;
    let mut bytes = Vec::new();
    file.write_all(&mut bytes).map_err(|e| encode(e.to_string()))?;
    write_bytes(&bytes, path).map_err(io)
}

/// Writes any bytes the same way.
pub(crate) fn write_bytes(bytes: &[u8], path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}
