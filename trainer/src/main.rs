//! `omnilabel-trainer`: see [`omnilabel_trainer::cli`].

use std::process::ExitCode;

/// Feature maps are allocated and freed by the thousand: the system's allocator gives each back to the kernel and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match omnilabel_trainer::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", omnilabel_console::line(&error));
            ExitCode::FAILURE
        }
    }
}
