//! `scanside train`: an adapter from labelled slices.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::evaluate::{base_weights, evaluation_of, print_table, write_report};
use crate::adapter::{Adapter, AdapterMeta, FORMAT, Lora, Presence, Provenance, TRAINABLE_SHARE};
use crate::evaluate::{EvaluationSetting, loss_curve};
use crate::experiment::peak_mib;
use crate::model::network::NETWORK_VERSION;
use crate::model::weights::BaseWeights;
use crate::pipeline::CropRule;
use crate::terms::{STRUCTURE_KEYS, Task, structure};
use crate::train::{
    Case, Data, Device, Event, Manifest, PHASES, Progress, TrainSettings, TrainingSet, adapt, load_cases,
    load_training, reference,
};

/// Train an adapter on labelled slices.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Manifest: a TOML list of volumes, label files and which segment is which structure
    #[arg(long, short)]
    manifest: PathBuf,
    /// Structures in order, e.g. VL,VM; default: the manifest's, else all that its maps name
    #[arg(long, value_delimiter = ',')]
    structures: Vec<String>,
    /// The adapter file to write
    #[arg(long, short)]
    out: PathBuf,
    /// Name of the adapter; default: the file's
    #[arg(long)]
    name: Option<String>,
    /// Version of the adapter: raise it with every release of a name
    #[arg(long, default_value_t = 1)]
    release: u32,
    /// Settings as TOML; the options below go before it
    #[arg(long)]
    settings: Option<PathBuf>,
    /// Optimiser steps of all phases together, one slice each
    #[arg(long)]
    steps: Option<usize>,
    /// Seed of everything random: same data, settings and seed give the same adapter
    #[arg(long)]
    seed: Option<u64>,
    /// Edge of the network's input, pixels, a multiple of 32
    #[arg(long)]
    input_size: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f32>,
    /// LoRA rank in the image encoder
    #[arg(long)]
    encoder_rank: Option<usize>,
    /// LoRA rank in the mask decoder
    #[arg(long)]
    decoder_rank: Option<usize>,
    /// Checkpoint to write, and to resume from where it exists; default: the adapter file with .checkpoint
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Where to train: cpu, or cuda, cuda:1, ... (feature `cuda`); the evaluation that follows is the CPU's
    #[arg(long, default_value_t)]
    device: Device,
    /// Do not evaluate the manifest's test volumes afterwards
    #[arg(long)]
    no_evaluation: bool,
}

/// Runs the command.
///
/// # Errors
/// One message with its remedy.
pub fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let manifest = Manifest::load(&args.manifest)?;
    let task = task_of(&args.structures, &manifest, &args.out)?;
    super::labels::refuse_errors(&manifest, &task)?;
    let settings = settings_of(args)?;
    settings.check().map_err(anyhow::Error::msg)?;
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "there is no folder {} to write the adapter into", folder.display());

    let base = base_weights(args.weights.as_deref())?;
    let (cases, later) = load_training(&manifest, &task)?;
    let data = Data { cases: &cases, later: &later };
    let rule = CropRule::default();
    let slices: usize = cases.iter().map(|c| c.train.len()).sum();
    let unlabelled = data.unlabelled();
    println!(
        "training {} on {slices} labelled slices ({unlabelled} unlabelled beside them): {} steps at {} px, at least {} at \
         {} px, {} with pseudo-labels; seed {}",
        keys(&task).join(","),
        if settings.coarse_size > 0 { settings.coarse_steps } else { 0 },
        settings.coarse_size,
        settings.steps_for(slices),
        settings.input_size,
        if unlabelled > 0 { settings.pseudo_steps } else { 0 },
        settings.seed
    );

    let checkpoint = args.checkpoint.clone().unwrap_or_else(|| args.out.with_extension("checkpoint"));
    let resumed = PHASES.iter().any(|p| checkpoint.with_added_extension(p).exists());
    if resumed {
        println!("resuming from {}", checkpoint.display());
    }
    let curve = args.out.with_extension("loss.csv");
    let begin = Instant::now();
    let adapted = {
        let mut log = LossLog::open(&curve, resumed)?;
        adapt(base.tensors(), &task, data, rule, &settings, args.device, Some(&checkpoint), &mut |e| log.hear(&e))?
    };
    let (set, tensors) = (adapted.set, adapted.tensors);
    let mut adapter = adapter_of(args, &manifest, &task, &settings, &set, &base, rule, tensors)?;
    adapter.meta.reference = reference(&adapter, &base, &cases)?;
    adapter.save(&args.out)?;
    // Only a finished adapter makes the checkpoint useless; a default one is ours to remove.
    if args.checkpoint.is_none() {
        for phase in PHASES {
            let _ = std::fs::remove_file(checkpoint.with_added_extension(phase));
        }
    }
    println!(
        "wrote {}: {} values ({:.1} % of the base), sha256 {}",
        args.out.display(),
        adapter.parameters(),
        100.0 * share(&adapter, &base),
        adapter.sha256()?
    );
    println!(
        "trained in {:.1} minutes on {} threads{}, peak memory {:.0} MiB",
        begin.elapsed().as_secs_f64() / 60.0,
        rayon::current_num_threads(),
        if resumed { " since it was resumed" } else { "" },
        peak_mib()
    );
    println!("loss curve: {} and .svg beside it", curve.display());

    if !args.no_evaluation && manifest.volume.iter().any(|e| e.usage.tested()) {
        let tests: Vec<Case> = load_cases(&manifest, &task, |e| e.usage.tested())?;
        let setting = EvaluationSetting { overlays: true, ..EvaluationSetting::default() };
        let evaluation = evaluation_of(&adapter, &base, &tests, &setting)?;
        print_table(&evaluation.table, "Evaluation");
        if let Some(picture) = &evaluation.overlays {
            let path = args.out.with_extension("overlays.png");
            picture.write_png(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let report = args.out.with_extension("evaluation");
        write_report(evaluation, &format!("Evaluation of {}", adapter.meta.name), &report, false)?;
        println!("evaluation: {}.html, with overlays of the test volumes", report.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn keys(task: &Task) -> Vec<&str> {
    task.structures.iter().map(|s| s.key.as_str()).collect()
}

/// The task: what the command line lists, else the manifest's list, else all that its maps name.
pub(super) fn task_of(wanted: &[String], manifest: &Manifest, out: &Path) -> anyhow::Result<Task> {
    let list = [wanted.to_vec(), manifest.structures.clone(), manifest.mapped()];
    let Some(list) = list.into_iter().find(|l| !l.is_empty()) else {
        bail!("no structure is named: give --structures, e.g. --structures VL,VM");
    };
    let mut structures = Vec::new();
    for key in &list {
        let Some(s) = structure(key) else {
            bail!("no structure {key:?}: this release knows {}", STRUCTURE_KEYS.join(", "));
        };
        if !structures.contains(&s) {
            structures.push(s);
        }
    }
    let name = out.file_stem().map_or_else(|| "task".into(), |n| n.to_string_lossy().into_owned());
    Ok(Task { name, structures })
}

fn settings_of(args: &TrainArgs) -> anyhow::Result<TrainSettings> {
    let mut s: TrainSettings = match &args.settings {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("settings {}", path.display()))?;
            toml::from_str(&text).with_context(|| format!("settings {}", path.display()))?
        }
        None => TrainSettings::default(),
    };
    if let Some(steps) = args.steps {
        s.scale_steps(steps);
        // What is asked for is what is done.
        s.steps_hold = 0;
    }
    s.seed = args.seed.unwrap_or(s.seed);
    s.input_size = args.input_size.unwrap_or(s.input_size);
    s.lr = args.lr.unwrap_or(s.lr);
    s.encoder_rank = args.encoder_rank.unwrap_or(s.encoder_rank);
    s.decoder_rank = args.decoder_rank.unwrap_or(s.decoder_rank);
    Ok(s)
}

fn share(adapter: &Adapter, base: &BaseWeights) -> f64 {
    adapter.parameters() as f64 / base.tensors().values().map(crate::engine::Tensor::len).sum::<usize>().max(1) as f64
}

#[allow(clippy::too_many_arguments)]
fn adapter_of(
    args: &TrainArgs,
    manifest: &Manifest,
    task: &Task,
    settings: &TrainSettings,
    set: &TrainingSet,
    base: &BaseWeights,
    crop: CropRule,
    tensors: std::collections::BTreeMap<String, crate::engine::Tensor>,
) -> anyhow::Result<Adapter> {
    let adapter = Adapter {
        meta: AdapterMeta {
            format: FORMAT,
            name: args.name.clone().unwrap_or_else(|| task.name.clone()),
            version: args.release,
            network_version: NETWORK_VERSION,
            base_sha256: base.sha256().to_string(),
            task: task.clone(),
            input_size: settings.input_size,
            crop,
            prompting: settings.prompting,
            // Trained without a scale of its own: B A is added as it is.
            lora: Lora { encoder_rank: settings.encoder_rank, decoder_rank: settings.decoder_rank },
            presence: task.structures.iter().map(|s| Presence { key: s.key.clone(), threshold: 0.5 }).collect(),
            shape: set.shapes.clone(),
            reference: Vec::new(),
            segex: None,
            provenance: Provenance {
                tool: format!("scanside {}", env!("CARGO_PKG_VERSION")),
                seed: settings.seed,
                steps: settings.steps_for(set.samples.len()),
                volumes: set.volumes,
                slices: set.samples.len(),
                settings_sha256: settings.sha256(),
                note: manifest.note.clone(),
            },
        },
        tensors,
    };
    adapter.check(base.sha256())?;
    let part = share(&adapter, base);
    if part > TRAINABLE_SHARE {
        log::warn!(
            "the adapter has {:.1} % of the base's values, more than {:.0} %: lower the ranks or train less of it whole",
            100.0 * part,
            100.0 * TRAINABLE_SHARE
        );
    }
    Ok(adapter)
}

/// Steps between drawings of the loss curve.
const DRAW_EVERY: usize = 100;

/// The bar on a terminal, a line every 25 steps elsewhere, and the curve as CSV and as a picture.
struct LossLog {
    bar: ProgressBar,
    path: PathBuf,
    file: std::io::BufWriter<std::fs::File>,
    phase: &'static str,
    /// Running means of total and Dice loss.
    mean: Option<(f64, f64)>,
}

impl LossLog {
    fn open(path: &Path, resumed: bool) -> anyhow::Result<Self> {
        let context = || format!("loss curve {}", path.display());
        let mut options = std::fs::OpenOptions::new();
        options.create(true).write(true);
        // A resumed run repeats the steps since its checkpoint; the later line of a step counts.
        let file =
            if resumed { options.append(true) } else { options.truncate(true) }.open(path).with_context(context)?;
        let mut file = std::io::BufWriter::new(file);
        if !resumed {
            writeln!(file, "phase,step,total,dice,competition,mask,classifier,cam,gradient").with_context(context)?;
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta}")?;
        Ok(LossLog {
            bar: ProgressBar::new(0).with_style(style),
            path: path.to_path_buf(),
            file,
            phase: "",
            mean: None,
        })
    }

    fn hear(&mut self, event: &Event) {
        match *event {
            Event::Step(p) => self.step(&p),
            Event::Phase(name) => {
                (self.phase, self.mean) = (name, None);
                self.bar.reset();
                log::info!("phase: {name}");
            }
            Event::Labelling(done, all) => {
                self.bar.set_length(all as u64);
                self.bar.set_position(done as u64);
                self.bar.set_message("volumes pseudo-labelled");
            }
            Event::Kept(n) => log::info!("{n} pseudo-labelled slices kept"),
        }
    }

    /// Draws the curve beside its CSV; like the CSV a convenience that must not end a run.
    fn draw(&mut self) {
        let _ = self.file.flush();
        if let Ok(csv) = std::fs::read_to_string(&self.path) {
            let _ = std::fs::write(self.path.with_extension("svg"), loss_curve(&csv, "Training"));
        }
    }

    fn step(&mut self, p: &Progress) {
        let l = &p.losses;
        let (a, b) = self.mean.unwrap_or((f64::from(l.total), f64::from(l.dice)));
        let mean = (0.95 * a + 0.05 * f64::from(l.total), 0.95 * b + 0.05 * f64::from(l.dice));
        self.mean = Some(mean);
        // A full disk must not end a run that could still finish; the curve is a convenience.
        let _ = writeln!(
            self.file,
            "{},{},{},{},{},{},{},{},{}",
            self.phase, p.step, l.total, l.dice, l.competition, l.mask, l.classifier, l.cam, p.gradient
        );
        self.bar.set_length(p.steps as u64);
        self.bar.set_position(p.step as u64);
        let words = format!("loss {:.3}, 1-Dice {:.3}", mean.0, mean.1);
        if self.bar.is_hidden() && (p.step.is_multiple_of(25) || p.step == p.steps) {
            log::info!("step {}/{}: {words}", p.step, p.steps);
            let _ = self.file.flush();
        }
        self.bar.set_message(words);
        if p.step.is_multiple_of(DRAW_EVERY) || p.step == p.steps {
            self.draw();
        }
    }
}
