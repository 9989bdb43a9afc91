//! lab::template - realistic messages of an exact size, made by patching.
//!
//! What: one newsletter (multipart/alternative, quoted-printable text and base64 HTML, the fields a
//! bulk sender sets) is written once per run; each message is a copy with its id, its number and
//! its first recipient patched in at fixed places, at the top, in the middle and at the very end.
//! Why this way: the generator shares the cores with the daemon it measures. A copy and five
//! patches of 10 KiB take 0.3 us; the ids at both ends show a message whose parts were mixed up.

use std::fmt;
use std::ops::Range;

use crate::lab::identity::{ID_FIELD, ID_LEN, LoadId};
use crate::lab::personality::mix;
use crate::time::Wall;

/// What the generated message should look like.
#[derive(Debug, Clone)]
pub struct TemplateOptions {
    /// Bytes of the whole message.
    pub size: usize,
    /// The zone of its addresses.
    pub zone: String,
    /// The address in From.
    pub from: String,
    /// Longest first recipient address that will be patched in.
    pub recipient_len_max: usize,
    /// Further fields, `Name: value`.
    pub fields: Vec<String>,
    /// Decides the text.
    pub seed: u64,
    /// The date in the header.
    pub date: Wall,
}

/// Why a message cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateError {
    /// The header alone needs this many bytes.
    TooSmall(usize),
    /// A field is not `Name: value` in printable ASCII.
    Field(String),
    /// The message file has no header field at its start.
    NoHeader,
    /// The message file has a line that is longer than 998 bytes (RFC 5322 2.1.1); its number.
    LongLine(usize),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall(least) => write!(f, "the smallest message is {least} bytes"),
            Self::Field(field) => write!(f, "`{field}` is not a header field `Name: value`"),
            Self::NoHeader => f.write_str("the message file does not start with a header field"),
            Self::LongLine(line) => write!(f, "line {line} of the message file exceeds 998 bytes"),
        }
    }
}

impl std::error::Error for TemplateError {}

/// A message with places to patch.
#[derive(Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// Where ids start.
    ids: Vec<usize>,
    /// Where the first recipient goes, right-aligned in spaces.
    recipient: Option<Range<usize>>,
    /// Where a dot must be doubled for DATA, ascending (RFC 5321 4.5.2).
    stuffing: Vec<usize>,
    eight_bit: bool,
}

/// What stands where an id will be.
const PLACEHOLDER: &str = "000000-000000000000";
const _: () = assert!(PLACEHOLDER.len() == ID_LEN);

/// Bytes of HTML per line of base64.
const HTML_PER_LINE: usize = 57;
/// Bytes of such a line with its end.
const BASE64_LINE: usize = 78;
/// Text lines are at most this long, without their end.
const TEXT_LINE: usize = 72;

impl Template {
    /// A newsletter of exactly the size asked for.
    ///
    /// # Errors
    /// [`TemplateError::TooSmall`], or a bad extra field.
    pub fn generated(options: &TemplateOptions) -> Result<Self, TemplateError> {
        let boundary = format!("=_lab_{:016x}", mix(options.seed, 0xb0));
        let (header, recipient) = header(options, &boundary)?;
        let before_text = format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: quoted-printable\r\n\r\n\
             Customer number {PLACEHOLDER},\r\n"
        );
        let before_html = format!(
            "\r\n--{boundary}\r\nContent-Type: text/html; charset=utf-8\r\n\
             Content-Transfer-Encoding: base64\r\nContent-ID: <{PLACEHOLDER}.html@{}>\r\n\r\n",
            options.zone
        );
        let end = format!("\r\n--{boundary}--\r\nX-Load-End: {PLACEHOLDER}\r\n");
        // One line of text at least, so that what is left over has a place.
        let least = header.len() + before_text.len() + before_html.len() + end.len() + 2;
        let Some(free) = options.size.checked_sub(least) else {
            return Err(TemplateError::TooSmall(least));
        };
        let html_lines = free * 7 / 10 / BASE64_LINE;
        let text_len = free + 2 - html_lines * BASE64_LINE;

        let mut bytes = Vec::with_capacity(options.size);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(before_text.as_bytes());
        push_text(options.seed, text_len, &mut bytes);
        bytes.extend_from_slice(before_html.as_bytes());
        push_base64(&html(options.seed, html_lines * HTML_PER_LINE), &mut bytes);
        bytes.extend_from_slice(end.as_bytes());
        assert!(
            bytes.len() == options.size,
            "every part has its computed length"
        );
        Ok(Self::finish(bytes, Some(recipient)))
    }

    /// A message of the operator's, with `X-Load-Id` and `fields` on top. Line ends become CRLF.
    ///
    /// # Errors
    /// Where it is not a message.
    pub fn from_message(message: &[u8], fields: &[String]) -> Result<Self, TemplateError> {
        let name = message.iter().position(|byte| *byte == b':').unwrap_or(0);
        let is_name = |byte: &u8| byte.is_ascii_graphic();
        if name == 0 || !message[..name].iter().all(is_name) {
            return Err(TemplateError::NoHeader);
        }
        let mut bytes = Vec::with_capacity(message.len() + message.len() / 50 + 64);
        bytes.extend_from_slice(ID_FIELD);
        bytes.extend_from_slice(PLACEHOLDER.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        for field in fields {
            bytes.extend_from_slice(checked_field(field)?.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let whole = message.strip_suffix(b"\n").unwrap_or(message);
        for (number, line) in whole.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.len() > 998 {
                return Err(TemplateError::LongLine(number + 1));
            }
            // A bare CR would make the daemon refuse the message, rightly (RFC 5321 2.3.8).
            bytes.extend(line.iter().filter(|byte| **byte != b'\r'));
            bytes.extend_from_slice(b"\r\n");
        }
        let mut template = Self::finish(bytes, None);
        // Only our own mark is patched, not text of the operator's that looks like it.
        template.ids.truncate(1);
        Ok(template)
    }

    fn finish(bytes: Vec<u8>, recipient: Option<Range<usize>>) -> Self {
        let ids = memchr::memmem::find_iter(&bytes, PLACEHOLDER.as_bytes()).collect();
        let stuffing = memchr::memmem::find_iter(&bytes, b"\r\n.")
            .map(|at| at + 2)
            .collect();
        let eight_bit = !bytes.is_ascii();
        Self {
            bytes,
            ids,
            recipient,
            stuffing,
            eight_bit,
        }
    }

    /// The message with this id; `recipient` goes into To, cut where it is longer than announced.
    #[must_use]
    pub fn make(&self, id: LoadId, recipient: &[u8]) -> Vec<u8> {
        let mut message = self.bytes.clone();
        for at in &self.ids {
            id.print(&mut message[*at..]);
        }
        if let Some(range) = &self.recipient {
            let place = &mut message[range.clone()];
            let len = recipient.len().min(place.len() - 1);
            let start = place.len() - len;
            place[start - 1] = b'<';
            place[start..].copy_from_slice(&recipient[..len]);
        }
        message
    }

    /// Bytes of every message made.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Where a dot must be doubled, ascending.
    #[must_use]
    pub fn stuffing(&self) -> &[usize] {
        &self.stuffing
    }

    /// Whether BODY=8BITMIME must be said (RFC 6152).
    #[must_use]
    pub fn eight_bit(&self) -> bool {
        self.eight_bit
    }
}

fn checked_field(field: &str) -> Result<&str, TemplateError> {
    let bad = || TemplateError::Field(field.to_owned());
    let (name, value) = field.split_once(':').ok_or_else(bad)?;
    let printable = |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let name_fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    if name_fits && printable(value) && field.len() <= 900 {
        Ok(field)
    } else {
        Err(bad())
    }
}

fn header(
    options: &TemplateOptions,
    boundary: &str,
) -> Result<(String, Range<usize>), TemplateError> {
    let TemplateOptions { zone, from, .. } = options;
    let mut text = format!(
        "X-Load-Id: {PLACEHOLDER}\r\n\
         Date: {}\r\n\
         From: \"Laboratory News\" <{from}>\r\n\
         To: \"Customer\"",
        date(options.date)
    );
    // The address is right-aligned in a folded line of fixed width: white space before it is free.
    text.push_str("\r\n ");
    let start = text.len();
    text.push_str(&" ".repeat(options.recipient_len_max + 1));
    let end = text.len();
    text.push_str(&format!(
        ">\r\n\
         Subject: Your offers of the week, number {PLACEHOLDER}\r\n\
         Message-ID: <{PLACEHOLDER}@{zone}>\r\n\
         List-Unsubscribe: <https://news.{zone}/u/{PLACEHOLDER}>,\r\n\
         \x20<mailto:unsubscribe@{zone}?subject={PLACEHOLDER}>\r\n\
         List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\
         List-Id: Weekly offers <weekly.{zone}>\r\n\
         Feedback-ID: weekly:{zone}\r\n\
         Precedence: bulk\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/alternative; boundary=\"{boundary}\"\r\n"
    ));
    for field in &options.fields {
        text.push_str(checked_field(field)?);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    Ok((text, start..end))
}

const WORDS: [&str; 24] = [
    "offer",
    "garden",
    "the",
    "of",
    "winter",
    "and",
    "a",
    "shoes",
    "discount",
    "until",
    "Sunday",
    "free",
    "delivery",
    "caf=C3=A9",
    "with",
    "your",
    "order",
    "new",
    "collection",
    "for",
    "spring",
    "members",
    "save",
    "today",
];

/// Appends exactly `len` bytes of quoted-printable lines; `len` is at least 2.
fn push_text(seed: u64, len: usize, out: &mut Vec<u8>) {
    let end = out.len() + len;
    let mut draw = 0;
    let mut lines = 0_u64;
    while end - out.len() > TEXT_LINE + 6 {
        let line = out.len();
        // Every seventh line starts with a dot, so that transparency is always at work.
        if lines % 7 == 6 {
            out.extend_from_slice(b"...");
        }
        loop {
            draw += 1;
            let word = WORDS[(mix(seed, draw) % WORDS.len() as u64) as usize];
            if out.len() - line + word.len() + 1 > TEXT_LINE {
                break;
            }
            out.extend_from_slice(word.as_bytes());
            out.push(b' ');
        }
        // RFC 2045 6.7 (3): no white space at the end of a line.
        out.pop();
        out.extend_from_slice(b"\r\n");
        lines += 1;
    }
    // What is left is one line: at least 6 bytes after a full one, else `len` itself.
    out.resize(end - 2, b'x');
    out.extend_from_slice(b"\r\n");
}

/// Exactly `len` bytes of a page.
fn html(seed: u64, len: usize) -> Vec<u8> {
    let mut page = b"<!doctype html><html><body><h1>Offers of the week</h1>\n".to_vec();
    let mut draw = 0_u64;
    while page.len() < len {
        draw += 1;
        let random = mix(seed ^ 0x77, draw);
        let row = format!(
            "<p><a href=\"https://news.lab.test/{random:016x}\">{} {}</a> {}.{:02} EUR</p>\n",
            WORDS[(random % 24) as usize],
            WORDS[(random / 24 % 24) as usize],
            random / 600 % 200,
            random / 120_000 % 100
        );
        page.extend_from_slice(row.as_bytes());
    }
    page.truncate(len);
    page
}

/// Appends `bytes`, whole lines of [`HTML_PER_LINE`], in base64 (RFC 4648) with CRLF.
fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for line in bytes.chunks(HTML_PER_LINE) {
        for group in line.chunks_exact(3) {
            let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
            for shift in [18, 12, 6, 0] {
                out.push(ALPHABET[(bits >> shift & 63) as usize]);
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}
const _: () = assert!(HTML_PER_LINE.is_multiple_of(3));
const _: () = assert!(HTML_PER_LINE / 3 * 4 + 2 == BASE64_LINE);

/// A date in UTC as RFC 5322 3.3 writes it.
fn date(at: Wall) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let seconds = at.0 / 1000;
    let days = seconds / 86_400;
    // Days from 1970 to a civil date in the proleptic Gregorian calendar, by eras of 400 years that
    // start on 1 March.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} +0000",
        DAYS[(days % 7) as usize],
        MONTHS[(month - 1) as usize],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders};

    use super::*;

    fn options(size: usize) -> TemplateOptions {
        TemplateOptions {
            size,
            zone: "lab.test".into(),
            from: "news@lab.test".into(),
            recipient_len_max: 40,
            fields: vec!["X-Postrider-Campaign: spring".into()],
            seed: 3,
            date: Wall(1_700_000_000_000),
        }
    }

    // Every size from the smallest up is met to the byte, all lines are legal, and no CR or LF is
    // bare.
    #[test]
    fn sizes_are_exact_and_lines_are_legal() {
        let Err(TemplateError::TooSmall(least)) = Template::generated(&options(0)) else {
            panic!("an empty message was made");
        };
        assert!(Template::generated(&options(least - 1)).is_err());
        for size in (least..least + 400).chain([2048, 10_240, 65_536, 1_000_003]) {
            let template = Template::generated(&options(size)).unwrap();
            let message = template.make(LoadId::new(1, 2), b"r0.2@d2.lab.test");
            assert_eq!((message.len(), template.size()), (size, size));
            let text = String::from_utf8(message).unwrap();
            assert!(text.ends_with("\r\n"));
            for line in text.split_terminator("\r\n") {
                assert!(
                    line.len() <= 998 && !line.contains(['\r', '\n']),
                    "{line:?}"
                );
                assert!(!line.ends_with(' '), "{line:?}");
            }
        }
    }

    // A parser that is not ours finds the fields and both bodies, decoded.
    #[test]
    fn the_message_is_valid_mime() {
        let template = Template::generated(&options(10_240)).unwrap();
        let id = LoadId::new(0xabcdef, 123_456);
        let bytes = template.make(id, b"r0.123456@d6.lab.test");
        let message = MessageParser::default().parse(&bytes).unwrap();
        assert_eq!(
            message.from().unwrap().first().unwrap().address(),
            Some("news@lab.test")
        );
        let to = message.to().unwrap().first().unwrap();
        assert_eq!(to.address(), Some("r0.123456@d6.lab.test"));
        assert_eq!(message.message_id(), Some("abcdef-000000123456@lab.test"));
        assert_eq!(message.date().unwrap().to_timestamp(), 1_700_000_000);
        assert_eq!(
            message.header_raw("X-Load-Id").unwrap().trim(),
            id.to_string()
        );
        assert_eq!(
            message.header_raw("X-Postrider-Campaign").unwrap().trim(),
            "spring"
        );
        assert!(message.subject().unwrap().contains("abcdef-000000123456"));
        let text = message.body_text(0).unwrap();
        assert!(text.contains("abcdef-000000123456") && text.contains("caf\u{e9}"));
        let html = message.body_html(0).unwrap();
        assert!(html.starts_with("<!doctype html>") && html.contains("https://news.lab.test/"));
        assert_eq!(message.parts.len(), 3);
        assert!(
            message.parts[0]
                .content_type()
                .unwrap()
                .attribute("boundary")
                .is_some()
        );
    }

    // The id is at the very start and near the end, and dots that need doubling are where it says.
    #[test]
    fn ids_and_dots_are_where_they_should_be() {
        let template = Template::generated(&options(10_240)).unwrap();
        let message = template.make(LoadId::new(1, 9), b"x@y");
        assert!(message.starts_with(b"X-Load-Id: 000001-000000000009\r\n"));
        assert!(message.ends_with(b"X-Load-End: 000001-000000000009\r\n"));
        assert!(!template.stuffing().is_empty());
        for at in template.stuffing() {
            assert_eq!(&message[at - 2..=*at], b"\r\n.");
        }
        let other = Template::generated(&TemplateOptions {
            seed: 4,
            ..options(10_240)
        })
        .unwrap();
        assert_ne!(other.make(LoadId::new(1, 9), b"x@y"), message);
        let again = Template::generated(&options(10_240)).unwrap();
        assert_eq!(again.make(LoadId::new(1, 9), b"x@y"), message);
    }

    // A message file keeps its bytes below our mark, with CRLF; what is no message is refused.
    #[test]
    fn message_files_are_taken_as_they_are() {
        let file = b"Subject: \xc3\xa9\nTo: a@b\n\n.dot\n000000-000000000000\n";
        let template = Template::from_message(file, &["X-A: b".into()]).unwrap();
        assert!(template.eight_bit());
        let message = template.make(LoadId::new(2, 3), b"ignored@lab.test");
        let expected =
            b"X-Load-Id: 000002-000000000003\r\nX-A: b\r\nSubject: \xc3\xa9\r\nTo: a@b\r\n\
                         \r\n.dot\r\n000000-000000000000\r\n";
        assert_eq!(message, expected);
        assert_eq!(template.stuffing().len(), 1);
        assert_eq!(
            Template::from_message(b"\nbody", &[]).unwrap_err(),
            TemplateError::NoHeader
        );
        assert_eq!(
            Template::from_message(b"a b: c\n", &[]).unwrap_err(),
            TemplateError::NoHeader
        );
        let long = [b"A: b\n\n".as_slice(), &[b'x'; 999], b"\n"].concat();
        assert_eq!(
            Template::from_message(&long, &[]).unwrap_err(),
            TemplateError::LongLine(3)
        );
        let field = "no field".to_owned();
        let refused = Template::from_message(file, std::slice::from_ref(&field));
        assert_eq!(refused.unwrap_err(), TemplateError::Field(field));
    }

    // Dates around a leap day and at a year's ends.
    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59 +0000"),
            (1_709_251_200, "Fri, 01 Mar 2024 00:00:00 +0000"),
        ] {
            assert_eq!(date(Wall(seconds * 1000)), text);
        }
    }
}
