//! dkim::signature - from a message to the bytes that get signed, and to the finished field.
//!
//! What: [`prepare`] selects and canonicalises header fields, lays out one `DKIM-Signature` field
//! per identity with `b=` empty, and hashes; what remains is the private key operation
//! ([`crate::dkim::batch`]), after which [`Unsigned::finish`] writes `b=`, folded.
//! Why this way: the layout is final before signing (`b=` is the last tag), so the finished field
//! is the hashed bytes plus base64 text.
//! Standards: RFC 6376 3.5, 3.7, 5.4 (fields), 8.15 (oversigning: a name is listed once more than
//! it occurs, so that nobody can add another From or Subject); never `l=` (RFC 6376 8.2).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::dkim::base64;
use crate::dkim::canon::{self, BodyHasher};
use crate::dkim::key::PrivateKey;
use crate::dkim::ring::Identity;
use crate::limits;
use crate::message::{BodyHash, Canon};
use crate::time::Wall;

/// Field names that are signed once more than they occur. In this order in `h=`.
///
/// Identity, subject, time, structure, and what bulk mail is judged by (RFC 8058 4: both
/// List-Unsubscribe fields must be covered).
pub const OVERSIGNED: &[&str] = &[
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "Feedback-ID",
];

/// Field names that are signed where they occur, and may be added later: a mailing list adds its
/// own `Sender` and `List-*`. RFC 6376 5.4.1; RFC 9477 3.2 for CFBL.
pub const SIGNED_IF_PRESENT: &[&str] = &[
    "Sender",
    "In-Reply-To",
    "References",
    "Content-ID",
    "Content-Description",
    "List-Id",
    "List-Help",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
    "CFBL-Address",
    "CFBL-Feedback-ID",
    "Auto-Submitted",
];

/// How messages are signed; one per configuration.
#[derive(Debug, Clone)]
pub struct SignOptions {
    header: Canon,
    body: Canon,
    lifetime: Option<Duration>,
    /// Lower-cased name, as written in `h=`, oversigned.
    names: Vec<(Box<str>, Box<str>, bool)>,
}

impl Default for SignOptions {
    fn default() -> Self {
        let row = |oversigned| {
            move |name: &&str| {
                let lower: Box<str> = name.to_ascii_lowercase().into();
                (lower, Box::from(*name), oversigned)
            }
        };
        Self {
            header: Canon::Relaxed,
            body: Canon::Relaxed,
            lifetime: None,
            names: OVERSIGNED
                .iter()
                .map(row(true))
                .chain(SIGNED_IF_PRESENT.iter().map(row(false)))
                .collect(),
        }
    }
}

impl SignOptions {
    /// Sets the canonicalisations (`c=header/body`).
    #[must_use]
    pub fn with_canon(mut self, header: Canon, body: Canon) -> Self {
        self.header = header;
        self.body = body;
        self
    }

    /// Sets `x=`: signatures expire this long after `t=`. At least a week is wise: mail waits in
    /// queues for five days.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Option<Duration>) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Oversigns another field. `false` where that is not a field name that may be signed
    /// (RFC 6376 5.4: not Return-Path, Received or DKIM-Signature), or the list is full.
    #[must_use]
    pub fn oversign(&mut self, name: &str) -> bool {
        let lower: Box<str> = name.to_ascii_lowercase().into();
        let forbidden = [
            "return-path",
            "received",
            "dkim-signature",
            "authentication-results",
        ];
        let wrong = name.is_empty() || !name.bytes().all(is_name_byte) || name.contains(';');
        if wrong || forbidden.contains(&&*lower) {
            return false;
        }
        if let Some(row) = self.names.iter_mut().find(|row| row.0 == lower) {
            row.2 = true;
            return true;
        }
        if self.names.len() >= limits::DKIM_NAMES_MAX {
            return false;
        }
        self.names.push((lower, name.into(), true));
        true
    }

    /// How bodies are canonicalised.
    #[must_use]
    pub fn body_canon(&self) -> Canon {
        self.body
    }

    /// Whether a header of so many fields is surely not too long to be signed.
    #[must_use]
    pub fn fits(&self, fields: usize) -> bool {
        self.names.len().saturating_add(fields) <= limits::DKIM_SIGNED_FIELDS_MAX
    }

    /// A hasher for bodies that will be signed with these options.
    #[must_use]
    pub fn body_hasher(&self) -> BodyHasher {
        BodyHasher::new(self.body)
    }
}

/// Why a message cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrepareError {
    /// No From field: RFC 6376 5.4 wants it signed.
    NoFrom,
    /// The signed names repeat more than [`limits::DKIM_SIGNED_FIELDS_MAX`] times.
    TooManyFields,
    /// The body hash was made with another canonicalisation than the options say.
    BodyCanon,
    /// No identity, or more than [`limits::DKIM_SIGNATURES_MAX`].
    Identities,
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoFrom => "no From field to sign",
            Self::TooManyFields => "too many repeated header fields to sign",
            Self::BodyCanon => "the body hash has another canonicalisation",
            Self::Identities => "no signing identity, or too many",
        })
    }
}

impl std::error::Error for PrepareError {}

/// One signature that only lacks the private key operation.
#[derive(Debug, Clone)]
pub struct Unsigned {
    /// The field up to and including `b=`.
    field: Vec<u8>,
    /// SHA-256 of the canonical header fields and of this field with `b=` empty.
    pub(crate) hash: [u8; 32],
    pub(crate) key: Arc<PrivateKey>,
}

impl Unsigned {
    /// Writes the finished field, CRLF-terminated, at the end of `out`.
    pub(crate) fn finish(self, signature: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.field);
        let mut text = Vec::new();
        base64::encode(signature, &mut text);
        // The first line continues after TAB and "b=".
        let (first, rest) = text.split_at(text.len().min(LINE - 3));
        out.extend_from_slice(first);
        for line in rest.chunks(LINE - 1) {
            out.extend_from_slice(b"\r\n\t");
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Columns of a line of our field, counting a leading TAB as one. RFC 5322 2.1.1 wants 78.
const LINE: usize = 76;

/// Where the header section ends: the offset of the first byte of the body (after the empty line).
/// A message without an empty line is all header.
#[must_use]
pub fn body_start(content: &[u8]) -> usize {
    if content.starts_with(b"\r\n") {
        return 2;
    }
    memchr::memmem::find(content, b"\r\n\r\n").map_or(content.len(), |at| at + 4)
}

/// One field of the header: its bytes with line end, and its colon.
struct Field<'a> {
    bytes: &'a [u8],
    colon: usize,
}

/// Lays out and hashes one signature per identity. `header` is the header section as it will be
/// sent (anything from its empty line on is ignored); `body` the hash of the body as it will be
/// sent.
pub fn prepare(
    header: &[u8],
    body: &BodyHash,
    identities: &[Arc<Identity>],
    options: &SignOptions,
    now: Wall,
) -> Result<Vec<Unsigned>, PrepareError> {
    if body.canon != options.body {
        return Err(PrepareError::BodyCanon);
    }
    if identities.is_empty() || identities.len() > limits::DKIM_SIGNATURES_MAX {
        return Err(PrepareError::Identities);
    }
    let found = signed_fields(header, options)?;
    let mut names = Vec::with_capacity(options.names.len() + found.len());
    let mut input = Vec::with_capacity(header.len().min(8192) + 1024);
    for (row, (_, name, oversigned)) in options.names.iter().enumerate() {
        // RFC 6376 5.4.2: repeated fields are signed from the bottom up.
        for (_, field) in found.iter().rev().filter(|(of, _)| *of == row) {
            names.push(&**name);
            canon::header_field(options.header, field.bytes, field.colon, &mut input);
        }
        if *oversigned {
            names.push(name);
        }
    }
    let common = input.len();
    let mut bh = Vec::new();
    base64::encode(&body.digest, &mut bh);
    let bh = String::from_utf8_lossy(&bh);
    let lay_out = |identity: &Arc<Identity>| {
        let field = field_text(identity, options, &names, &bh, now);
        input.truncate(common);
        canon::header_field(options.header, &field, FIELD_NAME.len(), &mut input);
        // RFC 6376 3.7: the signature field goes in without its final CRLF.
        input.truncate(input.len() - 2);
        Unsigned {
            hash: canon::sha256(&input),
            field,
            key: Arc::clone(identity.key()),
        }
    };
    Ok(identities.iter().map(lay_out).collect())
}

/// Whether [`prepare`] can sign a message with this header section.
///
/// # Errors
/// There is no From field, or there are too many fields to sign.
pub fn signable(header: &[u8], options: &SignOptions) -> Result<(), PrepareError> {
    signed_fields(header, options).map(drop)
}

const FIELD_NAME: &str = "DKIM-Signature";

/// The fields to sign, top to bottom, each with its row of the options.
fn signed_fields<'a>(
    header: &'a [u8],
    options: &SignOptions,
) -> Result<Vec<(usize, Field<'a>)>, PrepareError> {
    let mut found = Vec::with_capacity(options.names.len());
    let mut listed = options.names.len();
    let mut rest = header;
    while !rest.is_empty() && !rest.starts_with(b"\r\n") {
        let (bytes, after) = rest.split_at(field_end(rest));
        rest = after;
        // A line without a colon is no field; verifiers skip it as well.
        let Some(colon) = memchr::memchr(b':', bytes) else {
            continue;
        };
        let name = bytes[..colon].trim_ascii_end();
        let row = options.names.iter().position(|(lower, _, _)| {
            lower.len() == name.len() && lower.as_bytes().eq_ignore_ascii_case(name)
        });
        if let Some(row) = row {
            listed += 1;
            if listed > limits::DKIM_SIGNED_FIELDS_MAX {
                return Err(PrepareError::TooManyFields);
            }
            found.push((row, Field { bytes, colon }));
        }
    }
    let is_from = |(row, _): &(usize, Field<'_>)| &*options.names[*row].0 == "from";
    if !found.iter().any(is_from) {
        return Err(PrepareError::NoFrom);
    }
    Ok(found)
}

/// The length of the field at the start of `header`: up to a CRLF that no blank follows.
fn field_end(header: &[u8]) -> usize {
    let mut at = 0;
    while let Some(offset) = memchr::memchr(b'\n', &header[at..]) {
        at += offset + 1;
        let line_end = header[..at].ends_with(b"\r\n");
        if line_end && !matches!(header.get(at), Some(b' ' | b'\t')) {
            return at;
        }
    }
    header.len()
}

/// The field with `b=` empty, without line end. RFC 6376 3.5.
fn field_text(
    identity: &Identity,
    options: &SignOptions,
    names: &[&str],
    body_hash: &str,
    now: Wall,
) -> Vec<u8> {
    let mut text = Folder::new();
    text.tag(&[FIELD_NAME, ": v=1;"]);
    text.tag(&["a=", identity.key().algorithm().as_str(), ";"]);
    let (header, body) = (options.header.as_str(), options.body.as_str());
    text.tag(&["c=", header, "/", body, ";"]);
    text.tag(&["d=", identity.domain(), ";"]);
    text.tag(&["s=", identity.selector(), ";"]);
    if let Some(agent) = identity.agent() {
        text.tag(&["i=", agent, ";"]);
    }
    let signed_at = now.0 / 1000;
    text.tag(&["t=", &signed_at.to_string(), ";"]);
    if let Some(lifetime) = options.lifetime {
        // RFC 6376 3.5: x= must be greater than t=.
        let expires = signed_at.saturating_add(lifetime.as_secs().max(1));
        text.tag(&["x=", &expires.to_string(), ";"]);
    }
    let (last, others) = names.split_last().unwrap_or((&"From", &[]));
    for (index, name) in others.iter().enumerate() {
        let start = if index == 0 { "h=" } else { "" };
        text.part(index == 0, &[start, name, ":"]);
    }
    let start = if others.is_empty() { "h=" } else { "" };
    text.part(others.is_empty(), &[start, last, ";"]);
    text.tag(&["bh=", body_hash, ";"]);
    text.line();
    text.out.extend_from_slice(b"b=");
    text.out
}

/// Writes tags with folds between them.
struct Folder {
    out: Vec<u8>,
    column: usize,
}

impl Folder {
    fn new() -> Self {
        Self {
            out: Vec::with_capacity(1024),
            column: 0,
        }
    }

    /// A tag, after a blank or on a new line.
    fn tag(&mut self, text: &[&str]) {
        self.part(true, text);
    }

    /// A piece that may start a new line; `blank` says that it wants a blank before it otherwise.
    fn part(&mut self, blank: bool, text: &[&str]) {
        let len: usize = text.iter().map(|word| word.len()).sum();
        let need = len + usize::from(blank);
        if self.column > 0 && self.column + need > LINE {
            self.line();
        } else if blank && self.column > 0 {
            self.out.push(b' ');
            self.column += 1;
        }
        for word in text {
            self.out.extend_from_slice(word.as_bytes());
        }
        self.column += len;
    }

    fn line(&mut self) {
        self.out.extend_from_slice(b"\r\n\t");
        self.column = 1;
    }
}

/// RFC 5322 3.6.8 ftext.
fn is_name_byte(byte: u8) -> bool {
    (33..=126).contains(&byte) && byte != b':'
}

#[cfg(test)]
mod tests;
