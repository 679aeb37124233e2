//! `omnilabel`: see [`omnilabel::cli`].

fn main() -> std::process::ExitCode {
    omnilabel::cli::main(std::env::args_os().collect())
}
