//! The program: parse the command line, call one verb.

/// Bodies of some 10 KiB are made and dropped for every message, often on different threads: with
/// the system's allocator that was a tenth of the daemon's time (perf, 10 KiB messages, BDAT in and
/// out).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    postrider::cli::main(std::env::args_os())
}
