//! error - what is wrong with a configuration file, for people.

use std::fmt;
use std::path::PathBuf;

/// One mistake, or one thing worth a warning.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, such as "listener\[2\].address"; empty for the file itself.
    pub key: String,
    /// What is wrong, and what is expected.
    pub message: String,
    /// The valid name that comes nearest, where a name is wrong.
    pub nearest: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean \"{nearest}\"?"),
            None => Ok(()),
        }
    }
}

/// Why there is no snapshot.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file says something wrong.
    Wrong {
        /// The file.
        file: PathBuf,
        /// Every mistake that was found, in the order of the file; never empty.
        problems: Vec<Problem>,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, error } => {
                write!(
                    f,
                    "cannot read the configuration {}: {error}",
                    file.display()
                )
            }
            Self::Wrong { file, problems } => {
                for (index, problem) in problems.iter().enumerate() {
                    let end = if index + 1 < problems.len() { "\n" } else { "" };
                    write!(f, "{}:{problem}{end}", file.display())?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { error, .. } => Some(error),
            Self::Wrong { .. } => None,
        }
    }
}

/// Line and column, both from 1, of a byte offset in `text`.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// The name of `names` that is nearest to `wrong`, where it is near enough to be meant.
pub(super) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    // A name that is longer than any of ours by far is not a slip of the finger.
    if wrong.len() > 64 {
        return None;
    }
    let near_enough = |name: &str| (name.len().max(wrong.len()) / 3).max(1);
    names
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= near_enough(name))
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Edits between two words: insert, delete, replace, or swap of neighbours (optimal string
/// alignment); ASCII case counts nothing, "-" and "_" are the same.
fn distance(left: &str, right: &str) -> usize {
    let fold = |b: u8| {
        if b == b'-' {
            b'_'
        } else {
            b.to_ascii_lowercase()
        }
    };
    let left: Vec<u8> = left.bytes().map(fold).collect();
    let right: Vec<u8> = right.bytes().map(fold).collect();
    let mut before_last = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut row = vec![0; right.len() + 1];
    for i in 1..=left.len() {
        row[0] = i;
        for j in 1..=right.len() {
            let replaced = last[j - 1] + usize::from(left[i - 1] != right[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            let swapped =
                i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
            if swapped {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        std::mem::swap(&mut before_last, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    // The three kinds of slip, and words that nobody meant.
    #[test]
    fn nearest_names() {
        let names = ["address", "relay_from", "max_message_size"];
        for (wrong, right) in [
            ("adress", Some("address")),
            ("addrses", Some("address")),
            ("relay-from", Some("relay_from")),
            ("RelayFrom", Some("relay_from")),
            ("max_mesage_sizes", Some("max_message_size")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(
                nearest(wrong, names.into_iter()).as_deref(),
                right,
                "{wrong}"
            );
        }
    }

    #[test]
    fn positions_count_characters() {
        let text = "a\nb\u{fc}c\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 2), (2, 1));
        assert_eq!(position(text, 5), (2, 3));
        // The second byte of the umlaut belongs to the umlaut.
        assert_eq!(position(text, 4), (2, 2));
        assert_eq!(position(text, 999), (3, 1));
    }
}
