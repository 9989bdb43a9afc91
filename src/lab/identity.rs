//! lab::identity - the marks by which a message and its recipients are known at the other end.
//!
//! What: each generated message carries `X-Load-Id: RRRRRR-NNNNNNNNNNNN` as the first field of its
//! header (run in hexadecimal, number in decimal, fixed width), and recipient K of message N has
//! the local part `rK.N`. Both survive a relay and come back inside a bounce.

use std::fmt;

/// The field name with its separator, as it stands at the start of a generated message.
pub const ID_FIELD: &[u8] = b"X-Load-Id: ";

/// Bytes of a printed [`LoadId`].
pub const ID_LEN: usize = 19;

const RUN_BITS: u32 = 24;
const NUMBER_BITS: u32 = 40;
const NUMBER_DIGITS: usize = 12;
const RUN_DIGITS: usize = 6;
const _: () = assert!(RUN_BITS + NUMBER_BITS == 64);
const _: () = assert!(10_u64.pow(NUMBER_DIGITS as u32) < 1 << NUMBER_BITS);
const _: () = assert!(RUN_DIGITS + 1 + NUMBER_DIGITS == ID_LEN);

/// Which message of which run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(u64);

impl LoadId {
    /// Message `number` of `run`; bits that do not fit are dropped.
    #[must_use]
    pub fn new(run: u32, number: u64) -> Self {
        let run = u64::from(run) & ((1 << RUN_BITS) - 1);
        Self(run << NUMBER_BITS | (number % 10_u64.pow(NUMBER_DIGITS as u32)))
    }

    /// The id as it stands in a ledger.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// From a ledger.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The number within the run.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }

    /// The run.
    #[must_use]
    pub fn run(self) -> u64 {
        self.0 >> NUMBER_BITS
    }

    /// Reads a printed id at the start of `text`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.get(..ID_LEN)?;
        let (run, number) = (&text[..RUN_DIGITS], &text[RUN_DIGITS + 1..]);
        if text[RUN_DIGITS] != b'-' {
            return None;
        }
        let mut run_value = 0_u64;
        for digit in run {
            let value = char::from(*digit).to_digit(16)?;
            run_value = run_value << 4 | u64::from(value);
        }
        Some(Self(run_value << NUMBER_BITS | decimal(number)?))
    }

    /// Prints the id over the first [`ID_LEN`] bytes of `at`; shorter slices get what fits.
    pub fn print(self, at: &mut [u8]) {
        let mut text = [b'-'; ID_LEN];
        let mut run = self.run();
        for place in text[..RUN_DIGITS].iter_mut().rev() {
            *place = b"0123456789abcdef"[(run & 15) as usize];
            run >>= 4;
        }
        print_decimal(self.number(), &mut text[RUN_DIGITS + 1..]);
        for (place, byte) in at.iter_mut().zip(text) {
            *place = byte;
        }
    }
}

impl fmt::Display for LoadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}-{:012}", self.run(), self.number())
    }
}

/// Prints `value` right-aligned with zeros over all of `at`.
pub fn print_decimal(mut value: u64, at: &mut [u8]) {
    for place in at.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Appends `value` in decimal without padding.
pub fn push_decimal(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    print_decimal(value, &mut digits);
    let first = digits.iter().position(|digit| *digit != b'0').unwrap_or(19);
    out.extend_from_slice(&digits[first..]);
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    let mut value = 0_u64;
    for digit in text {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u64::from(digit - b'0');
    }
    Some(value)
}

/// Appends the local part of recipient `index` of message `number`.
pub fn push_local_part(index: u16, number: u64, out: &mut Vec<u8>) {
    out.push(b'r');
    push_decimal(u64::from(index), out);
    out.push(b'.');
    push_decimal(number, out);
}

/// Which recipient of its message a local part made by [`push_local_part`] names.
#[must_use]
pub fn recipient_index(local: &[u8]) -> Option<u16> {
    let rest = local.strip_prefix(b"r")?;
    let dot = rest.iter().position(|byte| *byte == b'.')?;
    u16::try_from(decimal(&rest[..dot])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is printed reads back, at both ends of the range; anything else is not an id.
    #[test]
    fn ids_round_trip() {
        for (run, number) in [(0, 0), (0xab_cdef, 42), (0xff_ffff, 999_999_999_999)] {
            let id = LoadId::new(run, number);
            let mut text = [0; ID_LEN];
            id.print(&mut text);
            assert_eq!(String::from_utf8_lossy(&text), id.to_string());
            assert_eq!(LoadId::parse(&text), Some(id));
            assert_eq!(LoadId::from_bits(id.bits()), id);
            assert_eq!((id.run(), id.number()), (u64::from(run), number));
        }
        for bad in [
            "",
            "abcdef-00000000004",
            "abcdef_000000000042",
            "abcdeg-000000000042",
        ] {
            assert_eq!(LoadId::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    // A recipient's number comes back from its address, and foreign addresses have none.
    #[test]
    fn recipients_round_trip() {
        for index in [0, 7, u16::MAX] {
            let mut local = Vec::new();
            push_local_part(index, 123, &mut local);
            assert_eq!(recipient_index(&local), Some(index));
        }
        for bad in ["", "r", "r1", "x1.2", "r70000.1", "r.1", "r-1.1"] {
            assert_eq!(recipient_index(bad.as_bytes()), None, "{bad}");
        }
    }
}
