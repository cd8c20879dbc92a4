//! `scanside bench`: this project beside its peers, in one run, as ratios.

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Which benchmark.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// Images per second into the storage SCP, beside storescp and Orthanc
    Receive(super::bench_receive::ReceiveArgs),
    /// One training step, beside PyTorch's on the same architecture
    #[cfg(feature = "train")]
    TrainStep(super::bench_train::TrainStepArgs),
    /// Dice that FP16 and INT8 cost on labelled volumes, beside ONNX Runtime
    #[cfg(feature = "train")]
    Precision(super::bench_precision::PrecisionArgs),
    /// The encoder, beside ONNX Runtime on the same ONNX
    Segment(super::bench_segment::SegmentArgs),
    /// A series right after the adapter was changed, beside one without a change
    Swap(super::bench_swap::SwapArgs),
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        Bench::Receive(ref args) => super::bench_receive::run(args),
        #[cfg(feature = "train")]
        Bench::TrainStep(ref args) => super::bench_train::run(args),
        #[cfg(feature = "train")]
        Bench::Precision(ref args) => super::bench_precision::run(args),
        Bench::Segment(ref args) => super::bench_segment::run(args),
        Bench::Swap(ref args) => super::bench_swap::run(args),
    }
}
