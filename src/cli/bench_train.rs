//! `scanside bench train-step`: one training step here and, where a Python with PyTorch is named, in PyTorch on the same architecture.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::Tensor;
use crate::model::autograd::{Autograd, Learner};
use crate::model::eager::{AdamConfig, EagerLearner};
use crate::model::network;
use crate::model::ops::Ops;
use crate::train::{Device, parameters};

/// What to measure.
#[derive(Args, Debug, Clone)]
pub struct TrainStepArgs {
    /// Side of the input in pixels, a multiple of 32
    #[arg(long, default_value_t = 256)]
    pub size: usize,
    /// Structures, each with its mask
    #[arg(long, default_value_t = 9)]
    pub structures: usize,
    /// Rank of LoRA in every attention block of the encoder
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// Steps timed, after three to warm up
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where to compute, PyTorch too: cpu, or cuda, cuda:1, ... (feature `cuda`)
    #[arg(long, default_value_t)]
    pub device: Device,
    /// Folder `mobile_sam` of MobileSAM's Python sources, to time PyTorch too
    #[arg(long, value_name = "DIR")]
    pub mobile_sam: Option<PathBuf>,
    /// Python with torch and timm
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    /// The script that times PyTorch
    #[arg(long, default_value = "tests/peers/train_step.py")]
    pub script: PathBuf,
}

/// Median times of a training step, and how long its parts took.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StepTime {
    /// Median wall time of a step.
    pub seconds: f64,
    /// Median wall time of encoding the image; on a GPU, of asking for it.
    pub encode_seconds: f64,
    /// Median wall time of classifier, decoder and losses; likewise.
    pub decode_seconds: f64,
    /// Median wall time of the backward pass and the optimiser, to the last of it.
    pub descend_seconds: f64,
    /// Fastest step.
    pub best_seconds: f64,
    /// Mean CPU time of a step over all threads, where the system tells.
    pub cpu_seconds: Option<f64>,
    /// Trainable values.
    pub trainable: usize,
}

/// The network with random weights (times do not depend on them): base frozen, LoRA in every attention block of the
/// encoder, prompt encoder, mask decoder, class tokens and classifier trainable.
fn random_parameters(structures: usize, rank: usize) -> [BTreeMap<String, Tensor>; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut random = |shape: &[usize], k: f32| {
        let len = shape.iter().product();
        Tensor::new(shape, (0..len).map(|_| k * rng.random_range(-1.0f32..1.0)).collect())
    };
    let (mut base, mut trainable) = (BTreeMap::new(), BTreeMap::new());
    for (name, shape) in network::expected_base_shapes() {
        let fan_in: usize = shape[1..].iter().product();
        let norm = shape.len() == 1 && name.ends_with("weight");
        let tensor = if norm {
            Tensor::new(&shape, vec![1.0; shape[0]])
        } else if shape.len() == 1 {
            random(&shape, 0.01)
        } else {
            random(&shape, (3.0 / fan_in as f32).sqrt())
        };
        if name.starts_with("image_encoder.") || name.contains("gaussian_matrix") {
            base.insert(name, tensor);
        } else {
            trainable.insert(name, tensor);
        }
    }
    for target in network::lora_targets() {
        if target.name.starts_with("image_encoder.") && target.name.contains(".attn.") {
            trainable.insert(format!("{}.lora_a", target.name), random(&[rank, target.inputs], 0.01));
            trainable.insert(format!("{}.lora_b", target.name), random(&[target.outputs, rank], 0.01));
        }
    }
    let c = network::EMBED;
    trainable.insert("class_tokens".into(), random(&[structures, c], 1.0));
    trainable.insert("classifier.fc1.weight".into(), random(&[c, c], 0.05));
    trainable.insert("classifier.fc1.bias".into(), random(&[c], 0.05));
    trainable.insert("classifier.fc2.weight".into(), random(&[structures, c], 0.05));
    trainable.insert("classifier.fc2.bias".into(), random(&[structures], 0.05));
    [base, trainable]
}

/// Times training steps on the device asked for, on the CPU in the current thread pool.
///
/// # Errors
/// When the size does not fit the network or no step is asked for.
pub fn measure(args: &TrainStepArgs) -> anyhow::Result<StepTime> {
    network::check_image_size(args.size)?;
    if args.steps == 0 || args.structures == 0 || args.rank == 0 {
        bail!("steps, structures and rank must be at least 1");
    }
    let [base, trainable] = random_parameters(args.structures, args.rank);
    let config = AdamConfig::default();
    #[cfg(feature = "cuda")]
    if let Some(device) = args.device.torch() {
        return timed(crate::model::torch::TorchLearner::new(device, &base, &trainable, config, &[], None)?, args);
    }
    timed(EagerLearner::new(parameters(&base, &trainable), config, Vec::new(), None)?, args)
}

fn timed<L: Learner>(mut learner: L, args: &TrainStepArgs) -> anyhow::Result<StepTime> {
    let (k, side) = (args.structures, args.size / 4);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut uniform = |count: usize| (0..count).map(|_| rng.random::<f32>()).collect::<Vec<f32>>();
    let e = learner.ops();
    let image = uniform(3 * args.size * args.size).into_iter().map(|v| 4.0 * v - 2.0).collect();
    let image = e.constant(&[1, 3, args.size, args.size], image);
    let boxes =
        uniform(2 * k).chunks(2).flat_map(|c| [c[0] / 2.0, c[1] / 2.0, c[0] / 2.0 + 0.33, c[1] / 2.0 + 0.33]).collect();
    let boxes = e.constant(&[k, 4], boxes);
    let mut coin = |count: usize| uniform(count).into_iter().map(f32::round).collect::<Vec<f32>>();
    let present = e.constant(&[1, k], coin(k));
    let truth = e.constant(&[k, 1, side, side], coin(k * side * side));

    let mut parts: [Vec<Duration>; 4] = Default::default();
    let mut cpu = None;
    for i in 0..args.steps + 3 {
        if i == 3 {
            cpu = cpu_time();
        }
        let start = Instant::now();
        let e = learner.ops();
        let f = network::encode(e, &image);
        let encoded = start.elapsed();
        let classes = network::classify(e, &f).logits;
        let masks = network::decode(e, &f, &boxes, Some(&e.param("class_tokens"))).masks;
        let p = e.sigmoid(&masks);
        let both = e.sum(&e.mul(&p, &truth), &[2, 3]);
        let either = e.add(&e.sum(&p, &[2, 3]), &e.sum(&truth, &[2, 3]));
        let dice = e.div(&e.offset(&e.scale(&both, 2.0), 1.0), &e.offset(&either, 1.0));
        let loss = e.sub(&e.mean_all(&e.bce_with_logits(&classes, &present)), &e.scale(&e.mean_all(&dice), 0.8));
        let loss = e.add(&loss, &e.scale(&e.mean_all(&e.bce_with_logits(&masks, &truth)), 0.2));
        let decoded = start.elapsed();
        learner.descend(&loss, AdamConfig::default().lr, f32::INFINITY);
        // Read as a training loop reads it; a GPU is waited for here.
        let value = learner.ops().values(&loss);
        let all = start.elapsed();
        if !value.iter().all(|v| v.is_finite()) {
            bail!("the loss is not finite at step {i}");
        }
        if i >= 3 {
            for (part, took) in parts.iter_mut().zip([all, encoded, decoded - encoded, all - decoded]) {
                part.push(took);
            }
        }
    }
    let cpu = cpu.zip(cpu_time()).map(|(from, to)| (to - from) / args.steps as f64);
    let best = parts[0].iter().min().copied().unwrap_or_default();
    let [seconds, encode_seconds, decode_seconds, descend_seconds] = parts.map(median);
    Ok(StepTime {
        seconds,
        encode_seconds,
        decode_seconds,
        descend_seconds,
        best_seconds: best.as_secs_f64(),
        cpu_seconds: cpu,
        trainable: learner.parameters().values().map(Tensor::len).sum(),
    })
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
}

/// CPU seconds of this process, all threads, from Linux's `/proc`.
fn cpu_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The fields after the command's name, which stands in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    // USER_HZ is 100 on every Linux that Rust's tier 1 and 2 targets run on.
    Some(ticks / 100.0)
}

/// Measures, prints, and compares with PyTorch where asked.
///
/// # Errors
/// When a measurement cannot be made.
pub fn run(args: &TrainStepArgs) -> anyhow::Result<ExitCode> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let ours = pool.install(|| measure(args))?;
    println!(
        "training step on {5}, {0}x{0}, {1} structures, rank {2}, {3} trainable values, {4} threads",
        args.size,
        args.structures,
        args.rank,
        ours.trainable,
        pool.current_num_threads(),
        args.device
    );
    let ms = |s: f64| s * 1e3;
    println!(
        "scanside  median {:.1} ms  best {:.1} ms  cpu {}  (encode {:.1}, decode {:.1}, descend {:.1})",
        ms(ours.seconds),
        ms(ours.best_seconds),
        ours.cpu_seconds.map_or("unknown".to_owned(), |c| format!("{:.1} ms", ms(c))),
        ms(ours.encode_seconds),
        ms(ours.decode_seconds),
        ms(ours.descend_seconds),
    );
    let Some(sources) = &args.mobile_sam else { return Ok(ExitCode::SUCCESS) };
    let output = Command::new(&args.python)
        .arg(&args.script)
        .arg(sources)
        .args(["--threads", &pool.current_num_threads().to_string()])
        .args(["--size", &args.size.to_string(), "--structures", &args.structures.to_string()])
        .args(["--rank", &args.rank.to_string(), "--steps", &args.steps.to_string()])
        .args(["--device", &args.device.to_string().replace("torch-", "")])
        .output()
        .with_context(|| format!("cannot run {}; name a Python with torch by --python", args.python.display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", args.script.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let theirs: serde_json::Value = serde_json::from_slice(&output.stdout).context("the peer printed no JSON")?;
    let number = |key: &str| theirs[key].as_f64().with_context(|| format!("the peer did not print {key}"));
    let (seconds, best, cpu) = (number("seconds")?, number("best_seconds")?, number("cpu_seconds")?);
    println!(
        "PyTorch   median {:.1} ms  best {:.1} ms  cpu {:.1} ms  ({} trainable values, torch {})",
        ms(seconds),
        ms(best),
        ms(cpu),
        theirs["trainable"],
        theirs["torch"].as_str().unwrap_or("?"),
    );
    println!("ratio scanside/PyTorch  median {:.2}  best {:.2}", ours.seconds / seconds, ours.best_seconds / best);
    Ok(ExitCode::SUCCESS)
}
