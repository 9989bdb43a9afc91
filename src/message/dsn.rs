//! dsn - delivery status notifications: the report that goes back to the sender.
//!
//! What: one multipart/report (RFC 6522) per message and event, whatever the number of recipients:
//! a text for people, the status fields of RFC 3464 for programs, and the header or the whole of
//! the original. NOTIFY and RET are honoured (RFC 3461), the sender `<>` never gets one (RFC 5321
//! 4.5.5), and Auto-Submitted keeps responders silent (RFC 3834).
//! Why this way: the result is 7-bit wherever it can be, so that it arrives anywhere; it has 8-bit
//! octets only to return 8-bit content, or to name a non-ASCII recipient, whose sender has
//! 8BITMIME by RFC 6531. Everything that a remote system said is taken for hostile: no octet of it
//! ends a line, a field or a part.

use std::fmt::Write as _;

use super::address::Address;
use super::content::Content;
use super::envelope::{BodyType, Envelope, MessageId, Notify, Recipient, Ret};
use super::header;
use super::status::EnhancedStatus;
use super::trace;
use super::transfer::quoted_printable;
use crate::limits;
use crate::time::Wall;

/// What a notification reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Permanent failures.
    Failed,
    /// Temporary failures until the message was too old.
    Expired,
    /// Not delivered yet; it is still being tried.
    Delayed {
        /// When it will be given up.
        until: Wall,
    },
    /// Handed to a system that does not promise DSNs (RFC 3461 5.2.2).
    Relayed,
}

/// One recipient that the notification is about.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The recipient.
    pub recipient: &'a Recipient,
    /// Its status, reported as given.
    pub status: EnhancedStatus,
    /// The last reply of the remote system with its code, or what went wrong here.
    pub diagnostic: &'a str,
    /// The remote system that said so; `None` when we found out ourselves.
    pub remote_mta: Option<&'a str>,
}

/// All that a notification is made of.
#[derive(Debug, Clone, Copy)]
pub struct DsnInfo<'a> {
    /// Our own name.
    pub reporting_mta: &'a str,
    /// The sender of the original; `None` is `<>`.
    pub sender: Option<&'a Address>,
    /// ENVID of the original, xtext decoded.
    pub envid: Option<&'a str>,
    /// RET of the original.
    pub ret: Option<Ret>,
    /// SMTPUTF8 of the original.
    pub smtputf8: bool,
    /// The recipients; those who did not ask for this kind of report are left out.
    pub reports: &'a [Report<'a>],
    /// When the original arrived.
    pub arrival: Wall,
    /// Now.
    pub now: Wall,
    /// The queue id of the original.
    pub id: MessageId,
    /// The original message.
    pub content: &'a [u8],
    /// What is reported.
    pub kind: Kind,
    /// Makes the boundary and the Message-ID differ from those of every other notification.
    pub seed: u64,
}

/// The notification, or `None` where the sender is `<>` or nobody asked for it.
#[must_use]
pub fn failure(info: &DsnInfo<'_>) -> Option<(Envelope, Content)> {
    let sender = info.sender?;
    let reports: Vec<&Report<'_>> = info
        .reports
        .iter()
        .filter(|report| info.wanted(report.recipient.notify))
        .collect();
    if reports.is_empty() {
        return None;
    }
    let global = reports.iter().any(|report| {
        !report.recipient.address.is_ascii()
            || report
                .recipient
                .orcpt
                .as_ref()
                .is_some_and(|orcpt| !orcpt.is_ascii())
    });
    let returned = Returned::choose(info);
    let eight_bit = global || returned.encoding == Encoding::EightBit;
    let mut human = Vec::with_capacity(1024);
    human_part(&mut human, info, &reports);
    let mut status = Vec::with_capacity(256 + 512 * reports.len());
    status_part(&mut status, info, &reports, global);
    let boundary = boundary(info, [&human, &status, returned.octets]);

    let room = 1024 + human.len() + status.len() + 2 * returned.octets.len();
    let mut out = Vec::with_capacity(room);
    head(&mut out, info, sender, &boundary, eight_bit);
    trace::print(&mut out, format_args!("--{boundary}\r\n"));
    out.extend_from_slice(&human);
    trace::print(&mut out, format_args!("\r\n--{boundary}\r\n"));
    out.extend_from_slice(&status);
    trace::print(&mut out, format_args!("\r\n--{boundary}\r\n"));
    returned.write(&mut out);
    trace::print(&mut out, format_args!("\r\n--{boundary}--\r\n"));

    let recipient = Recipient {
        address: sender.clone(),
        notify: Notify::NEVER,
        orcpt: None,
    };
    let envelope = Envelope {
        recipients: vec![recipient],
        smtputf8: !sender.is_ascii(),
        body: if eight_bit {
            BodyType::EightBitMime
        } else {
            BodyType::SevenBit
        },
        ..Envelope::default()
    };
    Some((envelope, Content::from(out)))
}

impl DsnInfo<'_> {
    fn wanted(&self, notify: Notify) -> bool {
        match self.kind {
            Kind::Failed | Kind::Expired => notify.failure(),
            Kind::Delayed { .. } => notify.delay(),
            Kind::Relayed => notify.success(),
        }
    }

    fn is_failure(&self) -> bool {
        matches!(self.kind, Kind::Failed | Kind::Expired)
    }

    fn subject(&self) -> &'static str {
        match self.kind {
            Kind::Failed | Kind::Expired => "Your message could not be delivered",
            Kind::Delayed { .. } => "Your message is delayed",
            Kind::Relayed => "Your message was passed on",
        }
    }

    fn action(&self) -> &'static str {
        match self.kind {
            Kind::Failed | Kind::Expired => "failed",
            Kind::Delayed { .. } => "delayed",
            Kind::Relayed => "relayed",
        }
    }
}

/// A boundary that is in none of the parts, not even in the middle of a line: hostile mail and
/// hostile replies may hold a guess of it, and some parsers find it anywhere.
fn boundary(info: &DsnInfo<'_>, parts: [&[u8]; 3]) -> String {
    let mut seed = info.seed;
    loop {
        // "=_" cannot appear in quoted-printable (RFC 2045 6.7).
        let boundary = format!("=_{}_{seed:016x}", info.id);
        let finder = memchr::memmem::Finder::new(boundary.as_bytes());
        if parts.iter().all(|part| finder.find(part).is_none()) {
            return boundary;
        }
        seed = seed.wrapping_add(1);
    }
}

/// The header of the notification with its empty line.
fn head(out: &mut Vec<u8>, info: &DsnInfo<'_>, sender: &Address, boundary: &str, eight_bit: bool) {
    let host = trace::host_name(info.reporting_mta.as_bytes());
    out.extend_from_slice(b"Date: ");
    trace::date(out, info.now);
    trace::print(
        out,
        format_args!(
            "\r\nFrom: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
             To: <{sender}>\r\n\
             Subject: {}\r\n\
             Message-ID: <{}.{:016x}@{host}>\r\n\
             Auto-Submitted: auto-replied\r\n\
             MIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\
             \tboundary=\"{boundary}\"\r\n",
            info.subject(),
            info.id,
            info.seed,
        ),
    );
    if eight_bit {
        out.extend_from_slice(b"Content-Transfer-Encoding: 8bit\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The part for people.
fn human_part(out: &mut Vec<u8>, info: &DsnInfo<'_>, reports: &[&Report<'_>]) {
    let text = human_text(info, reports);
    if text.is_ascii() {
        out.extend_from_slice(b"Content-Type: text/plain; charset=us-ascii\r\n\r\n");
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.extend_from_slice(
        b"Content-Type: text/plain; charset=utf-8\r\n\
          Content-Transfer-Encoding: quoted-printable\r\n\r\n",
    );
    quoted_printable(out, text.as_bytes());
}

fn human_text(info: &DsnInfo<'_>, reports: &[&Report<'_>]) -> String {
    let mut text = String::with_capacity(1024);
    let host = trace::host_name(info.reporting_mta.as_bytes());
    paragraph(&mut text, "", &format!("This is the mail server {host}."));
    text.push_str("\r\n");
    let arrival = date_text(info.arrival);
    let opening = match info.kind {
        Kind::Failed => "Your message could not be delivered to the address below. It will not be \
             tried again. Check the address; if it is right, the reason below tells \
             what its mail server objects to."
            .to_owned(),
        Kind::Expired => format!(
            "Your message could not be delivered to the address below. It was tried again \
             and again since {arrival} without success, and is now given up."
        ),
        Kind::Delayed { until } => format!(
            "Your message has not been delivered to the address below yet. You need not do \
             anything: it will be tried until {}. If it cannot be delivered by then, you \
             get another notice.",
            date_text(until)
        ),
        Kind::Relayed => "Your message was handed over to the mail server of the address below, \
             which gives no further reports. You will hear nothing more about it."
            .to_owned(),
    };
    let opening = if reports.len() == 1 {
        opening
    } else {
        opening.replace("the address below", "the addresses below")
    };
    paragraph(&mut text, "", &opening);
    for report in reports.iter().take(limits::DSN_LISTED_MAX) {
        human_report(&mut text, info, report);
    }
    if let Some(more) = reports
        .len()
        .checked_sub(limits::DSN_LISTED_MAX)
        .filter(|more| *more > 0)
    {
        text.push_str("\r\n");
        paragraph(
            &mut text,
            "",
            &format!("... and {more} more; the attached report lists all."),
        );
    }
    text.push_str("\r\n");
    let closing = format!(
        "The message arrived here on {arrival}. An administrator who is asked about it needs \
         its queue id: {}",
        info.id
    );
    paragraph(&mut text, "", &closing);
    text
}

fn human_report(text: &mut String, info: &DsnInfo<'_>, report: &Report<'_>) {
    // Writing to a string cannot fail. The address is checked; it is not folded, since blanks in a
    // quoted local part count.
    write!(text, "\r\n<{}>\r\n", report.recipient.address).expect("writing to a string");
    if !matches!(info.kind, Kind::Relayed) {
        let (meaning, status) = (report.status.meaning(), report.status);
        paragraph(
            text,
            "    ",
            &format!("What happened: {meaning} ({status})"),
        );
    }
    let diagnostic = clean(report.diagnostic, limits::DSN_DIAGNOSTIC_BYTES_MAX);
    match report.remote_mta {
        Some(remote) => {
            let remote = trace::host_name(remote.as_bytes());
            paragraph(
                text,
                "    ",
                &format!("Its mail server {remote} said: {diagnostic}"),
            );
        }
        None if !diagnostic.is_empty() => {
            paragraph(text, "    ", &format!("Details: {diagnostic}"));
        }
        None => {}
    }
}

/// The part for programs: RFC 3464, or RFC 6533 when `global`.
fn status_part(out: &mut Vec<u8>, info: &DsnInfo<'_>, reports: &[&Report<'_>], global: bool) {
    out.extend_from_slice(if global {
        b"Content-Type: message/global-delivery-status\r\n\
          Content-Transfer-Encoding: 8bit\r\n\r\n"
    } else {
        b"Content-Type: message/delivery-status\r\n\r\n"
    });
    let mut text = String::with_capacity(256 + 512 * reports.len());
    if let Some(envid) = info.envid {
        let envid = clean(envid, limits::ENVELOPE_TEXT_BYTES_MAX);
        let envid: String = envid
            .chars()
            .map(|c| if c.is_ascii() { c } else { '?' })
            .collect();
        field(&mut text, "Original-Envelope-Id", &envid);
    }
    let host = trace::host_name(info.reporting_mta.as_bytes());
    field(&mut text, "Reporting-MTA", &format!("dns; {host}"));
    field(&mut text, "X-Postrider-Queue-Id", &info.id.to_string());
    field(&mut text, "Arrival-Date", &date_text(info.arrival));
    for report in reports {
        status_group(&mut text, info, report, global);
    }
    out.extend_from_slice(text.as_bytes());
}

/// The fields of one recipient, with the empty line before them.
fn status_group(text: &mut String, info: &DsnInfo<'_>, report: &Report<'_>, global: bool) {
    text.push_str("\r\n");
    let recipient = report.recipient;
    // Addresses are never folded: blanks inside a quoted local part count. They are below 998.
    if let Some(orcpt) = recipient
        .orcpt
        .as_deref()
        .filter(|orcpt| orcpt.contains(';'))
    {
        let orcpt = clean(orcpt, limits::ENVELOPE_TEXT_BYTES_MAX);
        text.extend(["Original-Recipient: ", &orcpt, "\r\n"]);
    }
    let kind = if recipient.address.is_ascii() {
        "rfc822"
    } else {
        "utf-8"
    };
    text.extend([
        "Final-Recipient: ",
        kind,
        "; ",
        recipient.address.as_str(),
        "\r\n",
    ]);
    field(text, "Action", info.action());
    field(text, "Status", &report.status.to_string());
    if let Some(remote) = report.remote_mta {
        let remote = trace::host_name(remote.as_bytes());
        field(text, "Remote-MTA", &format!("dns; {remote}"));
    }
    let diagnostic = clean(report.diagnostic, limits::DSN_DIAGNOSTIC_BYTES_MAX);
    if !diagnostic.is_empty() {
        // RFC 3464 2.3.6: the type says who speaks; ours is no SMTP reply.
        let kind = if report.remote_mta.is_some() {
            "smtp"
        } else {
            "x-postrider"
        };
        let value = if global || diagnostic.is_ascii() {
            diagnostic
        } else {
            encoded_words(&diagnostic)
        };
        field(text, "Diagnostic-Code", &format!("{kind}; {value}"));
    }
    field(text, "Last-Attempt-Date", &date_text(info.now));
    if let Kind::Delayed { until } = info.kind {
        field(text, "Will-Retry-Until", &date_text(until));
    }
}
const _: () = assert!(limits::ENVELOPE_TEXT_BYTES_MAX + 40 < limits::TEXT_LINE_BYTES_MAX);
const _: () = assert!(limits::PATH_BYTES_MAX + 40 < limits::TEXT_LINE_BYTES_MAX);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    SevenBit,
    EightBit,
    QuotedPrintable,
}

/// What is returned of the original, and how.
struct Returned<'a> {
    media: &'static str,
    encoding: Encoding,
    octets: &'a [u8],
}

impl<'a> Returned<'a> {
    /// The whole where RET=FULL, it failed, and it is small and clean; otherwise the header
    /// (RFC 3461 4.3: a report without a failure returns headers only). A message/rfc822 part may
    /// not be encoded (RFC 2046 5.2.1), a header may.
    fn choose(info: &DsnInfo<'a>) -> Self {
        let content = info.content;
        let scan = header::scan(content);
        let utf8_header =
            info.smtputf8 && scan.has_8bit && std::str::from_utf8(&content[..scan.end]).is_ok();
        let full = info.ret == Some(Ret::Full)
            && info.is_failure()
            && content.len() <= limits::DSN_CONTENT_BYTES_MAX
            && lines_are_clean(content);
        if full {
            let encoding = if content.is_ascii() {
                Encoding::SevenBit
            } else {
                Encoding::EightBit
            };
            let media = if utf8_header {
                "message/global"
            } else {
                "message/rfc822"
            };
            return Self {
                media,
                encoding,
                octets: content,
            };
        }
        let octets = cut_at_line(&content[..scan.end], limits::DSN_CONTENT_BYTES_MAX);
        let plain = octets.is_ascii() && lines_are_clean(octets);
        let encoding = if plain {
            Encoding::SevenBit
        } else {
            Encoding::QuotedPrintable
        };
        let media = match (octets.is_ascii(), utf8_header) {
            (true, _) => "text/rfc822-headers",
            (false, true) => "message/global-headers",
            (false, false) if std::str::from_utf8(octets).is_ok() => {
                "text/rfc822-headers; charset=utf-8"
            }
            // RFC 1428 3: octets of an unknown charset.
            (false, false) => "text/rfc822-headers; charset=unknown-8bit",
        };
        Self {
            media,
            encoding,
            octets,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        trace::print(out, format_args!("Content-Type: {}\r\n", self.media));
        let encoding = match self.encoding {
            Encoding::SevenBit => "7bit",
            Encoding::EightBit => "8bit",
            Encoding::QuotedPrintable => "quoted-printable",
        };
        trace::print(
            out,
            format_args!("Content-Transfer-Encoding: {encoding}\r\n\r\n"),
        );
        match self.encoding {
            Encoding::QuotedPrintable => quoted_printable(out, self.octets),
            Encoding::SevenBit | Encoding::EightBit => out.extend_from_slice(self.octets),
        }
    }
}

/// The start of `octets`, at most `max` of them, ending behind a line.
fn cut_at_line(octets: &[u8], max: usize) -> &[u8] {
    if octets.len() <= max {
        return octets;
    }
    let end = memchr::memrchr(b'\n', &octets[..max]).map_or(max, |lf| lf + 1);
    &octets[..end]
}

/// No NUL, no bare CR or LF, no line over 998 octets (RFC 5322 2.1.1): fit to be sent as it is.
fn lines_are_clean(octets: &[u8]) -> bool {
    let mut start = 0;
    for at in memchr::memchr3_iter(0, b'\r', b'\n', octets) {
        match octets[at] {
            b'\r' if octets.get(at + 1) == Some(&b'\n') => {}
            b'\n' if at > start && octets[at - 1] == b'\r' => {
                if at - 1 - start > limits::TEXT_LINE_BYTES_MAX {
                    return false;
                }
                start = at + 1;
            }
            _ => return false,
        }
    }
    octets.len() - start <= limits::TEXT_LINE_BYTES_MAX
}

/// `at` as text.
fn date_text(at: Wall) -> String {
    let mut out = Vec::with_capacity(31);
    trace::date(&mut out, at);
    String::from_utf8(out).expect("a date is ASCII")
}

/// `text` on one line: control characters become blanks, at most `max` octets.
fn clean(text: &str, max: usize) -> String {
    let unsafe_char = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let text = &text[..text.floor_char_boundary(max)];
    let line: String = text
        .chars()
        .map(|c| if unsafe_char(c) { ' ' } else { c })
        .collect();
    line.trim().to_owned()
}

/// Appends a field, folded.
fn field(text: &mut String, name: &str, value: &str) {
    text.extend([name, ": "]);
    fold(text, name.len() + 2, "    ", value);
}

/// Appends a paragraph, each line indented and the second line on a little more.
fn paragraph(text: &mut String, indent: &str, words: &str) {
    text.push_str(indent);
    let deeper = if indent.is_empty() { "" } else { "      " };
    fold(text, indent.len(), deeper, words);
}

/// Appends the words of `value` to a line that has `column` columns already, breaks lines before
/// column 76 where the words allow, and ends with CRLF. A word too long for any line is split.
fn fold(text: &mut String, mut column: usize, indent: &str, value: &str) {
    const COLUMNS: usize = 76;
    const WORD_MAX: usize = 900;
    const _: () = assert!(WORD_MAX + COLUMNS < limits::TEXT_LINE_BYTES_MAX);
    let mut at_start = true;
    for mut word in value.split_ascii_whitespace() {
        while !word.is_empty() {
            let (piece, rest) = word.split_at(word.floor_char_boundary(WORD_MAX));
            if !at_start && column + 1 + piece.len() > COLUMNS {
                text.extend(["\r\n", indent]);
                column = indent.len();
            } else if !at_start {
                text.push(' ');
                column += 1;
            }
            text.push_str(piece);
            column += piece.len();
            at_start = false;
            word = rest;
        }
    }
    text.push_str("\r\n");
}

/// `text` with everything from its first foreign word on as encoded words of at most 70 octets (RFC
/// 2047 2: the line must stay below 77); none splits a character. What stands before, usually the
/// reply code, stays as it is for the programs that look for it.
fn encoded_words(text: &str) -> String {
    const PAYLOAD_MAX: usize = 70 - "=?utf-8?Q??=".len();
    let mut out = String::with_capacity(3 * text.len());
    let foreign = text.find(|c: char| !c.is_ascii()).unwrap_or(text.len());
    let plain = text[..foreign].rfind(' ').map_or(0, |blank| blank + 1);
    out.push_str(&text[..plain]);
    let mut payload = String::new();
    for c in text[plain..].chars() {
        let mut one = String::new();
        match c {
            ' ' => one.push('_'),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '/' | '+' | '*' | '!' => one.push(c),
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    write!(one, "={byte:02X}").expect("writing to a string");
                }
            }
        }
        if payload.len() + one.len() > PAYLOAD_MAX {
            out.extend(["=?utf-8?Q?", &payload, "?= "]);
            payload.clear();
        }
        payload.push_str(&one);
    }
    out.extend(["=?utf-8?Q?", &payload, "?="]);
    out
}

#[cfg(test)]
mod tests;
