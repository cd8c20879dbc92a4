//! The `scanside` command.

fn main() -> std::process::ExitCode {
    scanside::cli::main()
}
