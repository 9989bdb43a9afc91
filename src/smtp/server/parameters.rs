//! parameters - the address of RCPT, and the parameters of MAIL and RCPT.

use super::ServerConfig;
use super::replies::{PARAMETER, RECIPIENT_SYNTAX, TOO_BIG, UNKNOWN_PARAMETER};
use crate::limits;
use crate::message::{Address, BodyType, Domain, Envelope, Notify, Recipient, Ret};
use crate::smtp::command::{Parameter, number};
use crate::smtp::extension::xtext_decode;

/// One parameter of MAIL. `seen` has a bit per keyword: none may come twice.
pub(super) fn mail_parameter(
    config: &ServerConfig,
    envelope: &mut Envelope,
    declared: &mut u64,
    parameter: Parameter<'_>,
    seen: &mut u8,
) -> Result<(), &'static [u8]> {
    let Parameter { keyword, value } = parameter;
    let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
    let bit = if is("SIZE") {
        let digits = value.filter(|value| value.len() <= 20).ok_or(PARAMETER)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(PARAMETER);
        }
        // A number beyond 64 bits is a size all the same, and too big.
        *declared = number(digits).unwrap_or(u64::MAX);
        if *declared > config.size_max {
            return Err(TOO_BIG);
        }
        1
    } else if is("BODY") && config.eight_bit_mime {
        let value = value.ok_or(PARAMETER)?;
        envelope.body = if value.eq_ignore_ascii_case(b"7BIT") {
            BodyType::SevenBit
        } else if value.eq_ignore_ascii_case(b"8BITMIME") {
            BodyType::EightBitMime
        } else {
            return Err(PARAMETER);
        };
        2
    } else if is("SMTPUTF8") && config.smtputf8 {
        if value.is_some() {
            return Err(PARAMETER);
        }
        envelope.smtputf8 = true;
        4
    } else if is("RET") && config.dsn {
        let value = value.ok_or(PARAMETER)?;
        envelope.ret = if value.eq_ignore_ascii_case(b"FULL") {
            Some(Ret::Full)
        } else if value.eq_ignore_ascii_case(b"HDRS") {
            Some(Ret::Headers)
        } else {
            return Err(PARAMETER);
        };
        8
    } else if is("ENVID") && config.dsn {
        let decoded = value.and_then(|value| xtext_decode(value, limits::SMTP_ENVID_BYTES_MAX));
        envelope.envid = Some(decoded.ok_or(PARAMETER)?.into());
        16
    } else {
        return Err(UNKNOWN_PARAMETER);
    };
    once(seen, bit)
}

/// The address of RCPT, and whether it is our own postmaster.
pub(super) fn recipient_address(
    path: &[u8],
    hostname: &str,
) -> Result<(Address, bool), &'static [u8]> {
    // RFC 5321 4.5.1: without a domain, in any case.
    if path.eq_ignore_ascii_case(b"postmaster") {
        let domain = Domain::parse(hostname).map_err(|_| RECIPIENT_SYNTAX)?;
        let address = Address::postmaster(&domain).map_err(|_| RECIPIENT_SYNTAX)?;
        return Ok((address, true));
    }
    let address = Address::parse_path(path).map_err(|_| RECIPIENT_SYNTAX)?;
    let ours = address.local().eq_ignore_ascii_case("postmaster")
        && address.domain().as_str().eq_ignore_ascii_case(hostname);
    Ok((address, ours))
}

/// One parameter of RCPT (RFC 3461 4.1, 4.2).
pub(super) fn rcpt_parameter(
    recipient: &mut Recipient,
    parameter: Parameter<'_>,
    seen: &mut u8,
) -> Result<(), &'static [u8]> {
    let Parameter { keyword, value } = parameter;
    if keyword.eq_ignore_ascii_case(b"NOTIFY") {
        recipient.notify = value.and_then(notify).ok_or(PARAMETER)?;
        once(seen, 1)
    } else if keyword.eq_ignore_ascii_case(b"ORCPT") {
        recipient.orcpt = Some(value.and_then(orcpt).ok_or(PARAMETER)?);
        once(seen, 2)
    } else {
        Err(UNKNOWN_PARAMETER)
    }
}

/// NOTIFY: NEVER alone, or a list of the others (RFC 3461 4.1).
fn notify(value: &[u8]) -> Option<Notify> {
    if value.eq_ignore_ascii_case(b"NEVER") {
        return Some(Notify::NEVER);
    }
    let mut set = Notify::NEVER;
    for word in value.split(|octet| *octet == b',') {
        set = set.with(if word.eq_ignore_ascii_case(b"SUCCESS") {
            Notify::SUCCESS
        } else if word.eq_ignore_ascii_case(b"FAILURE") {
            Notify::FAILURE
        } else if word.eq_ignore_ascii_case(b"DELAY") {
            Notify::DELAY
        } else {
            return None;
        });
    }
    Some(set)
}

/// ORCPT: `type;xtext` (RFC 3461 4.2), or `utf-8;` with UTF-8 text (RFC 6533 3); decoded.
fn orcpt(value: &[u8]) -> Option<Box<str>> {
    if value.len() > limits::ENVELOPE_TEXT_BYTES_MAX {
        return None;
    }
    let at = memchr::memchr(b';', value)?;
    let (kind, address) = (&value[..at], &value[at + 1..]);
    let atom = |octet: &u8| octet.is_ascii_alphanumeric() || *octet == b'-';
    if kind.is_empty() || address.is_empty() || !kind.iter().all(atom) {
        return None;
    }
    let kind = std::str::from_utf8(kind).ok()?;
    if kind.eq_ignore_ascii_case("utf-8") && !address.is_ascii() {
        let address = std::str::from_utf8(address).ok()?;
        return Some(format!("{kind};{address}").into());
    }
    let address = xtext_decode(address, limits::ENVELOPE_TEXT_BYTES_MAX)?;
    Some(format!("{kind};{address}").into())
}

/// Marks a keyword as seen; a second time is an error.
fn once(seen: &mut u8, bit: u8) -> Result<(), &'static [u8]> {
    if *seen & bit != 0 {
        return Err(PARAMETER);
    }
    *seen |= bit;
    Ok(())
}
