//! The program: parse the command line, call one verb.

fn main() -> std::process::ExitCode {
    postrider::cli::main(std::env::args_os())
}
