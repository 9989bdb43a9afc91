//! header - one pass over the header section of a submission.
//!
//! What: `scan` finds where the header ends and what the later stages need to know; `check` takes
//! our control fields out of the content into the envelope and detects mail loops.
//! Why this way: a header has 1 to 2 KiB, so the pass goes from line end to line end with a SIMD
//! search and compares a name only when its first letter can match. Lines end with CRLF and nothing
//! else: the server refuses bare CR and LF, and no two programs may disagree on where a field ends.
//! A line that is neither a field nor a continuation ends the header, as receivers do it.

use std::fmt;
use std::ops::Range;

use super::content::Content;
use super::envelope::Envelope;
use super::status::EnhancedStatus;
use crate::limits;

/// What one pass over the header section found; offsets count from the start of the content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderScan {
    /// End of the last field, its CRLF included.
    pub end: usize,
    /// First octet of the body: behind the empty line, where there is one.
    pub body: usize,
    /// Number of fields.
    pub fields: u32,
    /// Number of Received fields.
    pub received_count: u32,
    /// A Date field is there.
    pub has_date: bool,
    /// A Message-ID field is there.
    pub has_message_id: bool,
    /// An octet above 127 is in the header section.
    pub has_8bit: bool,
    /// The header section is longer than [`limits::HEADER_BYTES_MAX`]; the scan ended there.
    pub too_long: bool,
    /// The domain of the first address in the first From field, as written.
    pub from_domain: Option<Range<usize>>,
    controls: [ControlField; limits::CONTROL_FIELDS_MAX],
    control_count: u32,
}

/// One control field and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlField {
    /// Which one.
    pub name: ControlName,
    start: u32,
    value: u32,
    end: u32,
}

/// The fields that steer us and are cut before the message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ControlName {
    /// X-Postrider-Campaign.
    #[default]
    Campaign,
    /// X-Postrider-Tenant.
    Tenant,
    /// X-Postrider-Pool.
    Pool,
    /// X-Postrider-Source.
    Source,
    /// X-virtual-mta, PowerMTA's name for what is a pool or a source here.
    VirtualMta,
    /// X-job, PowerMTA's name for the campaign.
    Job,
}

/// A content whose control fields have been taken out, fit for the spool.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The content, without the control fields.
    pub content: Content,
    /// The scan, with offsets into that content; it lists no control fields.
    pub scan: HeaderScan,
}

/// Why a message is refused by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckError {
    /// [`limits::RECEIVED_MAX`] Received fields besides ours.
    Loop,
    /// The header section is longer than [`limits::HEADER_BYTES_MAX`].
    HeaderTooLong,
    /// More than [`limits::CONTROL_FIELDS_MAX`] control fields.
    TooManyControls,
    /// A control field is too long or holds other than printable ASCII.
    ControlValue(ControlName),
    /// A control field is there twice, with different values.
    ControlTwice(ControlName),
}

impl ControlName {
    const ALL: [Self; 6] = [
        Self::Campaign,
        Self::Tenant,
        Self::Pool,
        Self::Source,
        Self::VirtualMta,
        Self::Job,
    ];

    /// The name of the field.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Campaign => "X-Postrider-Campaign",
            Self::Tenant => "X-Postrider-Tenant",
            Self::Pool => "X-Postrider-Pool",
            Self::Source => "X-Postrider-Source",
            Self::VirtualMta => "X-virtual-mta",
            Self::Job => "X-job",
        }
    }
}

impl ControlField {
    /// The whole field with its CRLF.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The value in `content`, without the white space around it.
    #[must_use]
    pub fn value<'a>(&self, content: &'a [u8]) -> &'a [u8] {
        content[self.value as usize..self.end as usize].trim_ascii()
    }
}

impl CheckError {
    /// The code of the reply.
    #[must_use]
    pub fn code(self) -> u16 {
        if self == Self::HeaderTooLong {
            552
        } else {
            554
        }
    }

    /// The enhanced code of the reply.
    #[must_use]
    pub fn status(self) -> EnhancedStatus {
        match self {
            Self::Loop => EnhancedStatus::ROUTING_LOOP,
            Self::HeaderTooLong => EnhancedStatus::MESSAGE_TOO_BIG,
            Self::TooManyControls | Self::ControlValue(_) | Self::ControlTwice(_) => {
                EnhancedStatus::MEDIA
            }
        }
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop => write!(f, "mail loop: {} Received fields", limits::RECEIVED_MAX),
            Self::HeaderTooLong => write!(f, "header over {} octets", limits::HEADER_BYTES_MAX),
            Self::TooManyControls => {
                write!(
                    f,
                    "more than {} X-Postrider fields",
                    limits::CONTROL_FIELDS_MAX
                )
            }
            Self::ControlValue(name) => write!(
                f,
                "{} must be printable ASCII of at most {} octets",
                name.as_str(),
                limits::CONTROL_VALUE_BYTES_MAX
            ),
            Self::ControlTwice(name) => write!(f, "{} is given twice", name.as_str()),
        }
    }
}

impl std::error::Error for CheckError {}

impl HeaderScan {
    /// The control fields, in their order, at most [`limits::CONTROL_FIELDS_MAX`].
    #[must_use]
    pub fn controls(&self) -> &[ControlField] {
        &self.controls[..(self.control_count as usize).min(self.controls.len())]
    }

    /// Notes one field that starts at `start`, has its name up to `colon` and ends before `end`.
    fn field(&mut self, content: &[u8], start: usize, name_end: usize, value: usize, end: usize) {
        self.fields += 1;
        let name = &content[start..name_end];
        match name[0] | 0x20 {
            b'r' if name.eq_ignore_ascii_case(b"Received") => self.received_count += 1,
            b'd' if name.eq_ignore_ascii_case(b"Date") => self.has_date = true,
            b'm' if name.eq_ignore_ascii_case(b"Message-ID") => self.has_message_id = true,
            b'f' if self.from_domain.is_none() && name.eq_ignore_ascii_case(b"From") => {
                self.from_domain = first_domain(&content[value..end])
                    .map(|domain| value + domain.start..value + domain.end);
            }
            b'x' => self.control(name, start, value, end),
            _ => {}
        }
    }

    fn control(&mut self, name: &[u8], start: usize, value: usize, end: usize) {
        let mut all = ControlName::ALL.into_iter();
        let found = all.find(|control| name.eq_ignore_ascii_case(control.as_str().as_bytes()));
        let Some(name) = found else { return };
        if let Some(place) = self.controls.get_mut(self.control_count as usize) {
            // Offsets are below HEADER_BYTES_MAX, hence far below 4 GiB.
            let (start, value, end) = (start as u32, value as u32, end as u32);
            *place = ControlField {
                name,
                start,
                value,
                end,
            };
        }
        self.control_count += 1;
    }
}
const _: () = assert!(limits::HEADER_BYTES_MAX + 2 <= u32::MAX as usize);

/// Reads the header section of `content`. Total on any octets; looks at no more than
/// [`limits::HEADER_BYTES_MAX`] of them and allocates nothing.
#[must_use]
pub fn scan(content: &[u8]) -> HeaderScan {
    let mut scan = HeaderScan::default();
    let window = &content[..content.len().min(limits::HEADER_BYTES_MAX + 2)];
    let mut at = 0;
    loop {
        let rest = &window[at..];
        if rest.starts_with(b"\r\n") {
            (scan.end, scan.body) = (at, at + 2);
            break;
        }
        let Some((name_len, colon)) = field_name(rest) else {
            (scan.end, scan.body) = (at, at);
            break;
        };
        let end = at + field_len(rest);
        scan.field(window, at, at + name_len, at + colon + 1, end);
        at = end;
    }
    scan.has_8bit = !window[..scan.end].is_ascii();
    scan.too_long = scan.end > limits::HEADER_BYTES_MAX;
    scan
}

/// Octets of the field name at the start of `line` and the offset of its colon. White space between
/// the two is obsolete but read (RFC 5322 4.5).
pub(super) fn field_name(line: &[u8]) -> Option<(usize, usize)> {
    let len = line
        .iter()
        .position(|byte| !matches!(byte, b'!'..=b'9' | b';'..=b'~'))?;
    let space = line[len..]
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t'))?;
    (len > 0 && line[len + space] == b':').then_some((len, len + space))
}

/// Octets of the field at the start of `rest`, with its continuation lines and last CRLF.
pub(super) fn field_len(rest: &[u8]) -> usize {
    for lf in memchr::memchr_iter(b'\n', rest) {
        let ends = lf > 0 && rest[lf - 1] == b'\r';
        if ends && !matches!(rest.get(lf + 1), Some(b' ' | b'\t')) {
            return lf + 1;
        }
    }
    rest.len()
}

/// Where the domain of the first address of a From value stands. Comments, quoted strings and group
/// names are skipped; a domain with white space or comments inside is not worth finding.
fn first_domain(value: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    let mut sign = None;
    while at < value.len() {
        match value[at] {
            b'"' => at = skip_quoted(value, at),
            b'(' => at = skip_comment(value, at),
            b'@' => {
                sign = Some(at);
                at += 1;
            }
            // A display name may hold anything that looks like an address: the brackets count.
            b'<' => {
                sign = None;
                at += 1;
            }
            b',' | b';' | b'>' if sign.is_some() => break,
            _ => at += 1,
        }
    }
    let rest = &value[sign? + 1..];
    let start = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let is_domain =
        |byte: &u8| byte.is_ascii_alphanumeric() || b".-_".contains(byte) || *byte > 127;
    let len = rest[start..]
        .iter()
        .take_while(|byte| is_domain(byte))
        .count();
    let clean = matches!(
        rest.get(start + len),
        None | Some(b'>' | b',' | b';' | b' ' | b'\t' | b'\r' | b'(')
    );
    let start = sign? + 1 + start;
    (len > 0 && clean).then_some(start..start + len)
}

/// The offset behind the quoted string that starts at `at`.
fn skip_quoted(value: &[u8], mut at: usize) -> usize {
    at += 1;
    while at < value.len() {
        match value[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    value.len()
}

/// The offset behind the comment that starts at `at`; comments nest.
pub(super) fn skip_comment(value: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < value.len() {
        match value[at] {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'\\' => at += 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    value.len()
}

/// Takes the control fields out of `content` into `envelope` and refuses mail loops. `content`
/// starts with our own Received field, which does not count. Our names win over PowerMTA's; an
/// empty field says nothing. Also clears `envelope.smtputf8` where neither an address nor the
/// header has non-ASCII octets, so that such mail still goes to receivers without SMTPUTF8 (RFC
/// 6531 3.2).
pub fn check(mut content: Content, envelope: &mut Envelope) -> Result<Checked, CheckError> {
    let mut scan = scan(content.as_slice());
    if scan.too_long {
        return Err(CheckError::HeaderTooLong);
    }
    // RFC 5321 6.3.
    if scan.received_count > limits::RECEIVED_MAX {
        return Err(CheckError::Loop);
    }
    if scan.control_count > 0 {
        take_controls(content.as_slice(), &scan, envelope)?;
        cut_controls(&mut content, &mut scan);
    }
    if envelope.smtputf8 && !scan.has_8bit {
        let sender = envelope
            .sender
            .as_ref()
            .is_none_or(|sender| sender.is_ascii());
        let recipients = envelope
            .recipients
            .iter()
            .all(|recipient| recipient.address.is_ascii());
        envelope.smtputf8 = !(sender && recipients);
    }
    Ok(Checked { content, scan })
}

fn take_controls(
    content: &[u8],
    scan: &HeaderScan,
    envelope: &mut Envelope,
) -> Result<(), CheckError> {
    if scan.control_count as usize > limits::CONTROL_FIELDS_MAX {
        return Err(CheckError::TooManyControls);
    }
    let mut values: [Option<&str>; ControlName::ALL.len()] = [None; ControlName::ALL.len()];
    for control in scan.controls() {
        let refused = CheckError::ControlValue(control.name);
        let value = std::str::from_utf8(control.value(content)).map_err(|_| refused)?;
        let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !printable || value.len() > limits::CONTROL_VALUE_BYTES_MAX {
            return Err(refused);
        }
        let place = &mut values[control.name as usize];
        if place.is_some_and(|before| before != value) {
            return Err(CheckError::ControlTwice(control.name));
        }
        *place = Some(value);
    }
    let value = |name: ControlName| values[name as usize].filter(|value| !value.is_empty());
    let set = |place: &mut Option<Box<str>>, value: Option<&str>| {
        if let Some(value) = value {
            *place = Some(Box::from(value));
        }
    };
    let campaign = value(ControlName::Campaign).or_else(|| value(ControlName::Job));
    let steered = value(ControlName::Pool).is_some() || value(ControlName::Source).is_some();
    let virtual_mta = value(ControlName::VirtualMta).filter(|_| !steered);
    set(&mut envelope.campaign, campaign);
    set(&mut envelope.tenant, value(ControlName::Tenant));
    set(&mut envelope.source, value(ControlName::Source));
    set(&mut envelope.pool, value(ControlName::Pool).or(virtual_mta));
    Ok(())
}

/// Cuts the control fields and moves the offsets of `scan` accordingly.
fn cut_controls(content: &mut Content, scan: &mut HeaderScan) {
    let mut ranges: [Range<usize>; limits::CONTROL_FIELDS_MAX] = Default::default();
    let count = scan.controls().len();
    for (range, control) in ranges.iter_mut().zip(scan.controls()) {
        *range = control.range();
    }
    let ranges = &ranges[..count];
    content.cut(ranges);
    let moved = |offset: usize| {
        let before = ranges.iter().filter(|range| range.end <= offset);
        offset - before.map(Range::len).sum::<usize>()
    };
    scan.end = moved(scan.end);
    scan.body = moved(scan.body);
    scan.from_domain = scan
        .from_domain
        .take()
        .map(|range| moved(range.start)..moved(range.end));
    scan.fields -= scan.control_count;
    scan.has_8bit = !content.as_slice()[..scan.end].is_ascii();
    (scan.controls, scan.control_count) = Default::default();
}

/// Checks on any octets that the scan is total and consistent, and that `check` cuts exactly the
/// control fields.
#[cfg(any(test, fuzzing))]
pub fn fuzz_header(octets: &[u8]) {
    let found = scan(octets);
    assert!(found.end <= found.body);
    assert!(found.body <= octets.len());
    assert!(found.received_count as usize + found.controls().len() <= found.fields as usize);
    if let Some(domain) = &found.from_domain {
        assert!(domain.end <= found.end);
        assert!(!octets[domain.clone()].is_empty());
    }
    let mut kept = Vec::new();
    let mut at = 0;
    for control in found.controls() {
        assert!(control.range().start >= at);
        kept.extend_from_slice(&octets[at..control.range().start]);
        at = control.range().end;
    }
    kept.extend_from_slice(&octets[at..]);
    let mut envelope = Envelope::default();
    if let Ok(checked) = check(Content::from(octets.to_vec()), &mut envelope) {
        assert_eq!(checked.content.as_slice(), kept);
        assert_eq!(&kept[checked.scan.body..], &octets[found.body..]);
        assert_eq!(checked.scan.end, scan(&kept).end);
        assert_eq!(checked.scan, scan(&kept));
    }
}

#[cfg(test)]
mod tests;
