//! read - a file checked against the parameter table.
//!
//! What: TOML text in, rows of typed values out, and every mistake on the way with its place.
//! Why this way: one walk that knows only the table; it stops at nothing, so that a person sees all
//! mistakes of a file at once. What concerns several parameters is in `build.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{Problem, nearest, position};
use super::parameters::{Absent, Kind, Parameter, SECTIONS, Section, Shape, rows};
use super::values::{
    Cidr, DomainPattern, HostPort, Rate, ValueError, date_time, duration, field_name, hostname,
    identity, rate, show_duration, show_size, size,
};
use crate::limits::CONFIG_ERRORS_MAX;
use crate::time::Wall;

/// A value of the type that its row asks for.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(Arc<str>),
    Path(PathBuf),
    /// `AutoOr`: none is "auto".
    AutoOr(Option<u64>),
    Number(u64),
    Duration(Duration),
    Durations(Vec<Duration>),
    Rate(Rate),
    Address(IpAddr),
    Socket(SocketAddr),
    Sockets(Vec<SocketAddr>),
    Networks(Vec<Cidr>),
    Pattern(DomainPattern),
    Patterns(Vec<DomainPattern>),
    Flag(bool),
    Date(Wall),
    Texts(Vec<Arc<str>>),
    Hosts(Vec<HostPort>),
    Rows(Vec<Row>),
}

/// A value and where it stands; a default stands at its section.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) value: Value,
    pub(super) span: Range<usize>,
}

/// One table of the file, with its defaults filled in.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// "listener\[2\]".
    pub(super) path: String,
    pub(super) span: Range<usize>,
    pub(super) cells: BTreeMap<&'static str, Cell>,
}

/// The whole file: the rows of each section.
pub(super) type Sections = BTreeMap<&'static str, Vec<Row>>;

/// Collects problems, with their places.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: Vec<Problem>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, span: &Range<usize>, key: &str, message: impl Into<String>) {
        self.add_near(span, key, message, None);
    }

    pub(super) fn add_near(
        &mut self,
        span: &Range<usize>,
        key: &str,
        message: impl Into<String>,
        nearest: Option<String>,
    ) {
        // Counting lines is linear in the file; the bound keeps a hostile file from being
        // quadratic.
        if self.found.len() >= CONFIG_ERRORS_MAX {
            return;
        }
        let (line, column) = position(self.text, span.start);
        let message = message.into();
        self.found.push(Problem {
            line,
            column,
            key: key.to_owned(),
            message,
            nearest,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.found
            .sort_by_key(|problem| (problem.line, problem.column));
        self.found
    }
}

/// Reads `text` into rows. The rows are whole only when `problems` stays empty.
pub(super) fn read(text: &str, problems: &mut Problems<'_>) -> Sections {
    let mut sections = Sections::new();
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let message = error.message().trim().replace('\n', ", ");
        problems.add(
            &error.span().unwrap_or(0..0),
            "",
            format!("not TOML: {message}"),
        );
    }
    // What a recovered parse holds is a guess; complaints about it would hide the true mistake.
    if !problems.is_empty() {
        return sections;
    }
    for (name, value) in root.get_ref() {
        let known = SECTIONS
            .iter()
            .find(|s| s.shape != Shape::Inline && s.name == &**name.get_ref());
        match known {
            Some(section) => {
                let rows = read_section(section, value, problems);
                sections.insert(section.name, rows);
            }
            None => unknown_section(name, problems),
        }
    }
    for section in SECTIONS
        .iter()
        .filter(|section| section.shape == Shape::Table)
    {
        sections.entry(section.name).or_insert_with(|| {
            let end = text.trim_end().len();
            vec![finish_row(
                section,
                section.name.to_owned(),
                end..end,
                BTreeMap::new(),
                problems,
            )]
        });
    }
    sections
}

fn unknown_section(name: &Spanned<std::borrow::Cow<'_, str>>, problems: &mut Problems<'_>) {
    let sections = SECTIONS
        .iter()
        .filter(|s| s.shape != Shape::Inline)
        .map(|s| s.name);
    let near = nearest(name.get_ref(), sections.clone());
    let message = match &near {
        Some(_) => "unknown section".to_owned(),
        None => format!(
            "unknown section; there are {}",
            sections.collect::<Vec<_>>().join(", ")
        ),
    };
    problems.add_near(&name.span(), &shown(name.get_ref()), message, near);
}

fn read_section(
    section: &'static Section,
    value: &Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
) -> Vec<Row> {
    let name = section.name;
    match (section.shape, value.get_ref()) {
        (Shape::Table, DeValue::Table(table)) => {
            vec![read_row(
                section,
                name.to_owned(),
                value.span(),
                table,
                problems,
            )]
        }
        (Shape::Array, DeValue::Array(array)) => read_rows(section, name, array, problems),
        (Shape::Table, other) => {
            let message = format!("expected one table [{name}], found {}", found(other));
            problems.add(&value.span(), name, message);
            Vec::new()
        }
        (_, other) => {
            let message = format!("expected tables [[{name}]], found {}", found(other));
            problems.add(&value.span(), name, message);
            Vec::new()
        }
    }
}

fn read_rows(
    section: &'static Section,
    path: &str,
    array: &DeArray<'_>,
    problems: &mut Problems<'_>,
) -> Vec<Row> {
    let mut out = Vec::with_capacity(array.len());
    for (index, element) in array.iter().enumerate() {
        let path = format!("{path}[{}]", index + 1);
        match element.get_ref() {
            DeValue::Table(table) => {
                out.push(read_row(section, path, element.span(), table, problems));
            }
            other => {
                let message = format!("expected a table, found {}", found(other));
                problems.add(&element.span(), &path, message);
            }
        }
    }
    out
}

fn read_row(
    section: &'static Section,
    path: String,
    span: Range<usize>,
    table: &DeTable<'_>,
    problems: &mut Problems<'_>,
) -> Row {
    let mut cells = BTreeMap::new();
    for (key, value) in table {
        let key_path = format!("{path}.{}", shown(key.get_ref()));
        let Some(row) = rows(section.name).find(|row| row.name == &**key.get_ref()) else {
            unknown_key(section, key, &key_path, problems);
            continue;
        };
        if let Some(read) = read_value(row, &key_path, value, problems) {
            cells.insert(
                row.name,
                Cell {
                    value: read,
                    span: value.span(),
                },
            );
        } else {
            // Already reported; not also missing.
            cells.insert(
                row.name,
                Cell {
                    value: Value::Rows(Vec::new()),
                    span: value.span(),
                },
            );
        }
    }
    finish_row(section, path, span, cells, problems)
}

/// Reports what is missing and fills in defaults.
fn finish_row(
    section: &'static Section,
    path: String,
    span: Range<usize>,
    mut cells: BTreeMap<&'static str, Cell>,
    problems: &mut Problems<'_>,
) -> Row {
    for row in rows(section.name) {
        if cells.contains_key(row.name) {
            continue;
        }
        match row.absent {
            Absent::Means(_) => {}
            Absent::Refused => {
                let message = format!("missing; for example {} = {}", row.name, row.example);
                problems.add(&span, &format!("{path}.{}", row.name), message);
            }
            Absent::Default(literal) => {
                if let Some(value) = read_literal(row, literal) {
                    cells.insert(
                        row.name,
                        Cell {
                            value,
                            span: span.clone(),
                        },
                    );
                }
            }
        }
    }
    Row { path, span, cells }
}

fn unknown_key(
    section: &Section,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    path: &str,
    problems: &mut Problems<'_>,
) {
    let names = rows(section.name).map(|row| row.name);
    let near = nearest(key.get_ref(), names.clone());
    // A key at home in another section is a common slip: say where it belongs.
    let elsewhere = super::parameters::PARAMETERS
        .iter()
        .find(|row| row.name == &**key.get_ref());
    let message = match (&near, elsewhere) {
        (Some(_), _) => "unknown key".to_owned(),
        (None, Some(row)) => format!("unknown key here; there is {}", row.path()),
        (None, None) => format!(
            "unknown key; there are {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    };
    problems.add_near(&key.span(), path, message, near);
}

/// A value written in the parameter table, such as a default.
pub(super) fn read_literal(row: &Parameter, literal: &str) -> Option<Value> {
    let value = DeValue::parse(literal).ok()?;
    let mut problems = Problems::new(literal);
    let read = read_value(row, row.name, &value, &mut problems);
    read.filter(|_| problems.is_empty())
}

/// Reads one value as its row asks, or reports why not.
fn read_value(
    row: &Parameter,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
) -> Option<Value> {
    let before = problems.found.len();
    let read = match row.kind {
        Kind::Durations { .. }
        | Kind::SocketAddresses { .. }
        | Kind::Networks
        | Kind::Patterns
        | Kind::FieldNames
        | Kind::Hosts { .. }
        | Kind::Tables => read_list(row, key, value, problems),
        scalar => match read_scalar(scalar, value.get_ref()) {
            Ok(read) => Some(read),
            Err(error) => {
                let near = nearest_choice(scalar, value.get_ref());
                problems.add_near(&value.span(), key, error.0, near);
                None
            }
        },
    };
    read.filter(|_| problems.found.len() == before)
}

fn nearest_choice(kind: Kind, value: &DeValue<'_>) -> Option<String> {
    match kind {
        Kind::Choice(words) => nearest(value.as_str()?, words.iter().copied()),
        Kind::AutoOr { .. } => nearest(value.as_str()?, std::iter::once("auto")),
        _ => None,
    }
}

fn read_scalar(kind: Kind, value: &DeValue<'_>) -> Result<Value, ValueError> {
    let expected = || {
        ValueError(format!(
            "expected {}, found {}",
            expected(kind),
            found(value)
        ))
    };
    if let Kind::Integer { .. } | Kind::AutoOr { .. } = kind {
        return read_number(kind, value).ok_or_else(expected);
    }
    if let (Kind::Flag, DeValue::Boolean(flag)) = (kind, value) {
        return Ok(Value::Flag(*flag));
    }
    if let (Kind::DateTime, DeValue::Datetime(date)) = (kind, value) {
        return date_time(&date.to_string()).map(Value::Date);
    }
    let text = value.as_str().ok_or_else(expected)?;
    match kind {
        Kind::Hostname => hostname(text).map(Value::Text),
        Kind::Name if is_name(text) => Ok(Value::Text(text.into())),
        // A path with a NUL byte cannot exist; the kernel's answer to it explains nothing.
        Kind::Path if !text.is_empty() && !text.contains('\0') => Ok(Value::Path(text.into())),
        Kind::Size { min, max } => match size(text)? {
            bytes if (min..=max).contains(&bytes) => Ok(Value::Number(bytes)),
            _ => Err(expected()),
        },
        Kind::Duration { min_ms, max_ms } => {
            bounded_duration(text, min_ms, max_ms).map(Value::Duration)
        }
        Kind::Rate => rate(text).map(Value::Rate),
        Kind::Pattern => DomainPattern::parse(text).map(Value::Pattern),
        Kind::Identity => identity(text).map(Value::Text),
        Kind::DateTime => date_time(text).map(Value::Date),
        Kind::Choice(words) if words.contains(&text) => Ok(Value::Text(text.into())),
        Kind::Address => text.parse().map(Value::Address).map_err(|_| expected()),
        Kind::SocketAddress => text.parse().map(Value::Socket).map_err(|_| expected()),
        _ => Err(expected()),
    }
}

fn read_number(kind: Kind, value: &DeValue<'_>) -> Option<Value> {
    if let (Kind::AutoOr { .. }, Some("auto")) = (kind, value.as_str()) {
        return Some(Value::AutoOr(None));
    }
    let integer = value.as_integer()?;
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
    match kind {
        Kind::AutoOr { max } if (1..=max).contains(&number) => Some(Value::AutoOr(Some(number))),
        Kind::Integer { min, max } if (min..=max).contains(&number) => Some(Value::Number(number)),
        _ => None,
    }
}

fn read_list(
    row: &Parameter,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
) -> Option<Value> {
    let one = [value.clone()];
    let elements = elements(row.kind, key, value, &one, problems)?;
    match row.kind {
        Kind::Durations { min_ms, max_ms } => {
            let each = |text: &str| bounded_duration(text, min_ms, max_ms);
            Some(Value::Durations(read_texts(
                elements,
                key,
                "a duration",
                each,
                problems,
            )))
        }
        Kind::SocketAddresses { port } => {
            let each = |text: &str| socket_address(text, port);
            Some(Value::Sockets(read_texts(
                elements,
                key,
                "an address",
                each,
                problems,
            )))
        }
        Kind::Networks => Some(Value::Networks(read_texts(
            elements,
            key,
            "a network",
            Cidr::parse,
            problems,
        ))),
        Kind::Patterns => {
            let each = DomainPattern::parse;
            Some(Value::Patterns(read_texts(
                elements, key, "a domain", each, problems,
            )))
        }
        Kind::FieldNames => Some(Value::Texts(read_texts(
            elements,
            key,
            "a field name",
            field_name,
            problems,
        ))),
        Kind::Hosts { port } => {
            let each = |text: &str| HostPort::parse(text, port);
            Some(Value::Hosts(read_texts(
                elements, key, "a host", each, problems,
            )))
        }
        Kind::Tables => {
            let section = super::parameters::section(&row.path())?;
            let DeValue::Array(array) = value.get_ref() else {
                return None;
            };
            Some(Value::Rows(read_rows(section, key, array, problems)))
        }
        // The other kinds are scalars, and `read_value` sends none of them here.
        _ => None,
    }
}

/// The elements of a list; a single host counts as a list of `one`.
fn elements<'v, 't>(
    kind: Kind,
    key: &str,
    value: &'v Spanned<DeValue<'t>>,
    one: &'v [Spanned<DeValue<'t>>],
    problems: &mut Problems<'_>,
) -> Option<&'v [Spanned<DeValue<'t>>]> {
    let elements: &[Spanned<DeValue<'t>>] = match (kind, value.get_ref()) {
        (_, DeValue::Array(array)) => array,
        (Kind::Hosts { .. }, DeValue::String(_)) => one,
        (kind, other) => {
            let message = format!("expected {}, found {}", expected(kind), found(other));
            problems.add(&value.span(), key, message);
            return None;
        }
    };
    let may_be_empty = matches!(
        kind,
        Kind::Networks | Kind::SocketAddresses { .. } | Kind::FieldNames
    );
    if elements.is_empty() && !may_be_empty {
        problems.add(&value.span(), key, "an empty list; at least one is needed");
        return None;
    }
    Some(elements)
}

fn read_texts<T>(
    elements: &[Spanned<DeValue<'_>>],
    key: &str,
    expected: &str,
    each: impl Fn(&str) -> Result<T, ValueError>,
    problems: &mut Problems<'_>,
) -> Vec<T> {
    let mut out = Vec::with_capacity(elements.len());
    for (index, element) in elements.iter().enumerate() {
        let read = match element.get_ref().as_str() {
            Some(text) => each(text),
            None => {
                let found = found(element.get_ref());
                Err(ValueError(format!(
                    "expected {expected} in quotes, found {found}"
                )))
            }
        };
        match read {
            Ok(value) => out.push(value),
            Err(error) if elements.len() == 1 => problems.add(&element.span(), key, error.0),
            Err(error) => {
                problems.add(&element.span(), &format!("{key}[{}]", index + 1), error.0);
            }
        }
    }
    out
}

fn bounded_duration(text: &str, min_ms: u64, max_ms: u64) -> Result<Duration, ValueError> {
    let value = duration(text)?;
    if value < Duration::from_millis(min_ms) || value > Duration::from_millis(max_ms) {
        let kind = Kind::Duration { min_ms, max_ms };
        return Err(ValueError(format!(
            "expected {}, found \"{text}\"",
            expected(kind)
        )));
    }
    Ok(value)
}

fn socket_address(text: &str, port: u16) -> Result<SocketAddr, ValueError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(ValueError(format!(
            "\"{text}\" is not an address such as \"127.0.0.1:{port}\""
        ))),
    }
}

/// Names go into headers, logs and metrics: printable ASCII without quotes or spaces.
fn is_name(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/');
    !text.is_empty() && text.len() <= 64 && text.bytes().all(good)
}

/// What a kind accepts, for messages and the documentation.
pub(super) fn expected(kind: Kind) -> String {
    let span = |min_ms, max_ms| {
        let show = |ms| show_duration(Duration::from_millis(ms));
        format!("from {} to {}", show(min_ms), show(max_ms))
    };
    match kind {
        Kind::Hostname => "a host name in quotes".into(),
        Kind::Name => "a name of 1 to 64 letters, digits and -_.:/ in quotes".into(),
        Kind::Path => "a path in quotes".into(),
        Kind::AutoOr { max } => format!("\"auto\" or a number from 1 to {max}"),
        Kind::Integer { min, max } => format!("a number from {min} to {max}"),
        Kind::Size { min, max } => {
            format!(
                "a size such as \"10MiB\", from {} to {}",
                show_size(min),
                show_size(max)
            )
        }
        Kind::Duration { min_ms, max_ms } => {
            format!("a duration such as \"20m\", {}", span(min_ms, max_ms))
        }
        Kind::Durations { min_ms, max_ms } => {
            format!(
                "a list of durations such as [\"5m\", \"1h\"], each {}",
                span(min_ms, max_ms)
            )
        }
        Kind::Rate => "a rate such as \"100/s\" (s, min, h, day)".into(),
        Kind::Choice(words) => format!("one of \"{}\"", words.join("\", \"")),
        Kind::Address => "an IP address in quotes".into(),
        Kind::SocketAddress => "an address and a port such as \"127.0.0.1:2525\"".into(),
        Kind::SocketAddresses { port } => {
            format!("a list of addresses such as [\"127.0.0.1:{port}\"]")
        }
        Kind::Networks => "a list of networks such as [\"10.0.0.0/8\"]".into(),
        Kind::Pattern => "a domain such as \"example.com\" or \"*.example.com\"".into(),
        Kind::Flag => "true or false".into(),
        Kind::DateTime => "a date-time such as 2027-01-01T00:00:00Z".into(),
        Kind::FieldNames => "a list of header field names such as [\"X-Customer\"]".into(),
        Kind::Identity => "an address such as \"@example.com\" or \"news@example.com\"".into(),
        Kind::Patterns => "a list of domains such as [\"example.com\", \"*.example.com\"]".into(),
        Kind::Hosts { port } => format!("a host such as \"relay.example:{port}\", or a list"),
        Kind::Tables => "a list of tables such as [{ ... }]".into(),
    }
}

/// What stands in the file, in a few words.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", shown(text)),
        DeValue::Integer(integer) => format!("the number {integer}"),
        DeValue::Float(_) => "a fraction".into(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// Text of the file made fit for a terminal: no control characters, and not too long.
fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        out.push_str("...");
    }
    out
}
