//! A person as an observer: a form to fill in with any text editor, and its way back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{FILE_VERSION, MAX_REMARK, Opinion, ReportFile, Shown, tame};
use crate::segex::{Criterion, Report};
use crate::terms::{Side, structure};

/// Version of the form.
const FORM_VERSION: u32 = 1;

/// Why a form could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The file could not be read.
    #[error("form {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The form is not filled in as it should be.
    #[error("form {}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, where, and what is expected.
        problem: String,
    },
}

const HEAD: &str = "\
# SegEx form. Look at each structure's picture (or the images themselves), put a grade after each criterion, and save.
# 5 nothing to correct, 4 a little, 3 some, 2 much, 1 redo; 0 not graded. Then: scanside segex read-form FORM --out REPORT
#   C1 boundary: the outline lies on the structure's edge       C2 completeness: nothing of it is left out
#   C3 over-segmentation: nothing else is included              C4 anatomy: size, place and shape are plausible
#   C5 topology: one piece without holes                        C6 between slices: neighbours fit, none is missing
#   C7 stability: how sure you are of your grades               C8 edit burden: 5 almost nothing to redraw, 1 most of it
# `slices` names slices at fault (numbers as in the picture), e.g. slices = { C1 = [7, 8] }
";

/// The text of an empty form. `case` tells cases apart and must carry no patient data.
pub fn form_text(case: &str, shown: &[Shown]) -> String {
    let mut out = String::from(HEAD);
    let text = |s: &str| toml::Value::String(s.into()).to_string();
    let _ = writeln!(out, "form = {FORM_VERSION}\ncase = {}\nstructures = {}", text(case), shown.len());
    out.push_str("observer = \"\"          # your name or initials\n");
    for s in shown {
        let _ = writeln!(out, "\n[[structure]]              # {}, picture {}.png", s.structure.name, s.token());
        let _ = writeln!(out, "key = {}", text(&s.structure.key));
        if let Some(side) = s.side {
            let _ = writeln!(out, "side = {}", text(side.word()));
        }
        let _ = writeln!(
            out,
            "label = {}\nvolume_mm3 = {:.1}\nslice_count = {}\ngrades = {{ {} }}\nslices = {{ }}\nremark = \"\"",
            s.label,
            s.volume_mm3,
            s.slices,
            Criterion::ALL.map(|c| format!("{} = 0", c.id())).join(", ")
        );
    }
    out
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    form: u32,
    case: String,
    structures: usize,
    observer: String,
    #[serde(default)]
    structure: Vec<Filled>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filled {
    key: String,
    #[serde(default)]
    side: Option<Side>,
    label: u8,
    volume_mm3: f64,
    slice_count: usize,
    grades: BTreeMap<String, u8>,
    #[serde(default)]
    slices: BTreeMap<String, Vec<usize>>,
    #[serde(default)]
    remark: String,
}

/// Reads a filled form: the person's report, in the same schema as the device's.
///
/// # Errors
/// [`FormError`]: no observer, nothing graded, a grade outside 0 to 5, a criterion, slice or structure that is none, a
/// structure that was cut out.
pub fn read_form(path: &Path) -> Result<ReportFile, FormError> {
    let bytes = super::read_bounded(path).map_err(|source| FormError::Io { path: path.into(), source })?;
    let content = |problem: String| FormError::Content { path: path.into(), problem };
    let text = String::from_utf8(bytes).map_err(|_| content("is no text".into()))?;
    let form: Form = toml::from_str(&text).map_err(|e| content(e.to_string()))?;
    if form.form != FORM_VERSION {
        return Err(content(format!("is of version {}, this program reads {FORM_VERSION}", form.form)));
    }
    let observer = tame(&form.observer, 64);
    if observer.is_empty() {
        return Err(content("`observer` is empty: write your name or initials".into()));
    }
    if form.structure.len() != form.structures {
        return Err(content(format!(
            "holds {} structures of {}: leave out grades (0), not structures",
            form.structure.len(),
            form.structures
        )));
    }
    let mut seen = BTreeSet::new();
    let mut structures = Vec::new();
    for f in &form.structure {
        let (shown, opinion) = checked(f).map_err(|p| content(format!("{}: {p}", tame(&f.key, 16))))?;
        if !seen.insert((f.label, shown.token())) {
            return Err(content(format!("{} stands there twice", shown.token())));
        }
        if opinion.grades.iter().any(Option::is_some) {
            structures.push(opinion.report(&shown, "graded by a person"));
        }
    }
    if structures.is_empty() {
        return Err(content("nothing is graded: put 1 to 5 after at least one criterion".into()));
    }
    let report = Report::new(format!("person {observer}"), false, false, structures);
    Ok(ReportFile { segex: FILE_VERSION, case: tame(&form.case, 64), reports: vec![report], problems: Vec::new() })
}

fn checked(f: &Filled) -> Result<(Shown, Opinion), String> {
    let known = structure(&f.key).ok_or_else(|| "is no structure; do not change `key`".to_string())?;
    let place = |id: &str| {
        let found = Criterion::ALL.iter().position(|c| c.id() == id);
        found.ok_or_else(|| format!("{} is no criterion: C1 to C8", tame(id, 8)))
    };
    if !(f.volume_mm3.is_finite() && f.volume_mm3 >= 0.0) {
        return Err("`volume_mm3` is no volume; do not change it".into());
    }
    let mut opinion = Opinion { remark: tame(&f.remark, MAX_REMARK), ..Opinion::default() };
    for (id, &grade) in &f.grades {
        if grade > 5 {
            return Err(format!("{id} is graded {grade}: 1 to 5, or 0 for not graded"));
        }
        opinion.grades[place(id)?] = (grade > 0).then_some(grade);
    }
    for (id, named) in &f.slices {
        if let Some(z) = named.iter().find(|z| !(1..=f.slice_count).contains(*z)) {
            return Err(format!("{id} names slice {z}; there are 1 to {}", f.slice_count));
        }
        opinion.slices[place(id)?] = named.iter().map(|z| z - 1).collect();
    }
    let shown =
        Shown { structure: known, side: f.side, label: f.label, volume_mm3: f.volume_mm3, slices: f.slice_count };
    Ok((shown, opinion))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segex::Verdict;

    fn shown() -> Vec<Shown> {
        ["VL", "VM"]
            .iter()
            .enumerate()
            .map(|(i, k)| Shown {
                structure: structure(k).unwrap(),
                side: Some(Side::Right),
                label: i as u8 + 1,
                volume_mm3: 123_456.7,
                slices: 15,
            })
            .collect()
    }

    fn read(text: &str) -> Result<ReportFile, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_form(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_filled_form_comes_back_as_a_report() {
        let empty = form_text("a1b2", &shown());
        let filled = empty
            .replace("observer = \"\"", "observer = \"Dr. X\"")
            .replacen("C1 = 0, C2 = 0, C3 = 0", "C1 = 4, C2 = 5, C3 = 1", 1)
            .replacen("slices = { }", "slices = { C3 = [7] }", 1)
            .replacen("remark = \"\"", "remark = \"leaks\"", 1);
        let file = read(&filled).unwrap();
        let r = &file.reports[0];
        assert_eq!((file.case.as_str(), r.observer.as_str(), r.structures.len()), ("a1b2", "person Dr. X", 1));
        let s = &r.structures[0];
        assert_eq!((s.structure.key.as_str(), s.side, s.label), ("VL", Some(Side::Right), 1));
        assert_eq!((s.grade(Criterion::Boundary), s.grade(Criterion::EditBurden)), (Some(4), None));
        assert_eq!(s.grades[2].slices, [6]);
        // (2 x 3 + 4 + 0) / 4 x 25 = 62.5, and C3 at 1 caps at C.
        assert_eq!((s.score, s.verdict), (62.5, Verdict::C));
        assert_eq!(s.remarks[0], "leaks");
    }

    #[test]
    fn a_form_filled_in_wrongly_says_where() {
        let good =
            form_text("a", &shown()).replace("observer = \"\"", "observer = \"x\"").replacen("C1 = 0", "C1 = 3", 1);
        assert!(read(&good).is_ok());
        for (from, to, why) in [
            ("observer = \"x\"", "observer = \" \"", "write your name"),
            ("C1 = 3", "C1 = 0", "nothing is graded"),
            ("C1 = 3", "C1 = 6", "VL: C1 is graded 6"),
            ("C1 = 3", "C1 = -1", "invalid value"),
            ("C1 = 3", "C9 = 3", "C9 is no criterion"),
            ("slices = { }", "slices = { C1 = [16] }", "names slice 16"),
            ("key = \"VM\"", "key = \"XX\"", "is no structure"),
            ("structures = 2", "structures = 3", "holds 2 structures of 3"),
            ("form = 1", "form = 2", "version 2"),
            ("remark = \"\"", "remarks = \"\"", "unknown field"),
        ] {
            let e = read(&good.replacen(from, to, 1)).unwrap_err();
            assert!(e.contains(why), "{to}: {e}");
        }
    }
}
