//! report - figures of several runs: medians, a table for people, JSON for programs.

use serde_json::{Map, Value, json};

/// What one run of a case measured: name (its unit at the end), value.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// A bound that the project set itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// The goals that have one: case, figure, bound.
const GOALS: &[(&str, &str, Goal)] = &[
    ("pipelined-bdat", "cpu_us_per_message", Goal::AtMost(25.0)),
    ("idle-10k", "rss_bytes_per_connection", Goal::AtMost(2048.0)),
    ("slow-path", "ratio", Goal::AtLeast(4.0)),
    ("signed-rsa", "cpu_us_per_message", Goal::AtMost(150.0)),
    ("signed-ed25519", "cpu_us_per_message", Goal::AtMost(45.0)),
    ("big-queue", "restart_first_250_seconds", Goal::AtMost(2.0)),
    (
        "durable-accept",
        "stored_per_second_400",
        Goal::AtLeast(40_000.0),
    ),
    (
        "durable-accept",
        "cpu_us_per_message_400",
        Goal::AtMost(1.5),
    ),
    ("durable-accept", "wait_p99_ms_50", Goal::AtMost(5.0)),
    ("cold-storm", "cold_to_quiet", Goal::AtMost(2.0)),
];

/// All runs of one case.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) case: &'static str,
    pub(crate) about: &'static str,
    runs: Vec<Figures>,
}

impl Summary {
    pub(crate) fn new(case: &'static str, about: &'static str, runs: Vec<Figures>) -> Self {
        Self { case, about, runs }
    }

    /// Of each figure: name, median, least, most.
    fn rows(&self) -> Vec<(&'static str, f64, f64, f64)> {
        let names = self
            .runs
            .first()
            .into_iter()
            .flatten()
            .map(|(name, _)| *name);
        let row = |name| {
            let find = |run: &Figures| run.iter().find(|(other, _)| *other == name).map(|f| f.1);
            let mut values: Vec<f64> = self.runs.iter().filter_map(find).collect();
            values.sort_by(f64::total_cmp);
            (name, median(&values), values[0], values[values.len() - 1])
        };
        names.map(row).collect()
    }

    /// For people. Goals are for the real thing: a smoke run has too few messages to compare.
    pub(crate) fn show(&self, goals: bool) -> String {
        let mut out = format!("{}: {}\n", self.case, self.about);
        for (name, median, least, most) in self.rows() {
            let mut candidates = GOALS.iter().filter(|_| goals);
            let goal = candidates.find(|goal| (goal.0, goal.1) == (self.case, name));
            let goal = match goal {
                None => String::new(),
                Some((.., Goal::AtMost(bound))) => {
                    format!("  goal: at most {bound}, {}", word(median <= *bound))
                }
                Some((.., Goal::AtLeast(bound))) => {
                    format!("  goal: at least {bound}, {}", word(median >= *bound))
                }
            };
            let values = [median, least, most].map(|value| round(name, value));
            let [median, least, most] = values;
            out.push_str(&format!(
                "  {name:32} {median:>12}  ({least} to {most}){goal}\n"
            ));
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        let row = |(name, median, least, most): (&str, f64, f64, f64)| {
            (
                name.to_owned(),
                json!({ "median": median, "min": least, "max": most }),
            )
        };
        let figures: Map<String, Value> = self.rows().into_iter().map(row).collect();
        json!({ "case": self.case, "runs": self.runs.len(), "figures": figures })
    }
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Of sorted values, not none; of two middle ones the mean.
fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// Bytes and rates are whole numbers; the rest has two digits.
fn round(name: &str, value: f64) -> String {
    if value >= 1000.0 || name.contains("bytes") {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// The machine, as a reader of the figures must know it.
pub(crate) fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    json!({
        "cpu": model,
        "cores": cores,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average": load.split(' ').next().unwrap_or_default(),
    })
}
