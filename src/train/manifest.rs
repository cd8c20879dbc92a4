//! The manifest: which volumes, which label file belongs to each, which of its segments are which structures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::labels::{LabelError, LabelImage};
use crate::pipeline::LegError;
use crate::terms::{STRUCTURE_KEYS, Side};

/// Largest manifest that is read, bytes.
const MAX_BYTES: u64 = 8 << 20;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The manifest could not be read.
    #[error("manifest {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The manifest is not understood.
    #[error("manifest {}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A volume's images could not be loaded.
    #[error("volume {volume}: images {}: {problem}", path.display())]
    Images {
        /// Name in the manifest.
        volume: String,
        /// The folder.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A volume's labels could not be used.
    #[error("volume {volume}: {source}")]
    Labels {
        /// Name in the manifest.
        volume: String,
        /// Why.
        source: LabelError,
    },
    /// No leg was found.
    #[error("volume {volume}: {source}")]
    Legs {
        /// Name in the manifest.
        volume: String,
        /// Why.
        source: LegError,
    },
    /// An entry contradicts itself or its data.
    #[error("volume {volume}: {problem}")]
    Volume {
        /// Name in the manifest.
        volume: String,
        /// What is wrong.
        problem: String,
    },
    /// No labelled slice is left for training.
    #[error(
        "the manifest leaves no labelled slice to train on: give at least one volume `use = \"train\"` and `slices`"
    )]
    Empty,
}

/// What a volume is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// Its labelled slices are trained on; it is not evaluated.
    #[default]
    Train,
    /// It is evaluated only.
    Test,
    /// Its labelled slices are trained on, its other slices are evaluated.
    Both,
    /// Its slices are looked at without labels: pseudo-labels are learnt from.
    Unlabelled,
}

impl Use {
    /// Whether slices of the volume are evaluated.
    pub fn tested(self) -> bool {
        matches!(self, Use::Test | Use::Both)
    }
}

/// One volume of the manifest.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name in messages and tables; default: the folder's.
    #[serde(default)]
    pub name: String,
    /// Folder of the DICOM images.
    pub images: Option<PathBuf>,
    /// Label file: NRRD, seg.nrrd, NIfTI (.nii, .nii.gz) or DICOM SEG.
    pub labels: Option<PathBuf>,
    /// Instead of images and labels: the seed of a phantom.
    pub phantom: Option<u64>,
    /// Segment of the label file (number or name) to structure key; several may name one structure. Segments that are not
    /// listed are recognised by their name or code.
    #[serde(default)]
    pub map: BTreeMap<String, String>,
    /// Where the first voxel of a cropped label grid lies in the image: column, row, slice.
    pub offset: Option<[i64; 3]>,
    /// Labelled slices (from 0, in order of position along the slice normal); default: all.
    pub slices: Option<Vec<usize>>,
    /// The leg that is labelled; default: every leg found.
    pub side: Option<Side>,
    /// What it is for.
    #[serde(default, rename = "use")]
    pub usage: Use,
}

impl Entry {
    /// What tells its series from another's: the folder of its images, however it is written, or the phantom's seed.
    pub fn series(&self) -> String {
        match &self.images {
            Some(folder) => folder.canonicalize().unwrap_or_else(|_| folder.clone()).display().to_string(),
            None => format!("phantom {}", self.phantom.unwrap_or_default()),
        }
    }

    fn lists(&self, slice: usize) -> bool {
        self.slices.as_ref().is_none_or(|s| s.contains(&slice))
    }

    /// Whether it trains on the labels of this slice.
    pub fn trains(&self, slice: usize) -> bool {
        matches!(self.usage, Use::Train | Use::Both) && self.lists(slice)
    }

    /// Whether this slice is evaluated.
    pub fn tests(&self, slice: usize) -> bool {
        match self.usage {
            Use::Test => self.lists(slice),
            Use::Both => !self.lists(slice),
            Use::Train | Use::Unlabelled => false,
        }
    }

    /// Whether training looks at this slice without its labels.
    pub fn looks(&self, slice: usize) -> bool {
        match self.usage {
            Use::Train => !self.lists(slice),
            Use::Unlabelled => self.lists(slice),
            Use::Test | Use::Both => false,
        }
    }
}

/// A data set description.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// A sentence for people, kept in the adapter: what the data are.
    #[serde(default)]
    pub note: String,
    /// Structures of the task, in order; the command line goes before it.
    #[serde(default)]
    pub structures: Vec<String>,
    /// The volumes.
    pub volume: Vec<Entry>,
}

impl Manifest {
    /// Reads a manifest; relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`DatasetError::Io`], [`DatasetError::Format`].
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        let io = |source| DatasetError::Io { path: path.into(), source };
        let format = |problem: String| DatasetError::Format { path: path.into(), problem };
        if std::fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
            return Err(format("larger than 8 MiB".into()));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let mut manifest: Manifest = toml::from_str(&text).map_err(|e| format(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for (i, e) in manifest.volume.iter_mut().enumerate() {
            if let Some(p) = &mut e.images {
                *p = folder.join(&*p);
            }
            if let Some(p) = &mut e.labels {
                *p = folder.join(&*p);
            }
            if e.name.is_empty() {
                let folder = e.images.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
                e.name = folder.unwrap_or_else(|| format!("volume {}", i + 1));
            }
            match (&e.images, &e.labels, e.phantom) {
                (Some(_), Some(_), None) => {}
                (Some(_), None, None) if e.usage == Use::Unlabelled => {}
                (None, None, Some(_)) if e.map.is_empty() && e.offset.is_none() => {}
                _ => {
                    return Err(format(format!(
                        "volume {}: needs either `images` and `labels`, or `phantom` alone",
                        e.name
                    )));
                }
            }
            if e.usage == Use::Both && e.slices.is_none() {
                return Err(format(format!("volume {}: `use = \"both\"` needs `slices` to train on", e.name)));
            }
        }
        if manifest.volume.is_empty() {
            return Err(format("lists no [[volume]]".into()));
        }
        manifest.apart().map_err(format)?;
        Ok(manifest)
    }

    /// [`Entry::series`] of each volume.
    pub(super) fn series(&self) -> Vec<String> {
        self.volume.iter().map(Entry::series).collect()
    }

    /// A slice that one entry trains on and another tests would flatter the test.
    fn apart(&self) -> Result<(), String> {
        let series = self.series();
        for (learnt, own) in self.volume.iter().zip(&series) {
            for (tested, _) in self.volume.iter().zip(&series).filter(|(_, s)| *s == own) {
                // One number stands for all that neither of the two lists.
                let listed = [learnt, tested].into_iter().filter_map(|e| e.slices.as_ref()).flatten().copied();
                if let Some(z) = listed.chain([usize::MAX]).find(|&z| learnt.trains(z) && tested.tests(z)) {
                    let slice = if z == usize::MAX { "slices".into() } else { format!("slice {z}") };
                    return Err(format!(
                        "{slice} of {own} is trained on by the entry {:?} and tested by {:?}: list it in one of them",
                        learnt.name, tested.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// The slices of entry `i`, of those that it looks at without labels, that no other entry of its series trains on, tests, or looks
    /// at before it: what is tested is not looked at while training, and what is labelled is not guessed.
    /// `series` is [`Manifest::series`].
    pub(super) fn unseen(&self, i: usize, series: &[String], slices: &[usize]) -> Vec<usize> {
        let others = || self.volume.iter().enumerate().filter(|(j, _)| *j != i && series[*j] == series[i]);
        let own = self.volume[i].side;
        // Labels of the other leg say nothing of this one's.
        let legs = |o: &Entry| own.is_none() || o.side.is_none() || o.side == own;
        let told = |z: usize| others().any(|(j, o)| o.tests(z) || (legs(o) && (o.trains(z) || (j < i && o.looks(z)))));
        slices.iter().copied().filter(|&z| !told(z)).collect()
    }

    /// Every structure key that the volumes' maps name or their label files' segments are recognised as, in the order of
    /// [`STRUCTURE_KEYS`] after those of the maps; phantoms name none. A label file that cannot be read names none here:
    /// loading it says why.
    pub fn mapped(&self) -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        let mut add = |key: &str| {
            if !keys.iter().any(|k| k == key) {
                keys.push(key.to_string());
            }
        };
        self.volume.iter().flat_map(|e| e.map.values()).for_each(|k| add(k));
        let mut named = Vec::new();
        for e in self.volume.iter().filter(|e| e.map.is_empty()) {
            let Some(Ok(image)) = e.labels.as_deref().map(LabelImage::load) else { continue };
            named.extend(image.segments.iter().filter_map(|s| Some(s.structure()?.key)));
        }
        STRUCTURE_KEYS.iter().filter(|k| named.contains(*k)).for_each(|k| add(k));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(volumes: &[&str]) -> Result<Manifest, DatasetError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.toml");
        std::fs::write(&path, volumes.iter().map(|v| format!("[[volume]]\n{v}\n")).collect::<String>()).unwrap();
        Manifest::load(&path)
    }

    #[test]
    fn what_another_entry_labels_or_tests_is_not_looked_at_without_labels() {
        let m = manifest(&[
            "phantom = 1\nslices = [4]",
            "phantom = 1\nslices = [9]\nuse = \"test\"",
            "phantom = 1\nuse = \"unlabelled\"",
            "phantom = 2\nuse = \"unlabelled\"\nslices = [0, 1]",
            "phantom = 2\nuse = \"unlabelled\"\nslices = [1, 2]",
            "phantom = 3\nuse = \"test\"",
            "phantom = 3\nuse = \"unlabelled\"",
        ])
        .unwrap();
        let series = m.series();
        let all: Vec<usize> = (0..12).collect();
        let rest: Vec<usize> = all.iter().copied().filter(|z| *z != 4).collect();
        // The rest of a labelled volume, without what is tested, and each slice once.
        assert_eq!(m.unseen(0, &series, &rest), rest.iter().copied().filter(|z| *z != 9).collect::<Vec<_>>());
        assert_eq!(m.unseen(2, &series, &all), [0usize; 0]);
        assert_eq!(m.unseen(3, &series, &[0, 1]), [0, 1]);
        assert_eq!(m.unseen(4, &series, &[1, 2]), [2]);
        assert_eq!(m.unseen(6, &series, &all), [0usize; 0]);
        // Each leg labelled by itself: both are looked at.
        let m = manifest(&[
            "phantom = 1\nslices = [4]\nside = \"right\"",
            "phantom = 1\nslices = [5]\nside = \"left\"",
            "phantom = 1\nuse = \"unlabelled\"\nslices = [4, 6]",
        ])
        .unwrap();
        let series = m.series();
        assert_eq!(m.unseen(0, &series, &[5, 6]), [5, 6]);
        assert_eq!(m.unseen(1, &series, &[4, 6]), [4, 6]);
        assert_eq!(m.unseen(2, &series, &[4, 6]), [0usize; 0]);
    }

    #[test]
    fn a_slice_is_trained_on_or_tested_and_not_both() {
        for (learnt, tested, slice) in [
            ("slices = [2, 7]", "slices = [7]\nuse = \"test\"", "slice 7"),
            ("slices = [2]", "use = \"test\"", "slice 2"),
            ("", "slices = [3]\nuse = \"test\"", "slice 3"),
            ("", "use = \"test\"", "slices"),
            ("slices = [2]\nuse = \"both\"", "slices = [3]\nuse = \"both\"", "slice 2"),
        ] {
            let of = |e: &str| format!("name = \"n\"\nphantom = 5\n{e}");
            let refused = manifest(&[&of(learnt), &of(tested)]).unwrap_err().to_string();
            assert!(
                refused.contains(slice) && refused.contains("phantom 5") && refused.contains("in one"),
                "{refused}"
            );
        }
        // Each leg labelled in a file of its own, other slices tested.
        assert!(
            manifest(&["phantom = 5\nslices = [2]\nside = \"right\"", "phantom = 5\nslices = [2]\nside = \"left\""])
                .is_ok()
        );
        assert!(manifest(&["phantom = 5\nslices = [2]", "phantom = 5\nslices = [7]\nuse = \"test\""]).is_ok());
        assert!(manifest(&["phantom = 5\nslices = [2]\nuse = \"both\""]).is_ok());
    }
}
