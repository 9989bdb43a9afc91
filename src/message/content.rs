//! content - the bytes of one message.
//!
//! What: our trace field, the header and the body, with CRLF line ends, built once and shared from
//! then on: the spool, the signer and every delivery hold the same allocation.
//! Why this way: while the message arrives the bytes are a plain vector; afterwards they are a
//! `bytes::Bytes`, whose start can be moved. Cutting a header field therefore moves the few octets
//! in front of it, never the body.

use std::ops::Range;

use bytes::{Buf, Bytes};

/// The bytes of one message. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    data: Bytes,
}

impl Content {
    /// A builder with room for `capacity` octets.
    #[must_use]
    pub fn builder(capacity: usize) -> ContentBuilder {
        ContentBuilder {
            data: Vec::with_capacity(capacity),
        }
    }

    /// The octets of `data` from `start` on, without copying them. Precondition: `start` is inside.
    #[must_use]
    pub fn from_parts(data: Vec<u8>, start: usize) -> Self {
        let mut data = Bytes::from(data);
        data.advance(start);
        Self { data }
    }

    /// All octets.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.data
    }

    /// A shared handle to all octets; nothing is copied.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.data.clone()
    }

    /// Number of octets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is not one octet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Whether every octet is below 128: the message can go to a receiver without 8BITMIME.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.data.is_ascii()
    }

    /// Removes `ranges`, which are ascending, disjoint and inside. What stands before the last one
    /// moves towards the end; what stands behind it stays where it is. Only a content that is
    /// shared already is copied.
    pub(super) fn cut(&mut self, ranges: &[Range<usize>]) {
        let Some(last) = ranges.last() else { return };
        assert!(last.end <= self.data.len());
        let mut data = match std::mem::take(&mut self.data).try_into_mut() {
            Ok(data) => data,
            Err(shared) => shared.as_ref().into(),
        };
        let mut free_end = last.end;
        for (index, range) in ranges.iter().enumerate().rev() {
            let kept_start = index.checked_sub(1).map_or(0, |before| ranges[before].end);
            assert!(kept_start <= range.start);
            assert!(range.start <= range.end);
            let kept = range.start - kept_start;
            data.copy_within(kept_start..range.start, free_end - kept);
            free_end -= kept;
        }
        data.advance(free_end);
        self.data = data.freeze();
    }
}

impl From<Vec<u8>> for Content {
    fn from(data: Vec<u8>) -> Self {
        Self {
            data: Bytes::from(data),
        }
    }
}

impl From<Bytes> for Content {
    fn from(data: Bytes) -> Self {
        Self { data }
    }
}

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// A content while it arrives.
#[derive(Debug, Default)]
pub struct ContentBuilder {
    data: Vec<u8>,
}

impl ContentBuilder {
    /// Makes room for `additional` octets more.
    pub fn reserve(&mut self, additional: usize) {
        self.data.reserve(additional);
    }

    /// Appends `octets`.
    pub fn extend_from_slice(&mut self, octets: &[u8]) {
        self.data.extend_from_slice(octets);
    }

    /// The vector itself, for decoders that append to one.
    pub fn as_mut_vec(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// The octets so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.data
    }

    /// Number of octets so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether nothing has arrived yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The finished content; nothing is copied.
    #[must_use]
    pub fn finish(self) -> Content {
        Content::from(self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Cutting two fields out of the middle leaves the rest in order and does not move the body.
    #[test]
    fn cut_moves_only_what_is_before() {
        let mut content = Content::from(b"aaXXXbbbYYccc".to_vec());
        let tail = content.as_slice()[10..].as_ptr();
        content.cut(&[2..5, 8..10]);
        assert_eq!(content.as_slice(), b"aabbbccc");
        assert_eq!(content.as_slice()[5..].as_ptr(), tail);
    }

    // A handle taken before the cut keeps the old bytes: nobody sees a shared body change.
    #[test]
    fn cut_of_shared_content_copies() {
        let mut content = Content::from(b"XXbody".to_vec());
        let before = content.bytes();
        content.cut(&[0..2, 2..2]);
        assert_eq!(content.as_slice(), b"body");
        assert_eq!(&before[..], b"XXbody");
        content.cut(&[]);
        assert_eq!(content.as_slice(), b"body");
    }

    // The builder, the vector and the shared handle are one allocation.
    #[test]
    fn nothing_is_copied() {
        let mut builder = Content::builder(100);
        builder.extend_from_slice(b"abc");
        builder.as_mut_vec().push(b'd');
        let place = builder.as_slice().as_ptr();
        let content = builder.finish();
        assert_eq!(content.bytes().as_ptr(), place);
        assert_eq!(content.as_slice(), b"abcd");
        let data = b"prefix rest".to_vec();
        let place = data[7..].as_ptr();
        let content = Content::from_parts(data, 7);
        assert_eq!(content.as_slice(), b"rest");
        assert_eq!(content.as_slice().as_ptr(), place);
    }
}
