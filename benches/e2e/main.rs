//! e2e - what the whole daemon costs and yields: real processes on loopback, medians of some runs.
//!
//!     cargo bench --bench e2e -- [--messages N] [--runs N] [--dir DIRECTORY] [--json] [--smoke]
//!                                [CASE...]
//!
//! Plain main: a run takes seconds, and what counts is the daemon's own CPU time (its process
//! clock), not the time on the wall. Nothing passes or fails by a time; goals stand beside figures.
//! Spools are written below DIRECTORY (/var/tmp): it must be the disk that is meant, not memory.

mod cases;
mod disk;
mod report;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use cases::{CASES, Case, Scale};
use report::{Summary, machine};
use serde_json::{Value, json};

/// What the command line says.
struct Options {
    messages: Option<u64>,
    runs: usize,
    base: PathBuf,
    json: bool,
    smoke: bool,
    cases: Vec<&'static Case>,
}

const USAGE: &str = "usage: cargo bench --bench e2e -- [--messages N] [--runs N] \
                     [--dir DIRECTORY] [--json] [--smoke] [CASE...]";

fn options() -> Result<Options, String> {
    let mut options = Options {
        messages: None,
        runs: 0,
        base: PathBuf::from("/var/tmp"),
        json: false,
        smoke: false,
        cases: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse().ok().filter(|number| *number > 0);
        match word.as_str() {
            "--messages" => options.messages = Some(number().ok_or(USAGE)?),
            "--runs" => {
                options.runs = number()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or(USAGE)?;
            }
            "--dir" => options.base = words.next().map(PathBuf::from).ok_or(USAGE)?,
            "--json" => options.json = true,
            // Cargo's word for "one short round each" is --test; it also passes --bench, always.
            "--smoke" | "--test" => options.smoke = true,
            "--bench" => {}
            name => {
                let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
                let case = CASES.iter().find(|case| case.name == name);
                let unknown = || format!("{USAGE}\ncases: {}", names.join(" "));
                options.cases.push(case.ok_or_else(unknown)?);
            }
        }
    }
    if options.cases.is_empty() {
        options.cases = CASES.iter().collect();
    }
    if options.runs == 0 {
        options.runs = if options.smoke { 1 } else { 3 };
    }
    Ok(options)
}

fn run() -> Result<(), String> {
    let options = options()?;
    stage::end_on_signals()?;
    let machine = machine();
    if !options.json {
        let word = |name: &str| machine[name].as_str().unwrap_or_default();
        println!(
            "{}, {} cores, Linux {}, load average {}; medians of {} (least to most)",
            word("cpu"),
            machine["cores"],
            word("kernel"),
            word("load_average"),
            options.runs,
        );
        if cfg!(debug_assertions) {
            println!("not optimised: the figures mean nothing");
        }
    }
    let scale = Scale {
        base: &options.base,
        messages: options.messages,
        smoke: options.smoke,
    };
    let mut summaries = Vec::new();
    for case in options.cases {
        let runs = (0..options.runs)
            .map(|_| (case.run)(scale))
            .collect::<Result<Vec<_>, _>>();
        let runs = runs.map_err(|error| format!("{}: {error}", case.name))?;
        let summary = Summary::new(case.name, case.about, runs);
        if !options.json {
            println!("{}", summary.show(!options.smoke));
        }
        summaries.push(summary);
    }
    if options.json {
        let cases: Vec<Value> = summaries.iter().map(Summary::json).collect();
        println!("{}", json!({ "machine": machine, "cases": cases }));
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
