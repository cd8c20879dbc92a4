//! `scanside engine check-gpu`: everything that is to be known of a GPU before a box is trusted to it.
//!
//! Each part runs by itself and leaves its own file, so that one that fails, or takes the process with it, costs itself only;
//! engines/gpu-check.sh runs them one after the other, each in a process of its own.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::bench::{fixed, inputs, time_plan};
use super::build::{How, build};
use super::{Subject, SubjectArgs, quantile, report};
use crate::adapter::Adapter;
use crate::config::Precision;
use crate::engine::tensorrt::{Measured, Plans, Platform, Search, TensorRtEngine, overlap};
use crate::engine::{Bound, Engine, Tensor};
use crate::image::phantom::{Phantom, PhantomOptions};
use crate::model::weights::BaseWeights;
use crate::pipeline::parity::phantom_images;
use crate::pipeline::serving::{Refusal, TensorRtGraphs, TensorRtParts, parity_of};
use crate::pipeline::{EngineNetworks, SegmentOptions, Segmenter};

/// The parts, in the order in which they build on each other.
pub(super) const PARTS: [&str; 15] = [
    "gpu",
    "build-fp32",
    "build-fp16",
    "build-int8",
    "parity-fp32",
    "parity-fp16",
    "parity-int8",
    "latency-fp32",
    "latency-fp16",
    "latency-int8",
    "peers",
    "merged",
    "swaps",
    "overlap",
    "series",
];

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Where plans, one JSON for each part and the report go
    #[arg(long)]
    out: PathBuf,
    /// This part alone (gpu, build-fp16, ...), or `report` to put together what is there; default: all and the report
    #[arg(long)]
    part: Option<String>,
    /// The library is TensorRT-RTX
    #[arg(long)]
    rtx: bool,
    /// Take no kernels from cuBLAS and cuDNN
    #[arg(long)]
    own_kernels: bool,
    /// How thoroughly TensorRT looks for kernels, 0 to 5
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..=5))]
    level: i32,
    /// The input's edge in place of the adapter's own, pixels
    #[arg(long)]
    size: Option<usize>,
    /// Folder of calibrated graphs for int8; without it int8 is left out
    #[arg(long)]
    int8: Option<PathBuf>,
    /// Timed runs of each part
    #[arg(long, default_value_t = 300)]
    rounds: usize,
    /// Swaps between two adapters
    #[arg(long, default_value_t = 1000)]
    swaps: usize,
    /// Python with onnxruntime, for the peers
    #[arg(long)]
    python: Option<PathBuf>,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let all_good = match args.part.as_deref() {
        Some("report") => true,
        Some(part) if PARTS.contains(&part) => one(args, part)?,
        Some(part) => bail!("there is no part {part}; expected one of {} or report", PARTS.join(", ")),
        None => {
            let mut good = true;
            for part in PARTS {
                good &= one(args, part)?;
            }
            good
        }
    };
    if args.part.is_none() || args.part.as_deref() == Some("report") {
        let report = report::collect(&args.out)?;
        print!("{}", report::markdown(&report));
        std::fs::write(args.out.join("report.json"), serde_json::to_vec_pretty(&report)?)?;
        std::fs::write(args.out.join("report.md"), report::markdown(&report))?;
    }
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one part and writes what came of it, whatever that is. Whether it went well.
fn one(args: &CheckArgs, part: &str) -> anyhow::Result<bool> {
    let started = Instant::now();
    let file = args.out.join(format!("{part}.json"));
    // Until it is over, the part is one that took the process with it.
    write(&file, &json!({"part": part, "error": "the process ended in this part", "seconds": null}))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let check = Check::new(args)?;
        check.part(part)
    }))
    .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
    let seconds = started.elapsed().as_secs_f64();
    let good = outcome.is_ok();
    let value = match outcome {
        Ok(Outcome::Done(data)) => json!({"part": part, "seconds": seconds, "data": data}),
        Ok(Outcome::LeftOut(why)) => json!({"part": part, "seconds": seconds, "left_out": why}),
        Err(e) => json!({"part": part, "seconds": seconds, "error": format!("{e:#}")}),
    };
    eprintln!("{part}: {seconds:.1} s {}", value["error"].as_str().or(value["left_out"].as_str()).unwrap_or("done"));
    write(&file, &value)?;
    Ok(good)
}

fn write(file: &Path, value: &Value) -> anyhow::Result<()> {
    std::fs::write(file, serde_json::to_vec_pretty(value)?).with_context(|| file.display().to_string())
}

enum Outcome {
    Done(Value),
    LeftOut(String),
}

struct Check<'a> {
    args: &'a CheckArgs,
    subject: Subject,
    platform: Platform,
}

impl<'a> Check<'a> {
    fn new(args: &'a CheckArgs) -> anyhow::Result<Self> {
        let mut subject = args.subject.load()?;
        if let Some(size) = args.size {
            subject.adapter.meta.input_size = size;
        }
        subject.plans = Plans::new(&args.out.join("plans"));
        let folder = &subject.config.engine.library;
        let folder = (!folder.as_os_str().is_empty()).then(|| folder.clone());
        let search = Search { folder, lean: false, rtx: args.rtx };
        let platform = Platform::open(&search).map_err(|e| anyhow::anyhow!(Refusal::from(e)))?;
        Ok(Check { args, subject, platform })
    }

    fn part(mut self, part: &str) -> anyhow::Result<Outcome> {
        let (what, precision) = match part.split_once('-') {
            Some((what, precision)) => (what, precision),
            None => (part, self.built()),
        };
        self.subject.config.engine.precision = of_word(precision);
        if precision == "int8" {
            match &self.args.int8 {
                Some(folder) => self.subject.config.engine.graphs = folder.clone(),
                None => return Ok(Outcome::LeftOut("no calibrated graphs were given (--int8)".into())),
            }
        }
        let done = match what {
            "gpu" => self.gpu(),
            "build" => self.build(),
            "parity" => self.parity(),
            "latency" => self.latency(),
            "peers" => return self.peers(),
            "merged" => self.merged(),
            "swaps" => self.swaps(),
            "overlap" => self.overlap(),
            _ => self.series(),
        };
        done.map(Outcome::Done)
    }

    /// The precision that parts without one of their own run in: what was asked for, else FP16, else FP32 where FP16 was not built.
    fn built(&self) -> &'static str {
        if let Some(p) = self.args.subject.precision {
            return p.word();
        }
        let all = self.subject.plans.list().unwrap_or_default();
        if all.iter().flatten().any(|r| r.key.precision == "fp16") { "fp16" } else { "fp32" }
    }

    fn gpu(&self) -> anyhow::Result<Value> {
        let (gpu, library) = (&self.platform.gpu, &self.platform.library);
        let driver = gpu.driver();
        Ok(json!({
            "gpu": gpu.name(),
            "capability": format!("{}.{}", gpu.capability().0, gpu.capability().1),
            "driver_cuda": format!("{}.{}", driver / 1000, driver % 1000 / 10),
            "total_mib": gpu.total() >> 20,
            "free_mib": gpu.free()? >> 20,
            "library": library.product(),
            "builds": library.builds(),
            "adapter": self.subject.adapter.meta.name,
            "input": self.subject.adapter.meta.input_size,
            "program": env!("CARGO_PKG_VERSION"),
        }))
    }

    fn how(&self) -> How {
        How { level: Some(self.args.level), own_kernels: self.args.own_kernels }
    }

    fn build(&self) -> anyhow::Result<Value> {
        let graphs = self.subject.graphs()?;
        let mut parts = Vec::new();
        let mut failed = Vec::new();
        for (part, _) in graphs.graphs.parts() {
            match build(&self.subject, &self.platform, &graphs, part, self.how()) {
                Ok(r) => parts.push(json!({"part": part, "seconds": r.seconds, "kib": r.bytes >> 10})),
                Err(e) => failed.push(format!("{e:#}")),
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("; "));
        }
        Ok(json!({"parts": parts}))
    }

    fn load(&self, graphs: &TensorRtGraphs, cuda_graph: bool) -> anyhow::Result<TensorRtParts> {
        graphs.load(&self.subject.plans, &self.platform, cuda_graph).map_err(|e| anyhow::anyhow!(e))
    }

    fn parity(&self) -> anyhow::Result<Value> {
        let s = &self.subject;
        let graphs = s.graphs()?;
        let parts = self.load(&graphs, true)?;
        let networks = parts.graphs(&graphs.graphs)?.bind(&s.adapter)?;
        let images = phantom_images(s.adapter.meta.crop, s.adapter.meta.input_size)?;
        let parity = parity_of(&networks, &s.base, &s.adapter, &images, &|_| ())?;
        Ok(json!({"parity": parity, "passed": parity.problem().is_none(), "problem": parity.problem()}))
    }

    fn latency(&self) -> anyhow::Result<Value> {
        let s = &self.subject;
        let graphs = s.graphs()?;
        let (plain, captured) = (self.load(&graphs, false)?, self.load(&graphs, true)?);
        let mut parts = Vec::new();
        for (i, (name, graph)) in graphs.graphs.parts().into_iter().enumerate() {
            let times = |engine: &Arc<TensorRtEngine>| -> anyhow::Result<Value> {
                let t = time_plan(engine, graph, s, self.args.rounds)?;
                Ok(json!({"p50": quantile(&t, 0.5), "p99": quantile(&t, 0.99)}))
            };
            let (without, with) = (times(&plain.engines[i].1)?, times(&captured.engines[i].1)?);
            let given = inputs(graph);
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let measured = Measured::new(&plain.engines[i].1, &fixed(graph, s))?;
            measured.steps(&given, 10)?;
            let steps = measured.steps(&given, self.args.rounds.min(200))?;
            let median = |f: fn(&crate::engine::tensorrt::Steps) -> f32| {
                let mut v: Vec<f64> = steps.iter().map(|s| f64::from(f(s))).collect();
                v.sort_by(f64::total_cmp);
                quantile(&v, 0.5)
            };
            parts.push(json!({
                "part": name, "plain": without, "cuda_graph": with, "captured": captured.engines[i].1.uses_graphs(),
                "upload": median(|s| s.upload), "compute": median(|s| s.compute), "download": median(|s| s.download),
            }));
        }
        Ok(json!({"parts": parts, "rounds": self.args.rounds}))
    }

    /// LoRA as inputs beside the same adapter merged into the base weights.
    fn merged(&self) -> anyhow::Result<Value> {
        let s = &self.subject;
        let (base, adapter) = merge(&s.base, &s.adapter)?;
        let other =
            Subject { config: s.config.clone(), base, adapter, plans: Plans::new(&self.args.out.join("plans-merged")) };
        let (ours, theirs) = (s.graphs()?, other.graphs()?);
        for (part, _) in theirs.graphs.parts() {
            build(&other, &self.platform, &theirs, part, self.how())?;
        }
        let as_inputs = self.load(&ours, true)?;
        let merged = theirs.load(&other.plans, &self.platform, true).map_err(|e| anyhow::anyhow!(e))?;
        let images = phantom_images(s.adapter.meta.crop, s.adapter.meta.input_size)?;
        let networks = as_inputs.graphs(&ours.graphs)?.bind(&s.adapter)?;
        let reference = merged.graphs(&theirs.graphs)?.bind(&other.adapter)?;
        let parity = crate::pipeline::parity::compare(&reference, &networks, &images, &|_| ())?;
        drop((networks, reference));
        let mut parts = Vec::new();
        for (i, (name, graph)) in ours.graphs.parts().into_iter().enumerate() {
            let a = time_plan(&as_inputs.engines[i].1, graph, s, self.args.rounds)?;
            let b = time_plan(&merged.engines[i].1, theirs.graphs.parts()[i].1, &other, self.args.rounds)?;
            parts.push(json!({"part": name, "inputs_p50": quantile(&a, 0.5), "merged_p50": quantile(&b, 0.5)}));
        }
        Ok(json!({"parity": parity, "passed": parity.problem().is_none(), "parts": parts, "rank": ours.graphs.rank}))
    }

    /// Two adapters in turn, each bound beside the other while that serves: every answer must be that of its own adapter.
    fn swaps(&self) -> anyhow::Result<Value> {
        let s = &self.subject;
        let graphs = s.graphs()?;
        let parts = self.load(&graphs, true)?;
        let loaded = parts.graphs(&graphs.graphs)?;
        let second = changed(&s.adapter);
        let image = phantom_images(s.adapter.meta.crop, s.adapter.meta.input_size)?.remove(0);
        let answer = |n: &EngineNetworks| -> anyhow::Result<Vec<f32>> {
            use crate::pipeline::Networks;
            let embedding = n.encode(&image)?;
            let mut all = n.classify(&embedding)?.logits;
            all.extend(&n.decode(&embedding, &vec![[0.1, 0.1, 0.9, 0.9]; n.structures()])?.masks[0].data);
            Ok(all)
        };
        let adapters = [&s.adapter, &second];
        let mut active = loaded.bind(adapters[0])?;
        let mut wanted = [answer(&active)?, Vec::new()];
        let beside = loaded.bind(adapters[1])?;
        wanted[1] = answer(&beside)?;
        drop(beside);
        let apart = difference(&wanted[0], &wanted[1]);
        if apart == 0.0 {
            bail!("the two adapters answer alike, so swaps cannot be seen");
        }
        let (mut times, mut worst, mut free) = (Vec::new(), 0f64, Vec::new());
        for i in 1..=self.args.swaps {
            let started = Instant::now();
            let next = loaded.bind(adapters[i % 2]).with_context(|| format!("swap {i}"))?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
            // The old one still serves its series while the new one is on the device.
            if i % 50 == 0 {
                worst = worst.max(difference(&answer(&active)?, &wanted[(i - 1) % 2]));
            }
            active = next;
            worst = worst.max(difference(&answer(&active)?, &wanted[i % 2]));
            if i % 50 == 0 || i == 1 {
                free.push(self.platform.gpu.free()? >> 10);
            }
        }
        times.sort_by(f64::total_cmp);
        let (first, last) = (free.first().copied().unwrap_or(0), free.last().copied().unwrap_or(0));
        if worst > 0.05 * apart {
            bail!("after a swap the answer is off by {worst:.4}, where the adapters differ by {apart:.4}");
        }
        Ok(json!({
            "swaps": self.args.swaps, "p50": quantile(&times, 0.5), "p99": quantile(&times, 0.99),
            "worst_difference": worst, "adapters_differ": apart,
            "free_kib_first": first, "free_kib_last": last, "lost_kib": first as i64 - last as i64,
        }))
    }

    fn overlap(&self) -> anyhow::Result<Value> {
        let s = &self.subject;
        let graphs = s.graphs()?;
        let parts = self.load(&graphs, false)?;
        let (_, graph) = graphs.graphs.parts()[0];
        let engine = &parts.engines[0].1;
        let given = inputs(graph);
        let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let measured = Measured::new(engine, &fixed(graph, s))?;
        measured.spans(&given, 10, engine.lanes())?;
        let rounds = self.args.rounds.min(200);
        let of = |lanes: usize| -> anyhow::Result<Value> {
            let spans = measured.spans(&given, rounds, lanes)?;
            let end = spans.iter().map(|s| s.at[3]).fold(0.0, f32::max);
            let copies: f32 = spans.iter().map(|s| s.at[1] - s.at[0] + s.at[3] - s.at[2]).sum();
            Ok(json!({
                "lanes": lanes, "ms_each": end / rounds as f32, "copies_ms": copies, "overlapped_ms": overlap(&spans),
                "timeline": &spans[rounds / 2..(rounds / 2 + 6).min(spans.len())],
            }))
        };
        // Encoder and decoder of different slices at once, as serving asks them: by the clock, apart and together.
        let bound = |i: usize| -> anyhow::Result<Box<dyn Bound>> {
            let engine = parts.engines[i].1.clone() as Arc<dyn Engine>;
            Ok(engine.bind(fixed(graphs.graphs.parts()[i].1, s))?)
        };
        let (encoder, decoder) = (bound(0)?, bound(2)?);
        let decoder_inputs = inputs(graphs.graphs.parts()[2].1);
        let decoder_given: Vec<(&str, &Tensor)> = decoder_inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let clock = |work: &dyn Fn() -> anyhow::Result<()>| -> anyhow::Result<f64> {
            let started = Instant::now();
            work()?;
            Ok(started.elapsed().as_secs_f64() * 1e3 / rounds as f64)
        };
        let each = |bound: &dyn Bound, given: &[(&str, &Tensor)]| -> anyhow::Result<()> {
            for _ in 0..rounds {
                bound.run(given)?;
            }
            Ok(())
        };
        let apart = [clock(&|| each(encoder.as_ref(), &given))?, clock(&|| each(decoder.as_ref(), &decoder_given))?];
        let together = clock(&|| {
            std::thread::scope(|scope| {
                let one = scope.spawn(|| each(encoder.as_ref(), &given));
                let other = each(decoder.as_ref(), &decoder_given);
                one.join().map_err(|_| anyhow::anyhow!("the encoder's thread panicked"))??;
                other
            })
        })?;
        Ok(json!({
            "one_lane": of(1)?, "lanes": of(engine.lanes())?,
            "encoder_ms": apart[0], "decoder_ms": apart[1], "encoder_beside_decoder_ms": together,
        }))
    }

    /// A whole series on both engines.
    fn series(&self) -> anyhow::Result<Value> {
        let s = &self.subject;
        let graphs = s.graphs()?;
        let parts = self.load(&graphs, true)?;
        let phantom = Phantom::new(&PhantomOptions { seed: 77, ..PhantomOptions::default() });
        let options = SegmentOptions::default();
        let segment = |networks: EngineNetworks| -> anyhow::Result<(f64, crate::pipeline::Segmentation)> {
            let segmenter = Segmenter::new(Box::new(networks), s.adapter.model_info()?)?;
            segmenter.segment(&phantom.volume, None, &options, &|_| ())?;
            let started = Instant::now();
            let done = segmenter.segment(&phantom.volume, None, &options, &|_| ())?;
            Ok((started.elapsed().as_secs_f64(), done))
        };
        let (gpu_seconds, gpu) = segment(parts.graphs(&graphs.graphs)?.bind(&s.adapter)?)?;
        let (cpu_seconds, cpu) = segment(EngineNetworks::cpu(&s.base, &s.adapter, 1)?)?;
        let pairs = gpu.labels.data.iter().zip(&cpu.labels.data);
        let (mut both, mut either) = (0usize, 0usize);
        for (a, b) in pairs {
            both += usize::from(*a > 0 && a == b);
            either += usize::from(*a > 0 || *b > 0);
        }
        Ok(json!({
            "slices": phantom.volume.geometry.dims[2], "gpu_seconds": gpu_seconds, "cpu_seconds": cpu_seconds,
            "ratio": cpu_seconds / gpu_seconds, "label_iou": both as f64 / either.max(1) as f64,
            "steps": gpu.times, "threads": options.threads,
        }))
    }

    /// ONNX Runtime and trtexec on the same graphs, where they are.
    fn peers(&self) -> anyhow::Result<Outcome> {
        let s = &self.subject;
        let mut found = serde_json::Map::new();
        let mut missing = Vec::new();
        let mut fp32 = s.config.clone();
        fp32.engine.precision = Precision::Fp32;
        let graphs = TensorRtGraphs::new(&fp32.engine, &s.base, &s.adapter)?;
        let dir = self.args.out.join("onnx");
        for (part, graph) in graphs.graphs.parts() {
            let folder = dir.join(part);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("model.onnx"), graphs.onnx(part))?;
            for (i, (name, t)) in inputs(graph).into_iter().chain(fixed(graph, s)).enumerate() {
                let raw: Vec<u8> = t.data.iter().flat_map(|v| v.to_le_bytes()).collect();
                std::fs::write(folder.join(format!("{i}.f32")), raw)?;
                std::fs::write(folder.join(format!("{i}.json")), json!({"name": name, "shape": t.shape}).to_string())?;
            }
        }
        match &self.args.python {
            None => missing.push("onnxruntime: no --python".to_string()),
            Some(python) => {
                let script = self.args.out.join("peer.py");
                std::fs::write(&script, PEER)?;
                let out = Command::new(python).arg(&script).arg(&dir).arg(self.args.rounds.to_string()).output()?;
                if out.status.success() {
                    found.insert("onnxruntime".into(), serde_json::from_slice(&out.stdout)?);
                } else {
                    let words = String::from_utf8_lossy(&out.stderr);
                    missing.push(format!("onnxruntime: {}", words.trim().lines().last().unwrap_or("no word")));
                }
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places =
            std::env::split_paths(&path).chain([s.config.engine.library.clone(), "/usr/src/tensorrt/bin".into()]);
        match places.map(|p| p.join("trtexec")).find(|p| p.is_file()) {
            None => missing.push("trtexec: not found".into()),
            Some(trtexec) => {
                let onnx = dir.join("encoder/model.onnx");
                let out =
                    Command::new(trtexec).arg(format!("--onnx={}", onnx.display())).arg("--useCudaGraph").output()?;
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                let line = text.lines().find(|l| l.contains("GPU Compute Time:")).unwrap_or("no times");
                found.insert("trtexec".into(), json!({"encoder": line}));
            }
        }
        if found.is_empty() {
            return Ok(Outcome::LeftOut(missing.join("; ")));
        }
        Ok(Outcome::Done(json!({"peers": found, "missing": missing})))
    }
}

fn of_word(precision: &str) -> Precision {
    match precision {
        "fp32" => Precision::Fp32,
        "int8" => Precision::Int8,
        _ => Precision::Fp16,
    }
}

const PEER: &str = include_str!("peer.py");

/// Largest difference of two answers.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from((x - y).abs())).fold(0.0, f64::max)
}

/// Another adapter of the same shapes that answers otherwise.
fn changed(adapter: &Adapter) -> Adapter {
    let mut other = adapter.clone();
    other.meta.name.push_str("-changed");
    for (name, t) in &mut other.tensors {
        if name.ends_with(".lora_b") || name == "class_tokens" || name == "classifier.fc2.bias" {
            t.data.iter_mut().for_each(|v| *v = 0.5 * *v + 0.01);
        }
    }
    other
}

/// The base weights with the adapter's LoRA in them, and the adapter without it.
fn merge(base: &BaseWeights, adapter: &Adapter) -> anyhow::Result<(BaseWeights, Adapter)> {
    let mut rest = adapter.clone();
    let mut tensors: BTreeMap<String, Tensor> = base.tensors().clone();
    let layers: Vec<String> =
        adapter.tensors.keys().filter_map(|n| n.strip_suffix(".lora_a").map(str::to_string)).collect();
    for layer in layers {
        let (Some(a), Some(b)) =
            (rest.tensors.remove(&format!("{layer}.lora_a")), rest.tensors.remove(&format!("{layer}.lora_b")))
        else {
            bail!("the adapter's pair of {layer} is not whole")
        };
        let name = format!("{layer}.weight");
        let weight = match rest.tensors.get_mut(&name) {
            Some(w) => w,
            None => tensors.get_mut(&name).with_context(|| format!("no weight {name}"))?,
        };
        let (&[rank, columns], &[rows, _]) = (&a.shape[..], &b.shape[..]) else {
            bail!("the pair of {layer} is no pair of matrices")
        };
        for row in 0..rows {
            for k in 0..rank {
                let factor = b.data[row * rank + k];
                for column in 0..columns {
                    weight.data[row * columns + column] += factor * a.data[k * columns + column];
                }
            }
        }
    }
    Ok((BaseWeights::new(tensors)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_adapter_answers_as_its_factors_do() {
        use crate::pipeline::Networks;
        let base = crate::model::weights::BaseWeights::random(3);
        let mut adapter = crate::daemon::adapter_at(Path::new("")).unwrap();
        adapter.meta.input_size = 64;
        let (merged_base, merged) = merge(&base, &adapter).unwrap();
        assert!(merged.tensors.keys().all(|n| !n.contains("lora")));
        let answer = |base: &BaseWeights, adapter: &Adapter| {
            let n = EngineNetworks::cpu(base, adapter, 1).unwrap();
            let image = Tensor::new(&[1, 3, 64, 64], (0..3 * 64 * 64).map(|i| (i % 97) as f32 / 50.0 - 1.0).collect());
            n.encode(&image).unwrap().data
        };
        let (a, b) = (answer(&base, &adapter), answer(&merged_base, &merged));
        let size = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(difference(&a, &b) < 1e-3 * f64::from(size), "{} of {size}", difference(&a, &b));
        // And the factors matter.
        let mut without = adapter.clone();
        without.tensors.retain(|n, _| !n.contains("lora"));
        assert!(difference(&a, &answer(&base, &without)) > 1e-3 * f64::from(size));
    }
}
