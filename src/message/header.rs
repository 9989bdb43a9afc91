//! header - one pass over the header section of a submission.

use super::content::Content;
use super::envelope::Envelope;
use super::status::EnhancedStatus;

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
    /// The header section is longer than the limit; the scan ended there.
    pub too_long: bool,
    /// The domain of the first address in the first From field.
    pub from_domain: Option<std::ops::Range<usize>>,
}

/// A content whose control fields have been taken out, fit for the spool.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The content, without the control fields.
    pub content: Content,
    /// The scan, with offsets into that content.
    pub scan: HeaderScan,
}

/// Why a message is refused by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckError {
    /// Too many Received fields: 554 5.4.6.
    Loop,
}

impl CheckError {
    /// The code for the reply.
    #[must_use]
    pub fn status(self) -> EnhancedStatus {
        EnhancedStatus::ROUTING_LOOP
    }
}

/// Reads the header section of `content`.
#[must_use]
pub fn scan(_content: &[u8]) -> HeaderScan {
    HeaderScan::default()
}

/// Takes the control fields out of `content` into `envelope`.
pub fn check(content: Content, _envelope: &mut Envelope) -> Result<Checked, CheckError> {
    let scan = scan(content.as_slice());
    Ok(Checked { content, scan })
}
