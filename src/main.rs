//! The `popgate` binary.

use std::process::ExitCode;

/// Many small objects of short life, freed on other threads than made them: a tenth of a mint's CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    popgate::cli::main()
}
