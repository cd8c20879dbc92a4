//! What `check-gpu` found, as Markdown.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::check::PARTS;

/// What is not there.
static NONE: Value = Value::Null;
/// Largest file of a part.
const MOST: u64 = 4 << 20;

/// The files of all parts that were run, in order.
pub(super) fn collect(out: &Path) -> anyhow::Result<Value> {
    let mut parts = Vec::new();
    for part in PARTS {
        let file = out.join(format!("{part}.json"));
        match std::fs::metadata(&file) {
            Ok(m) if m.len() <= MOST => parts.push(serde_json::from_slice(&std::fs::read(&file)?)?),
            Ok(_) => parts.push(json!({"part": part, "error": "its file is too large"})),
            Err(_) => parts.push(json!({"part": part, "left_out": "not run"})),
        }
    }
    Ok(json!({"parts": parts}))
}

fn number(v: &Value) -> String {
    match v.as_f64() {
        Some(x) if x.abs() >= 100.0 || x == x.trunc() => format!("{x:.0}"),
        Some(x) if x.abs() >= 0.001 || x == 0.0 => format!("{x:.3}"),
        Some(x) => format!("{x:.1e}"),
        None => v.as_str().unwrap_or("-").to_string(),
    }
}

/// Tables for people: what each part came to, then times by part and precision.
pub(super) fn markdown(report: &Value) -> String {
    let parts: Vec<&Value> = report["parts"].as_array().into_iter().flatten().collect();
    let of = |name: &str| parts.iter().find(|p| p["part"] == name).map_or(&NONE, |p| &p["data"]);
    let gpu = of("gpu");
    let mut out = format!(
        "# {} on {}\n\nCompute capability {}, driver for CUDA {}, {} MiB; adapter {}, input {} px; scanside {}.\n\n",
        number(&gpu["library"]),
        number(&gpu["gpu"]),
        number(&gpu["capability"]),
        number(&gpu["driver_cuda"]),
        number(&gpu["total_mib"]),
        number(&gpu["adapter"]),
        number(&gpu["input"]),
        number(&gpu["program"]),
    );
    out.push_str("| part | outcome | seconds |\n|---|---|---|\n");
    for p in &parts {
        let outcome = match (p["error"].as_str(), p["left_out"].as_str()) {
            (Some(e), _) => format!("FAILED: {}", e.replace('|', "/").replace('\n', " ")),
            (_, Some(why)) => format!("left out: {}", why.replace('|', "/")),
            _ => summary(p["part"].as_str().unwrap_or_default(), &p["data"]),
        };
        let _ = writeln!(out, "| {} | {outcome} | {} |", number(&p["part"]), number(&p["seconds"]));
    }
    out.push_str(
        "\n| ms | precision | p50 | p99 | p50 with CUDA graph | p99 with CUDA graph | upload | compute | download |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for precision in ["fp32", "fp16", "int8"] {
        for p in of(&format!("latency-{precision}"))["parts"].as_array().into_iter().flatten() {
            let _ = writeln!(
                out,
                "| {} | {precision} | {} | {} | {} | {} | {} | {} | {} |",
                number(&p["part"]),
                number(&p["plain"]["p50"]),
                number(&p["plain"]["p99"]),
                number(&p["cuda_graph"]["p50"]),
                number(&p["cuda_graph"]["p99"]),
                number(&p["upload"]),
                number(&p["compute"]),
                number(&p["download"])
            );
        }
    }
    let peer = &of("peers")["peers"]["onnxruntime"];
    for provider in ["CUDAExecutionProvider", "CPUExecutionProvider"] {
        for part in ["encoder", "classifier", "decoder"] {
            let times = &peer[provider][part];
            if times.is_object() {
                let name = provider.trim_end_matches("ExecutionProvider");
                let (p50, p99) = (number(&times["p50"]), number(&times["p99"]));
                let _ = writeln!(out, "| {part} | ONNX Runtime {name}, fp32 | {p50} | {p99} | | | | | |");
            }
        }
    }
    out
}

/// One line of what a part found.
fn summary(part: &str, data: &Value) -> String {
    let n = |key: &str| number(&data[key]);
    match part.split('-').next().unwrap_or_default() {
        "build" => {
            let each = data["parts"].as_array().into_iter().flatten();
            let each: Vec<String> = each
                .map(|p| format!("{} {} s, {} KiB", number(&p["part"]), number(&p["seconds"]), number(&p["kib"])))
                .collect();
            each.join("; ")
        }
        "parity" | "merged" => {
            let p = &data["parity"];
            let iou =
                p["structures"].as_array().into_iter().flatten().filter_map(|s| s["iou"].as_f64()).fold(1.0, f64::min);
            let verdict = if data["passed"].as_bool() == Some(true) { "passed" } else { "REFUSED" };
            let mut line = format!(
                "{verdict}: least mask IoU {iou:.4} over {} images, mask logit error {} at most ({} relative)",
                number(&p["images"]),
                number(&p["logit_error"]),
                number(&p["logit_error_relative"])
            );
            for t in data["parts"].as_array().into_iter().flatten() {
                let (inputs, merged) = (number(&t["inputs_p50"]), number(&t["merged_p50"]));
                let _ = write!(line, "; {} {inputs} ms with LoRA as inputs, {merged} merged", number(&t["part"]));
            }
            line
        }
        "swaps" => format!(
            "{} swaps, {} ms each (p99 {}), device memory lost {} KiB, answers off by {} where the adapters differ by {}",
            n("swaps"),
            n("p50"),
            n("p99"),
            n("lost_kib"),
            n("worst_difference"),
            n("adapters_differ")
        ),
        "overlap" => format!(
            "encoder {} ms each on one lane, {} on {} lanes; {} of {} ms of copies beside another lane's computation; encoder {} ms and \
             decoder {} ms apart, {} ms at once",
            number(&data["one_lane"]["ms_each"]),
            number(&data["lanes"]["ms_each"]),
            number(&data["lanes"]["lanes"]),
            number(&data["lanes"]["overlapped_ms"]),
            number(&data["lanes"]["copies_ms"]),
            n("encoder_ms"),
            n("decoder_ms"),
            n("encoder_beside_decoder_ms")
        ),
        "series" => format!(
            "{} slices in {} s, {} s on the CPU engine with {} threads (ratio {}), labels agree by {} (IoU)",
            n("slices"),
            n("gpu_seconds"),
            n("cpu_seconds"),
            n("threads"),
            n("ratio"),
            n("label_iou")
        ),
        _ => "done".into(),
    }
}
