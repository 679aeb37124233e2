//! The edge annotation appliance; see `docs/EDGE.md`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match omnilabel_edge::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", omnilabel_console::line(&error));
            ExitCode::FAILURE
        }
    }
}
