//! What the tests share: where real data and peers are, and skipping aloud where they are not.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::Command;

/// The folder of real MRI beside the project, or `None` after saying aloud that the check is skipped.
/// Panics instead where `SCANSIDE_REQUIRE_DATA` is set.
pub fn data(relative: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(relative);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("SCANSIDE_REQUIRE_DATA").is_none(), "required data is missing: {}", path.display());
    eprintln!("SKIPPED: no real data at {}", path.display());
    None
}

/// Path of a peer program, or `None` after saying aloud that the check is skipped.
/// Panics instead where `SCANSIDE_REQUIRE_PEERS` is set.
pub fn peer(program: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    // Debian puts Orthanc into sbin, which an ordinary user's PATH lacks.
    let found = std::env::split_paths(&dirs)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|d| d.join(program))
        .find(|p| p.is_file());
    if found.is_none() {
        missing(program);
    }
    found
}

/// A Python that can import `module`: `SCANSIDE_PYTHON`, else `.venv/bin/python` of the project.
pub fn python_with(module: &str) -> Option<PathBuf> {
    let python = std::env::var_os("SCANSIDE_PYTHON")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"));
    let ok = Command::new(&python).args(["-c", &format!("import {module}")]).output().is_ok_and(|o| o.status.success());
    if !ok {
        missing(&format!("Python module {module} ({})", python.display()));
        return None;
    }
    Some(python)
}

fn missing(what: &str) {
    assert!(
        std::env::var_os("SCANSIDE_REQUIRE_PEERS").is_none(),
        "required peer is missing: {what}; tests/setup-peers.sh installs it"
    );
    eprintln!("SKIPPED: no peer {what}; tests/setup-peers.sh installs it");
}
