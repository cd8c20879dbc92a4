//! Folders and plans into decoded volumes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::assemble::{AssembleOptions, SeriesPlan, assemble};
use super::refusal::Refusal;
use crate::dicom::read::{InstanceHeader, Limits, ReadCause, ReadError, decode_frames_with, read_header};
use crate::image::Volume;

/// Why a series could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// A folder could not be listed.
    #[error("{}: cannot be listed: {cause}; name an existing folder of DICOM files", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// No DICOM image below the folder.
    #[error("{}: no DICOM image among {files} file(s); name a folder of one series", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Files looked at.
        files: usize,
    },
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The series is not a volume.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Where a slice came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSource {
    /// SOP Class UID.
    pub sop_class_uid: String,
    /// SOP Instance UID.
    pub sop_instance_uid: String,
    /// Frame number in the instance, from 1.
    pub frame: u32,
    /// Whether the instance is multi-frame (a reference to it then names the frame).
    pub multi_frame: bool,
    /// The file.
    pub path: PathBuf,
}

/// A decoded series.
#[derive(Clone, Debug)]
pub struct SeriesVolume {
    /// Values after rescale on the grid, slices along the normal.
    pub volume: Volume,
    /// The source of each slice, in volume order.
    pub slices: Vec<SliceSource>,
    /// The header of the first slice's instance: what results copy (patient, study, frame of reference, equipment).
    pub header: InstanceHeader,
    /// What sets the contrast apart where the series has several; else empty.
    pub contrast: String,
    /// Sentences a reader should see.
    pub remarks: Vec<String>,
    /// Whether slices are missing.
    pub partial: bool,
}

/// Decodes the slices of a plan, in parallel, each instance read once.
///
/// # Errors
/// The first [`ReadError`].
pub fn load(plan: &SeriesPlan) -> Result<SeriesVolume, SeriesError> {
    let plane = plan.geometry.plane();
    let limits = Limits::default();
    let bytes = (plan.geometry.voxels() as u64).saturating_mul(4);
    let Some(first) = plan.slices.first() else {
        return Err(Refusal::new("NO_IMAGES", "The series holds no image", "Send the images of the series").into());
    };
    if bytes > limits.max_pixel_bytes {
        let [columns, rows, frames] = plan.geometry.dims.map(|d| d as u64);
        let cause = ReadCause::TooManyPixels { columns, rows, frames, bytes, limit: limits.max_pixel_bytes };
        return Err(ReadError::new(&first.header.path, cause).into());
    }
    // Slices of one file together, so that a multi-frame object is read once.
    let mut files: BTreeMap<&Path, Vec<(usize, u32)>> = BTreeMap::new();
    for (z, s) in plan.slices.iter().enumerate() {
        files.entry(&s.header.path).or_default().push((z, s.frame().number));
    }
    let decoded: Vec<Vec<(usize, Vec<f32>)>> = files
        .into_par_iter()
        .map(|(path, wanted)| {
            let numbers: Vec<u32> = wanted.iter().map(|w| w.1).collect();
            let (_, frames) = decode_frames_with(path, Some(&numbers), &limits)?;
            Ok(wanted.iter().zip(frames).map(|((z, _), f)| (*z, f.rescaled())).collect())
        })
        .collect::<Result<_, ReadError>>()?;
    let mut data = vec![0f32; plan.geometry.voxels()];
    for (z, values) in decoded.into_iter().flatten() {
        if values.len() != plane {
            let problem = "the file changed while it was read";
            let cause = ReadCause::Value { name: "Rows x Columns", value: values.len().to_string(), problem };
            return Err(ReadError::new(&plan.slices[z].header.path, cause).into());
        }
        data[z * plane..(z + 1) * plane].copy_from_slice(&values);
    }
    let slices = plan
        .slices
        .iter()
        .map(|s| SliceSource {
            sop_class_uid: s.header.sop_class_uid.clone(),
            sop_instance_uid: s.header.sop_instance_uid.clone(),
            frame: s.frame().number,
            multi_frame: s.header.number_of_frames > 1 || s.header.is_enhanced(),
            path: s.header.path.clone(),
        })
        .collect();
    Ok(SeriesVolume {
        volume: Volume { geometry: plan.geometry.clone(), data },
        slices,
        header: (*first.header).clone(),
        contrast: plan.contrast.clone(),
        remarks: plan.remarks.clone(),
        partial: plan.partial,
    })
}

/// What lies below a folder.
#[derive(Debug, Default)]
pub struct Scan {
    /// Image headers by Series Instance UID.
    pub series: BTreeMap<String, Vec<InstanceHeader>>,
    /// Files that are not DICOM, or DICOM without pixels.
    pub skipped: usize,
    /// DICOM files that could not be read.
    pub broken: Vec<ReadError>,
}

/// Most files looked at below a folder.
const MOST_FILES: usize = 200_000;

/// Reads the headers of all DICOM files below a folder. Links are not followed.
///
/// # Errors
/// [`SeriesError::Folder`] where a folder cannot be listed.
pub fn scan_dir(dir: &Path) -> Result<Scan, SeriesError> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    let mut skipped = 0;
    while let Some(folder) = folders.pop() {
        let fail = |cause| SeriesError::Folder { path: folder.clone(), cause };
        for entry in std::fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let kind = entry.file_type().map_err(fail)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && files.len() < MOST_FILES {
                files.push(entry.path());
            } else {
                skipped += 1;
            }
        }
    }
    files.sort();
    let headers: Vec<Result<InstanceHeader, ReadError>> = files.par_iter().map(|p| read_header(p)).collect();
    let mut scan = Scan { skipped, ..Scan::default() };
    for h in headers {
        match h {
            Ok(h) if h.has_pixels => scan.series.entry(h.series_uid.clone()).or_default().push(h),
            Ok(_) | Err(ReadError { cause: ReadCause::NotDicom, .. }) => scan.skipped += 1,
            Err(e) => scan.broken.push(e),
        }
    }
    Ok(scan)
}

/// Loads the one series below a folder. Files that are not DICOM images are skipped, and a remark says how many.
///
/// # Errors
/// [`SeriesError`]; more than one series is a refusal (`MIXED_SERIES`).
pub fn load_dir(dir: &Path) -> Result<SeriesVolume, SeriesError> {
    let mut scan = scan_dir(dir)?;
    if let Some(broken) = scan.broken.pop() {
        return Err(broken.into());
    }
    if scan.series.len() > 1 {
        let refusal = Refusal::new(
            "MIXED_SERIES",
            format!("{} holds {} series", dir.display(), scan.series.len()),
            "Name a folder of one series",
        );
        return Err(refusal.into());
    }
    let Some((_, headers)) = scan.series.pop_first() else {
        return Err(SeriesError::Empty { path: dir.to_path_buf(), files: scan.skipped });
    };
    let mut series = load(&assemble(&headers, &AssembleOptions::default())?)?;
    if scan.skipped > 0 {
        series.remarks.push(format!("{} file(s) that are not DICOM images were skipped", scan.skipped));
    }
    Ok(series)
}
