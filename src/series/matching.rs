//! Whether a series fits the thigh task: modality, body part, contrast, orientation, field of view.

use super::refusal::Refusal;
use super::stack::Stack;
use crate::dicom::read::{CLASSIC_MR, ENHANCED_MR, InstanceHeader};

/// A series that is not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The headers say that it is the task's body part.
    Fits,
    /// The headers do not say; the classifier decides on the picture. The remark says so.
    Uncertain(String),
}

/// What a series must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Words (upper case) that mark the body part as right.
    pub include: Vec<String>,
    /// Words (upper case) that mark it as wrong.
    pub exclude: Vec<String>,
    /// Largest angle between the slices' normal and the body axis, degrees.
    pub max_tilt_degrees: f64,
    /// Smallest and largest side of the field of view, millimetres.
    pub field_of_view_mm: [f64; 2],
    /// Largest distance between slices, millimetres.
    pub max_slice_distance_mm: f64,
    /// Fewest slices.
    pub min_slices: usize,
}

const INCLUDE: [&str; 17] = [
    "THIGH",
    "FEMUR",
    "FEMORAL",
    "FEMORIS",
    "UPPER LEG",
    "UPPERLEG",
    "QUAD",
    "QUADRICEPS",
    "HAMSTRING",
    "VASTUS",
    "VASTI",
    "ADDUCTOR",
    "OBERSCHENKEL",
    "CUISSE",
    "MUSLO",
    "COSCIA",
    "BOVENBEEN",
];

const EXCLUDE: [&str; 45] = [
    "CALF",
    "CALVES",
    "LOWER LEG",
    "LOWERLEG",
    "TIBIA",
    "TIBIAL",
    "SHIN",
    "UNTERSCHENKEL",
    "MOLLET",
    "GASTROC",
    "SOLEUS",
    "KNEE",
    "PATELLA",
    "ANKLE",
    "FOOT",
    "FEET",
    "TOE",
    "HEAD",
    "BRAIN",
    "SKULL",
    "NECK",
    "CSPINE",
    "LSPINE",
    "TSPINE",
    "SPINE",
    "CHEST",
    "THORAX",
    "HEART",
    "CARDIAC",
    "BREAST",
    "ABDOMEN",
    "LIVER",
    "KIDNEY",
    "PELVIS",
    "PROSTATE",
    "HIP",
    "SHOULDER",
    "ELBOW",
    "WRIST",
    "HAND",
    "FINGER",
    "FOREARM",
    "HUMERUS",
    "ARM",
    "WHOLEBODY",
];

const LOCALIZER: [&str; 9] =
    ["LOCALIZER", "LOCALISER", "LOC", "SCOUT", "SURVEY", "3PLANE", "3 PLANE", "TRIPLANE", "PLAN SCAN"];

/// Image Type values of computed maps and of images that are not magnitude, with what they are.
const MAPS: [(&str, &str); 33] = [
    ("ADC", "an ADC map"),
    ("EADC", "an ADC map"),
    ("FA", "a fractional anisotropy map"),
    ("TRACEW", "a diffusion trace image"),
    ("TRACE", "a diffusion trace image"),
    ("TENSOR", "a diffusion tensor"),
    ("DIFFUSION", "a diffusion image"),
    ("T1 MAP", "a T1 map"),
    ("T2 MAP", "a T2 map"),
    ("T2_STAR MAP", "a T2* map"),
    ("R2_STAR MAP", "an R2* map"),
    ("R2 MAP", "an R2 map"),
    ("FAT_FRACTION", "a fat fraction map"),
    ("FATFRACTION", "a fat fraction map"),
    ("FF", "a fat fraction map"),
    ("PDFF", "a fat fraction map"),
    ("B0 MAP", "a field map"),
    ("B0", "a field map"),
    ("B1 MAP", "a field map"),
    ("FIELD_MAP", "a field map"),
    ("PERFUSION", "a perfusion image"),
    ("ASL", "a perfusion image"),
    ("VELOCITY", "a velocity map"),
    ("PHASE", "a phase image"),
    ("PHASE MAP", "a phase image"),
    ("P", "a phase image"),
    ("PHASE CONTRAST", "a velocity map"),
    ("IMAGINARY", "an imaginary image"),
    ("MIP", "a projection"),
    ("MIN IP", "a projection"),
    ("PROJECTION IMAGE", "a projection"),
    ("SUBTRACTION", "a subtraction"),
    ("MOSAIC", "a mosaic of slices"),
];

impl Default for Rules {
    fn default() -> Self {
        Rules::new(&[], &[])
    }
}

impl Rules {
    /// The rules of the thigh task with the site's words; an empty list stands for the built-in one.
    pub fn new(include: &[String], exclude: &[String]) -> Self {
        let words = |own: &[String], built_in: &[&str]| -> Vec<String> {
            if own.is_empty() {
                built_in.iter().map(|w| (*w).to_string()).collect()
            } else {
                own.iter().map(|w| normal(w).trim().to_string()).filter(|w| !w.is_empty()).collect()
            }
        };
        Rules {
            include: words(include, &INCLUDE),
            exclude: words(exclude, &EXCLUDE),
            max_tilt_degrees: 30.0,
            field_of_view_mm: [100.0, 600.0],
            max_slice_distance_mm: 25.0,
            min_slices: 3,
        }
    }
}

/// Upper case words with single spaces around each.
fn normal(text: &str) -> String {
    let upper = text.to_uppercase();
    let words: Vec<&str> = upper.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    format!(" {} ", words.join(" "))
}

/// The first word of the list in the text: whole, in the plural, or (from five letters on) as a word's beginning.
fn find<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    words.into_iter().find(|w| {
        text.contains(&format!(" {w} "))
            || text.contains(&format!(" {w}S "))
            || (w.len() >= 5 && text.contains(&format!(" {w}")))
    })
}

/// What the instance's header alone tells: modality, object class, localizer, body part.
///
/// # Errors
/// `MODALITY`, `SOP_CLASS`, `LOCALIZER`, `BODY_PART`.
pub fn header_fits(rules: &Rules, header: &InstanceHeader) -> Result<Fit, Refusal> {
    if header.modality != "MR" {
        let modality = if header.modality.is_empty() { "unknown" } else { &header.modality };
        return Err(Refusal::new(
            "MODALITY",
            format!("The series' modality is {modality}, not MR"),
            "Route MR series only to this box",
        ));
    }
    if header.sop_class_uid != CLASSIC_MR && header.sop_class_uid != ENHANCED_MR {
        return Err(Refusal::new(
            "SOP_CLASS",
            format!("The objects are of class {}, not MR images", header.sop_class_uid),
            "Send MR Image Storage or Enhanced MR Image Storage objects",
        ));
    }
    let series = normal(&format!("{} {}", header.series_description, header.protocol_name));
    let localizer = header.image_type.iter().any(|t| t.to_uppercase().contains("LOCALIZER"))
        || find(&normal(&header.series_description), LOCALIZER).is_some();
    if localizer {
        return Err(Refusal::new(
            "LOCALIZER",
            "The series is a localizer",
            "Nothing needs to be done; send the axial series",
        ));
    }
    body_part(rules, header, &series)
}

fn body_part(rules: &Rules, header: &InstanceHeader, series: &str) -> Result<Fit, Refusal> {
    let include = || rules.include.iter().map(String::as_str);
    let exclude = || rules.exclude.iter().map(String::as_str);
    let remedy = "If it is a thigh, correct the body part or description at the console, or add the site's words to series.include_words";
    let part = normal(&header.body_part);
    // Words of the series come before Body Part Examined: many scanners fill that with the coil's region.
    if find(series, include()).is_some() {
        return Ok(match find(series, exclude()) {
            None => Fit::Fits,
            Some(word) => Fit::Uncertain(format!(
                "the series' description names the thigh and also {}; the picture decides",
                word.to_lowercase()
            )),
        });
    }
    let refuse = |what: String| Err(Refusal::new("BODY_PART", what, remedy));
    if let Some(word) = find(series, exclude()) {
        return refuse(format!("The series' description says {}, not the thigh", word.to_lowercase()));
    }
    if find(&part, include()).is_some() {
        return Ok(Fit::Fits);
    }
    if part == " LEG " {
        return refuse("The body part is LEG, which in DICOM is the lower leg, and nothing names the thigh".into());
    }
    if let Some(word) = find(&part, exclude()) {
        return refuse(format!("The body part is {}, not the thigh", word.to_lowercase()));
    }
    let study = normal(&header.study_description);
    if find(&study, include()).is_some() {
        return Ok(Fit::Fits);
    }
    if let Some(word) = find(&study, exclude()) {
        return refuse(format!("The study's description says {}, not the thigh", word.to_lowercase()));
    }
    Ok(Fit::Uncertain("the headers do not name the body part; the picture decides".into()))
}

/// Whether a stack fits the task.
///
/// # Errors
/// Those of [`header_fits`], and `CONTRAST`, `DIFFUSION`, `ORIENTATION`, `FIELD_OF_VIEW`, `TOO_FEW_SLICES`, `COLOUR`.
pub fn fits(rules: &Rules, stack: &Stack) -> Result<Fit, Refusal> {
    let Some((_, first)) = stack.frames.first() else {
        return Err(Refusal::new("NO_IMAGES", "The series holds no image", "Send the images of the series"));
    };
    let header = &first.header;
    let fit = header_fits(rules, header)?;
    let frame = first.frame();
    let send = "Send the axial magnitude series";
    if header.samples_per_pixel > 1 {
        return Err(Refusal::new("COLOUR", "The images are in colour, as maps and screen captures are", send));
    }
    for value in frame.image_type.iter().skip(2) {
        let value = value.to_uppercase();
        if value.contains("LOCALIZER") {
            return Err(Refusal::new(
                "LOCALIZER",
                "The series is a localizer",
                "Nothing needs to be done; send the axial series",
            ));
        }
        if let Some((_, what)) = MAPS.iter().find(|(v, _)| *v == value) {
            return Err(Refusal::new("CONTRAST", format!("The series is {what} (Image Type {value})"), send));
        }
    }
    if let Some(b) = frame.b_value.filter(|b| *b > 0.0) {
        return Err(Refusal::new("DIFFUSION", format!("The series is diffusion weighted (b = {b:.0} s/mm2)"), send));
    }
    let tilt = stack.axes[2][2].abs().min(1.0).acos().to_degrees();
    if tilt > rules.max_tilt_degrees {
        let plane = [("sagittal", 0), ("coronal", 1), ("oblique", 2)]
            .into_iter()
            .find(|(_, a)| stack.axes[2][*a].abs() > 0.8)
            .map_or("oblique", |(p, _)| p);
        return Err(Refusal::new(
            "ORIENTATION",
            format!(
                "The slices are {plane} ({tilt:.0} degrees from axial); up to {:.0} are segmented",
                rules.max_tilt_degrees
            ),
            "Send the axial series",
        ));
    }
    let sides = [stack.columns() as f64 * stack.pixel_spacing[1], stack.rows() as f64 * stack.pixel_spacing[0]];
    let [low, high] = rules.field_of_view_mm;
    if sides.iter().any(|s| !(low..=high).contains(s)) {
        return Err(Refusal::new(
            "FIELD_OF_VIEW",
            format!(
                "The field of view is {:.0} x {:.0} mm; a thigh needs {low:.0} to {high:.0} mm",
                sides[0], sides[1]
            ),
            send,
        ));
    }
    if stack.frames.len() < rules.min_slices {
        return Err(Refusal::new(
            "TOO_FEW_SLICES",
            format!("The series has {} slice(s), at least {} are needed", stack.frames.len(), rules.min_slices),
            "Send the whole series; a scanner that gives every slice a series of its own must be set to one series",
        ));
    }
    let z: Vec<f64> = stack.frames.iter().map(|f| f.0).collect();
    let distance = (z[z.len() - 1] - z[0]) / (z.len() - 1).max(1) as f64;
    if distance > rules.max_slice_distance_mm {
        return Err(Refusal::new(
            "SLICE_DISTANCE",
            format!("The slices are {distance:.0} mm apart; up to {:.0} mm are segmented", rules.max_slice_distance_mm),
            "Send a series with closer slices",
        ));
    }
    Ok(fit)
}
