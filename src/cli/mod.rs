//! The commands, one file each.

mod bench;
pub mod bench_receive;
pub mod bench_segment;
#[cfg(feature = "train")]
pub mod bench_train;
#[cfg(feature = "train")]
pub mod evaluate;
mod logging;
#[cfg(feature = "train")]
pub mod train;
mod validate;
mod weights;

use std::path::PathBuf;
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
    /// Check a configuration file; with --print, show every value in force and its origin
    Validate(validate::ValidateArgs),
    /// Train an adapter on labelled slices
    #[cfg(feature = "train")]
    Train(train::TrainArgs),
    /// Compare an adapter's masks with the truth: automatic as in serving, and with true boxes
    #[cfg(feature = "train")]
    Evaluate(evaluate::EvaluateArgs),
    /// Measure this project beside its peers
    Bench(bench::BenchArgs),
    /// Fetch or check the base weights
    Weights(weights::WeightsArgs),
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

/// Parses the command line and runs the command. Exit codes: 0 done, 1 failed with one message, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let outcome = match cli.command {
        Command::Validate(args) => validate::run(&args),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&args),
        #[cfg(feature = "train")]
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Weights(args) => weights::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scanside: {error:#}");
            ExitCode::FAILURE
        }
    }
}
