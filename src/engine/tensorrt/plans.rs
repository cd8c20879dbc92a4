//! Plans on disk: one file each beside a record of what it is for, and the timing cache of this GPU.
//!
//! A plan runs on the TensorRT version and the GPU that it was built with and nowhere else, so both are in its key, with the graph's
//! bytes, its precision and LoRA's rank. A key that is not there is no error of the disk: it says what is there instead.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Platform;

/// Largest plan, bytes; ours have up to 60 MB.
const MOST_PLAN: u64 = 2 << 30;
/// Largest record, bytes.
const MOST_RECORD: u64 = 1 << 20;
/// Most records that are looked at.
const MOST_RECORDS: usize = 4096;
/// Largest timing cache, bytes.
const MOST_TIMING: u64 = 256 << 20;

/// Why a plan cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} {problem}; build it again with `scanside engine build --force`", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is none.
    #[error("no plan of the {graph} in {precision} for this machine is in {}{instead}", folder.display())]
    Missing {
        /// The graph.
        graph: String,
        /// The precision.
        precision: String,
        /// The folder.
        folder: PathBuf,
        /// What is there instead, as a clause, or nothing.
        instead: String,
    },
}

/// What a plan is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanKey {
    /// Product and version, e.g. `TensorRT 10.3.0`.
    pub library: String,
    /// The GPU's name.
    pub gpu: String,
    /// Its compute capability, e.g. `8.7`.
    pub capability: String,
    /// `encoder`, `classifier`, `decoder`.
    pub graph: String,
    /// sha256 of the ONNX, hex.
    pub onnx_sha256: String,
    /// `fp32`, `fp16`, `int8`.
    pub precision: String,
    /// Rank that LoRA's factors are padded to.
    pub rank: usize,
}

impl PlanKey {
    /// The key of a graph on this machine.
    pub fn new(platform: &Platform, graph: &str, onnx: &[u8], precision: &str, rank: usize) -> Self {
        let (major, minor) = platform.gpu.capability();
        PlanKey {
            library: platform.library.product(),
            gpu: platform.gpu.name().into(),
            capability: format!("{major}.{minor}"),
            graph: graph.into(),
            onnx_sha256: hex::encode(Sha256::digest(onnx)),
            precision: precision.into(),
            rank,
        }
    }

    /// What names its files.
    fn stem(&self) -> String {
        let mut hash = Sha256::new();
        let rank = self.rank.to_string();
        for part in [&self.library, &self.gpu, &self.capability, &self.graph, &self.onnx_sha256, &self.precision, &rank]
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let word = |s: &str| s.chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect::<String>();
        format!("{}-{}-{}", word(&self.graph), word(&self.precision), &hex::encode(hash.finalize())[..16])
    }

    /// What differs from another key for the same part, in words; most telling first.
    fn differs(&self, other: &PlanKey) -> String {
        if self.library != other.library {
            format!("one for {} is, and this is {}", other.library, self.library)
        } else if (&self.gpu, &self.capability) != (&other.gpu, &other.capability) {
            format!("one for {} is, and this is {}", other.gpu, self.gpu)
        } else if self.precision != other.precision {
            format!("one in {} is", other.precision)
        } else if self.rank != other.rank {
            format!("one for LoRA up to rank {} is, and {} is wanted", other.rank, self.rank)
        } else {
            "one of another graph is: the program, the base weights, the adapter's shapes or its input size changed"
                .into()
        }
    }
}

/// A plan's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRecord {
    /// What it is for.
    pub key: PlanKey,
    /// sha256 of the plan, hex.
    pub plan_sha256: String,
    /// Its size.
    pub bytes: u64,
    /// When it came here, Unix milliseconds.
    pub made_ms: i64,
    /// How long building took; 0 where it was built elsewhere.
    pub seconds: f64,
    /// `built` here, or `added` from a file.
    pub origin: String,
    /// Version of this program.
    pub program: String,
}

/// The folder of plans.
#[derive(Clone, Debug)]
pub struct Plans {
    folder: PathBuf,
}

impl Plans {
    /// The folder; it need not exist.
    pub fn new(folder: &Path) -> Self {
        Plans { folder: folder.into() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every record, the newest first; of one that cannot be read, why.
    ///
    /// # Errors
    /// [`PlanError::Io`]: the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Result<PlanRecord, PlanError>>, PlanError> {
        let io = |source| PlanError::Io { path: self.folder.clone(), source };
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io(e)),
        };
        let mut all = Vec::new();
        for entry in entries.take(MOST_RECORDS) {
            let path = entry.map_err(io)?.path();
            if path.to_str().is_some_and(|p| p.ends_with(".plan.json")) {
                all.push(read_record::<PlanRecord>(&path));
            }
        }
        all.sort_by_key(|r| std::cmp::Reverse(r.as_ref().map_or(i64::MIN, |r| r.made_ms)));
        Ok(all)
    }

    /// The plan of a key, held against its record.
    ///
    /// # Errors
    /// [`PlanError::Missing`] with what is there instead, [`PlanError::Broken`], [`PlanError::Io`].
    pub fn read(&self, key: &PlanKey) -> Result<(PlanRecord, Vec<u8>), PlanError> {
        let record_path = self.folder.join(format!("{}.plan.json", key.stem()));
        if !record_path.exists() {
            return Err(self.missing(key));
        }
        let record: PlanRecord = read_record(&record_path)?;
        let path = self.folder.join(format!("{}.plan", key.stem()));
        let broken = |problem: String| PlanError::Broken { path: path.clone(), problem };
        if record.key != *key {
            return Err(broken("has a record of another plan".into()));
        }
        let plan = read_bounded(&path, MOST_PLAN)?;
        if hex::encode(Sha256::digest(&plan)) != record.plan_sha256 {
            return Err(broken(format!("is not what its record says: {} bytes of {}", plan.len(), record.bytes)));
        }
        Ok((record, plan))
    }

    fn missing(&self, key: &PlanKey) -> PlanError {
        let all = self.list().unwrap_or_default();
        let nearest = all.iter().flatten().find(|r| r.key.graph == key.graph);
        let instead = nearest.map_or(String::new(), |r| format!(" ({})", key.differs(&r.key)));
        PlanError::Missing {
            graph: key.graph.clone(),
            precision: key.precision.clone(),
            folder: self.folder.clone(),
            instead,
        }
    }

    /// Keeps a plan: the file first, then its record, so that a record always has its plan.
    ///
    /// # Errors
    /// [`PlanError::Io`].
    pub fn keep(
        &self,
        key: &PlanKey,
        plan: &[u8],
        seconds: f64,
        origin: &str,
        now_ms: i64,
    ) -> Result<PlanRecord, PlanError> {
        let record = PlanRecord {
            key: key.clone(),
            plan_sha256: hex::encode(Sha256::digest(plan)),
            bytes: plan.len() as u64,
            made_ms: now_ms,
            seconds,
            origin: origin.into(),
            program: env!("CARGO_PKG_VERSION").into(),
        };
        self.write(&format!("{}.plan", key.stem()), plan)?;
        self.write_record(&format!("{}.plan.json", key.stem()), &record)?;
        Ok(record)
    }

    /// Seconds that building this graph took before, on this GPU where it was, else on another; none where it never was.
    pub fn estimate(&self, key: &PlanKey) -> Option<f64> {
        let all = self.list().ok()?;
        let fits = |r: &&PlanRecord| r.key.graph == key.graph && r.seconds > 0.0;
        let records: Vec<&PlanRecord> = all.iter().flatten().filter(fits).collect();
        let here = |r: &&&PlanRecord| (&r.key.gpu, &r.key.precision) == (&key.gpu, &key.precision);
        records.iter().find(here).or_else(|| records.first()).map(|r| r.seconds)
    }

    fn timing_name(key: &PlanKey) -> String {
        let id = Sha256::digest(format!("{}\n{}\n{}", key.library, key.gpu, key.capability));
        format!("timing-{}.cache", &hex::encode(id)[..16])
    }

    /// The timing cache of this GPU and library; empty where there is none.
    pub fn timing(&self, key: &PlanKey) -> Vec<u8> {
        read_bounded(&self.folder.join(Plans::timing_name(key)), MOST_TIMING).unwrap_or_default()
    }

    /// Keeps a timing cache.
    ///
    /// # Errors
    /// [`PlanError::Io`].
    pub fn keep_timing(&self, key: &PlanKey, cache: &[u8]) -> Result<(), PlanError> {
        if cache.is_empty() { Ok(()) } else { self.write(&Plans::timing_name(key), cache) }
    }

    /// What was remembered under a name, if it can be read.
    pub fn recall<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        read_record(&self.folder.join(name)).ok()
    }

    /// Remembers something under a name.
    ///
    /// # Errors
    /// [`PlanError::Io`].
    pub fn write_record<T: Serialize>(&self, name: &str, value: &T) -> Result<(), PlanError> {
        let path = self.folder.join(name);
        let json =
            serde_json::to_vec_pretty(value).map_err(|e| PlanError::Io { path, source: std::io::Error::other(e) })?;
        self.write(name, &json)
    }

    /// Whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PlanError> {
        let path = self.folder.join(name);
        let io = |source| PlanError::Io { path: path.clone(), source };
        std::fs::create_dir_all(&self.folder).map_err(io)?;
        // Readable by others: built by an administrator, read by the service.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(&self.folder).map_err(io)?;
        file.write_all(bytes).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path).map_err(|e| io(e.error))?;
        std::fs::File::open(&self.folder).and_then(|d| d.sync_all()).map_err(io)
    }
}

/// Reads a plan from anywhere, e.g. one that trtexec wrote.
///
/// # Errors
/// [`PlanError::Io`], [`PlanError::Broken`] where it is larger than any plan.
pub fn read_plan(path: &Path) -> Result<Vec<u8>, PlanError> {
    read_bounded(path, MOST_PLAN)
}

fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, PlanError> {
    let io = |source| PlanError::Io { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > most {
        return Err(PlanError::Broken {
            path: path.into(),
            problem: format!("has {bytes} bytes; {most} are the limit"),
        });
    }
    std::fs::read(path).map_err(io)
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T, PlanError> {
    let bytes = read_bounded(path, MOST_RECORD)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| PlanError::Broken { path: path.into(), problem: format!("is no record of a plan: {e}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PlanKey {
        PlanKey {
            library: "TensorRT 10.3.0".into(),
            gpu: "Orin".into(),
            capability: "8.7".into(),
            graph: "encoder".into(),
            onnx_sha256: "ab".repeat(32),
            precision: "fp16".into(),
            rank: 8,
        }
    }

    #[test]
    fn a_plan_is_found_by_its_whole_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let plans = Plans::new(&dir.path().join("engines"));
        let missing = |k: &PlanKey| plans.read(k).unwrap_err().to_string();
        assert!(missing(&key()).starts_with("no plan of the encoder in fp16 for this machine"), "{}", missing(&key()));
        plans.keep(&key(), b"a plan", 12.0, "built", 1).unwrap();
        assert_eq!(plans.read(&key()).unwrap().1, b"a plan");
        type Change = fn(&mut PlanKey);
        let changes: [(Change, &str); 6] = [
            (|k| k.library = "TensorRT 10.7.0".into(), "one for TensorRT 10.3.0 is, and this is TensorRT 10.7.0"),
            (|k| k.gpu = "Thor".into(), "one for Orin is, and this is Thor"),
            (|k| k.capability = "11.0".into(), "one for Orin"),
            (|k| k.precision = "int8".into(), "one in fp16 is"),
            (|k| k.rank = 16, "LoRA up to rank 8"),
            (|k| k.onnx_sha256 = "cd".repeat(32), "another graph"),
        ];
        for (change, says) in changes {
            let mut k = key();
            change(&mut k);
            assert!(missing(&k).contains(says), "{}", missing(&k));
        }
        assert_eq!(plans.estimate(&key()), Some(12.0));
        let mut other = key();
        other.graph = "decoder".into();
        assert_eq!(plans.estimate(&other), None);
    }

    #[test]
    fn what_was_changed_on_the_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let plans = Plans::new(dir.path());
        plans.keep(&key(), b"a plan", 12.0, "built", 1).unwrap();
        let plan = dir.path().join(format!("{}.plan", key().stem()));
        std::fs::write(&plan, b"a plaN").unwrap();
        assert!(plans.read(&key()).unwrap_err().to_string().contains("is not what its record says"));
        std::fs::remove_file(&plan).unwrap();
        assert!(matches!(plans.read(&key()).unwrap_err(), PlanError::Io { .. }));
        let record = dir.path().join(format!("{}.plan.json", key().stem()));
        for junk in [&b"{"[..], b"{}", b"\xff\xff"] {
            std::fs::write(&record, junk).unwrap();
            assert!(matches!(plans.read(&key()).unwrap_err(), PlanError::Broken { .. }));
            assert_eq!(plans.list().unwrap().len(), 1);
        }
    }

    #[test]
    fn timing_caches_are_kept_apart_by_gpu_and_library() {
        let dir = tempfile::tempdir().unwrap();
        let plans = Plans::new(dir.path());
        assert!(plans.timing(&key()).is_empty());
        plans.keep_timing(&key(), b"times").unwrap();
        let mut decoder = key();
        decoder.graph = "decoder".into();
        assert_eq!(plans.timing(&decoder), b"times", "graphs share it");
        decoder.library = "TensorRT 10.7.0".into();
        assert!(plans.timing(&decoder).is_empty());
    }
}
