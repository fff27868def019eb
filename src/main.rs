//! The `popgate` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    popgate::cli::main()
}
