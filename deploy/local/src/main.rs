//! `omnilabel`: see [`omnilabel::cli`].

/// Feature maps are allocated and freed by the thousand: the system's allocator gives each back to the kernel and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    omnilabel::cli::main(std::env::args_os().collect())
}
