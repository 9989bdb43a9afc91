//! address - mail addresses and domains.
//!
//! What: the Path of RFC 5321 4.1.2 (what stands between `<` and `>`), extended by RFC 6531, parsed
//! once at the edge. An address keeps its text for MAIL and RCPT, and knows its normalised local
//! part and its routable domain.
//! Why this way: the text, the normalised local part and the A-label form of the domain share one
//! allocation, and parts that are equal share their octets, so that an address costs 32 bytes plus
//! its text, and clones by counting.
//! Example: `"a\b"@Exam\u{fc}ple.com` has the local part `ab` and the domain `xn--example-p4a.com`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

use crate::limits;

/// A domain in the form that DNS and routing use: lower case, A-labels; or an address literal,
/// `[192.0.2.1]` or `[IPv6:2001:db8::1]`. Cheap to clone.
#[derive(Clone)]
pub struct Domain {
    buffer: Arc<str>,
    start: u16,
    len: u16,
}

/// One mailbox, `local-part@domain`. Cheap to clone. Two addresses are equal when they mean the
/// same mailbox: same normalised local part, same domain.
#[derive(Clone)]
pub struct Address {
    domain: Domain,
    text_len: u16,
    local_start: u16,
    local_len: u16,
}
const _: () = assert!(size_of::<Address>() == 32);

/// Why a text is no address, or no domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressError {
    /// There is nothing.
    Empty,
    /// Octets that are neither ASCII nor UTF-8, or a control character.
    Encoding,
    /// The source route in front of the mailbox is malformed.
    SourceRoute,
    /// The local part is neither a dot-string nor a quoted string.
    LocalPart,
    /// The local part is longer than [`limits::LOCAL_PART_BYTES_MAX`].
    LocalPartTooLong,
    /// There is no `@` with a domain behind it.
    NoDomain,
    /// The domain has an empty or overlong label, a port, a trailing dot or a forbidden character.
    Domain,
    /// The domain is longer than [`limits::DOMAIN_BYTES_MAX`].
    DomainTooLong,
    /// The brackets hold no IPv4 or IPv6 address.
    Literal,
    /// The whole is longer than [`limits::PATH_BYTES_MAX`].
    PathTooLong,
}

impl Address {
    /// Parses what stands between `<` and `>`. A source route (`@a,@b:user@c`) is dropped, as
    /// RFC 5321 appendix C asks. The null path and `Postmaster` without a domain are not addresses.
    pub fn parse_path(path: &[u8]) -> Result<Self, AddressError> {
        let text = std::str::from_utf8(path).map_err(|_| AddressError::Encoding)?;
        let mailbox = without_source_route(text)?;
        if mailbox.is_empty() {
            return Err(AddressError::Empty);
        }
        // The two angle brackets count: RFC 5321 4.5.3.1.3.
        if mailbox.len() + 2 > limits::PATH_BYTES_MAX {
            return Err(AddressError::PathTooLong);
        }
        let local_len = local_part_len(mailbox)?;
        let (local, rest) = mailbox.split_at(local_len);
        let domain = rest.strip_prefix('@').ok_or(AddressError::NoDomain)?;
        let quoted = local.starts_with('"').then(|| normalise_quoted(local));
        let canonical = canonical_domain(domain)?;
        Ok(Self::assemble(
            mailbox,
            local_len,
            quoted.as_deref(),
            canonical.as_deref(),
        ))
    }

    /// `postmaster` at `domain`: what `RCPT TO:<Postmaster>` means (RFC 5321 4.5.1).
    pub fn postmaster(domain: &Domain) -> Result<Self, AddressError> {
        Self::parse_path(format!("postmaster@{domain}").as_bytes())
    }

    /// The text for MAIL and RCPT, as it was given, without angle brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.domain.buffer[..usize::from(self.text_len)]
    }

    /// The local part; a quoted one is unquoted where it can be, otherwise quoted minimally.
    #[must_use]
    pub fn local(&self) -> &str {
        let start = usize::from(self.local_start);
        &self.domain.buffer[start..start + usize::from(self.local_len)]
    }

    /// Where mail for the address goes.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether the text is ASCII, so that MAIL or RCPT need no SMTPUTF8.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }

    /// Puts the parts into one buffer: the text, then only what differs from it.
    fn assemble(text: &str, local_len: usize, local: Option<&str>, domain: Option<&str>) -> Self {
        let tail = local.map_or(0, str::len) + domain.map_or(0, str::len);
        let mut domain_range = (local_len + 1, text.len() - local_len - 1);
        let mut local_range = (0, local_len);
        let buffer: Arc<str> = if tail == 0 {
            Arc::from(text)
        } else {
            let mut buffer = String::with_capacity(text.len() + tail);
            buffer.push_str(text);
            if let Some(local) = local {
                local_range = (buffer.len(), local.len());
                buffer.push_str(local);
            }
            if let Some(domain) = domain {
                domain_range = (buffer.len(), domain.len());
                buffer.push_str(domain);
            }
            Arc::from(buffer)
        };
        Self {
            domain: Domain {
                buffer,
                start: small(domain_range.0),
                len: small(domain_range.1),
            },
            text_len: small(text.len()),
            local_start: small(local_range.0),
            local_len: small(local_range.1),
        }
    }
}

impl Domain {
    /// Parses a domain name or an address literal. U-labels become A-labels (RFC 5890, UTS 46).
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let buffer: Arc<str> = canonical_domain(text)?.map_or_else(|| Arc::from(text), Arc::from);
        let len = small(buffer.len());
        Ok(Self {
            buffer,
            start: 0,
            len,
        })
    }

    /// The text; an address literal has its brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let start = usize::from(self.start);
        &self.buffer[start..start + usize::from(self.len)]
    }

    /// Whether this is an address literal, which no DNS query can be made for.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.as_str().starts_with('[')
    }

    /// The address of an address literal.
    #[must_use]
    pub fn literal_ip(&self) -> Option<IpAddr> {
        let inner = self.as_str().strip_prefix('[')?.strip_suffix(']')?;
        parse_literal(inner).ok()
    }
}

/// Reads no more than 500 octets, so it fits (see the callers' limits).
fn small(number: usize) -> u16 {
    debug_assert!(number <= usize::from(u16::MAX));
    number as u16
}
const _: () = assert!(
    2 * limits::PATH_BYTES_MAX + limits::DOMAIN_BYTES_MAX + 16 <= u16::MAX as usize,
    "text, local part and domain must fit the 16-bit offsets"
);

/// The mailbox behind an optional `A-d-l ":"` (RFC 5321 4.1.2).
fn without_source_route(text: &str) -> Result<&str, AddressError> {
    if !text.starts_with('@') {
        return Ok(text);
    }
    let mut rest = text;
    loop {
        let hop = rest.strip_prefix('@').ok_or(AddressError::SourceRoute)?;
        // An IPv6 literal holds colons: the hop ends behind its bracket.
        let from = if hop.starts_with('[') {
            hop.find(']').unwrap_or(hop.len())
        } else {
            0
        };
        let end = hop[from..]
            .find([',', ':'])
            .ok_or(AddressError::SourceRoute)?
            + from;
        canonical_domain(&hop[..end]).map_err(|_| AddressError::SourceRoute)?;
        let separator = hop.as_bytes()[end];
        rest = &hop[end + 1..];
        if separator == b':' {
            return Ok(rest);
        }
    }
}

/// Octets of the local part at the start of `mailbox`: a dot-string or a quoted string.
fn local_part_len(mailbox: &str) -> Result<usize, AddressError> {
    let len = if mailbox.starts_with('"') {
        quoted_len(mailbox)
    } else {
        dot_string_len(mailbox)
    };
    let len = len?;
    if len > limits::LOCAL_PART_BYTES_MAX {
        return Err(AddressError::LocalPartTooLong);
    }
    Ok(len)
}

fn dot_string_len(mailbox: &str) -> Result<usize, AddressError> {
    let end = mailbox.find('@').ok_or(AddressError::NoDomain)?;
    if is_dot_string(&mailbox[..end]) {
        Ok(end)
    } else {
        Err(AddressError::LocalPart)
    }
}

/// Atom *("." Atom), RFC 5321 4.1.2 with the UTF-8 of RFC 6531 3.3.
fn is_dot_string(text: &str) -> bool {
    let mut at_start = true;
    for c in text.chars() {
        match c {
            '.' if at_start => return false,
            '.' => at_start = true,
            _ if is_atext(c) => at_start = false,
            _ => return false,
        }
    }
    !at_start
}

/// RFC 5322 3.2.3 atext, and non-ASCII without control characters (RFC 6531 3.3).
fn is_atext(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' => true,
        '!' | '#' | '$' | '%' | '&' | '\'' | '*' | '+' | '-' | '/' | '=' | '?' | '^' | '_'
        | '`' | '{' | '|' | '}' | '~' => true,
        _ => is_utf8_text(c),
    }
}

/// Non-ASCII that cannot disturb a line: no C1 control, no line or paragraph separator.
fn is_utf8_text(c: char) -> bool {
    !c.is_ascii() && !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// Octets of the Quoted-string at the start of `mailbox`, with its quotes.
fn quoted_len(mailbox: &str) -> Result<usize, AddressError> {
    let mut chars = mailbox.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok(at + 1),
            // quoted-pairSMTP: any printable ASCII.
            '\\' => {
                let next = chars.next().map(|(_, c)| c);
                if !next.is_some_and(|c| matches!(c, ' '..='~')) {
                    return Err(AddressError::LocalPart);
                }
            }
            ' '..='~' => {}
            _ if is_utf8_text(c) => {}
            _ => return Err(AddressError::LocalPart),
        }
    }
    Err(AddressError::LocalPart)
}

/// A quoted local part as a dot-string, or with only the backslashes that are needed
/// (RFC 5321 4.1.2: the two forms mean the same mailbox).
fn normalise_quoted(quoted: &str) -> String {
    let inner = &quoted[1..quoted.len() - 1];
    let mut plain = String::with_capacity(quoted.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            _ => plain.push(c),
        }
    }
    if is_dot_string(&plain) {
        return plain;
    }
    let mut again = String::with_capacity(plain.len() + 8);
    again.push('"');
    for c in plain.chars() {
        if matches!(c, '"' | '\\') {
            again.push('\\');
        }
        again.push(c);
    }
    again.push('"');
    again
}

/// Checks a domain or literal; `Some` is its canonical form where that differs from `text`.
fn canonical_domain(text: &str) -> Result<Option<String>, AddressError> {
    if text.is_empty() {
        return Err(AddressError::NoDomain);
    }
    if text.len() > limits::DOMAIN_BYTES_MAX {
        return Err(AddressError::DomainTooLong);
    }
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or(AddressError::Literal)?;
        let canonical = match parse_literal(inner)? {
            IpAddr::V4(ip) => format!("[{ip}]"),
            IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
        };
        return Ok((canonical != text).then_some(canonical));
    }
    if text.is_ascii() {
        check_labels(text)?;
        let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
        return Ok(upper.then(|| text.to_ascii_lowercase()));
    }
    let ascii = Uts46::new()
        .to_ascii(
            text.as_bytes(),
            AsciiDenyList::STD3,
            Hyphens::Check,
            DnsLength::Verify,
        )
        .map_err(|_| AddressError::Domain)?;
    check_labels(&ascii)?;
    Ok(Some(ascii.into_owned()))
}

/// sub-domain *("." sub-domain), RFC 5321 4.1.2; a single label will do. Underscores are taken too,
/// a deliberate deviation: DNS holds such names, and mail for them has to leave.
pub(super) fn check_labels(name: &str) -> Result<(), AddressError> {
    if name.len() > limits::DOMAIN_BYTES_MAX {
        return Err(AddressError::DomainTooLong);
    }
    let fine = name.as_bytes().split(|byte| *byte == b'.').all(|label| {
        !label.is_empty()
            && label.len() <= limits::LABEL_BYTES_MAX
            && label
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && label[0] != b'-'
            && label[label.len() - 1] != b'-'
    });
    if fine {
        Ok(())
    } else {
        Err(AddressError::Domain)
    }
}

/// What stands between the brackets: RFC 5321 4.1.3. No General-address-literal is registered.
fn parse_literal(inner: &str) -> Result<IpAddr, AddressError> {
    const TAG: &str = "IPv6:";
    if inner
        .get(..TAG.len())
        .is_some_and(|tag| tag.eq_ignore_ascii_case(TAG))
    {
        let ip = inner[TAG.len()..]
            .parse::<Ipv6Addr>()
            .map_err(|_| AddressError::Literal)?;
        return Ok(IpAddr::V6(ip));
    }
    let ip = inner
        .parse::<Ipv4Addr>()
        .map_err(|_| AddressError::Literal)?;
    Ok(IpAddr::V4(ip))
}

impl AsRef<str> for Domain {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Domain {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Domain {}

impl PartialOrd for Domain {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Domain {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

/// The same as the hash of the text, so that a map can be asked with a `&str`.
impl Hash for Domain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl std::borrow::Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.as_str())
    }
}

impl std::str::FromStr for Domain {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.local() == other.local() && self.domain == other.domain
    }
}

impl Eq for Address {}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.local().hash(state);
        self.domain.hash(state);
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.as_str())
    }
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse_path(text.as_bytes())
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the address is empty",
            Self::Encoding => "the address is not valid UTF-8",
            Self::SourceRoute => "the source route is malformed",
            Self::LocalPart => "the local part is malformed",
            Self::LocalPartTooLong => "the local part is longer than 64 octets",
            Self::NoDomain => "the address has no domain",
            Self::Domain => "the domain is malformed",
            Self::DomainTooLong => "the domain is longer than 255 octets",
            Self::Literal => "the address literal is malformed",
            Self::PathTooLong => "the path is longer than 256 octets",
        })
    }
}

impl std::error::Error for AddressError {}

/// Checks on any octets that parsing is total and that its result parses again to the same.
#[cfg(any(test, fuzzing))]
pub fn fuzz_address(octets: &[u8]) {
    let Ok(address) = Address::parse_path(octets) else {
        return;
    };
    assert!(address.as_str().len() + 2 <= limits::PATH_BYTES_MAX);
    assert!(!address.as_str().chars().any(char::is_control));
    assert!(address.domain().as_str().is_ascii());
    assert!(
        !address
            .domain()
            .as_str()
            .bytes()
            .any(|byte| byte.is_ascii_control())
    );
    let again = Address::parse_path(address.as_str().as_bytes());
    assert_eq!(again.as_ref(), Ok(&address));
    let domain = Domain::parse(address.domain().as_str());
    assert_eq!(domain.as_ref(), Ok(address.domain()));
    assert_eq!(
        address.domain().is_literal(),
        address.domain().literal_ip().is_some()
    );
    // Where the canonical form is short enough, it means the same mailbox.
    if let Ok(canonical) =
        Address::parse_path(format!("{}@{}", address.local(), address.domain()).as_bytes())
    {
        assert_eq!(canonical, address);
    }
}

#[cfg(test)]
mod tests;
