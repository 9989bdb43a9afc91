//! describe - the reference documentation, printed from the parameter table.

use super::error::nearest;
use super::parameters::{Absent, PARAMETERS, Parameter, SECTIONS, Section, Shape, rows};
use super::read::expected;

/// The whole reference as Markdown: what `docs/configuration.md` holds.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Printed by `postrider check config --describe --markdown`; do not edit.\n\n\
         The file is TOML. Unknown keys, wrong types and impossible combinations are refused with \
         file, line and key. Sizes (\"10MiB\"), durations (\"20m\") and rates (\"100/s\") are \
         strings with units.\n",
    );
    for section in SECTIONS {
        out.push_str(&format!(
            "\n## {}\n\n{}\n\n",
            heading(section),
            section.about
        ));
        out.push_str("| key | value | default | example |\n|---|---|---|---|\n");
        for row in rows(section.name) {
            let cells = [
                expected(row.kind),
                absent(row),
                format!("`{}`", row.example),
            ];
            let cells = cells.map(|cell| cell.replace('|', "\\|"));
            out.push_str(&format!("| `{}` | {} |\n", row.name, cells.join(" | ")));
        }
        out.push('\n');
        for row in rows(section.name) {
            out.push_str(&format!(
                "- `{}`: {}{}\n",
                row.name,
                row.about,
                restart(row)
            ));
        }
    }
    out
}

/// One parameter ("listener.address") or one section ("listener") for a terminal.
///
/// # Errors
/// A sentence with the nearest name, where there is no such parameter or section.
pub fn describe(key: &str) -> Result<String, String> {
    let mut out = String::new();
    if let Some(section) = SECTIONS.iter().find(|section| section.name == key) {
        out.push_str(&format!("{}\n{}\n", heading(section), section.about));
        for row in rows(section.name) {
            out.push('\n');
            describe_row(&mut out, row);
        }
        return Ok(out);
    }
    if let Some(row) = PARAMETERS.iter().find(|row| row.path() == key) {
        describe_row(&mut out, row);
        return Ok(out);
    }
    let paths: Vec<String> = PARAMETERS.iter().map(Parameter::path).collect();
    let names = SECTIONS.iter().map(|section| section.name);
    match nearest(key, names.chain(paths.iter().map(String::as_str))) {
        Some(near) => Err(format!("no parameter \"{key}\"; did you mean \"{near}\"?")),
        None => Err(format!(
            "no parameter \"{key}\"; --describe without a key lists them all"
        )),
    }
}

/// The reference as JSON: a list of parameters.
#[must_use]
pub fn json() -> serde_json::Value {
    let row = |row: &Parameter| {
        let (default, meaning) = match row.absent {
            Absent::Refused => (None, None),
            Absent::Default(literal) => (Some(literal), None),
            Absent::Means(text) => (None, Some(text)),
        };
        serde_json::json!({
            "key": row.path(), "value": expected(row.kind),
            "required": row.absent == Absent::Refused,
            "default": default, "absent_means": meaning, "example": row.example, "about": row.about,
            "needs_restart": row.needs_restart,
        })
    };
    PARAMETERS.iter().map(row).collect()
}

fn describe_row(out: &mut String, row: &Parameter) {
    out.push_str(&format!("{}\n", row.path()));
    out.push_str(&format!("  {}{}\n", row.about, restart(row)));
    out.push_str(&format!("  value:   {}\n", expected(row.kind)));
    out.push_str(&format!("  default: {}\n", absent(row).replace('`', "")));
    out.push_str(&format!("  example: {} = {}\n", row.name, row.example));
}

fn heading(section: &Section) -> String {
    match section.shape {
        Shape::Table => format!("[{}]", section.name),
        Shape::Array => format!("[[{}]]", section.name),
        Shape::Inline => format!("{} = [{{ ... }}]", section.name),
    }
}

fn absent(row: &Parameter) -> String {
    match row.absent {
        Absent::Refused => "required".to_owned(),
        Absent::Default(literal) => format!("`{literal}`"),
        Absent::Means(text) => text.to_owned(),
    }
}

fn restart(row: &Parameter) -> &'static str {
    if row.needs_restart {
        " Takes effect at the next start."
    } else {
        ""
    }
}
