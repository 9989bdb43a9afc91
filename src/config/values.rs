//! values - the small languages inside configuration strings.
//!
//! What: sizes ("10MiB"), durations ("20m"), rates ("5000/day"), networks ("10.0.0.0/8"), domain
//! patterns ("*.example.com"), date-times
//! ("2027-01-01T00:00:00Z"), hosts with ports ("relay.example:25", "\[2001:db8::1\]:25").
//! Each parser is total: any string gives a value or a sentence that says what is expected.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::dkim::SignOptions;
use crate::time::Wall;

/// Why a string is not a value; a sentence fragment for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueError(pub String);

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ValueError {}

fn error<T>(text: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(text.into()))
}

/// So many per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub amount: u32,
    /// In which time; a second, a minute, an hour or a day.
    pub period: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            1 => "s",
            60 => "min",
            3_600 => "h",
            _ => "day",
        };
        write!(f, "{}/{unit}", self.amount)
    }
}

/// A network: an address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Reads "10.0.0.0/8", "2001:db8::/32" or a single address.
    ///
    /// # Errors
    /// Not an address, a prefix that is too long, or bits set behind the prefix (a sign of a typo).
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            return error(format!(
                "\"{text}\" is not a network such as \"10.0.0.0/8\""
            ));
        };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) => match plain_number(digits).and_then(|n| u8::try_from(n).ok()) {
                Some(prefix) if prefix <= bits => prefix,
                _ => return error(format!("the prefix of \"{text}\" must be 0 to {bits}")),
            },
        };
        let base = mask(address, prefix);
        if base != address {
            return error(format!(
                "\"{text}\" has bits behind its prefix; write {base}/{prefix}"
            ));
        }
        Ok(Self { address, prefix })
    }

    /// Whether `peer` is in this network; an IPv4-mapped IPv6 address counts as IPv4.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_ipv4() == self.address.is_ipv4() && mask(peer, self.prefix) == self.address
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX
                .checked_shl(32 - u32::from(prefix.min(32)))
                .unwrap_or(0);
            IpAddr::V4((v4.to_bits() & keep).into())
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX
                .checked_shl(128 - u32::from(prefix.min(128)))
                .unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & keep))
        }
    }
}

/// Which recipient domains a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DomainPattern {
    /// "*": every domain.
    Any,
    /// "example.com": this domain.
    Exact(Arc<str>),
    /// "*.example.com": every domain below it, not itself. Held without the "*.".
    Below(Arc<str>),
}

impl DomainPattern {
    /// Reads a pattern; case does not count.
    ///
    /// # Errors
    /// Not "*", a domain, or "*." and a domain.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some(rest) => Ok(Self::Below(hostname(rest)?)),
            None => Ok(Self::Exact(hostname(text)?)),
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(domain) => f.write_str(domain),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// A host, by name or address, and a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name (lower case) or address.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

/// A host, by name or address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// To be looked up (A and AAAA, no MX).
    Name(Arc<str>),
    /// Ready to use.
    Address(IpAddr),
}

impl HostPort {
    /// Reads "host", "host:port", "192.0.2.1:25" or "\[2001:db8::1\]:25".
    ///
    /// # Errors
    /// Neither an address nor a host name, or a port outside 1 to 65535.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, ValueError> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self {
                host: Host::Address(address),
                port: default_port,
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                host: Host::Address(address.ip()),
                port: port(text, address.port())?,
            });
        }
        let (name, number) = match text.rsplit_once(':') {
            None => (text, default_port),
            Some((name, digits)) => {
                let number = plain_number(digits)
                    .and_then(|n| u16::try_from(n).ok())
                    .unwrap_or(0);
                (name, port(text, number)?)
            }
        };
        Ok(Self {
            host: Host::Name(hostname(name)?),
            port: number,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

fn port(text: &str, number: u16) -> Result<u16, ValueError> {
    if number == 0 {
        return error(format!("the port of \"{text}\" must be 1 to 65535"));
    }
    Ok(number)
}

/// Reads a host name (RFC 1123 2.1 letters, digits, hyphens; RFC 1035 lengths); lower case.
///
/// # Errors
/// Empty, too long, or a label that no host name has.
pub fn hostname(text: &str) -> Result<Arc<str>, ValueError> {
    if text.is_empty() || text.len() > 253 {
        return error("a host name has 1 to 253 characters");
    }
    let label_is_good = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            // An underscore is no host name character, but such names exist and resolve.
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !text.split('.').all(label_is_good) {
        return error(format!(
            "\"{text}\" is not a host name (write other scripts as xn--...)"
        ));
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return error(format!("\"{text}\" is neither an address nor a host name"));
    }
    Ok(text.to_ascii_lowercase().into())
}

/// Reads a header field name that may be signed (RFC 5322 3.6.8; RFC 6376 5.4).
///
/// # Errors
/// Not a field name, or one that changes on the way or that signatures are about.
pub fn field_name(text: &str) -> Result<Arc<str>, ValueError> {
    if !SignOptions::default().oversign(text) {
        return error(format!(
            "\"{}\" is not the name of a header field that can be signed",
            text.escape_debug()
        ));
    }
    Ok(text.into())
}

/// Reads "@example.com" or "news@example.com"; the domain comes out in lower case.
///
/// # Errors
/// No @, characters that the i= tag would have to encode (RFC 6376 2.11), or not a domain behind
/// it.
pub fn identity(text: &str) -> Result<Arc<str>, ValueError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/?^_`{|}~.".contains(&b);
    match text.rsplit_once('@') {
        Some((local, domain)) if local.bytes().all(plain) => {
            Ok(format!("{local}@{}", hostname(domain)?).into())
        }
        _ => error(format!(
            "\"{}\" is not an address such as \"@example.com\"",
            text.escape_debug()
        )),
    }
}

/// Reads "10MiB", "512KiB", "1GiB", "10MB", "4096B" or "4096": a number of bytes.
///
/// # Errors
/// Not a whole number with a known unit, or more than 64 bits hold.
pub fn size(text: &str) -> Result<u64, ValueError> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    scaled(
        text,
        &UNITS,
        "a size such as \"10MiB\" (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)",
    )
}

/// Reads "90s", "20m", "4h", "5d", "250ms", "1w".
///
/// # Errors
/// Not a whole number with a known unit, or more than 64 bits of milliseconds hold.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    const UNITS: [(&str, u64); 6] = [
        ("ms", 1),
        ("s", 1_000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
        ("w", 604_800_000),
    ];
    scaled(
        text,
        &UNITS,
        "a duration such as \"20m\" (ms, s, m, h, d, w)",
    )
    .map(Duration::from_millis)
}

/// Reads "100/s", "600/min", "1000/h", "5000/day".
///
/// # Errors
/// Not such a rate, or zero.
pub fn rate(text: &str) -> Result<Rate, ValueError> {
    let wrong = || {
        ValueError(format!(
            "\"{text}\" is not a rate such as \"100/s\" (s, min, h, day)"
        ))
    };
    let (amount, unit) = text.split_once('/').ok_or_else(wrong)?;
    let amount = plain_number(amount.trim())
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(wrong)?;
    let seconds = match unit.trim() {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        _ => return Err(wrong()),
    };
    if amount == 0 {
        return error("a rate of 0 would never send; suspend the path instead");
    }
    Ok(Rate {
        amount,
        period: Duration::from_secs(seconds),
    })
}

/// Reads "2027-01-01T00:00:00Z" or "2027-01-01 01:00:00.5+01:00" (RFC 3339 5.6). Leap seconds are
/// refused, as is what has no offset: nobody knows when that is.
///
/// # Errors
/// Not such a date-time, a day that does not exist, or one before 1970.
pub fn date_time(text: &str) -> Result<Wall, ValueError> {
    let wrong = || {
        let expected = "a date-time with its offset such as 2027-01-01T00:00:00Z";
        ValueError(format!("\"{text}\" is not {expected}"))
    };
    read_date_time(text.as_bytes())
        .and_then(|milliseconds| u64::try_from(milliseconds).ok())
        .map(Wall)
        .ok_or_else(wrong)
}

/// Milliseconds since 1970.
fn read_date_time(text: &[u8]) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, mut rest) = rest.split_at_checked(9)?;
    let year = digits(&date[..4], 1970, 9999)?;
    let month = digits(&date[5..7], 1, 12)?;
    let day = digits(&date[8..], 1, days_of_month(year, month))?;
    let (hour, minute) = (digits(&time[1..3], 0, 23)?, digits(&time[4..6], 0, 59)?);
    let second = digits(&time[7..], 0, 59)?;
    let marks = [
        date[4],
        date[7],
        time[0].to_ascii_uppercase(),
        time[3],
        time[6],
    ];
    if marks != *b"--T::" && marks != *b"-- ::" {
        return None;
    }
    let mut milliseconds = 0;
    if let [b'.', fraction @ ..] = rest {
        let len = fraction.iter().take_while(|c| c.is_ascii_digit()).count();
        if len == 0 {
            return None;
        }
        let place = |at: usize| i64::from(fraction[..len].get(at).map_or(0, |c| c - b'0'));
        milliseconds = place(0) * 100 + place(1) * 10 + place(2);
        rest = &fraction[len..];
    }
    let ahead = match rest {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), offset @ ..] if offset.len() == 5 && offset[2] == b':' => {
            let minutes = digits(&offset[..2], 0, 23)? * 60 + digits(&offset[3..], 0, 59)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let earlier = (1970..year)
        .map(|year| 365 + i64::from(is_leap(year)))
        .sum::<i64>();
    let days = earlier
        + (1..month)
            .map(|month| days_of_month(year, month))
            .sum::<i64>()
        + day
        - 1;
    Some((((days * 24 + hour) * 60 + minute - ahead) * 60 + second) * 1000 + milliseconds)
}

/// A number of digits alone, within bounds.
fn digits(text: &[u8], least: i64, most: i64) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let number = i64::try_from(plain_number(text)?).ok()?;
    (least..=most).contains(&number).then_some(number)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn scaled(text: &str, units: &[(&str, u64)], expected: &str) -> Result<u64, ValueError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .map(|(_, factor)| *factor);
    let value = plain_number(number)
        .zip(factor)
        .map(|(number, factor)| number.checked_mul(factor));
    match value {
        Some(Some(value)) => Ok(value),
        Some(None) => error(format!("\"{text}\" is too large")),
        None => error(format!("\"{text}\" is not {expected}")),
    }
}

/// Digits only: no sign, no underscore, no space.
fn plain_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A duration in the largest unit that divides it: the inverse of [`duration`].
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ];
    match units
        .iter()
        .find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit))
    {
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// A size in the largest binary unit that divides it: the inverse of [`size`].
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let units = [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match units
        .iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
    {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every unit, the bounds of the arithmetic, and the forms that must not pass.
    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10MiB", 10 << 20),
            ("10MB", 10_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("2 KiB"), Ok(2048));
        for text in [
            "",
            "MiB",
            "-1",
            "1.5MiB",
            "10mib",
            "1_000",
            "18446744073709551616",
            "+5",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("99999999999TiB").unwrap_err().0.contains("too large"));
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("90s", 90_000),
            ("20m", 1_200_000),
            ("4d", 345_600_000),
            ("5ms", 5),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "5 minutes",
            "1h30m",
            "-5s",
            "99999999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        let daily = Rate {
            amount: 5000,
            period: Duration::from_secs(86_400),
        };
        assert_eq!(rate("5000/day"), Ok(daily));
        assert_eq!(rate("100/s").map(|r| r.to_string()), Ok("100/s".to_owned()));
        for text in [
            "",
            "5",
            "5/",
            "/s",
            "5/week",
            "0/s",
            "-1/s",
            "5000000000/s",
            "1.5/s",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    // What is shown reads back as the same value.
    #[test]
    fn shown_values_read_back() {
        for bytes in [0, 1, 1023, 1024, 10 << 20, (1 << 40) + 1] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
        for millis in [0, 1, 1500, 60_000, 86_400_000] {
            let value = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(value)), Ok(value));
        }
    }

    #[test]
    fn networks() {
        let ten = Cidr::parse("10.0.0.0/8").unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(ten.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!ten.contains("11.0.0.0".parse().unwrap()));
        assert!(!ten.contains("a00::".parse().unwrap()));
        let all = Cidr::parse("::/0").unwrap();
        assert!(
            all.contains("2001:db8::1".parse().unwrap())
                && !all.contains("1.2.3.4".parse().unwrap())
        );
        let one = Cidr::parse("192.0.2.7").unwrap();
        assert!(
            one.contains("192.0.2.7".parse().unwrap())
                && !one.contains("192.0.2.6".parse().unwrap())
        );
        for text in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10/8",
            "10.0.0.0/-1",
            "x/8",
        ] {
            assert!(Cidr::parse(text).is_err(), "{text}");
        }
        assert!(
            Cidr::parse("10.1.0.0/8")
                .unwrap_err()
                .0
                .contains("10.0.0.0/8")
        );
    }

    #[test]
    fn patterns_and_hosts() {
        assert_eq!(DomainPattern::parse("*"), Ok(DomainPattern::Any));
        assert_eq!(
            DomainPattern::parse("*.B.example"),
            Ok(DomainPattern::Below("b.example".into()))
        );
        for text in [
            "",
            "*.",
            "a*.example",
            "a..b",
            "-a.example",
            "b\u{fc}cher.example",
        ] {
            assert!(DomainPattern::parse(text).is_err(), "{text}");
        }
        for (text, shown) in [
            ("Relay.Example", "relay.example:25"),
            ("relay.example:2525", "relay.example:2525"),
            ("192.0.2.1", "192.0.2.1:25"),
            ("192.0.2.1:26", "192.0.2.1:26"),
            ("2001:db8::1", "[2001:db8::1]:25"),
            ("[2001:db8::1]:26", "[2001:db8::1]:26"),
            ("[2001:db8::1]", "[2001:db8::1]:25"),
        ] {
            assert_eq!(
                HostPort::parse(text, 25).map(|h| h.to_string()),
                Ok(shown.to_owned()),
                "{text}"
            );
        }
        for text in [
            "",
            ":25",
            "host:",
            "host:0",
            "host:65536",
            "192.0.2.300",
            "a b",
            "1.2.3.4:0",
        ] {
            assert!(HostPort::parse(text, 25).is_err(), "{text}");
        }
    }

    // Offsets, fractions and leap days; what does not exist, or has no offset, is refused.
    #[test]
    fn date_times_are_strict() {
        for (text, milliseconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-21T22:19:03.021Z", 1_795_299_543_021),
            ("2026-11-22t00:19:03.0219+02:00", 1_795_299_543_021),
            ("2026-11-21 17:49:03.02-04:30", 1_795_299_543_020),
            ("2024-02-29T23:59:59z", 1_709_251_199_000),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        ] {
            assert_eq!(date_time(text), Ok(Wall(milliseconds)), "{text}");
        }
        for text in [
            "",
            "2027-01-01",
            "2027-01-01T00:00:00",
            "2027-01-01T00:00:00.Z",
            "2027-01-01T00:00:00Z ",
            "2027-01-01T00:00:00+1:00",
            "2027-01-01T00:00:00+24:00",
            "2027-01-01T24:00:00Z",
            "2027-01-01T00:60:00Z",
            "2027-01-01T00:00:60Z",
            "2027-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2027-04-31T00:00:00Z",
            "2027-13-01T00:00:00Z",
            "2027-00-01T00:00:00Z",
            "+027-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2027/01/01T00:00:00Z",
            "2027-01-01X00:00:00Z",
            "2027-01-01T00.00.00Z",
            "2027-01-01T00:00:0\u{e4}Z",
        ] {
            assert!(date_time(text).is_err(), "{text}");
        }
    }
}
