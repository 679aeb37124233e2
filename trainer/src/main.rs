//! `omnilabel-trainer`: see [`omnilabel_trainer::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    match omnilabel_trainer::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", omnilabel_console::line(&error));
            ExitCode::FAILURE
        }
    }
}
