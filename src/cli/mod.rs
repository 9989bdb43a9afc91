//! cli - the command line: one file per verb; help, completions and man pages from one definition.
//!
//! Exit codes are interface: 0 success, 1 failure, 2 bad usage, 78 a bad configuration (EX_CONFIG
//! of sysexits.h, which service managers know as "do not restart").

mod check;
mod ctl;
mod generate;
mod keygen;

mod logging;
mod serve;
mod spool;
mod values;

pub mod lab;
pub mod run;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ConfigError;

/// The program, as clap knows it.
#[derive(Debug, Parser)]
#[command(
    name = "postrider",
    version,
    about = "Outbound mail: a thread-per-core SMTP engine with a durable spool",
    after_help = "Try it: postrider demo --messages 100000\n\
                  Exit codes: 0 success, 1 failure, 2 bad usage, 78 bad configuration.",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Ctl(ctl::Args),
    Check(check::Args),
    Spool(spool::Args),
    Keygen(keygen::Args),
    Load(lab::LoadArgs),
    Sink(lab::SinkArgs),
    Demo(lab::DemoArgs),
    Completions(generate::CompletionArgs),
    Man(generate::ManArgs),
}

/// Why a verb ends with another exit code than 0.
#[derive(Debug)]
pub enum Failure {
    /// 1: it was tried and did not work; the text says why.
    Failed(String),
    /// 1: it was tried, and what did not work was printed as the result.
    Reported,
    /// 2: what was asked for makes no sense.
    Usage(String),
    /// 78: the configuration is wrong.
    Config(ConfigError),
    /// 78: the configuration is well-formed and names something that cannot be used, such as a DKIM
    /// key; one line each.
    Unusable(Vec<String>),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Reported => 1,
            Self::Usage(_) => 2,
            Self::Config(_) | Self::Unusable(_) => 78,
        }
    }

    /// 1, with any error's text.
    pub fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// What clap knows about the program: for completions, man pages and tests.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with the command line's words, its own name first.
#[must_use]
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match execute(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match &failure {
                Failure::Reported => {}
                Failure::Failed(text) | Failure::Usage(text) => eprintln!("postrider: {text}"),
                Failure::Config(error) => eprintln!("{error}"),
                Failure::Unusable(faults) => {
                    for fault in faults {
                        eprintln!("postrider: {fault}");
                    }
                }
            }
            ExitCode::from(failure.code())
        }
    }
}

fn execute(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Run(args) => run::execute(&args, serve::serve),
        Verb::Ctl(args) => ctl::execute(&args),
        Verb::Check(args) => check::execute(&args),
        Verb::Spool(args) => spool::execute(&args),
        Verb::Keygen(args) => keygen::execute(&args),
        Verb::Load(args) => lab::load(&args),
        Verb::Sink(args) => lab::sink(&args),
        Verb::Demo(args) => lab::demo(&args),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Man(args) => generate::man(&args),
    }
}

/// Help and version go to stdout and are a success; the rest is bad usage.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe behind `postrider --help | head` is no reason to complain.
    drop(error.print());
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints to stdout; a reader that has left ends the verb quietly.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::Failed(format!("cannot write: {error}"))),
    }
}

/// Prints a value as one JSON document.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // clap's own consistency checks: duplicate names, defaults that do not parse, and so on.
    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    // Every verb, at every depth, shows an example and says what it does.
    #[test]
    fn every_verb_has_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            assert!(
                command.get_about().is_some(),
                "{path} says nothing about itself"
            );
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let parent = command.get_subcommands().next().is_some();
            assert!(
                parent || help.contains(path),
                "{path} has no example: {help}"
            );
            for verb in command.get_subcommands() {
                visit(verb, &format!("{path} {}", verb.get_name()));
            }
        }
        visit(&command(), "postrider");
    }

    // Every option says what it is for.
    #[test]
    fn every_option_is_documented() {
        fn visit(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = format!("{} {}", command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{name} is not documented");
            }
            command.get_subcommands().for_each(visit);
        }
        visit(&command());
    }
}
