//! trace - the Received field that we put in front of a message (RFC 5321 4.4), and dates.
//!
//! What: one field per hop, folded at 78 columns; dates are always UTC.
//! Why this way: the name in EHLO comes from the peer, so only octets that a domain may have get
//! into the field; nothing here allocates for an ordinary message.
//! Example:
//! ```text
//! Received: from client.example ([192.0.2.7])
//!         by mta1.example.com with ESMTP id 0010000000000042
//!         for <user@example.net>; Sat, 21 Nov 2026 22:19:03 +0000
//! ```

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;

use super::address::{self, Address, Domain};
use super::envelope::MessageId;
use crate::time::Wall;

/// How a message came: the `with` clause (RFC 5321 4.4, RFC 3848 3, RFC 6531 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HELO.
    Smtp,
    /// EHLO.
    Esmtp,
    /// EHLO with TLS.
    Esmtps,
    /// EHLO with authentication.
    Esmtpa,
    /// EHLO with TLS and authentication.
    Esmtpsa,
    /// MAIL had SMTPUTF8.
    Utf8Smtp,
    /// SMTPUTF8 with TLS.
    Utf8Smtps,
    /// SMTPUTF8 with authentication.
    Utf8Smtpa,
    /// SMTPUTF8 with TLS and authentication.
    Utf8Smtpsa,
}

impl Protocol {
    /// The protocol of a transaction; without EHLO there is no extension.
    #[must_use]
    pub const fn of(esmtp: bool, utf8: bool, tls: bool, auth: bool) -> Self {
        match (esmtp, utf8, tls, auth) {
            (false, ..) => Self::Smtp,
            (true, false, false, false) => Self::Esmtp,
            (true, false, true, false) => Self::Esmtps,
            (true, false, false, true) => Self::Esmtpa,
            (true, false, true, true) => Self::Esmtpsa,
            (true, true, false, false) => Self::Utf8Smtp,
            (true, true, true, false) => Self::Utf8Smtps,
            (true, true, false, true) => Self::Utf8Smtpa,
            (true, true, true, true) => Self::Utf8Smtpsa,
        }
    }

    /// The registered keyword.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Smtp => "SMTP",
            Self::Esmtp => "ESMTP",
            Self::Esmtps => "ESMTPS",
            Self::Esmtpa => "ESMTPA",
            Self::Esmtpsa => "ESMTPSA",
            Self::Utf8Smtp => "UTF8SMTP",
            Self::Utf8Smtps => "UTF8SMTPS",
            Self::Utf8Smtpa => "UTF8SMTPA",
            Self::Utf8Smtpsa => "UTF8SMTPSA",
        }
    }

    /// Whether a trace field may hold UTF-8.
    #[must_use]
    pub const fn is_utf8(self) -> bool {
        matches!(
            self,
            Self::Utf8Smtp | Self::Utf8Smtps | Self::Utf8Smtpa | Self::Utf8Smtpsa
        )
    }
}

/// What the Received field says.
#[derive(Debug, Clone, Copy)]
pub struct TraceInfo<'a> {
    /// What the peer said in EHLO or HELO: hostile octets.
    pub helo: &'a [u8],
    /// Where the connection came from.
    pub peer: IpAddr,
    /// Our own name.
    pub hostname: &'a str,
    /// How it came.
    pub with: Protocol,
    /// The queue id.
    pub id: Option<MessageId>,
    /// The recipient, only where there is exactly one: two would tell each about the other
    /// (RFC 5321 7.6).
    pub for_: Option<&'a Address>,
    /// When.
    pub at: Wall,
}

/// Appends the Received field with its CRLF.
pub fn received(out: &mut Vec<u8>, info: &TraceInfo<'_>) {
    out.extend_from_slice(b"Received: from ");
    out.extend_from_slice(host_name(info.helo).as_bytes());
    match info.peer.to_canonical() {
        IpAddr::V4(ip) => print(out, format_args!(" ([{ip}])")),
        // RFC 5321 4.1.3.
        IpAddr::V6(ip) => print(out, format_args!(" ([IPv6:{ip}])")),
    }
    out.extend_from_slice(b"\r\n\tby ");
    out.extend_from_slice(host_name(info.hostname.as_bytes()).as_bytes());
    out.extend_from_slice(b" with ");
    out.extend_from_slice(info.with.as_str().as_bytes());
    if let Some(id) = info.id {
        print(out, format_args!(" id {id}"));
    }
    match info.for_ {
        // RFC 6531 3.7.3: UTF-8 in the trace only where UTF8SMTP says so.
        Some(address) if address.is_ascii() || info.with.is_utf8() => {
            print(out, format_args!("\r\n\tfor <{address}>; "));
        }
        _ => out.extend_from_slice(b";\r\n\t"),
    }
    date(out, info.at);
    out.extend_from_slice(b"\r\n");
}

/// Appends `at` as a date of RFC 5322 3.3 in UTC, `Sat, 21 Nov 2026 22:19:03 +0000`. Dates after
/// the year 9999 are given as its last second: the format has four digits.
pub fn date(out: &mut Vec<u8>, at: Wall) {
    const LAST: u64 = 253_402_300_799;
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = (at.0 / 1000).min(LAST);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    // Digit by digit: the formatter takes a quarter of a microsecond for this, of each message.
    let two = |out: &mut Vec<u8>, number: u64| {
        out.extend([b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]);
    };
    out.extend_from_slice(DAYS[(days % 7) as usize].as_bytes());
    out.extend_from_slice(b", ");
    two(out, day);
    out.push(b' ');
    out.extend_from_slice(MONTHS[month - 1].as_bytes());
    out.push(b' ');
    two(out, year / 100);
    two(out, year % 100);
    for (before, number) in [
        (b' ', second / 3600),
        (b':', second / 60 % 60),
        (b':', second % 60),
    ] {
        out.push(before);
        two(out, number);
    }
    out.extend_from_slice(b" +0000");
}

/// Year, month (from 1) and day (from 1) of a number of days since 1970, in the Gregorian calendar.
/// Counts in eras of 400 years that begin on 1 March, so that the leap day is the last of its year.
pub(crate) fn civil(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month as usize, day)
}

/// `name` as something that stands where a domain is expected: itself where it is one, else with a
/// hyphen for every octet that no domain has.
pub(super) fn host_name(name: &[u8]) -> Cow<'_, str> {
    /// Of a name that is none, this much is enough to find the client.
    const SHOWN_MAX: usize = 100;
    if let Ok(text) = std::str::from_utf8(name) {
        if text.is_ascii() && address::check_labels(text).is_ok() {
            return Cow::Borrowed(text);
        }
        if let Ok(domain) = Domain::parse(text) {
            return Cow::Owned(domain.as_str().to_owned());
        }
    }
    let mut text = String::new();
    for byte in name.iter().take(SHOWN_MAX) {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => text.push(char::from(*byte)),
            b'.' if !text.is_empty() && !text.ends_with(['.', '-']) => text.push('.'),
            _ if !text.is_empty() && !text.ends_with(['.', '-']) => text.push('-'),
            _ => {}
        }
    }
    text.truncate(text.trim_end_matches(['.', '-']).len());
    if text.is_empty() {
        Cow::Borrowed("unknown")
    } else {
        Cow::Owned(text)
    }
}

/// Appends formatted text.
pub(super) fn print(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments)
        .expect("writing to a vector cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::Random;

    fn info<'a>() -> TraceInfo<'a> {
        TraceInfo {
            helo: b"client.example",
            peer: IpAddr::from([192, 0, 2, 7]),
            hostname: "mta1.example.com",
            with: Protocol::Esmtp,
            id: Some(MessageId::new(1, 0x42)),
            for_: None,
            at: Wall(1_795_299_543_000),
        }
    }

    fn text(info: &TraceInfo<'_>) -> String {
        let mut out = Vec::new();
        received(&mut out, info);
        String::from_utf8(out).unwrap()
    }

    // The field for one recipient and for several, word for word.
    #[test]
    fn received_field() {
        assert_eq!(
            text(&info()),
            "Received: from client.example ([192.0.2.7])\r\n\tby mta1.example.com with ESMTP \
             id 0010000000000042;\r\n\tSat, 21 Nov 2026 22:19:03 +0000\r\n"
        );
        let address = "user@example.net".parse().unwrap();
        let one = TraceInfo {
            for_: Some(&address),
            peer: "2001:db8::7".parse().unwrap(),
            with: Protocol::of(true, false, true, true),
            id: None,
            ..info()
        };
        assert_eq!(
            text(&one),
            "Received: from client.example ([IPv6:2001:db8::7])\r\n\tby mta1.example.com with \
             ESMTPSA\r\n\tfor <user@example.net>; Sat, 21 Nov 2026 22:19:03 +0000\r\n"
        );
    }

    // A UTF-8 recipient is named only by a transaction that declared SMTPUTF8.
    #[test]
    fn for_needs_utf8smtp() {
        let address = "us\u{e9}r@example.net".parse().unwrap();
        let plain = TraceInfo {
            for_: Some(&address),
            ..info()
        };
        assert!(!text(&plain).contains("for"));
        let utf8 = TraceInfo {
            with: Protocol::Utf8Smtp,
            ..plain
        };
        assert!(text(&utf8).contains("UTF8SMTP id 0010000000000042\r\n\tfor <us\u{e9}r@"));
    }

    // Whatever the peer says in EHLO, the field stays one field of short ASCII lines.
    #[test]
    fn hostile_helo_stays_in_place() {
        let mut random = Random(7);
        for round in 0..5000 {
            let mut helo: Vec<u8> = (0..random.below(600))
                .map(|_| random.next() as u8)
                .collect();
            if round % 3 == 0 {
                helo = random.soup(
                    &[b"a", b".", b"\r\n", b"X: y", b"(", b"[", b"]", b"\xc3\xa9"],
                    90,
                );
            }
            let field = text(&TraceInfo {
                helo: &helo,
                ..info()
            });
            assert!(field.is_ascii());
            let lines: Vec<&str> = field.split("\r\n").collect();
            assert_eq!(lines.len(), 4);
            assert!(lines.iter().all(|line| line.len() <= 998));
            assert!(lines[0].ends_with(" ([192.0.2.7])"));
            assert!(
                !field
                    .replace("\r\n\t", "")
                    .trim_end_matches("\r\n")
                    .contains(char::is_control)
            );
        }
        let table: [(&[u8], &str); 6] = [
            (b"", "unknown"),
            (b"..--", "unknown"),
            (b"[192.0.2.1]", "[192.0.2.1]"),
            (b"b\xc3\xbccher.example", "xn--bcher-kva.example"),
            (b"my host)\r\nX: y", "my-host-X-y"),
            (b"win_box", "win_box"),
        ];
        for (helo, shown) in table {
            assert_eq!(host_name(helo), shown);
        }
    }

    // Known dates, leap years included, and the clamp; then every day of 1970 to 2400 follows its
    // predecessor by one.
    #[test]
    fn dates() {
        let table = [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000"),
            (u64::MAX / 1000, "Fri, 31 Dec 9999 23:59:59 +0000"),
        ];
        for (seconds, expected) in table {
            let mut out = Vec::new();
            date(&mut out, Wall(seconds * 1000));
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        let leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let mut expected = (1970, 1, 1);
        for days in 0..157_000 {
            assert_eq!(civil(days), expected);
            let (year, month, day) = expected;
            let last = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day == last) {
                (_, false) => (year, month, day + 1),
                (12, true) => (year + 1, 1, 1),
                (_, true) => (year, month + 1, 1),
            };
        }
    }
}
