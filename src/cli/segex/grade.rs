//! `scanside segex --series DIR --seg FILE`: grades a segmentation from elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use dicom_dictionary_std::tags;
use sha2::{Digest, Sha256};

use super::second::Second;
use crate::adapter::Adapter;
use crate::cli::ConfigArgs;
use crate::config::Config;
use crate::daemon::{grades, result_key, source_of};
use crate::dicom::write::{Identity, ResultInput, SegReference, SegmentSpec, comprehensive_sr_of, write_atomically};
use crate::image::LabelMap;
use crate::labels::LabelImage;
use crate::pipeline::{CropRule, LegView, leg_views};
use crate::segex::observe::{FILE_VERSION, LanguageModel, ReportFile, Shown, form_text, picture};
use crate::segex::{
    CompareInput, ComparedStructure, LegFrame, LegInput, Report, SegexInput, StructureInput, StructureReport, assess,
    compare, markdown,
};
use crate::series::{SeriesVolume, load_dir};
use crate::terms::{Code, Side, Structure, structure};

/// Most segments of a file that are graded.
const MOST_SEGMENTS: usize = 120;

/// A segment without a side is parted where a leg has at least this share of it.
const LEAST_ON_LEG: f64 = 0.05;

/// What is graded.
#[derive(Args, Debug, Clone)]
pub(super) struct Subject {
    /// Folder with the DICOM files of the images
    #[arg(long, value_name = "DIR")]
    series: PathBuf,
    /// The segmentation: DICOM SEG, seg.nrrd, NRRD or NIfTI
    #[arg(long, value_name = "FILE")]
    seg: PathBuf,
    /// What a segment is, where its name or code does not say: number or name, and structure key, e.g. --map 1=VL; holds for
    /// --truth too
    #[arg(long, value_name = "SEGMENT=KEY", value_parser = pair)]
    map: Vec<(String, String)>,
    /// What tells this case apart in reports (no patient data); default: a hash of the series' UID
    #[arg(long)]
    case: Option<String>,
}

#[derive(Args, Debug, Clone)]
pub(super) struct GradeOptions {
    /// Grade against this truth too: any label file
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// An adapter whose calibration and shapes of labelled slices are used; a calibrated one also segments the images, and its
    /// result is laid beside the segmentation
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Grade by the image alone: do not let the adapter segment it
    #[arg(long, requires = "adapter")]
    alone: bool,
    /// Ask the configured language model too
    #[arg(long)]
    language_model: bool,
    /// Write PATH.json (all reports), PATH.md and PATH.dcm (structured report on the segmentation)
    #[arg(long, short)]
    out: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Args, Debug)]
pub(super) struct FormArgs {
    #[command(flatten)]
    subject: Subject,
    /// Folder for form.toml and one picture for each structure
    #[arg(long, short)]
    out: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (segment, key) = text.split_once('=').ok_or("expected SEGMENT=KEY")?;
    structure(key.trim()).ok_or_else(|| format!("no structure {key:?}; see docs/adapt.md for the keys"))?;
    Ok((segment.trim().to_string(), key.trim().to_string()))
}

/// A leg's voxels and frame.
type Leg = (Vec<bool>, LegFrame);

/// A segment on the images' grid.
struct Segment {
    number: u8,
    structure: Structure,
    side: Option<Side>,
    leg: usize,
    mask: Vec<bool>,
    /// Voxels by slice that another segment claims too.
    overlap: Vec<usize>,
}

/// The images, the segments on them, the legs.
struct Loaded {
    series: SeriesVolume,
    segments: Vec<Segment>,
    /// Mask and frame of each leg; the whole image where none was found.
    legs: Vec<Leg>,
    sides: Vec<Option<Side>>,
    remarks: Vec<String>,
    case: String,
    reference: Option<SegReference>,
    /// Whose calibration graded, and what engine gave a second result.
    identity: Identity,
}

impl Subject {
    fn load(&self) -> anyhow::Result<Loaded> {
        let series = load_dir(&self.series)?;
        let mut remarks = series.remarks.clone();
        let g = series.volume.geometry.clone();
        let views = leg_views(&series.volume, CropRule::default(), 256, series.header.laterality);
        let (legs, sides) = match views {
            Ok((views, _)) => legs_of(&views, &series),
            Err(e) => {
                remarks.push(format!("no leg was found ({e}): edges are measured over the whole image"));
                let frame = LegFrame {
                    bounds: [0, 0, g.dims[0], g.dims[1]],
                    flip: [false, false],
                    spacing: [g.spacing[0], g.spacing[1]],
                };
                (vec![(vec![true; g.voxels()], frame)], vec![None])
            }
        };
        let image = LabelImage::load(&self.seg)?;
        remarks.extend(image.remarks.iter().cloned());
        ensure!(!image.segments.is_empty(), "{} holds no segment", self.seg.display());
        ensure!(
            image.segments.len() <= MOST_SEGMENTS,
            "{} holds {} segments, more than {MOST_SEGMENTS}",
            self.seg.display(),
            image.segments.len()
        );
        let masks = image.masks(&g, None, &self.seg)?;
        let mut segments = Vec::new();
        for (i, (s, mask)) in image.segments.iter().zip(&masks).enumerate() {
            let named = self.named(&image, i);
            let known = named.as_ref().and_then(|(key, _)| structure(key));
            let number = u8::try_from(s.id).ok().filter(|n| *n > 0);
            let number = number.with_context(|| format!("segment number {} is beyond 255", s.id))?;
            let structure = known.unwrap_or_else(|| Structure {
                key: format!("S{}", s.id),
                name: if s.name.is_empty() { format!("Segment {}", s.id) } else { s.name.chars().take(64).collect() },
                code: s.code.clone().unwrap_or_else(|| Code::sct("85756007", "Tissue")),
                rgb: [230, 75, 53],
            });
            let said = named.and_then(|n| n.1).or(s.side);
            for (leg, mask) in by_leg(mask, &legs, said.is_some()) {
                let overlap = mask
                    .chunks(g.plane().max(1))
                    .enumerate()
                    .map(|(z, plane)| {
                        let claimed = |p: usize| masks.iter().enumerate().any(|(o, m)| o != i && m[z * g.plane() + p]);
                        plane.iter().enumerate().filter(|(p, m)| **m && claimed(*p)).count()
                    })
                    .collect();
                let side = said.or(sides[leg].filter(|_| mask.contains(&true)));
                segments.push(Segment { number, structure: structure.clone(), side, leg, mask, overlap });
            }
        }
        let reference = seg_reference(&self.seg, &series, &mut remarks);
        let digest = hex::encode(Sha256::digest(series.header.series_uid.as_bytes()));
        let case = self.case.clone().unwrap_or_else(|| digest[..12].to_string());
        let identity = Identity {
            software: env!("CARGO_PKG_VERSION").into(),
            engine: "none".into(),
            adapter: "none".into(),
            adapter_sha256: String::new(),
            bundle: String::new(),
            base_sha256: String::new(),
            station: "SCANSIDE".into(),
        };
        Ok(Loaded { series, segments, legs, sides, remarks, case, reference, identity })
    }

    /// Key and side of a segment: as the command line says, else as its name or code does.
    fn named(&self, image: &LabelImage, i: usize) -> Option<(String, Option<Side>)> {
        let s = &image.segments[i];
        let mapped = self.map.iter().find(|(segment, _)| image.segment(segment) == Some(s));
        let recognised = s.structure();
        match mapped {
            Some((_, key)) => Some((key.clone(), recognised.and_then(|n| n.side))),
            None => recognised.map(|n| (n.key.to_string(), n.side)),
        }
    }
}

/// A segment by legs: whole where it names a side or lies on one leg, else what lies on each leg by itself (and what lies on
/// none with the leg that has most of it).
fn by_leg(mask: &[bool], legs: &[Leg], sided: bool) -> Vec<(usize, Vec<bool>)> {
    let on = |l: usize| mask.iter().zip(&legs[l].0).filter(|(m, l)| **m && **l).count();
    let counts: Vec<usize> = (0..legs.len()).map(on).collect();
    let all: usize = counts.iter().sum();
    let main = (0..legs.len()).max_by_key(|l| (counts[*l], std::cmp::Reverse(*l))).unwrap_or(0);
    let several = counts.iter().filter(|n| **n as f64 >= LEAST_ON_LEG * all as f64 && **n > 0).count() > 1;
    if sided || !several {
        return vec![(main, mask.to_vec())];
    }
    (0..legs.len())
        .map(|l| {
            let other = |p: usize| legs.iter().enumerate().any(|(o, (m, _))| o != l && m[p]);
            (l, (0..mask.len()).map(|p| mask[p] && (legs[l].0[p] || (l == main && !other(p)))).collect())
        })
        .collect()
}

fn legs_of(views: &[LegView], series: &SeriesVolume) -> (Vec<Leg>, Vec<Option<Side>>) {
    let g = &series.volume.geometry;
    views.iter().map(|v| ((v.leg.mask.clone(), v.frame(g)), v.leg.side)).unzip()
}

/// UIDs of a DICOM SEG; a remark where it says that it lies in another frame of reference.
fn seg_reference(path: &Path, series: &SeriesVolume, remarks: &mut Vec<String>) -> Option<SegReference> {
    let object = dicom_object::OpenFileOptions::new().read_until(tags::PIXEL_DATA).open_file(path).ok()?;
    let text = |tag| Some(object.get(tag)?.to_str().ok()?.trim_end_matches(['\0', ' ']).to_string());
    let frame = text(tags::FRAME_OF_REFERENCE_UID);
    if frame.is_some()
        && series.header.frame_of_reference_uid.is_some()
        && frame != series.header.frame_of_reference_uid
    {
        remarks.push("the segmentation names another frame of reference than the images: is it of this series?".into());
    }
    Some(SegReference { series_uid: text(tags::SERIES_INSTANCE_UID)?, sop_instance_uid: text(tags::SOP_INSTANCE_UID)? })
}

impl Loaded {
    fn label_map(&self, s: &Segment) -> LabelMap {
        let mut labels = LabelMap::empty(self.series.volume.geometry.clone());
        // What other segments claim is theirs; where they overlap, the segment that is asked for.
        for other in self.segments.iter().filter(|o| o.number != s.number).chain([s]) {
            labels.data.iter_mut().zip(&other.mask).filter(|(_, m)| **m).for_each(|(l, _)| *l = other.number);
        }
        labels
    }

    fn device(&self, adapter: Option<&Adapter>, second: Option<&Second>) -> Report {
        let calibration = adapter.and_then(|a| a.meta.segex.as_ref());
        let structures: Vec<StructureReport> = self
            .segments
            .iter()
            .flat_map(|s| {
                let labels = self.label_map(s);
                let beside = second.and_then(|m| m.of(&s.structure.key, s.side, s.number));
                let input = SegexInput {
                    volume: &self.series.volume,
                    labels: &labels,
                    passes: &[],
                    entropy: &[],
                    second: beside.as_ref(),
                    legs: self.legs.iter().map(|(mask, frame)| LegInput { mask, frame: *frame }).collect(),
                    structures: vec![StructureInput {
                        structure: &s.structure,
                        side: s.side,
                        label: s.number,
                        leg: s.leg,
                        presence: &[],
                        iou: &[],
                        overlap: &s.overlap,
                    }],
                    shapes: adapter.map_or(&[], |a| &a.meta.shape),
                    calibration,
                };
                assess(&input).structures
            })
            .map(explained)
            .collect();
        Report::new("device".into(), calibration.is_some(), false, structures)
    }

    fn against(&self, truth: &Path, subject: &Subject, remarks: &mut Vec<String>) -> anyhow::Result<Report> {
        let image = LabelImage::load(truth)?;
        let g = &self.series.volume.geometry;
        let masks = image.masks(g, None, truth)?;
        let mut structures = Vec::new();
        for s in &self.segments {
            let mut label = LabelMap::empty(g.clone());
            let mut elsewhere = false;
            for (i, mask) in masks.iter().enumerate() {
                let Some((key, side)) = subject.named(&image, i) else { continue };
                if key != s.structure.key || (side.is_some() && s.side.is_some() && side != s.side) {
                    continue;
                }
                // Truth that names no side counts on this segment's leg alone.
                let other = |p: usize| {
                    side.is_none()
                        && s.side.is_some()
                        && self.legs.iter().zip(&self.sides).any(|((m, _), o)| o.is_some() && *o != s.side && m[p])
                };
                for p in (0..mask.len()).filter(|&p| mask[p]) {
                    if other(p) { elsewhere = true } else { label.data[p] = 1 }
                }
            }
            let name = &s.structure.name;
            let side = s.side.map_or("", Side::word);
            if elsewhere && !label.data.contains(&1) {
                remarks.push(format!("{name} {side}: the truth has the other leg only; not graded against it"));
                continue;
            }
            if !(0..masks.len()).any(|i| subject.named(&image, i).is_some_and(|n| n.0 == s.structure.key)) {
                remarks.push(format!("{name} {side}: the truth has no such structure; not graded against it"));
                continue;
            }
            let own = self.label_map(s);
            let compared = ComparedStructure { structure: &s.structure, side: s.side, label: s.number, truth: 1 };
            let input = CompareInput { labels: &own, truth: &label, entropy: &[], structures: &[compared] };
            structures.extend(compare(&input).structures);
        }
        ensure!(
            !structures.is_empty(),
            "no segment of {} is one of the truth's: name them with --map",
            subject.seg.display()
        );
        Ok(Report::new("device".into(), false, true, structures))
    }

    fn shown(&self) -> Vec<(Shown, &Segment)> {
        let g = &self.series.volume.geometry;
        self.segments
            .iter()
            .filter(|s| s.mask.contains(&true))
            .map(|s| {
                let voxels = s.mask.iter().filter(|m| **m).count() as f64;
                let shown = Shown {
                    structure: s.structure.clone(),
                    side: s.side,
                    label: s.number,
                    volume_mm3: voxels * g.voxel_mm3(),
                    slices: g.dims[2],
                };
                (shown, s)
            })
            .collect()
    }

    fn sr(&self, report: &Report, remarks: &[String], out: &Path) -> anyhow::Result<()> {
        let source = source_of(&self.series);
        let segments: Vec<SegmentSpec> = report
            .structures
            .iter()
            .map(|r| SegmentSpec { number: r.label, structure: r.structure.clone(), side: r.side })
            .collect();
        let labels = LabelMap::empty(self.series.volume.geometry.clone());
        let reports = grades(report);
        let seg = self.reference.as_ref().map_or(self.case.as_str(), |r| &r.sop_instance_uid);
        let input = ResultInput {
            source: &source,
            labels: &labels,
            segments: &segments,
            reports: &reports,
            score: report.score,
            verdict: format!("{:?}: {}", report.verdict, report.verdict.words()),
            observer: report.observer.clone(),
            calibrated: report.calibrated,
            needs_review: false,
            remarks,
            identity: &self.identity,
            created_ms: crate::clock::Clock::System.now_ms(),
            key: result_key(&[seg.to_string()], &self.identity, "segex of another's segmentation"),
            series_number: 9200,
        };
        let (_, object) = comprehensive_sr_of(&input, self.reference.as_ref());
        write_atomically(&object, out)?;
        Ok(())
    }
}

/// Says why a criterion of a mask from elsewhere has no grade.
fn explained(mut r: StructureReport) -> StructureReport {
    for g in r.grades.iter_mut().filter(|g| g.grade.is_none() && r.volume_mm3 > 0.0) {
        if matches!(g.criterion.id(), "C2" | "C7") {
            g.measure =
                "needs the passes of a model or a calibrated adapter, which a mask from elsewhere does not bring"
                    .into();
        }
    }
    r
}

pub(super) fn run(subject: &Subject, args: &GradeOptions) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    if let Some(out) = &args.out {
        folder_of(out)?;
    }
    let adapter = args.adapter.as_deref().map(Adapter::load).transpose()?;
    let mut loaded = subject.load()?;
    let mut remarks = loaded.remarks.clone();
    if let Some(a) = &adapter {
        loaded.identity.adapter = format!("{} {}", a.meta.name, a.meta.version);
        loaded.identity.adapter_sha256 = a.sha256()?;
    }
    let second = match (&args.adapter, &adapter) {
        (Some(path), Some(a)) if a.meta.segex.is_some() && !args.alone => {
            beside(path, &config, &mut loaded, &mut remarks)?
        }
        _ => None,
    };
    let mut reports = vec![loaded.device(adapter.as_ref(), second.as_ref())];
    if let Some(truth) = &args.truth {
        reports.push(loaded.against(truth, subject, &mut remarks)?);
    }
    let mut file = ReportFile { segex: FILE_VERSION, case: loaded.case.clone(), reports, problems: Vec::new() };
    // The device's grades are on disk before anybody else is asked.
    write(args, &loaded, &file, &remarks)?;
    if args.language_model {
        match ask(&config.segex.observer, &loaded, &mut file.problems) {
            Some(report) => file.reports.push(report),
            None => file.problems.push("the language model gave no report".into()),
        }
        write(args, &loaded, &file, &remarks)?;
    }
    for r in &file.reports {
        let truth = if r.with_ground_truth { ", against ground truth" } else { "" };
        println!("{}{truth}{}", r.observer, if r.calibrated { ", calibrated" } else { "" });
        print!("{}", crate::cli::report_table(r));
    }
    remarks.iter().for_each(|r| println!("note: {r}"));
    for p in &file.problems {
        eprintln!("scanside: {p}");
    }
    Ok(if file.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The adapter's own result, unless it refuses the images or is the very segmentation that is to be graded.
fn beside(
    adapter: &Path,
    config: &Config,
    loaded: &mut Loaded,
    remarks: &mut Vec<String>,
) -> anyhow::Result<Option<Second>> {
    let second = match Second::run(adapter, config, &loaded.series)? {
        Ok(second) => second,
        Err(why) => {
            remarks.push(format!("the adapter refuses these images, so they are graded alone: {why}"));
            return Ok(None);
        }
    };
    let same = |s: &Segment| {
        let own = second.of(&s.structure.key, s.side, 1);
        own.is_some_and(|own| own.data.iter().zip(&s.mask).all(|(a, b)| (*a == 1) == *b))
    };
    let mut known = loaded.segments.iter().filter(|s| s.mask.contains(&true)).peekable();
    if known.peek().is_some() && known.all(same) {
        remarks.push("the segmentation is this adapter's own result, so it is graded alone".into());
        return Ok(None);
    }
    remarks.push(format!("graded beside the result of {}", second.describe()));
    loaded.identity.engine = second.engine();
    Ok(Some(second))
}

/// The language model's report; what it could not grade is told in `problems`.
fn ask(settings: &crate::config::Observer, loaded: &Loaded, problems: &mut Vec<String>) -> Option<Report> {
    let model = match LanguageModel::new(settings) {
        Ok(model) => model,
        Err(e) => {
            problems.push(e.to_string());
            return None;
        }
    };
    let mut structures = Vec::new();
    for (shown, s) in loaded.shown() {
        match model.grade(&shown, &picture(&loaded.series.volume, &loaded.label_map(s), s.number)) {
            Ok(r) => structures.push(r),
            Err(e) => {
                problems.push(format!("{}: {e}", shown.token()));
                // A server that is not there will not be there for the next structure.
                if matches!(e, crate::segex::observe::ObserverError::Unreachable { .. }) {
                    break;
                }
            }
        }
    }
    (!structures.is_empty()).then(|| Report::new(model.observer(), false, false, structures))
}

fn write(args: &GradeOptions, loaded: &Loaded, file: &ReportFile, remarks: &[String]) -> anyhow::Result<()> {
    let Some(out) = &args.out else { return Ok(()) };
    save(&out.with_added_extension("json"), &(serde_json::to_string_pretty(file)? + "\n"))?;
    let mut text = format!("# SegEx of case {}\n\n", file.case);
    for r in &file.reports {
        text.push_str(&markdown(r));
        text.push('\n');
    }
    for r in remarks.iter().chain(&file.problems) {
        text.push_str(&format!("- {r}\n"));
    }
    text.push_str("\nResearch use only. Not for diagnosis without review by a qualified reader.\n");
    save(&out.with_added_extension("md"), &text)?;
    if let Some(device) = file.reports.first() {
        loaded.sr(device, remarks, &out.with_added_extension("dcm"))?;
    }
    Ok(())
}

pub(super) fn form(args: &FormArgs) -> anyhow::Result<ExitCode> {
    let loaded = args.subject.load()?;
    let shown = loaded.shown();
    if shown.is_empty() {
        bail!("every segment of {} is empty on these images", args.subject.seg.display());
    }
    let mut tokens = BTreeMap::new();
    for (s, _) in &shown {
        ensure!(
            tokens.insert(s.token(), s.label).is_none(),
            "two segments are {}; tell them apart with --map",
            s.token()
        );
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let path = args.out.join("form.toml");
    ensure!(!path.exists(), "{} exists: a filled form is not overwritten; name another folder", path.display());
    for (s, segment) in &shown {
        let png = args.out.join(format!("{}.png", s.token()));
        picture(&loaded.series.volume, &loaded.label_map(segment), segment.number)
            .write_png(&png)
            .with_context(|| format!("cannot write {}", png.display()))?;
    }
    // A segment that is none of our structures cannot come back: the form knows structures by key.
    let known: Vec<Shown> =
        shown.into_iter().map(|(s, _)| s).filter(|s| structure(&s.structure.key).is_some()).collect();
    ensure!(!known.is_empty(), "no segment is a structure that SegEx knows: name them with --map");
    save(&path, &form_text(&loaded.case, &known))?;
    println!("fill in {}, then: scanside segex read-form {} --out report.json", path.display(), path.display());
    Ok(ExitCode::SUCCESS)
}

/// The first error of a command's output folder, before minutes are spent on what cannot be written.
pub(super) fn folder_of(out: &Path) -> anyhow::Result<()> {
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "there is no folder {} to write into", folder.display());
    Ok(())
}

/// Writes a text.
pub(super) fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
