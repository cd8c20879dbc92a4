//! Coded terms and the task: which structures are segmented, and how DICOM names them.

use serde::{Deserialize, Serialize};

/// A coded concept: value, coding scheme designator, meaning (DICOM PS3.3, 8.8).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Code {
    /// Code Value, 16 characters at most.
    pub value: String,
    /// Coding Scheme Designator: `SCT` (SNOMED CT), `DCM`, `UCUM`, `99SCANSIDE`.
    pub scheme: String,
    /// Code Meaning, 64 characters at most.
    pub meaning: String,
}

impl Code {
    /// A code from its three parts.
    pub fn new(value: &str, scheme: &str, meaning: &str) -> Self {
        Code { value: value.into(), scheme: scheme.into(), meaning: meaning.into() }
    }
    /// A SNOMED CT code.
    pub fn sct(value: &str, meaning: &str) -> Self {
        Code::new(value, "SCT", meaning)
    }
    /// A code from DICOM's own dictionary (PS3.16, annex D).
    pub fn dcm(value: &str, meaning: &str) -> Self {
        Code::new(value, "DCM", meaning)
    }
}

/// The side of the body, computed from the geometry (patient x grows to the patient's left).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The patient's right.
    Right,
    /// The patient's left.
    Left,
}

impl Side {
    /// The laterality modifier.
    pub fn code(self) -> Code {
        match self {
            Side::Right => Code::sct("24028007", "Right"),
            Side::Left => Code::sct("7771000", "Left"),
        }
    }
    /// `right` or `left`.
    pub fn word(self) -> &'static str {
        match self {
            Side::Right => "right",
            Side::Left => "left",
        }
    }
    /// `R` or `L`, as in DICOM's Laterality.
    pub fn letter(self) -> char {
        match self {
            Side::Right => 'R',
            Side::Left => 'L',
        }
    }
}

/// One anatomical structure of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Short stable key, e.g. `VL`: used in files, tables and label maps.
    pub key: String,
    /// Human name, e.g. `Vastus lateralis`.
    pub name: String,
    /// Segmented property type.
    pub code: Code,
    /// Recommended display colour, sRGB.
    pub rgb: [u8; 3],
}

/// What is to be segmented: an ordered list of structures in a body part.
/// Structure `k` of the list is value `k + 1` of a one-sided label map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Stable name, e.g. `thigh-vastus`.
    pub name: String,
    /// The structures, in order.
    pub structures: Vec<Structure>,
}

/// Anatomical region of the thigh task.
pub fn thigh() -> Code {
    Code::sct("68367000", "Thigh")
}

/// Category of every segment we write.
pub fn body_structure() -> Code {
    Code::sct("123037004", "Body structure")
}

/// Every structure this release knows, by key. SNOMED CT codes whose check digit was verified; structures that have no
/// single concept (merged groups) carry a private code that says so.
pub fn structure(key: &str) -> Option<Structure> {
    let s = |name: &str, code: Code, rgb: [u8; 3]| {
        Some(Structure { key: key.to_string(), name: name.to_string(), code, rgb })
    };
    match key {
        "VL" => s("Vastus lateralis", Code::sct("1403006", "Vastus lateralis"), [230, 75, 53]),
        "VM" => s("Vastus medialis", Code::sct("3478008", "Vastus medialis"), [77, 187, 213]),
        "VI" => s("Vastus intermedius", private("VI", "Vastus intermedius muscle"), [0, 160, 135]),
        "RF" => s("Rectus femoris", private("RF", "Rectus femoris muscle"), [60, 84, 136]),
        "VAS" => s("Vastus group", private("VAS", "Vastus muscles"), [243, 155, 127]),
        "FEM" => s("Femur", private("FEM", "Femur"), [240, 228, 66]),
        "GRA" => s("Gracilis", private("GRA", "Gracilis muscle"), [132, 145, 180]),
        "SAR" => s("Sartorius", private("SAR", "Sartorius muscle"), [145, 209, 194]),
        "ADD" => s("Adductor group", private("ADD", "Adductor muscles of thigh"), [220, 120, 200]),
        "BF" => s("Biceps femoris", private("BF", "Biceps femoris muscle"), [126, 97, 72]),
        "ST" => s("Semitendinosus", private("ST", "Semitendinosus muscle"), [176, 156, 133]),
        "SM" => s("Semimembranosus", private("SM", "Semimembranosus muscle"), [180, 200, 60]),
        _ => None,
    }
}

fn private(value: &str, meaning: &str) -> Code {
    Code::new(value, "99SCANSIDE", meaning)
}

/// All structure keys of [`structure`], in a fixed order.
pub const STRUCTURE_KEYS: [&str; 12] = ["VL", "VM", "VI", "RF", "VAS", "FEM", "GRA", "SAR", "ADD", "BF", "ST", "SM"];
