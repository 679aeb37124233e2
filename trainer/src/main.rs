//! `omnilabel-trainer`: see [`omnilabel_trainer::cli`].

fn main() -> anyhow::Result<()> {
    omnilabel_trainer::cli::run(std::env::args_os())
}
