//! tidy - the rules of the house that no compiler knows.
//!
//! What: who may import whom, where `unsafe` may stand, how long a function may be, headers, line
//! length, ASCII, no leftovers, a sentence for every room, a reader for every parameter.
//! Why this way: each rule is a function from text to complaints, tried on a bad snippet first, so
//! that a rule that cannot fail is found out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use postrider::config::PARAMETERS;

/// Longest function in lines, its signature and closing brace included.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer, with their length: a number here may only shrink, and a row goes when
/// its function fits.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("benches/queue.rs", "deferred", 74),
    ("src/smtp/client/tests.rs", "client_and_server_agree", 72),
];

/// Parameters that nothing outside `config` reads yet: a row goes when its parameter is wired.
const UNREAD: &[&str] = &[];

/// Room, and the paths below `crate::` that it may use. Rooms that wire (`cli`, `node`, `shard`)
/// and
/// `config`, which fills what the others define, may use everything but the engine's inside.
const IMPORTS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("time", &[]),
    ("message", &["limits", "time"]),
    ("smtp", &["limits", "message", "time", "engine::pairs"]),
    (
        "dkim",
        &[
            "limits",
            "message",
            "time",
            "engine::blanks",
            "engine::ifma",
        ],
    ),
    ("routing", &["limits", "message", "time"]),
    ("spool", &["limits", "message", "time", "engine::Block"]),
    ("queue", &["limits", "message", "routing", "spool", "time"]),
    ("engine", &["limits", "time"]),
    (
        "service",
        &[
            "limits", "message", "smtp", "dkim", "routing", "spool", "queue", "engine", "time",
        ],
    ),
    (
        "lab",
        &[
            "limits", "message", "smtp", "dkim", "routing", "engine", "service", "time",
        ],
    ),
    (
        "config",
        &[
            "limits", "message", "smtp", "dkim", "routing", "spool", "queue", "engine", "service",
            "lab", "time",
        ],
    ),
    (
        "admin",
        &["limits", "message", "routing", "queue", "config", "engine"],
    ),
];

/// Rooms that wire the others and may use all of them.
const WIRING: &[&str] = &["cli", "node", "shard", "control", "settings", "main", "lib"];

/// Where nobody but the engine itself may reach.
const ENGINE_INSIDE: &str = "engine::sys";

/// A Rust file: its path from the package's root, and its text.
struct Source {
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(directory)];
    while let Some(next) = open.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap();
                let path = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

fn rust_files() -> Vec<Source> {
    ["src", "tests", "benches", "fuzz/fuzz_targets"]
        .iter()
        .flat_map(|directory| files(directory, "rs"))
        .collect()
}

/// "spool" of "src/spool/index.rs", "node" of "src/node.rs".
fn room(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split(['/', '.']).next()
}

/// The lines that are code of the program: numbered, without comments and without tests.
fn production(source: &Source) -> Vec<(usize, &str)> {
    if source.path.ends_with("/tests.rs") || source.path.contains("/tests/") {
        return Vec::new();
    }
    let lines = source
        .text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    lines
        .take_while(|(_, line)| *line != "#[cfg(test)]" || source.path.ends_with("/mod.rs"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect()
}

/// The paths that follow `crate::` in a piece of code, groups taken apart one level deep.
fn crate_paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        // "$crate::" of a macro and "crate::" of a path are the same to us; "mycrate::" is not.
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        match rest.strip_prefix('{') {
            None => found.push(path_head(rest)),
            Some(group) => {
                let mut depth = 0usize;
                let mut start = 0;
                for (index, letter) in group.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            found.push(path_head(group[start..index].trim()));
                            start = index + 1;
                            if letter == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

fn path_head(text: &str) -> String {
    let name = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '{' || c == ' ';
    let end = text.find(|c| !name(c)).unwrap_or(text.len());
    text[..end]
        .split(" as ")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn check_imports(source: &Source) -> Vec<String> {
    let Some(room) = room(&source.path) else {
        return Vec::new();
    };
    let lines = production(source);
    let code: String = lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
    let allowed = IMPORTS
        .iter()
        .find(|(name, _)| *name == room)
        .map(|(_, allowed)| *allowed);
    let mut bad = Vec::new();
    if allowed.is_none() && !WIRING.contains(&room) {
        bad.push(format!(
            "{}: the room {room} is not in the import table",
            source.path
        ));
    }
    let under = |path: &str, prefix: &str| {
        path == prefix
            || path
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with("::"))
    };
    for path in crate_paths(&code) {
        let own = under(&path, room);
        let inside = under(&path, ENGINE_INSIDE) && room != "engine";
        let listed = allowed.is_none_or(|list| list.iter().any(|prefix| under(&path, prefix)));
        let uring = under(&path, "engine::uring") && ["service", "spool", "queue"].contains(&room);
        if !own && (inside || uring || !listed) {
            bad.push(format!("{}: {room} may not use crate::{path}", source.path));
        }
    }
    bad
}

/// Whether `word` stands in `line` as a word of code, outside of strings and comments.
fn has_word(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let code: String = code.split('"').step_by(2).collect::<Vec<_>>().join("\"");
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

fn check_unsafe(source: &Source) -> Vec<String> {
    let word = concat!("un", "safe");
    let lines: Vec<&str> = source.text.lines().collect();
    let used: Vec<usize> = (0..lines.len())
        .filter(|at| has_word(lines[*at], word))
        .collect();
    if used.is_empty() {
        return Vec::new();
    }
    if !source.path.starts_with("src/engine/sys/") {
        return used
            .iter()
            .map(|at| format!("{}:{}: {word} code", source.path, at + 1))
            .collect();
    }
    if source.text.contains("JUSTIFICATION:") {
        return Vec::new();
    }
    vec![format!(
        "{}: {word} without a JUSTIFICATION comment",
        source.path
    )]
}

/// Every function of a formatted file: name and length in lines.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().collect();
        let modifier = |word: &&str| {
            word.starts_with("pub")
                || ["const", "async", "extern", "in"].contains(word)
                || *word == concat!("un", "safe")
                || word.starts_with('"')
                || word.ends_with(')')
        };
        let Some(position) = words.iter().position(|word| *word == "fn") else {
            continue;
        };
        if !words[..position].iter().all(modifier) || line.trim_start().starts_with("//") {
            continue;
        }
        let name = words
            .get(position + 1)
            .and_then(|name| name.split(['(', '<']).next());
        // The signature ends in "{" (a body follows), or in ";" or "}" (none, or on one line).
        let opens = lines[at..]
            .iter()
            .position(|line| line.ends_with(['{', ';', '}']));
        let Some(opens) = opens.filter(|opens| lines[at + opens].ends_with('{')) else {
            continue;
        };
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[at + opens..].iter().position(|line| **line == close);
        if let (Some(name), Some(end)) = (name, end) {
            found.push((name.to_owned(), opens + end + 1));
        }
    }
    found
}

fn check_functions(source: &Source, long: &[(&str, &str, usize)]) -> Vec<String> {
    let mut bad = Vec::new();
    let functions = functions(&source.text);
    for (name, lines) in &functions {
        let listed = long
            .iter()
            .find(|row| row.0 == source.path && row.1 == name);
        let max = listed.map_or(FUNCTION_LINES_MAX, |row| row.2);
        if *lines > max {
            bad.push(format!(
                "{}: fn {name} has {lines} lines, more than {max}",
                source.path
            ));
        }
    }
    for (_, name, max) in long.iter().filter(|row| row.0 == source.path) {
        let longest = functions
            .iter()
            .filter(|(found, _)| found == name)
            .map(|(_, n)| *n)
            .max();
        if longest.unwrap_or(0) < *max {
            bad.push(format!(
                "{}: fn {name} has shrunk: lower its row in tidy",
                source.path
            ));
        }
    }
    bad
}

fn check_lines(source: &Source) -> Vec<String> {
    let mut bad = Vec::new();
    if source.path.ends_with(".rs") && !source.text.starts_with("//! ") {
        bad.push(format!("{}: no header", source.path));
    }
    for (index, line) in source.text.lines().enumerate() {
        let place = format!("{}:{}", source.path, index + 1);
        if !line.is_ascii() {
            bad.push(format!("{place}: not ASCII"));
        }
        let table = line
            .trim_start()
            .trim_start_matches(['/', '!'])
            .trim_start()
            .starts_with('|');
        let long = line.chars().count() > 100 && !table && !line.contains("://");
        if long && source.path.ends_with(".rs") {
            bad.push(format!("{place}: longer than 100"));
        }
        if line.ends_with([' ', '\t']) {
            bad.push(format!("{place}: ends in a blank"));
        }
    }
    bad
}

fn check_leftovers(source: &Source) -> Vec<String> {
    // In two pieces, so that this file does not find itself.
    let everywhere = [
        concat!("db", "g!("),
        concat!("tod", "o!("),
        concat!("unimplement", "ed!("),
        concat!("#[ign", "ore"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
    ];
    let tests = [concat!("thread::sl", "eep"), concat!("time::sl", "eep(")];
    let program: BTreeSet<usize> = production(source).iter().map(|(line, _)| *line).collect();
    let mut bad = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let place = format!("{}:{}", source.path, index + 1);
        let is_test = !source.path.starts_with("src/") || !program.contains(&(index + 1));
        let words = everywhere.iter().chain(tests.iter().filter(|_| is_test));
        for word in words.filter(|word| line.contains(**word)) {
            bad.push(format!("{place}: {word}"));
        }
    }
    bad
}

fn check_rooms(lib: &str, rooms: &BTreeSet<String>) -> Vec<String> {
    let mut bad = Vec::new();
    for room in rooms {
        if !lib.lines().any(|line| line == format!("pub mod {room};")) {
            bad.push(format!("src/{room} is not in lib.rs"));
        }
        let row = format!("//! | `{room}` | ");
        let sentence = lib.lines().find_map(|line| line.strip_prefix(&row));
        if sentence.is_none_or(|rest| rest.split('|').next().unwrap_or_default().trim().len() < 10)
        {
            bad.push(format!("lib.rs has no sentence for {room}"));
        }
    }
    for line in lib.lines() {
        let room = line
            .strip_prefix("//! | `")
            .and_then(|rest| rest.split('`').next());
        if let Some(room) = room.filter(|room| !rooms.contains(*room)) {
            bad.push(format!("lib.rs describes {room}, which does not exist"));
        }
    }
    bad
}

/// Whether code reads the field `name`: ".name" as a whole word; "name(" is a method.
fn reads_field(code: &str, name: &str) -> bool {
    let field = format!(".{name}");
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '(';
    if name.ends_with('(') {
        return code.contains(&field);
    }
    code.match_indices(&field)
        .any(|(at, _)| !code[at + field.len()..].starts_with(part))
}

/// The field of the snapshot that a parameter fills, where its name differs.
fn field(section: &str, name: &str) -> String {
    match (section, name) {
        ("pool", "sources") => "members".to_owned(),
        // Read by a method of the snapshot, which tests the parameter's networks.
        ("listener", "relay_from") => "may_relay(".to_owned(),
        _ => name.to_owned(),
    }
}

fn check_parameters(code: &str, unread: &[&str]) -> Vec<String> {
    let mut bad = Vec::new();
    for row in PARAMETERS {
        let path = row.path();
        let read = reads_field(code, &field(row.section, row.name));
        match (read, unread.contains(&&*path)) {
            (false, false) => bad.push(format!("nothing outside config reads {path}")),
            (true, true) => bad.push(format!("{path} is read: remove its row in tidy")),
            _ => {}
        }
    }
    bad
}

/// The functions that a fuzzer can call: their paths without `crate::`.
fn fuzz_functions(source: &Source) -> Vec<String> {
    let module = source.path.strip_prefix("src/").unwrap_or(&source.path);
    let module = module.trim_end_matches(".rs").trim_end_matches("/mod");
    let module = module.replace('/', "::");
    let names = source.text.lines().filter_map(|line| {
        let name = line.strip_prefix("pub fn ")?.split('(').next()?;
        (name.starts_with("fuzz_") || source.path.ends_with("/fuzz.rs")).then_some(name)
    });
    names.map(|name| format!("{module}::{name}")).collect()
}

/// Every function that a fuzzer can call has a target, and every target is in the manifest.
fn check_fuzz(sources: &[Source], targets: &[Source], manifest: &str) -> Vec<String> {
    let mut bad = Vec::new();
    for function in sources.iter().flat_map(fuzz_functions) {
        let call = format!("postrider::{function}(");
        if !targets.iter().any(|target| target.text.contains(&call)) {
            bad.push(format!("{function} has no target in fuzz/"));
        }
    }
    for target in targets {
        let path = target.path.trim_start_matches("fuzz/");
        if !manifest.contains(&format!("path = \"{path}\"")) {
            bad.push(format!("{} is not in fuzz/Cargo.toml", target.path));
        }
    }
    bad
}

fn none(bad: Vec<String>) {
    assert!(bad.is_empty(), "\n{}\n", bad.join("\n"));
}

#[test]
fn rooms_import_only_what_is_below_them() {
    none(files("src", "rs").iter().flat_map(check_imports).collect());
}

#[test]
fn unsafe_code_stands_in_one_place() {
    none(rust_files().iter().flat_map(check_unsafe).collect());
}

#[test]
fn functions_are_short() {
    let check = |source: &Source| check_functions(source, LONG_FUNCTIONS);
    none(rust_files().iter().flat_map(check).collect());
}

#[test]
fn lines_are_tidy() {
    none(rust_files().iter().flat_map(check_lines).collect());
    let texts = ["docs", "appliance", "systemd", "tuning"];
    let texts = texts.iter().flat_map(|directory| {
        ["md", "toml", "service", "conf"]
            .into_iter()
            .flat_map(|kind| files(directory, kind))
    });
    let mut texts: Vec<Source> = texts.collect();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    texts.push(Source {
        path: "README.md".into(),
        text: readme,
    });
    let fuzz = fs::read_to_string(root().join("fuzz/README.md")).unwrap();
    texts.push(Source {
        path: "fuzz/README.md".into(),
        text: fuzz,
    });
    none(texts.iter().flat_map(check_lines).collect());
}

#[test]
fn nothing_is_left_over() {
    none(rust_files().iter().flat_map(check_leftovers).collect());
}

#[test]
fn every_room_has_its_sentence() {
    let rooms: BTreeSet<String> = files("src", "rs")
        .iter()
        .filter_map(|source| room(&source.path))
        .filter(|room| *room != "lib" && *room != "main")
        .map(str::to_owned)
        .collect();
    none(check_rooms(
        &fs::read_to_string(root().join("src/lib.rs")).unwrap(),
        &rooms,
    ));
}

#[test]
fn every_parameter_is_read() {
    // The lab has words of its own for many of these; it does not configure the daemon by them.
    let outside = |source: &&Source| !matches!(room(&source.path), Some("config" | "lab"));
    let mut code = String::new();
    for source in files("src", "rs").iter().filter(outside) {
        for (_, line) in production(source) {
            code.push_str(line);
            code.push('\n');
        }
    }
    none(check_parameters(&code, UNREAD));
}

#[test]
fn fuzz_functions_have_targets() {
    let sources = files("src", "rs");
    assert!(sources.iter().flat_map(fuzz_functions).count() >= 12);
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let targets = files("fuzz/fuzz_targets", "rs");
    none(check_fuzz(&sources, &targets, &manifest));
}

fn snippet(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

// Each rule finds its own kind of mistake, and lets the good neighbour of it pass.
#[test]
fn bad_imports_are_found() {
    let bad = |path, text| check_imports(&snippet(path, text)).len();
    assert_eq!(bad("src/smtp/a.rs", "use crate::spool::Stored;\n"), 1);
    assert_eq!(
        bad("src/smtp/a.rs", "let a = crate::queue::Entry::new();\n"),
        1
    );
    assert_eq!(
        bad(
            "src/smtp/a.rs",
            "use crate::{limits::A,\n    spool::{B, C}, dkim};\n"
        ),
        2
    );
    assert_eq!(
        bad(
            "src/smtp/a.rs",
            "use crate::{limits::A, message::{B, C}};\n"
        ),
        0
    );
    assert_eq!(bad("src/smtp/a.rs", "// crate::spool is not imported\n"), 0);
    assert_eq!(
        bad(
            "src/smtp/a.rs",
            "use crate::smtp::b;\n#[cfg(test)]\nuse crate::lab::c;\n"
        ),
        0
    );
    assert_eq!(bad("src/spool/a.rs", "use crate::engine::Block;\n"), 0);
    assert_eq!(bad("src/spool/a.rs", "use crate::engine::Port;\n"), 1);
    assert_eq!(bad("src/spool/a.rs", "use crate::engine::Blocks;\n"), 1);
    assert_eq!(bad("src/service/a.rs", "use crate::engine::sys::x;\n"), 1);
    assert_eq!(bad("src/service/a.rs", "use crate::engine::uring::x;\n"), 1);
    assert_eq!(bad("src/node.rs", "use crate::admin::x;\n"), 0);
    assert_eq!(bad("src/attic/a.rs", ""), 1);
}

#[test]
fn misplaced_unsafe_code_is_found() {
    let word = concat!("un", "safe");
    let bad = |path, text: String| check_unsafe(&snippet(path, &text)).len();
    assert_eq!(
        bad("src/queue/a.rs", format!("let a = {word} {{ b() }};\n")),
        1
    );
    assert_eq!(
        bad("src/engine/sys/a.rs", format!("{word} fn a() {{}}\n")),
        1
    );
    assert_eq!(
        bad(
            "src/engine/sys/a.rs",
            format!("// JUSTIFICATION: x\n{word} fn a() {{}}\n")
        ),
        0
    );
    assert_eq!(
        bad(
            "src/queue/a.rs",
            format!("// {word}\nlet a = \"{word}\"; {word}ly();\n")
        ),
        0
    );
}

#[test]
fn long_functions_are_found() {
    let text = format!(
        "impl A {{\n    pub(crate) async fn f(\n    ) {{\n{}    }}\n}}\n",
        "x\n".repeat(68)
    );
    let source = snippet("src/a.rs", &text);
    assert_eq!(functions(&text), [("f".to_owned(), 71)]);
    assert_eq!(check_functions(&source, &[]).len(), 1);
    assert_eq!(check_functions(&source, &[("src/a.rs", "f", 71)]).len(), 0);
    assert_eq!(check_functions(&source, &[("src/a.rs", "f", 70)]).len(), 1);
    assert_eq!(check_functions(&source, &[("src/a.rs", "f", 72)]).len(), 1);
    assert_eq!(check_functions(&source, &[("src/a.rs", "g", 90)]).len(), 2);
    assert_eq!(
        functions("fn a();\nfn b() {}\nfn c() {\n}\n"),
        [("c".to_owned(), 2)]
    );
}

#[test]
fn untidy_lines_are_found() {
    let bad = |text: &str| check_lines(&snippet("src/a.rs", text)).len();
    assert_eq!(bad("//! Header.\n"), 0);
    assert_eq!(bad("fn a() {}\n"), 1);
    assert_eq!(bad(&format!("//! {}\n", "x".repeat(100))), 1);
    assert_eq!(
        bad(&format!(
            "//! | {}\n//! https://{}\n",
            "x".repeat(100),
            "x".repeat(100)
        )),
        0
    );
    assert_eq!(bad("//! \u{fc}\n"), 1);
    assert_eq!(bad("//! a \n"), 1);
}

#[test]
fn leftovers_are_found() {
    let bad = |path, text: &str| check_leftovers(&snippet(path, text)).len();
    let sleep = concat!("thread::sl", "eep(a);\n");
    assert_eq!(bad("src/a.rs", concat!("db", "g!(a);\n")), 1);
    assert_eq!(bad("tests/a.rs", concat!("#[ign", "ore]\n")), 1);
    assert_eq!(bad("src/a.rs", sleep), 0);
    assert_eq!(bad("tests/a.rs", sleep), 1);
    assert_eq!(
        bad("src/a.rs", &format!("#[cfg(test)]\nmod tests {{ {sleep}")),
        1
    );
}

#[test]
fn rooms_without_a_sentence_are_found() {
    let rooms: BTreeSet<String> = ["spool".to_owned()].into();
    let good = "//! | `spool` | the durable logs | nothing |\npub mod spool;\n";
    assert_eq!(check_rooms(good, &rooms).len(), 0);
    assert_eq!(check_rooms("pub mod spool;\n", &rooms).len(), 1);
    assert_eq!(
        check_rooms("//! | `spool` | the durable logs | nothing |\n", &rooms).len(),
        1
    );
    assert_eq!(
        check_rooms(
            &format!("//! | `attic` | old things | all |\n{good}"),
            &rooms
        )
        .len(),
        1
    );
}

#[test]
fn unread_parameters_are_found() {
    let all: Vec<String> = PARAMETERS
        .iter()
        .map(postrider::config::Parameter::path)
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(check_parameters("", &[]).len(), PARAMETERS.len());
    assert_eq!(check_parameters("", &all).len(), 0);
    assert_eq!(check_parameters("node.hostname.clone()", &all).len(), 1);
    assert!(reads_field("a.hostname;", "hostname"));
    assert!(!reads_field("a.hostname_of; a.hostname()", "hostname"));
}

#[test]
fn forgotten_fuzz_functions_are_found() {
    let sources = [
        snippet(
            "src/a/b.rs",
            "pub fn fuzz_x(octets: &[u8]) {}\npub fn other() {}\n",
        ),
        snippet("src/a/fuzz.rs", "pub fn y(octets: &[u8]) {}\nfn z() {}\n"),
    ];
    let target = |name: &str, text: &str| snippet(&format!("fuzz/fuzz_targets/{name}.rs"), text);
    let both = [
        target("x", "postrider::a::b::fuzz_x(data)"),
        target("y", "postrider::a::fuzz::y(data)"),
    ];
    let manifest = "path = \"fuzz_targets/x.rs\"\npath = \"fuzz_targets/y.rs\"\n";
    assert_eq!(check_fuzz(&sources, &both, manifest).len(), 0);
    assert_eq!(check_fuzz(&sources, &both[..1], manifest).len(), 1);
    assert_eq!(check_fuzz(&sources, &both, "").len(), 2);
}
