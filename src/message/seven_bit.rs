//! seven_bit - 8-bit mail for a receiver without 8BITMIME.
//!
//! What: [`convert`] rewrites a message so that every octet is below 128 and every part decodes to
//! what it was. RFC 6152 3 leaves a client two ways, to convert or to return the mail; this is the
//! first, and [`Unconvertible`] says when the second is left.
//! Why this way: only leaves change. A part with octets above 127 becomes quoted-printable or
//! base64, whichever is shorter for text and base64 for all else; multiparts and nested messages
//! are walked, their labels `8bit` and `binary` become `7bit`, and what is ASCII is copied as it
//! is. The result depends on the message alone, so that it can be made again for a retry and still
//! fit the signature that was made the first time. Signing comes after conversion.
//! Not converted: 8-bit header fields (RFC 6531: the receiver needs SMTPUTF8), parts under a
//! signature (RFC 1847 2.1 wants them 7-bit from the start; a rewritten one would not verify),
//! types of `message` that may not be encoded (RFC 2046 5.2), and structure that two programs could
//! read in two ways.
//! It proceeds in slices with a pause after each, since tens of MiB would hold up everybody else on
//! the core for a tenth of a second.
//! Limits: [`limits::CONVERSION_DEPTH_MAX`], [`limits::CONVERSION_PARTS_MAX`],
//! [`limits::HEADER_BYTES_MAX`] for the header of each part.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use super::header::{field_len, field_name, skip_comment};
use super::status::EnhancedStatus;
use super::transfer;
use crate::limits;

/// Why a message cannot be made 7-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unconvertible {
    /// An octet above 127 stands in a header, of the message or of a part.
    Header,
    /// An octet above 127 stands in a part that is signed or encrypted.
    Signed,
    /// The structure is broken, too deep, or forbids an encoding.
    Structure,
}

impl Unconvertible {
    /// The enhanced code of the failure.
    #[must_use]
    pub fn status(self) -> EnhancedStatus {
        match self {
            Self::Header => EnhancedStatus::UTF8_HEADER,
            Self::Signed | Self::Structure => EnhancedStatus::CONVERSION_NOT_SUPPORTED,
        }
    }

    /// The sentence for the sender.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Header => "receiver does not offer SMTPUTF8, and the header is not ASCII",
            Self::Signed => "receiver does not offer 8BITMIME, and a signed part is not ASCII",
            Self::Structure => {
                "receiver does not offer 8BITMIME, and the MIME structure allows no conversion"
            }
        }
    }
}

/// A pause in the work, in which others have their turn.
pub type Pause<'p> = dyn Fn() -> Pin<Box<dyn Future<Output = ()>>> + 'p;

/// The message with every octet below 128, decoding to the same. Total on any octets.
///
/// Pauses after every [`limits::MESSAGE_SLICE_BYTES`] that it has looked at.
///
/// # Errors
/// See [`Unconvertible`].
pub async fn convert(content: &[u8], pause: &Pause<'_>) -> Result<Vec<u8>, Unconvertible> {
    let mut work = Work {
        out: Vec::with_capacity(content.len() / 8 * 9 + 256),
        parts: 0,
        pause,
        unpaused: 0,
    };
    let message = Place {
        depth: 0,
        whole: true,
        digest: false,
    };
    work.entity(content, message).await?;
    let out = std::mem::take(&mut work.out);
    assert!(
        work.is_ascii(&out).await,
        "conversion left an octet above 127"
    );
    Ok(out)
}

struct Work<'p> {
    out: Vec<u8>,
    parts: usize,
    pause: &'p Pause<'p>,
    /// Octets looked at since the last pause.
    unpaused: usize,
}

const SLICE: usize = limits::MESSAGE_SLICE_BYTES;

/// Where an entity stands.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// It is a message, not a part of one.
    whole: bool,
    /// A part of a multipart/digest, whose parts are messages unless they say otherwise.
    digest: bool,
}

impl Place {
    fn inside(self, whole: bool, digest: bool) -> Self {
        Self {
            depth: self.depth + 1,
            whole,
            digest,
        }
    }
}

impl Work<'_> {
    /// So many octets were looked at.
    async fn spent(&mut self, octets: usize) {
        self.unpaused += octets;
        if self.unpaused >= SLICE {
            self.unpaused = 0;
            (self.pause)().await;
        }
    }

    async fn is_ascii(&mut self, octets: &[u8]) -> bool {
        for slice in octets.chunks(SLICE) {
            if !slice.is_ascii() {
                return false;
            }
            self.spent(slice.len()).await;
        }
        true
    }

    async fn is_utf8(&mut self, octets: &[u8]) -> bool {
        let mut at = 0;
        while at < octets.len() {
            let end = octets.len().min(at + SLICE);
            at = match std::str::from_utf8(&octets[at..end]) {
                Ok(_) => end,
                // A character goes on in the next slice.
                Err(error) if error.error_len().is_none() && end < octets.len() => {
                    at + error.valid_up_to()
                }
                Err(_) => return false,
            };
            self.spent(SLICE).await;
        }
        true
    }

    async fn copy(&mut self, octets: &[u8]) {
        for slice in octets.chunks(SLICE) {
            self.out.extend_from_slice(slice);
            self.spent(slice.len()).await;
        }
    }

    /// Boxed: entities are nested.
    fn entity<'w>(
        &'w mut self,
        octets: &'w [u8],
        place: Place,
    ) -> Pin<Box<dyn Future<Output = Result<(), Unconvertible>> + 'w>> {
        Box::pin(async move {
            self.parts += 1;
            if self.parts > limits::CONVERSION_PARTS_MAX
                || place.depth > limits::CONVERSION_DEPTH_MAX
            {
                return Err(Unconvertible::Structure);
            }
            if self.is_ascii(octets).await {
                self.copy(octets).await;
                return Ok(());
            }
            let header = Header::read(octets)?;
            self.spent(header.body).await;
            let body = &octets[header.body..];
            match header.kind(place)? {
                Kind::Multipart { boundary, digest } => {
                    self.head(&header, place, "7bit", None);
                    self.multipart(body, &boundary, place.inside(false, digest))
                        .await
                }
                Kind::Message => {
                    self.head(&header, place, "7bit", None);
                    self.entity(body, place.inside(true, false)).await
                }
                Kind::Leaf { text } => {
                    self.leaf(&header, body, place, text).await;
                    Ok(())
                }
            }
        })
    }

    /// Writes a header with another transfer encoding, and the empty line.
    fn head(&mut self, header: &Header<'_>, place: Place, encoding: &str, media: Option<&str>) {
        let fields = &header.octets[..header.end];
        let old = header.encoding.clone().unwrap_or(header.end..header.end);
        self.out.extend_from_slice(&fields[..old.start]);
        if !old.is_empty() || encoding != "7bit" {
            self.field("Content-Transfer-Encoding", encoding);
        }
        self.out.extend_from_slice(&fields[old.end..]);
        if place.whole && !header.mime {
            self.field("MIME-Version", "1.0");
        }
        if let Some(media) = media {
            self.field("Content-Type", media);
        }
        self.out.extend_from_slice(b"\r\n");
    }

    fn field(&mut self, name: &str, value: &str) {
        for text in [name, ": ", value, "\r\n"] {
            self.out.extend_from_slice(text.as_bytes());
        }
    }

    async fn leaf(&mut self, header: &Header<'_>, body: &[u8], place: Place, text: bool) {
        let media = match header.media {
            Some(_) => None,
            // What says nothing is text/plain in US-ASCII, which it is not.
            None if self.is_utf8(body).await => Some("text/plain; charset=utf-8"),
            // RFC 1428 3.
            None => Some("text/plain; charset=unknown-8bit"),
        };
        if text && self.is_shorter_quoted(body).await {
            self.head(header, place, "quoted-printable", media);
            let mut left = (0, 0);
            while left.0 < body.len() {
                let end = left.0 + SLICE;
                left = transfer::quoted_printable_part(&mut self.out, body, left, end);
                self.spent(SLICE).await;
            }
            return;
        }
        self.head(header, place, "base64", media);
        for (number, lines) in body.chunks(BASE64_SLICE).enumerate() {
            if number > 0 {
                self.out.extend_from_slice(b"\r\n");
            }
            transfer::base64_lines(&mut self.out, lines);
            self.spent(lines.len()).await;
        }
        if body.ends_with(b"\r\n") {
            self.out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether a text is no longer as quoted-printable than as base64.
    async fn is_shorter_quoted(&mut self, body: &[u8]) -> bool {
        let mut escaped = 0;
        for slice in body.chunks(SLICE) {
            escaped += transfer::escaped(slice);
            self.spent(slice.len()).await;
        }
        transfer::quoted_printable_len(body.len(), escaped) <= transfer::base64_len(body.len())
    }

    /// RFC 2046 5.1.1.
    async fn multipart(
        &mut self,
        body: &[u8],
        boundary: &[u8],
        place: Place,
    ) -> Result<(), Unconvertible> {
        let mut part_start = None;
        let mut done = 0;
        let dashes = [b"--", boundary].concat();
        while let Some(line) = self.delimiter(body, &dashes, done).await? {
            // The line end before a delimiter is part of it; a part without a line has none.
            let end = match part_start {
                Some(start) if line.start < start + 2 => start,
                _ => line.start.saturating_sub(2),
            };
            match part_start {
                None => self.unread(&body[..end]).await,
                Some(start) => self.entity(&body[start..end], place).await?,
            }
            self.out.extend_from_slice(&body[end..line.end]);
            done = line.end;
            part_start = Some(line.end);
            if line.last {
                self.unread(&body[done..]).await;
                return Ok(());
            }
        }
        if part_start.is_none() {
            return Err(Unconvertible::Structure);
        }
        // The closing delimiter is missing: the last part ends with the body.
        self.entity(&body[done..], place).await
    }

    /// The first delimiter line of `body` that starts at `from` or behind it. `dashes` is two
    /// dashes and the boundary.
    async fn delimiter(
        &mut self,
        body: &[u8],
        dashes: &[u8],
        mut from: usize,
    ) -> Result<Option<Delimiter>, Unconvertible> {
        while from < body.len() {
            // A boundary may lie across two slices.
            let end = body.len().min(from + SLICE + dashes.len() - 1);
            for at in memchr::memmem::find_iter(&body[from..end], dashes) {
                if let Some(found) = delimiter_at(body, from + at, dashes.len())? {
                    self.spent(at).await;
                    return Ok(Some(found));
                }
            }
            from += SLICE;
            self.spent(SLICE).await;
        }
        Ok(None)
    }

    /// What stands before the first and after the last delimiter. Nobody shows it (RFC 2046 5.1.1:
    /// "to be ignored"), and it has no encoding: octets above 127 become question marks.
    async fn unread(&mut self, octets: &[u8]) {
        let plain = |octet: &u8| if octet.is_ascii() { *octet } else { b'?' };
        for slice in octets.chunks(SLICE) {
            self.out.extend(slice.iter().map(plain));
            self.spent(slice.len()).await;
        }
    }
}

/// Whole lines of base64 in a slice.
const BASE64_SLICE: usize = SLICE / transfer::BASE64_LINE * transfer::BASE64_LINE;

/// A delimiter line: its octets with the line end behind it.
struct Delimiter {
    start: usize,
    end: usize,
    /// The closing one.
    last: bool,
}

/// The delimiter line whose two dashes and boundary, `len` octets, stand at `start`, if it is one.
fn delimiter_at(body: &[u8], start: usize, len: usize) -> Result<Option<Delimiter>, Unconvertible> {
    if start > 0 && !body[..start].ends_with(b"\r\n") {
        return Ok(None);
    }
    let mut end = start + len;
    let last = body[end..].starts_with(b"--");
    end += if last { 2 } else { 0 };
    // RFC 2046 5.1.1: white space that a gateway added. Nobody adds so much.
    let blanks = body[end..].iter().take(SLICE);
    let blanks = blanks
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    if blanks == SLICE {
        return Err(Unconvertible::Structure);
    }
    end += blanks;
    if body[end..].starts_with(b"\r\n") {
        end += 2;
    } else if end < body.len() {
        // Another, longer boundary.
        return Ok(None);
    }
    Ok(Some(Delimiter { start, end, last }))
}

/// How an entity is converted.
enum Kind {
    Multipart { boundary: Vec<u8>, digest: bool },
    Message,
    Leaf { text: bool },
}

/// The header of an entity and what matters in it.
struct Header<'a> {
    octets: &'a [u8],
    /// Behind the last field.
    end: usize,
    body: usize,
    mime: bool,
    media: Option<Range<usize>>,
    encoding: Option<Range<usize>>,
}

impl<'a> Header<'a> {
    fn read(octets: &'a [u8]) -> Result<Self, Unconvertible> {
        let mut header = Self {
            octets,
            end: 0,
            body: 0,
            mime: false,
            media: None,
            encoding: None,
        };
        let mut at = 0;
        while at < limits::HEADER_BYTES_MAX {
            // A field that fills the window is too long, and ends the loop.
            let window = octets.len().min(at + limits::HEADER_BYTES_MAX);
            let rest = &octets[at..window];
            let Some((name, _)) = field_name(rest) else {
                break;
            };
            let field = at..at + field_len(rest);
            let name = &octets[at..at + name];
            at = field.end;
            let place = if name.eq_ignore_ascii_case(b"content-type") {
                &mut header.media
            } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
                &mut header.encoding
            } else {
                header.mime |= name.eq_ignore_ascii_case(b"mime-version");
                continue;
            };
            // Programs disagree on which of two counts.
            if place.replace(field).is_some() {
                return Err(Unconvertible::Structure);
            }
        }
        if at >= limits::HEADER_BYTES_MAX {
            return Err(Unconvertible::Structure);
        }
        header.end = at;
        let line_end = octets[at..].starts_with(b"\r\n");
        header.body = if line_end { at + 2 } else { at };
        if octets[..header.body].is_ascii() {
            Ok(header)
        } else {
            Err(Unconvertible::Header)
        }
    }

    fn value(&self, field: &Range<usize>) -> &'a [u8] {
        let field = &self.octets[field.clone()];
        memchr::memchr(b':', field).map_or(&[], |colon| &field[colon + 1..])
    }

    /// What the entity is, whose body has octets above 127.
    fn kind(&self, place: Place) -> Result<Kind, Unconvertible> {
        if let Some(field) = &self.encoding {
            let mut words = Words(self.value(field));
            let encoding = words.token().to_ascii_lowercase();
            // Under any other encoding there can be no such octet.
            if !matches!(&encoding[..], b"7bit" | b"8bit" | b"binary") || !words.at_end() {
                return Err(Unconvertible::Structure);
            }
        }
        let Some(field) = &self.media else {
            return Ok(if place.digest {
                Kind::Message
            } else {
                Kind::Leaf { text: true }
            });
        };
        let media = Media::read(self.value(field)).ok_or(Unconvertible::Structure)?;
        match (&media.major[..], &media.minor[..]) {
            (b"multipart", b"signed" | b"encrypted") => Err(Unconvertible::Signed),
            (b"multipart", minor) => {
                let digest = minor == b"digest";
                // RFC 2046 5.1.1: a boundary is part of a line.
                let good = |boundary: &Vec<u8>| !boundary.is_empty() && !boundary.contains(&b'\n');
                let boundary = media.boundary.filter(good);
                let boundary = boundary.ok_or(Unconvertible::Structure)?;
                Ok(Kind::Multipart { boundary, digest })
            }
            (b"message", b"rfc822") => Ok(Kind::Message),
            // RFC 6532 3.7, RFC 6533: these may be encoded.
            (b"message", minor) if minor.starts_with(b"global") => Ok(Kind::Leaf { text: false }),
            (b"message", _) => Err(Unconvertible::Structure),
            (major, _) => Ok(Kind::Leaf {
                text: major == b"text",
            }),
        }
    }
}

/// The value of a Content-Type field (RFC 2045 5.1).
struct Media {
    major: Vec<u8>,
    minor: Vec<u8>,
    boundary: Option<Vec<u8>>,
}

impl Media {
    fn read(value: &[u8]) -> Option<Self> {
        let mut words = Words(value);
        let major = words.token().to_ascii_lowercase();
        words.take(b'/')?;
        let minor = words.token().to_ascii_lowercase();
        if major.is_empty() || minor.is_empty() {
            return None;
        }
        let mut boundary = None;
        while words.take(b';').is_some() {
            let name = words.token().to_ascii_lowercase();
            // A semicolon at the end is wrong and common.
            if name.is_empty() && words.at_end() {
                break;
            }
            words.take(b'=')?;
            let value = words.value()?;
            // RFC 2231 3 would let a boundary come in pieces; nobody does that, and few read it.
            let torn = name.starts_with(b"boundary*");
            if torn || (name == b"boundary" && boundary.replace(value).is_some()) {
                return None;
            }
        }
        words.at_end().then_some(Self {
            major,
            minor,
            boundary,
        })
    }
}

/// The rest of a structured field value, read word by word.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn skip_blanks(&mut self) {
        while let Some(byte) = self.0.first() {
            let len = match byte {
                b' ' | b'\t' | b'\r' | b'\n' => 1,
                b'(' => skip_comment(self.0, 0),
                _ => break,
            };
            self.0 = &self.0[len..];
        }
    }

    fn at_end(&mut self) -> bool {
        self.skip_blanks();
        self.0.is_empty()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.skip_blanks();
        let (first, rest) = self.0.split_first()?;
        (*first == byte).then(|| self.0 = rest)
    }

    /// Empty where there is none.
    fn token(&mut self) -> &'a [u8] {
        self.skip_blanks();
        let ends = |byte: &u8| !byte.is_ascii_graphic() || b"()<>@,;:\\\"/[]?=".contains(byte);
        let len = self.0.iter().position(ends).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(len);
        self.0 = rest;
        token
    }

    /// A token or a quoted string, without its quotes.
    fn value(&mut self) -> Option<Vec<u8>> {
        self.skip_blanks();
        if self.0.first() != Some(&b'"') {
            let token = self.token();
            return (!token.is_empty()).then(|| token.to_vec());
        }
        let mut value = Vec::new();
        let mut at = 1;
        loop {
            match *self.0.get(at)? {
                b'"' => break,
                b'\\' => {
                    at += 1;
                    value.push(*self.0.get(at)?);
                }
                // Folding inside a quoted string is not part of it.
                b'\r' | b'\n' => {}
                byte => value.push(byte),
            }
            at += 1;
        }
        self.0 = &self.0[at + 1..];
        Some(value)
    }
}

/// [`convert`] with pauses that nobody uses.
#[cfg(any(test, fuzzing))]
fn convert_at_once(content: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let work = std::pin::pin!(convert(content, &|| Box::pin(std::future::ready(()))));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match work.poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => unreachable!("no pause was longer than nothing"),
    }
}

/// Any octets: an error, or ASCII that needs no conversion and keeps the number of lines sane.
#[cfg(any(test, fuzzing))]
pub fn fuzz_seven_bit(octets: &[u8]) {
    let Ok(converted) = convert_at_once(octets) else {
        assert!(!octets.is_ascii());
        return;
    };
    assert!(converted.is_ascii());
    assert!(!octets.is_ascii() || converted == octets);
    assert_eq!(convert_at_once(&converted).as_ref(), Ok(&converted));
    assert!(converted.len() <= octets.len() * 7 / 2 + 256 * limits::CONVERSION_PARTS_MAX);
}

#[cfg(test)]
mod tests;
