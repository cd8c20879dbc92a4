//! Which structure a segment's name or code means, as people and programs write it.

use super::Segment;
use crate::terms::{Code, STRUCTURE_KEYS, Side, structure};

/// What a segment was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Key of the structure.
    pub key: &'static str,
    /// The side that the name or the code says.
    pub side: Option<Side>,
}

/// Common names besides key, name and code meaning; in lower case without blanks.
const COMMON: [(&str, &[&str]); 12] = [
    ("VL", &["vastusexternus"]),
    ("VM", &["vastusinternus"]),
    ("VI", &["vastusintermedialis"]),
    ("RF", &["rectus"]),
    ("VAS", &["vasti", "vastus", "vastigroup", "vastii"]),
    ("FEM", &["femoralbone", "thighbone", "femoralshaft", "bonefemur"]),
    ("GRA", &["grac"]),
    ("SAR", &["sart"]),
    ("ADD", &["adductor", "adductors"]),
    ("BF", &["biceps"]),
    ("ST", &["semit"]),
    ("SM", &["semim"]),
];
/// Parts of a group: alone they are not the group, so a person must say so.
const PARTS: [(&str, &[&str]); 2] = [
    ("ADD", &["adductormagnus", "adductorlongus", "adductorbrevis", "adductorminimus"]),
    (
        "BF",
        &["bicepsfemorislonghead", "bicepsfemorisshorthead", "bflh", "bfsh", "bicepsfemorislong", "bicepsfemorisshort"],
    ),
];
/// Words that say nothing of which structure.
const FILLERS: [&str; 10] = ["muscle", "muscles", "musculus", "m", "mm", "of", "the", "thigh", "segment", "structure"];

/// The letters and digits of a name without side and fillers, and the side.
fn plain(name: &str) -> (String, Option<Side>) {
    let (mut text, mut sides) = (String::new(), Vec::new());
    for word in name.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        let word = word.to_lowercase();
        match word.as_str() {
            "right" | "r" | "rt" | "dexter" => sides.push(Side::Right),
            "left" | "l" | "lt" | "sinister" => sides.push(Side::Left),
            w if FILLERS.contains(&w) => {}
            w => text.push_str(w),
        }
    }
    sides.dedup();
    let side = if let [one] = sides.as_slice() { Some(*one) } else { None };
    (text, side)
}

/// The structure that a name means: its key, its name, its code's meaning or a common name, in any case, with or without a
/// side (`VL`, `vastus_lateralis_right`, `Vastus lateralis, left`, `M. vastus lateralis`).
pub fn recognise(name: &str) -> Option<Named> {
    let (text, side) = plain(name);
    if text.is_empty() {
        return None;
    }
    let key = STRUCTURE_KEYS.iter().copied().find(|key| {
        let Some(s) = structure(key) else { return false };
        [*key, s.name.as_str(), s.code.meaning.as_str()].iter().any(|n| plain(n).0 == text)
            || COMMON.iter().any(|(k, names)| k == key && names.contains(&text.as_str()))
    })?;
    Some(Named { key, side })
}

/// The group that a name is one part of, e.g. `Adductor magnus` of `ADD`.
pub fn part_of(name: &str) -> Option<&'static str> {
    let (text, _) = plain(name);
    PARTS.iter().find(|(_, parts)| parts.contains(&text.as_str())).map(|(key, _)| *key)
}

/// The side that a laterality modifier means.
pub(super) fn side_of(code: &Code) -> Option<Side> {
    [Side::Right, Side::Left].into_iter().find(|s| {
        let own = s.code();
        (own.scheme == code.scheme && own.value == code.value) || code.meaning.eq_ignore_ascii_case(&own.meaning)
    })
}

impl Segment {
    /// The structure that this segment means: by its name, else by its code, else by its code's meaning.
    pub fn structure(&self) -> Option<Named> {
        let coded = || {
            let code = self.code.as_ref()?;
            let equal =
                |key: &&str| structure(key).is_some_and(|s| s.code.scheme == code.scheme && s.code.value == code.value);
            let key = STRUCTURE_KEYS.iter().copied().find(equal);
            key.map(|key| Named { key, side: None }).or_else(|| recognise(&code.meaning))
        };
        // A part of a group often carries the group's code: its name goes first.
        if part_of(&self.name).is_some() {
            return None;
        }
        let named = recognise(&self.name).or_else(coded)?;
        Some(Named { side: self.side.or(named.side).or(plain(&self.name).1), ..named })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_write_them() {
        for (name, key, side) in [
            ("VL", "VL", None),
            ("vl-r", "VL", Some(Side::Right)),
            ("Vastus lateralis, right", "VL", Some(Side::Right)),
            ("vastus_medialis_left", "VM", Some(Side::Left)),
            ("M. Vastus Intermedius", "VI", None),
            ("VastusLateralis", "VL", None),
            ("Rectus femoris muscle", "RF", None),
            ("Left Femur", "FEM", Some(Side::Left)),
            ("Adductor muscles of thigh", "ADD", None),
            ("Adductors", "ADD", None),
            ("SEMIMEMBRANOSUS", "SM", None),
        ] {
            assert_eq!(recognise(name), Some(Named { key, side }), "{name}");
        }
        for name in ["", "Segment_1", "tumour", "Adductor magnus", "left", "vastus lateralis medialis"] {
            assert_eq!(recognise(name), None, "{name}");
        }
        assert_eq!((part_of("Adductor Magnus right"), part_of("VL")), (Some("ADD"), None));
        assert_eq!(recognise("VL left right").and_then(|n| n.side), None);
    }

    #[test]
    fn every_structure_knows_its_own_names_and_no_other() {
        for key in STRUCTURE_KEYS {
            let s = structure(key).unwrap();
            for name in [key, &s.name, &s.code.meaning] {
                assert_eq!(recognise(name).map(|n| n.key), Some(key), "{name}");
            }
        }
    }

    #[test]
    fn a_code_speaks_where_the_name_does_not() {
        let mut s = Segment { id: 1, name: "Segment 1".into(), code: None, side: Some(Side::Left), layer: 0, value: 1 };
        assert_eq!(s.structure(), None);
        s.code = Some(Code::sct("1403006", "whatever"));
        assert_eq!(s.structure(), Some(Named { key: "VL", side: Some(Side::Left) }));
        s.code = Some(Code::sct("71341001", "Femur"));
        assert_eq!(s.structure().map(|n| n.key), Some("FEM"));
        s.name = "Vastus medialis".into();
        assert_eq!(s.structure().map(|n| n.key), Some("VM"));
    }
}
