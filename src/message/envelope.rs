//! envelope - who sent a message, who gets it, and what they asked for.
//!
//! What: the `Envelope` as a value, its bytes in the spool, and `EnvelopeView`, which reads those
//! bytes in place: delivery of one recipient out of ten thousand decodes that one.
//!
//! Layout, version 1; numbers are little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | flags: 1 smtputf8, 2 8bitmime, 4 RET=FULL, 8 RET=HDRS |
//! | 2 | 1 | texts present: 1 sender, 2 envid, 4 pool, 8 source, 16 campaign, 32 tenant |
//! | 3 | 1 | zero |
//! | 4 | 4 | n, number of recipients |
//! | 8 | 4 | s, octets of all texts |
//! | 12 | 4 | r, octets of all recipients |
//! | 16 | s | the texts that are present, in the order above: length u16, octets |
//! | 16+s | 4n | per recipient its offset in the next part |
//! | 16+s+4n | r | each: notify u8, has-orcpt u8, address (length u16, octets), orcpt likewise |
//!
//! A reader refuses another version: a newer format gets a newer number, and the old spool is
//! drained by the old program or by a reader of both.

use std::fmt;
use std::str::FromStr;

use super::address::Address;
use crate::limits;

/// Names one message in this node: the queue id. The shard in the top 12 bits, a sequence below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

impl MessageId {
    /// Bits of the sequence.
    pub const SEQUENCE_BITS: u32 = 52;

    /// The id of the message `sequence` of `shard`. Both must fit their bits.
    #[must_use]
    pub const fn new(shard: u16, sequence: u64) -> Self {
        assert!(shard < limits::SHARDS_MAX);
        assert!(sequence < 1 << Self::SEQUENCE_BITS);
        Self((shard as u64) << Self::SEQUENCE_BITS | sequence)
    }

    /// The shard that stores the message.
    #[must_use]
    pub const fn shard(self) -> u16 {
        (self.0 >> Self::SEQUENCE_BITS) as u16
    }

    /// The number of the message in its shard.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << Self::SEQUENCE_BITS) - 1)
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for MessageId {
    type Err = EnvelopeError;

    fn from_str(text: &str) -> Result<Self, EnvelopeError> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(EnvelopeError::MessageId);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| EnvelopeError::MessageId)
    }
}

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BodyType {
    /// 7BIT, or nothing said.
    #[default]
    SevenBit,
    /// 8BITMIME.
    EightBitMime,
}

/// The RET parameter of MAIL (RFC 3461 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ret {
    /// A DSN returns the whole message.
    Full,
    /// A DSN returns the header only.
    Headers,
}

/// The NOTIFY parameter of RCPT (RFC 3461 4.1): a set. NEVER is the empty set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Notify(u8);

impl Notify {
    /// NOTIFY=NEVER.
    pub const NEVER: Self = Self(0);
    /// NOTIFY=SUCCESS.
    pub const SUCCESS: Self = Self(1);
    /// NOTIFY=FAILURE.
    pub const FAILURE: Self = Self(2);
    /// NOTIFY=DELAY.
    pub const DELAY: Self = Self(4);
    /// No NOTIFY parameter. It is kept apart from an explicit FAILURE,DELAY, because the parameter
    /// must not be invented for the next hop (RFC 3461 5.2.1).
    pub const UNSPECIFIED: Self = Self(2 | 4 | 8);

    const ALL: u8 = 15;

    /// Both sets together; an explicit set replaces the default.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self((self.0 | other.0) & 7)
    }

    /// Whether the parameter was given.
    #[must_use]
    pub const fn is_specified(self) -> bool {
        self.0 & 8 == 0
    }

    /// NOTIFY=NEVER: not even a failure is reported.
    #[must_use]
    pub const fn is_never(self) -> bool {
        self.0 == 0
    }

    /// Whether a delivery is to be reported.
    #[must_use]
    pub const fn success(self) -> bool {
        self.0 & Self::SUCCESS.0 != 0
    }

    /// Whether a failure is to be reported.
    #[must_use]
    pub const fn failure(self) -> bool {
        self.0 & Self::FAILURE.0 != 0
    }

    /// Whether a delay is to be reported.
    #[must_use]
    pub const fn delay(self) -> bool {
        self.0 & Self::DELAY.0 != 0
    }

    /// The value as stored.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From the stored value; `None` for one that [`Notify::bits`] never gives.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits > Self::ALL || (bits & 8 != 0 && bits != Self::UNSPECIFIED.0) {
            return None;
        }
        Some(Self(bits))
    }
}

impl Default for Notify {
    fn default() -> Self {
        Self::UNSPECIFIED
    }
}

/// What MAIL and RCPT said, and what the control fields of the header added. Every text has at most
/// [`limits::ENVELOPE_TEXT_BYTES_MAX`] octets; there are at most [`limits::RECIPIENTS_MAX`]
/// recipients.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Envelope {
    /// Who gets the bounces; `None` is `<>`.
    pub sender: Option<Address>,
    /// In the order of the RCPT commands.
    pub recipients: Vec<Recipient>,
    /// The next hop must offer SMTPUTF8 (RFC 6531). `header::check` clears it where nothing needs
    /// it.
    pub smtputf8: bool,
    /// What MAIL declared about the content.
    pub body: BodyType,
    /// What a DSN returns; `None` leaves it to us.
    pub ret: Option<Ret>,
    /// ENVID, xtext decoded (RFC 3461 4.4).
    pub envid: Option<Box<str>>,
    /// Name of a pool or, where no pool has that name, of a source.
    pub pool: Option<Box<str>>,
    /// Name of a source; it wins over the pool.
    pub source: Option<Box<str>>,
    /// The campaign, for accounting.
    pub campaign: Option<Box<str>>,
    /// The tenant, for accounting and limits.
    pub tenant: Option<Box<str>>,
}

/// One recipient of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Where to.
    pub address: Address,
    /// Which DSNs the sender wants.
    pub notify: Notify,
    /// ORCPT as `type;address`, xtext decoded (RFC 3461 4.2).
    pub orcpt: Option<Box<str>>,
}

impl Recipient {
    /// A recipient without DSN parameters.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            notify: Notify::default(),
            orcpt: None,
        }
    }
}

/// One recipient, read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecipientRef<'a> {
    /// The text for RCPT, without angle brackets.
    pub address: &'a str,
    /// Which DSNs the sender wants.
    pub notify: Notify,
    /// ORCPT as `type;address`, xtext decoded.
    pub orcpt: Option<&'a str>,
}

/// Why bytes are no envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// The bytes end too early, or go on too long.
    Length,
    /// A version that this program does not know.
    Version,
    /// A flag that the version does not have, or two that contradict each other.
    Flags,
    /// A text that is not UTF-8, or longer than its limit.
    Text,
    /// More recipients than [`limits::RECIPIENTS_MAX`], or fewer than asked for.
    Recipients,
    /// A sender or recipient that is no address.
    Address,
    /// Not sixteen hexadecimal digits.
    MessageId,
}

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 16;
const FLAG_SMTPUTF8: u8 = 1;
const FLAG_EIGHT_BIT: u8 = 2;
const FLAG_RET_FULL: u8 = 4;
const FLAG_RET_HEADERS: u8 = 8;
const TEXTS: usize = 6;
/// The least that a recipient takes: its offset, notify, has-orcpt, a length and `a@b`.
const RECIPIENT_BYTES_MIN: usize = 4 + 1 + 1 + 2 + 3;

impl Envelope {
    /// Appends the bytes of the envelope. A text or a number of recipients over its limit is a
    /// programming error and aborts: the parsers in front of us refuse it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.recipients.len() <= limits::RECIPIENTS_MAX as usize);
        let texts = [
            self.sender.as_ref().map(Address::as_str),
            self.envid.as_deref(),
            self.pool.as_deref(),
            self.source.as_deref(),
            self.campaign.as_deref(),
            self.tenant.as_deref(),
        ];
        let start = out.len();
        out.extend_from_slice(&[VERSION, self.flags(), 0, 0]);
        push_u32(out, self.recipients.len());
        out.extend_from_slice(&[0; 8]);
        for (bit, text) in texts.iter().enumerate() {
            if let Some(text) = text {
                out[start + 2] |= 1 << bit;
                push_text(out, text);
            }
        }
        let texts_len = out.len() - start - HEAD_BYTES;
        let mut offset = 0;
        for recipient in &self.recipients {
            push_u32(out, offset);
            offset += recipient.encoded_len();
        }
        let recipients_start = out.len();
        for recipient in &self.recipients {
            recipient.encode(out);
        }
        assert_eq!(out.len() - recipients_start, offset);
        out[start + 8..start + 12].copy_from_slice(&(texts_len as u32).to_le_bytes());
        out[start + 12..start + 16].copy_from_slice(&(offset as u32).to_le_bytes());
    }

    /// The envelope in `bytes`, which hold nothing else. Total: any bytes give an envelope or an
    /// error, and never cost more memory than a small multiple of their own length.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let view = EnvelopeView::new(bytes)?;
        let mut recipients = Vec::with_capacity(view.recipient_count() as usize);
        let mut expected = 0;
        for index in 0..view.recipient_count() {
            let (recipient, range) = view.locate(index)?;
            // Recipients follow each other without gaps, so that equal envelopes have equal bytes.
            if range.start != expected {
                return Err(EnvelopeError::Length);
            }
            expected = range.end;
            recipients.push(recipient.to_owned()?);
        }
        if expected != view.recipients.len() {
            return Err(EnvelopeError::Length);
        }
        let text = |index: usize| view.texts[index].map(Box::from);
        Ok(Self {
            sender: view.sender()?,
            recipients,
            smtputf8: view.smtputf8(),
            body: view.body(),
            ret: view.ret(),
            envid: text(1),
            pool: text(2),
            source: text(3),
            campaign: text(4),
            tenant: text(5),
        })
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        if self.smtputf8 {
            flags |= FLAG_SMTPUTF8;
        }
        if self.body == BodyType::EightBitMime {
            flags |= FLAG_EIGHT_BIT;
        }
        match self.ret {
            Some(Ret::Full) => flags |= FLAG_RET_FULL,
            Some(Ret::Headers) => flags |= FLAG_RET_HEADERS,
            None => {}
        }
        flags
    }
}

impl Recipient {
    fn encoded_len(&self) -> usize {
        4 + self.address.as_str().len() + self.orcpt.as_ref().map_or(0, |orcpt| 2 + orcpt.len())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.notify.bits());
        out.push(u8::from(self.orcpt.is_some()));
        push_text(out, self.address.as_str());
        if let Some(orcpt) = &self.orcpt {
            push_text(out, orcpt);
        }
    }
}

impl RecipientRef<'_> {
    /// The recipient as a value of its own.
    pub fn to_owned(&self) -> Result<Recipient, EnvelopeError> {
        let address = parse_address(self.address)?;
        Ok(Recipient {
            address,
            notify: self.notify,
            orcpt: self.orcpt.map(Box::from),
        })
    }
}

/// An encoded envelope, read in place: making one looks at the texts, not at the recipients.
#[derive(Debug, Clone, Copy)]
pub struct EnvelopeView<'a> {
    flags: u8,
    texts: [Option<&'a str>; TEXTS],
    offsets: &'a [u8],
    recipients: &'a [u8],
}

impl<'a> EnvelopeView<'a> {
    /// A view of `bytes`, which hold one envelope and nothing else.
    pub fn new(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (head, rest) = bytes
            .split_at_checked(HEAD_BYTES)
            .ok_or(EnvelopeError::Length)?;
        if head[0] != VERSION {
            return Err(EnvelopeError::Version);
        }
        let (flags, present) = (head[1], head[2]);
        let both = FLAG_RET_FULL | FLAG_RET_HEADERS;
        if flags > 15 || flags & both == both || present >> TEXTS != 0 || head[3] != 0 {
            return Err(EnvelopeError::Flags);
        }
        let count = u32_at(head, 4)?;
        if count > limits::RECIPIENTS_MAX as usize {
            return Err(EnvelopeError::Recipients);
        }
        let (texts_len, recipients_len) = (u32_at(head, 8)?, u32_at(head, 12)?);
        let (mut rest_texts, rest) = rest
            .split_at_checked(texts_len)
            .ok_or(EnvelopeError::Length)?;
        let (offsets, recipients) = rest
            .split_at_checked(4 * count)
            .ok_or(EnvelopeError::Length)?;
        // Every recipient takes its least number of octets, hence `count` cannot over-allocate.
        if recipients.len() != recipients_len || rest.len() < count * RECIPIENT_BYTES_MIN {
            return Err(EnvelopeError::Length);
        }
        let mut texts = [None; TEXTS];
        for (bit, text) in texts.iter_mut().enumerate() {
            if present & (1 << bit) != 0 {
                *text = Some(take_text(&mut rest_texts)?);
            }
        }
        if !rest_texts.is_empty() {
            return Err(EnvelopeError::Length);
        }
        Ok(Self {
            flags,
            texts,
            offsets,
            recipients,
        })
    }

    /// The sender; `None` is `<>`.
    pub fn sender(&self) -> Result<Option<Address>, EnvelopeError> {
        self.texts[0].map(parse_address).transpose()
    }

    /// The text for MAIL, without angle brackets; empty for the null sender.
    #[must_use]
    pub fn sender_text(&self) -> &'a str {
        self.texts[0].unwrap_or_default()
    }

    /// Whether the next hop must offer SMTPUTF8.
    #[must_use]
    pub fn smtputf8(&self) -> bool {
        self.flags & FLAG_SMTPUTF8 != 0
    }

    /// What MAIL declared about the content.
    #[must_use]
    pub fn body(&self) -> BodyType {
        if self.flags & FLAG_EIGHT_BIT != 0 {
            BodyType::EightBitMime
        } else {
            BodyType::SevenBit
        }
    }

    /// What a DSN returns.
    #[must_use]
    pub fn ret(&self) -> Option<Ret> {
        match self.flags & (FLAG_RET_FULL | FLAG_RET_HEADERS) {
            FLAG_RET_FULL => Some(Ret::Full),
            FLAG_RET_HEADERS => Some(Ret::Headers),
            _ => None,
        }
    }

    /// ENVID, xtext decoded.
    #[must_use]
    pub fn envid(&self) -> Option<&'a str> {
        self.texts[1]
    }

    /// See [`Envelope::pool`].
    #[must_use]
    pub fn pool(&self) -> Option<&'a str> {
        self.texts[2]
    }

    /// See [`Envelope::source`].
    #[must_use]
    pub fn source(&self) -> Option<&'a str> {
        self.texts[3]
    }

    /// See [`Envelope::campaign`].
    #[must_use]
    pub fn campaign(&self) -> Option<&'a str> {
        self.texts[4]
    }

    /// See [`Envelope::tenant`].
    #[must_use]
    pub fn tenant(&self) -> Option<&'a str> {
        self.texts[5]
    }

    /// Number of recipients.
    #[must_use]
    pub fn recipient_count(&self) -> u32 {
        (self.offsets.len() / 4) as u32
    }

    /// One recipient, its address unparsed. Constant time, no allocation.
    pub fn recipient_ref(&self, index: u32) -> Result<RecipientRef<'a>, EnvelopeError> {
        self.locate(index).map(|(recipient, _)| recipient)
    }

    /// One recipient. Constant time.
    pub fn recipient(&self, index: u32) -> Result<Recipient, EnvelopeError> {
        self.recipient_ref(index)?.to_owned()
    }

    /// One recipient and where it stands.
    fn locate(
        &self,
        index: u32,
    ) -> Result<(RecipientRef<'a>, std::ops::Range<usize>), EnvelopeError> {
        if index >= self.recipient_count() {
            return Err(EnvelopeError::Recipients);
        }
        let start = u32_at(self.offsets, 4 * index as usize)?;
        let rest = self.recipients.get(start..).ok_or(EnvelopeError::Length)?;
        let (head, mut rest) = rest.split_at_checked(2).ok_or(EnvelopeError::Length)?;
        let notify = Notify::from_bits(head[0]).ok_or(EnvelopeError::Flags)?;
        let address = take_text(&mut rest)?;
        let orcpt = match head[1] {
            0 => None,
            1 => Some(take_text(&mut rest)?),
            _ => return Err(EnvelopeError::Flags),
        };
        let end = self.recipients.len() - rest.len();
        Ok((
            RecipientRef {
                address,
                notify,
                orcpt,
            },
            start..end,
        ))
    }
}

fn parse_address(text: &str) -> Result<Address, EnvelopeError> {
    let address = Address::parse_path(text.as_bytes()).map_err(|_| EnvelopeError::Address)?;
    // A source route would be dropped, and the bytes would not be those that we wrote.
    if address.as_str() == text {
        Ok(address)
    } else {
        Err(EnvelopeError::Address)
    }
}

fn push_u32(out: &mut Vec<u8>, number: usize) {
    // Every number here is bounded by the size of an envelope, 8 MiB (const-asserted in limits).
    debug_assert!(u32::try_from(number).is_ok());
    out.extend_from_slice(&(number as u32).to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, EnvelopeError> {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    number
        .map(|four| u32::from_le_bytes(*four) as usize)
        .ok_or(EnvelopeError::Length)
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= limits::ENVELOPE_TEXT_BYTES_MAX);
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, EnvelopeError> {
    let (len, after) = rest.split_first_chunk::<2>().ok_or(EnvelopeError::Length)?;
    let len = usize::from(u16::from_le_bytes(*len));
    if len > limits::ENVELOPE_TEXT_BYTES_MAX {
        return Err(EnvelopeError::Text);
    }
    let (text, after) = after.split_at_checked(len).ok_or(EnvelopeError::Length)?;
    *rest = after;
    std::str::from_utf8(text).map_err(|_| EnvelopeError::Text)
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "the envelope has the wrong length",
            Self::Version => "the envelope has a version that this program does not know",
            Self::Flags => "the envelope has an unknown flag",
            Self::Text => "a text of the envelope is malformed",
            Self::Recipients => "the envelope has the wrong number of recipients",
            Self::Address => "an address of the envelope is malformed",
            Self::MessageId => "a message id has sixteen hexadecimal digits",
        })
    }
}

impl std::error::Error for EnvelopeError {}

/// Checks on any octets that decoding is total, that an envelope has exactly one encoding, and that
/// the view agrees with the decoder.
#[cfg(any(test, fuzzing))]
pub fn fuzz_envelope(octets: &[u8]) {
    if let Ok(view) = EnvelopeView::new(octets) {
        for index in 0..view.recipient_count().saturating_add(1) {
            if let Ok(recipient) = view.recipient_ref(index) {
                assert!(recipient.address.len() <= octets.len());
            }
        }
    }
    let Ok(envelope) = Envelope::decode(octets) else {
        return;
    };
    let mut again = Vec::new();
    envelope.encode(&mut again);
    assert_eq!(again, octets);
}

#[cfg(test)]
mod tests;
