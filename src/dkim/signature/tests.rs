//! Layout, selection of fields, and the vectors of RFC 8463.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use super::{PrepareError, SignOptions, Unsigned, body_start, prepare, signed_fields};
use crate::dkim::base64;
use crate::dkim::canon;
use crate::dkim::key::PrivateKey;
use crate::dkim::record::{KeyKind, keygen};
use crate::dkim::ring::Identity;
use crate::dkim::{BodyHash, Canon};
use crate::limits;
use crate::time::Wall;

const NOW: Wall = Wall(1_795_000_000_999);

fn identity() -> Arc<Identity> {
    let pem = keygen(KeyKind::Ed25519).unwrap().pem;
    let key = Arc::new(PrivateKey::from_pem(&pem).unwrap());
    Arc::new(Identity::new("example.com", "s1", key).unwrap())
}

fn one(header: &str, options: &SignOptions) -> Result<Unsigned, PrepareError> {
    let body = BodyHash::of(Canon::Relaxed, b"x\r\n");
    prepare(header.as_bytes(), &body, &[identity()], options, NOW).map(|mut all| all.remove(0))
}

/// The tags of a field, unfolded and without blanks.
fn tag(unsigned: &Unsigned, name: &str) -> Option<String> {
    let text = String::from_utf8(unsigned.field.clone()).unwrap();
    let text: String = text.chars().filter(|one| !one.is_whitespace()).collect();
    let tags = text.strip_prefix("DKIM-Signature:").unwrap();
    tags.split(';')
        .find_map(|tag| tag.strip_prefix(&format!("{name}=")))
        .map(str::to_owned)
}

// RFC 8463 A: the message, the public key, and the Ed25519 signature bit by bit.
#[test]
fn rfc_8463_ed25519_vector() {
    let message = "From: Joe SixPack <joe@football.example.com>\r\n\
        To: Suzie Q <suzie@shopping.example.net>\r\n\
        Subject: Is dinner ready?\r\n\
        Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
        Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\
        \r\n\
        Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";
    let field = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n \
        d=football.example.com; i=@football.example.com;\r\n \
        q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n \
        subject : date : message-id : from : subject : date;\r\n \
        bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n \
        b=";
    let expected = "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\
        Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==";
    let body = BodyHash::of(
        Canon::Relaxed,
        &message.as_bytes()[body_start(message.as_bytes())..],
    );
    let mut text = Vec::new();
    base64::encode(&body.digest, &mut text);
    assert_eq!(text, b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=");
    let mut input = Vec::new();
    for line in message.split_inclusive("\r\n").take(5) {
        let colon = line.find(':').unwrap();
        canon::header_field(Canon::Relaxed, line.as_bytes(), colon, &mut input);
    }
    canon::header_field(
        Canon::Relaxed,
        field.as_bytes(),
        "DKIM-Signature".len(),
        &mut input,
    );
    input.truncate(input.len() - 2);
    let seed = base64::decode(b"nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=").unwrap();
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let public = base64::decode(b"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=").unwrap();
    assert_eq!(pair.public_key().as_ref(), public);
    text.clear();
    base64::encode(pair.sign(&canon::sha256(&input)).as_ref(), &mut text);
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}

// Names that occur are listed that often and once more; bottom field first; what does not occur
// once.
#[test]
fn fields_are_chosen_bottom_up_and_oversigned() {
    let header = "Subject: top\r\nFROM: a@example.com\r\nX-Other: 1\r\nsubject : bottom\r\n\
        List-Id: x\r\n\r\nSubject: body\r\n";
    let options = SignOptions::default();
    let unsigned = one(header, &options).unwrap();
    assert_eq!(
        tag(&unsigned, "h").unwrap(),
        "From:From:To:Cc:Subject:Subject:Subject:Date:Message-ID:Reply-To:MIME-Version:\
         Content-Type:Content-Transfer-Encoding:List-Unsubscribe:List-Unsubscribe-Post:\
         Feedback-ID:List-Id"
    );
    // What was hashed: the canonical fields in the order of h=, then ours.
    let mut input =
        b"from:a@example.com\r\nsubject:bottom\r\nsubject:top\r\nlist-id:x\r\n".to_vec();
    canon::header_field(
        Canon::Relaxed,
        &unsigned.field,
        "DKIM-Signature".len(),
        &mut input,
    );
    input.truncate(input.len() - 2);
    assert_eq!(unsigned.hash, canon::sha256(&input));
}

// Every tag of the default, and those of the options.
#[test]
fn tags_say_what_was_done() {
    let header = "From: a@example.com\r\n";
    let plain = one(header, &SignOptions::default()).unwrap();
    for (name, value) in [
        ("v", Some("1")),
        ("a", Some("ed25519-sha256")),
        ("c", Some("relaxed/relaxed")),
        ("d", Some("example.com")),
        ("s", Some("s1")),
        ("t", Some("1795000000")),
        ("x", None),
        ("i", None),
        ("l", None),
        ("b", Some("")),
    ] {
        assert_eq!(tag(&plain, name).as_deref(), value, "{name}");
    }
    let options = SignOptions::default().with_lifetime(Some(Duration::from_secs(86_400)));
    assert_eq!(
        tag(&one(header, &options).unwrap(), "x").unwrap(),
        "1795086400"
    );
    let agent = Identity::new("example.com", "s1", Arc::clone(identity().key()))
        .and_then(|one| one.with_agent("@news.example.com"))
        .unwrap();
    let body = BodyHash::of(Canon::Simple, b"");
    let options = SignOptions::default().with_canon(Canon::Simple, Canon::Simple);
    let all = prepare(header.as_bytes(), &body, &[Arc::new(agent)], &options, NOW).unwrap();
    assert_eq!(tag(&all[0], "i").unwrap(), "@news.example.com");
    assert_eq!(tag(&all[0], "c").unwrap(), "simple/simple");
}

// Operators add names; what must not be signed is refused.
#[test]
fn configured_names_are_oversigned() {
    let mut options = SignOptions::default();
    assert!(options.oversign("X-Campaign"));
    assert!(options.oversign("list-id"));
    for name in [
        "",
        "Received",
        "return-path",
        "DKIM-Signature",
        "a b",
        "a:b",
        "a;b",
        "\u{e4}",
    ] {
        assert!(!options.oversign(name), "{name}");
    }
    let unsigned = one("From: a\r\nX-Campaign: 7\r\n", &options).unwrap();
    let names = tag(&unsigned, "h").unwrap();
    assert!(
        names.ends_with("X-Campaign:X-Campaign") && names.contains("List-Id"),
        "{names}"
    );
    while options.oversign(&format!("X-{}", options.names.len())) {}
    assert_eq!(options.names.len(), limits::DKIM_NAMES_MAX);
}

// The finished field: lines within RFC 5322 2.1.1, base64 whole, CRLF at the end, for both key
// sizes.
#[test]
fn fields_are_folded() {
    for octets in [64, 256, 512] {
        let header = format!("From: a\r\n{}", "To: b\r\n".repeat(30));
        let unsigned = one(&header, &SignOptions::default()).unwrap();
        let field = unsigned.field.clone();
        let signature = vec![0xa5; octets];
        let mut out = Vec::new();
        unsigned.finish(&signature, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("\r\n") && text.starts_with("DKIM-Signature: v=1;"));
        assert!(text.lines().all(|line| line.len() <= 78), "{text}");
        assert!(
            text.lines().skip(1).all(|line| line.starts_with('\t')),
            "{text}"
        );
        let coded = &text.as_bytes()[field.len()..];
        assert_eq!(base64::decode(coded), Some(signature));
    }
}

// Errors: no From, another canonicalisation, no identity, too many repeats.
#[test]
fn what_cannot_be_signed_is_refused() {
    let options = SignOptions::default();
    assert_eq!(
        one("To: a\r\n", &options).unwrap_err(),
        PrepareError::NoFrom
    );
    assert_eq!(
        one("\r\nFrom: a\r\n", &options).unwrap_err(),
        PrepareError::NoFrom
    );
    let many = format!(
        "From: a\r\n{}",
        "Subject: x\r\n".repeat(limits::DKIM_SIGNED_FIELDS_MAX)
    );
    assert_eq!(
        one(&many, &options).unwrap_err(),
        PrepareError::TooManyFields
    );
    let body = BodyHash::of(Canon::Simple, b"");
    let refused = prepare(b"From: a\r\n", &body, &[identity()], &options, NOW).unwrap_err();
    assert_eq!(refused, PrepareError::BodyCanon);
    let body = BodyHash::of(Canon::Relaxed, b"");
    let refused = prepare(b"From: a\r\n", &body, &[], &options, NOW).unwrap_err();
    assert_eq!(refused, PrepareError::Identities);
    let all = vec![identity(); limits::DKIM_SIGNATURES_MAX + 1];
    let refused = prepare(b"From: a\r\n", &body, &all, &options, NOW).unwrap_err();
    assert_eq!(refused, PrepareError::Identities);
}

// Any cut of a header section is survived; lines without a colon are no fields.
#[test]
fn damaged_headers_are_survived() {
    let header = b"From: a\r\n b\r\nnothing\r\n: x\r\nTo:\r\n\t\r\nSubject: \n y\r\n\r\n";
    let options = SignOptions::default();
    for cut in 0..=header.len() {
        let found = signed_fields(&header[..cut], &options);
        assert_eq!(found.is_ok(), cut >= 5, "{cut}");
    }
    assert_eq!(body_start(b"\r\nbody"), 2);
    assert_eq!(body_start(b"A: b\r\n\r\nbody"), 8);
    assert_eq!(body_start(b"A: b\r\n"), 6);
}
