//! The commands, one file each.

mod adapters;
mod again;
mod bench;
#[cfg(feature = "train")]
mod bench_precision;
pub mod bench_receive;
pub mod bench_segment;
mod bench_swap;
#[cfg(feature = "train")]
pub mod bench_train;
mod bundle;
mod demo;
mod doctor;
mod engine;
#[cfg(feature = "train")]
pub mod evaluate;
#[cfg(feature = "train")]
mod experiment;
mod export;
mod keys;
#[cfg(feature = "train")]
mod label_next;
#[cfg(feature = "train")]
mod labels;
mod logging;
mod manual;
mod notify;
mod onnx_runtime;
mod outbox;
mod phantom;
#[cfg(feature = "train")]
mod quantise;
mod retention;
mod review;
mod segex;
mod segment;
mod send;
mod serve;
mod sideload;
mod status;
#[cfg(feature = "train")]
mod survey;
#[cfg(feature = "train")]
pub mod train;
mod validate;
mod weights;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Effective};

/// Scanner-side MRI segmentation: DICOM in, a graded DICOM Segmentation out.
#[derive(Parser, Debug)]
#[command(name = "scanside", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show the whole job on a phantom or on your own series: scanner, box and archive in one process
    Demo(demo::DemoArgs),
    /// Run the daemon: receive series, segment, grade, deliver
    Serve(serve::ServeArgs),
    /// Segment a folder of DICOM without network
    Segment(segment::SegmentArgs),
    /// Show what came, what became of it, what waits
    Status(status::StatusArgs),
    /// Results that wait for a person: list, accept, reject, compare with a correction
    Review(review::ReviewArgs),
    /// Segment the series of jobs that have ended once more: after a fault was mended, or with the adapter that serves now
    Again(again::AgainArgs),
    /// Send again, or give up, what an archive refused for good or what waits for an archive that is no longer there
    Outbox(outbox::OutboxArgs),
    /// Remove originals whose results were delivered and whose time has passed; the daemon does the same while it runs
    Retention(retention::RetentionArgs),
    /// Hand an adapter bundle to this box, from a file or a stick
    Sideload(sideload::SideloadArgs),
    /// Which adapter serves, how a new one gets on; go back; report to the training host
    Adapters(adapters::AdaptersArgs),
    /// Check what is ready and name the next command for what is not
    Doctor(doctor::DoctorArgs),
    /// Build, add, list, verify and measure the GPU's plans
    Engine(engine::EngineArgs),
    /// Get the base weights
    Weights(weights::WeightsArgs),
    /// Send files to a station, or ask it for an echo
    Send(send::SendArgs),
    /// Make a synthetic thigh series with known truth
    Phantom(phantom::PhantomArgs),
    /// Check a configuration file; with --print, show every value in force and its origin
    Validate(validate::ValidateArgs),
    /// Propose slices to annotate, and make label files for 3D Slicer and OHIF
    #[cfg(feature = "train")]
    LabelNext(label_next::LabelNextArgs),
    /// Check annotations before training
    #[cfg(feature = "train")]
    Labels(labels::LabelsArgs),
    /// Train an adapter on labelled slices
    #[cfg(feature = "train")]
    Train(train::TrainArgs),
    /// Run a plan of experiments and report on it
    #[cfg(feature = "train")]
    Experiment(experiment::ExperimentArgs),
    /// Compare an adapter's masks with the truth: automatic as in serving, and with true boxes
    #[cfg(feature = "train")]
    Evaluate(evaluate::EvaluateArgs),
    /// Grade segmentations (any DICOM SEG beside its series), calibrate and validate the grades, compare observers
    Segex(segex::SegexArgs),
    /// Segment volumes that nobody has labelled and show how plausible the results are
    #[cfg(feature = "train")]
    Survey(survey::SurveyArgs),
    /// Write the network's graphs as ONNX files in any precision, the same bytes every time
    Export(export::ExportArgs),
    /// Calibrate INT8 and find the layers that it hurts
    #[cfg(feature = "train")]
    Quantise(quantise::QuantiseArgs),
    /// Make, sign, show, compare and verify signed bundles of adapters
    Bundle(bundle::BundleArgs),
    /// Keys that sign bundles, roots of trust, and what this box trusts
    Keys(keys::KeysArgs),
    /// Measure this project beside its peers
    Bench(bench::BenchArgs),
    /// Write man pages and shell completions, for the package
    #[command(hide = true)]
    Manual(manual::ManualArgs),
}

/// Where settings come from; shared by every command that needs them.
#[derive(Args, Debug, Clone)]
pub(crate) struct ConfigArgs {
    /// Configuration file; default: /etc/scanside/scanside.toml where it exists, else built-in values
    #[arg(long, short = 'c', env = "SCANSIDE_CONFIG")]
    config: Option<PathBuf>,
    /// Override one key, e.g. --set series.quiet_seconds=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// Which jobs a command is about.
#[derive(Args, Debug)]
struct JobsArgs {
    /// Numbers of the jobs, as `scanside status` shows them
    #[arg(required = true)]
    ids: Vec<i64>,
}

/// Where the package installs the configuration.
const SYSTEM_CONFIG: &str = "/etc/scanside/scanside.toml";

impl ConfigArgs {
    /// Loads the settings and keeps each value's origin.
    fn load(&self) -> Result<Effective, ConfigError> {
        let system = PathBuf::from(SYSTEM_CONFIG);
        let file = self.config.clone().or_else(|| system.exists().then_some(system));
        Effective::load(file.as_deref(), &self.overrides)
    }
}

/// What is said where a command needs the state of a box and the folder has none.
fn no_state(dir: &Path) -> String {
    format!("there is no state in {}; start `scanside serve` once, or name the right configuration", dir.display())
}

/// 128 + SIGPIPE, what a shell sees of a program that the signal ended.
const NO_READER: i32 = 141;

/// Where the reader of our output goes away, as `head` does, `println!` panics; the command ends there, as any other in a pipe, without a
/// word. (Letting SIGPIPE itself end the program would end a daemon whose external signer or peer closes early.)
fn end_quietly_without_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        if said.is_some_and(|s| s.starts_with("failed printing to stdout: Broken pipe")) {
            std::process::exit(NO_READER);
        }
        usual(panic);
    }));
}

/// Parses the command line and runs the command. Exit codes: 0 done, 1 failed with one message, 2 wrong usage, 141 nobody reads its output,
/// 20 and above a bundle or its trust was refused ([`Reason`](crate::adapter::Reason), docs/bundles.md).
pub fn main() -> ExitCode {
    end_quietly_without_reader();
    let cli = Cli::parse();
    logging::init();
    let outcome = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Segment(args) => segment::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Review(args) => review::run(&args),
        Command::Again(args) => again::run(&args),
        Command::Outbox(args) => outbox::run(&args),
        Command::Retention(args) => retention::run(&args),
        Command::Sideload(args) => sideload::run(&args),
        Command::Adapters(args) => adapters::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Engine(args) => engine::run(&args),
        Command::Weights(args) => weights::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Phantom(args) => phantom::run(&args),
        Command::Validate(args) => validate::run(&args),
        #[cfg(feature = "train")]
        Command::LabelNext(args) => label_next::run(&args),
        #[cfg(feature = "train")]
        Command::Labels(args) => labels::run(&args),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&args),
        #[cfg(feature = "train")]
        Command::Experiment(args) => experiment::run(&args),
        #[cfg(feature = "train")]
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Segex(args) => segex::run(&args),
        #[cfg(feature = "train")]
        Command::Survey(args) => survey::run(&args),
        Command::Export(args) => export::run(&args),
        #[cfg(feature = "train")]
        Command::Quantise(args) => quantise::run(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Manual(args) => manual::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scanside: {error:#}");
            let refused = error.downcast_ref::<crate::adapter::Refused>();
            refused.map_or(ExitCode::FAILURE, |r| ExitCode::from(r.reason.exit_code()))
        }
    }
}

/// SegEx as a table: one line per structure, grades C1 to C8.
fn report_table(report: &crate::segex::Report) -> String {
    let mut out =
        format!("{:<28}{:>8} {:>6} {:>8}  C1 C2 C3 C4 C5 C6 C7 C8\n", "structure", "volume", "score", "verdict");
    for r in &report.structures {
        let side = r.side.map(|s| format!(", {}", s.word())).unwrap_or_default();
        let grades: Vec<String> = r.grades.iter().map(|g| g.grade.map_or(" -".into(), |g| format!("{g:>2}"))).collect();
        out.push_str(&format!(
            "{:<28}{:>5.0} ml {:>6.0} {:>8?}  {}\n",
            format!("{}{side}", r.structure.name),
            r.volume_mm3 / 1000.0,
            r.score,
            r.verdict,
            grades.join(" ")
        ));
    }
    out.push_str(&format!(
        "whole result: {:?} ({}), score {:.0}\n",
        report.verdict,
        report.verdict.words(),
        report.score
    ));
    out
}
