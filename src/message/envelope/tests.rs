//! Tests of the envelope and its bytes.

use super::*;
use crate::message::testing::Random;

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn full() -> Envelope {
    Envelope {
        sender: Some(address("bounce@example.com")),
        recipients: vec![
            Recipient {
                address: address("one@example.net"),
                notify: Notify::SUCCESS.with(Notify::DELAY),
                orcpt: Some("rfc822;One@example.net".into()),
            },
            Recipient::new(address("zw\u{f6}lf@b\u{fc}cher.example")),
            Recipient {
                notify: Notify::NEVER,
                ..Recipient::new(address("\"a b\"@[192.0.2.1]"))
            },
        ],
        smtputf8: true,
        body: BodyType::EightBitMime,
        ret: Some(Ret::Headers),
        envid: Some("envid 1".into()),
        pool: Some("default".into()),
        source: None,
        campaign: Some("autumn".into()),
        tenant: Some("acme".into()),
    }
}

fn encoded(envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope.encode(&mut bytes);
    bytes
}

// What was encoded is decoded, whole and recipient by recipient, and equal to the last octet.
#[test]
fn round_trip() {
    for envelope in [full(), Envelope::default()] {
        let bytes = encoded(&envelope);
        assert_eq!(Envelope::decode(&bytes), Ok(envelope.clone()));
        let view = EnvelopeView::new(&bytes).unwrap();
        assert_eq!(view.sender(), Ok(envelope.sender.clone()));
        assert_eq!(
            view.sender_text(),
            envelope.sender.as_ref().map_or("", Address::as_str)
        );
        assert_eq!(view.ret(), envelope.ret);
        assert_eq!(view.envid(), envelope.envid.as_deref());
        assert_eq!(view.pool(), envelope.pool.as_deref());
        assert_eq!(view.source(), envelope.source.as_deref());
        assert_eq!(view.campaign(), envelope.campaign.as_deref());
        assert_eq!(view.tenant(), envelope.tenant.as_deref());
        for (index, recipient) in envelope.recipients.iter().enumerate() {
            let read = view.recipient(index as u32).unwrap();
            assert_eq!(&read, recipient);
            assert_eq!(read.address.as_str(), recipient.address.as_str());
        }
        let count = view.recipient_count();
        assert_eq!(view.recipient(count), Err(EnvelopeError::Recipients));
    }
}

// The format on disk may not change by accident: one small envelope, octet by octet.
#[test]
fn layout_is_fixed() {
    let envelope = Envelope {
        sender: Some(address("s@x")),
        recipients: vec![Recipient::new(address("r@y"))],
        ..Envelope::default()
    };
    let expected = b"\x01\x00\x01\x00\x01\x00\x00\x00\x05\x00\x00\x00\x07\x00\x00\x00\
        \x03\x00s@x\x00\x00\x00\x00\x0e\x00\x03\x00r@y";
    assert_eq!(encoded(&envelope), expected);
    assert_eq!(
        encoded(&Envelope {
            sender: None,
            ..envelope
        })
        .len(),
        expected.len() - 5
    );
}

// Ten thousand recipients go in and out, and any one is read without the others.
#[test]
fn ten_thousand_recipients() {
    let recipients = (0..limits::RECIPIENTS_MAX)
        .map(|index| Recipient::new(address(&format!("user{index}@example.net"))));
    let envelope = Envelope {
        recipients: recipients.collect(),
        ..Envelope::default()
    };
    let bytes = encoded(&envelope);
    assert_eq!(Envelope::decode(&bytes), Ok(envelope));
    let view = EnvelopeView::new(&bytes).unwrap();
    assert_eq!(
        view.recipient_ref(9_999).unwrap().address,
        "user9999@example.net"
    );
    let mut more = bytes.clone();
    more[4..8].copy_from_slice(&(limits::RECIPIENTS_MAX + 1).to_le_bytes());
    assert_eq!(
        EnvelopeView::new(&more).err(),
        Some(EnvelopeError::Recipients)
    );
}

// Cut at every offset, or with an octet more, it is an error and never a shorter envelope.
#[test]
fn truncation_is_noticed() {
    let mut bytes = encoded(&full());
    for len in 0..bytes.len() {
        assert!(Envelope::decode(&bytes[..len]).is_err(), "{len}");
        assert!(EnvelopeView::new(&bytes[..len]).is_err(), "{len}");
    }
    bytes.push(0);
    assert!(Envelope::decode(&bytes).is_err());
    assert!(EnvelopeView::new(&bytes).is_err());
}

// Every single bit flipped, and random damage: an error, or another envelope whose bytes are these.
#[test]
fn damage_is_survived() {
    let good = encoded(&full());
    for bit in 0..8 * good.len() {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fuzz_envelope(&bytes);
    }
    let mut random = Random(2);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        bytes.truncate(random.below(2 * bytes.len()));
        fuzz_envelope(&bytes);
    }
    assert_eq!(
        Envelope::decode(&[&[2], &good[1..]].concat()),
        Err(EnvelopeError::Version)
    );
}

// Sixteen digits out, sixteen digits in; the two parts of the number stay apart.
#[test]
fn message_id() {
    let id = MessageId::new(1023, (1 << 52) - 1);
    assert_eq!((id.shard(), id.sequence()), (1023, (1 << 52) - 1));
    assert_eq!(MessageId::new(1, 0x42).to_string(), "0010000000000042");
    assert_eq!("0010000000000042".parse(), Ok(MessageId::new(1, 0x42)));
    for text in [
        "",
        "42",
        "001000000000004g",
        "+010000000000042",
        "00100000000000420",
    ] {
        assert_eq!(text.parse::<MessageId>(), Err(EnvelopeError::MessageId));
    }
}

// An explicit NOTIFY replaces the default set; only stored values come back.
#[test]
fn notify_sets() {
    let unspecified = Notify::default();
    assert!(unspecified.failure() && unspecified.delay() && !unspecified.success());
    assert!(!unspecified.is_specified());
    assert!(Notify::NEVER.is_never() && Notify::NEVER.is_specified());
    let both = Notify::SUCCESS.with(Notify::FAILURE);
    assert!(both.success() && both.failure() && !both.delay() && both.is_specified());
    let valid = (0..=255)
        .filter(|bits| Notify::from_bits(*bits).is_some())
        .count();
    assert_eq!(valid, 9);
}
