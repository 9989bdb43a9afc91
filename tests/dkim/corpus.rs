//! The messages, and how they are signed.

use std::sync::Arc;

use postrider::dkim::{
    BodyHash, Canon, Choice, Identity, KeyKind, KeyRing, NoKey, PrivateKey, SignOptions, Signer,
    SignerConfig, body_start, keygen, prepare,
};
use postrider::time::Wall;

/// What is published: (name without final dot, text).
pub(crate) type Zone = Vec<(String, String)>;

/// A signing setup.
pub(crate) struct Setup {
    pub(crate) ring: KeyRing,
    pub(crate) zone: Zone,
}

/// Rings over `example.com`: each `(selector, kind)` signs.
pub(crate) fn setup(keys: &[(&str, KeyKind)]) -> Setup {
    let mut ring = KeyRing::new(NoKey::Reject);
    let mut zone = Vec::new();
    for (selector, kind) in keys {
        let new = keygen(*kind).unwrap();
        let key = Arc::new(PrivateKey::from_pem(&new.pem).unwrap());
        let identity = Identity::new("example.com", selector, key).unwrap();
        zone.push((identity.record_name(), new.record));
        ring.add("example.com", Arc::new(identity)).unwrap();
    }
    Setup { ring, zone }
}

/// Signs all messages, in batches as a shard would; each comes back with its fields in front.
pub(crate) fn sign(
    setup: &Setup,
    options: &SignOptions,
    body: Canon,
    messages: &[Vec<u8>],
    now: Wall,
) -> Vec<Vec<u8>> {
    let Choice::Sign(identities) = setup.ring.choose(Some("example.com"), now) else {
        panic!("the ring has keys for example.com");
    };
    let mut signer = Signer::new(SignerConfig::default());
    let mut done = Vec::new();
    let mut tickets = Vec::new();
    for message in messages {
        let (header, content) = message.split_at(body_start(message));
        let hash = BodyHash::of(body, content);
        let job = prepare(header, &hash, &identities, options, now).unwrap();
        tickets.push(signer.submit(job).unwrap());
    }
    while signer.pending() > 0 {
        signer.run_batch(&mut done);
    }
    done.sort_by_key(|signed| signed.ticket);
    assert_eq!(done.len(), messages.len());
    let put_together = |((message, ticket), signed): ((&Vec<u8>, _), postrider::dkim::Signed)| {
        assert_eq!(signed.ticket, ticket);
        [&signed.fields.unwrap(), &message[..]].concat()
    };
    messages
        .iter()
        .zip(tickets)
        .zip(done)
        .map(put_together)
        .collect()
}

/// A date that verifiers do not call the future.
pub(crate) fn now() -> Wall {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Wall(since.as_millis() as u64)
}

const COMMON: &str = "Message-ID: <1@example.com>\r\nDate: Fri, 20 Nov 2026 10:00:00 +0000\r\n";

/// Header sections with a From field in example.com, without the empty line.
fn headers() -> Vec<String> {
    let from = "From: News <news@example.com>\r\n";
    let mime = "MIME-Version: 1.0\r\nContent-Type: multipart/alternative;\r\n boundary=\"b\"\r\n";
    let mut all: Vec<String> = [
        "",
        "Subject: plain\r\nTo: a@example.net\r\n",
        "Subject:\r\nTo: a@example.net\r\n",
        "Subject:no blank\r\nTo:a@example.net\r\n",
        "Subject:    many   blanks\tand \t tabs   \r\nTo: a@example.net\t\r\n",
        "Subject: folded\r\n with a blank\r\n\twith a tab\r\n   \t with both\r\n",
        "SUBJECT: upper case\r\nto: lower@example.net\r\nmessage-id: <2@example.com>\r\n",
        "Subject: =?utf-8?q?caf=C3=A9?=\r\n =?utf-8?q?_au_lait?=\r\n",
        "To: a@example.net,\r\n b@example.net,\r\n\tc@example.net\r\nCc: d@example.net\r\n",
        "Reply-To: r@example.com\r\nSender: s@example.com\r\nIn-Reply-To: <0@x>\r\n\
         References: <0@x>\r\n",
        "List-Unsubscribe: <https://example.com/u?t=1>,\r\n <mailto:u@example.com>\r\n\
         List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nFeedback-ID: 1:2:3:example\r\n\
         List-Id: News <news.example.com>\r\n",
        "Received: from a by b; Fri, 20 Nov 2026 10:00:00 +0000\r\n\
         Received: from c\r\n by d;\r\n date\r\n",
        "X-Semicolons: a; b=c; bh=d; b=e;\r\nX-Colons: a:b:c\r\nX-Empty:\r\nX-Blank: \r\n",
        "Comments: one\r\nComments: two\r\nTo: a@example.net\r\nTo: b@example.net\r\n\
         Subject: x\r\nSubject: y\r\n",
        "DKIM-Signature: v=1; a=rsa-sha256; d=other.test; s=x; h=From; bh=AAAA; b=BBBB\r\n",
    ]
    .iter()
    .map(|fields| format!("{from}{COMMON}{fields}"))
    .collect();
    all.push(format!(
        "{COMMON}{mime}Content-Transfer-Encoding: 8bit\r\n{from}"
    ));
    all.push(format!("{from}{COMMON}Subject: {}\r\n", "x".repeat(980)));
    all.push(format!(
        "{from}{COMMON}Subject: long\r\n {}\r\n",
        "word ".repeat(150)
    ));
    all
}

/// Bodies.
fn bodies() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        &b""[..],
        b"\r\n",
        b"\r\n\r\n\r\n",
        b"Hello.\r\n",
        b"Hello.\r\n\r\n\r\n\r\n",
        b"\r\n\r\nHello.\r\n",
        b"trailing blanks   \r\nand tabs\t\t\r\n \r\n\t\r\nend \t \r\n",
        b"  leading\r\n\tleading tab\r\n   in  the   middle\r\n",
        b"a\tb\r\na \tb\r\na\t b\r\n",
        b"..\r\n.\r\n.dot\r\n. \r\n",
        b"caf\xc3\xa9 \xe4\xf6\xfc \xff\xfe\r\n",
        b" \r\n",
        b"x\r\n \t \r\n\r\n",
        b"--b\r\nContent-Type: text/plain\r\n\r\nplain\r\n\
        --b\r\nContent-Type: text/html\r\n\r\n<p>  x\r\n--b--\r\n",
    ]
    .iter()
    .map(|body| body.to_vec())
    .collect();
    all.push([&b"y".repeat(998)[..], b"\r\n"].concat());
    all.push(b"The quick brown fox jumps over the lazy dog,  and home. \r\n".repeat(800));
    all.push(b"\r\n".repeat(3000));
    all
}

/// Every header with every body, and the big ones.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for header in headers() {
        for body in bodies() {
            all.push([header.as_bytes(), b"\r\n", &body].concat());
        }
    }
    let many: String = (0..10_000)
        .map(|n| format!("X-Field-{n}: value {n}\r\n"))
        .collect();
    all.push(format!("{many}From: a@example.com\r\n{COMMON}\r\nbody\r\n").into_bytes());
    // 8-bit header fields, as nobody should send them.
    let from = b"From: caf\xc3\xa9 <a@example.com>\r\nSubject: \xe4\xf6 \xc3\xa9\r\n";
    all.push([&from[..], COMMON.as_bytes(), b"\r\nx\r\n"].concat());
    all
}

/// A message without a line end at its end: relays add one, and so does the canonical form.
pub(crate) fn unfinished() -> Vec<Vec<u8>> {
    let header = "From: a@example.com\r\nSubject: x\r\n\r\n";
    ["x", "x\r\ny", "x \r\n\r\ny"]
        .iter()
        .map(|body| format!("{header}{body}").into_bytes())
        .collect()
}

/// What an attacker does to a signed message; each must break every signature.
pub(crate) fn forgeries(signed: &[u8]) -> Vec<Vec<u8>> {
    let header = body_start(signed) - 2;
    let insert = |at: usize, field: &str| [&signed[..at], field.as_bytes(), &signed[at..]].concat();
    let mut changed = signed.to_vec();
    changed.extend_from_slice(b"more\r\n");
    vec![
        insert(0, "From: <forged@example.com>\r\n"),
        insert(header, "From: <forged@example.com>\r\n"),
        insert(0, "Subject: forged\r\n"),
        insert(header, "Subject: forged\r\n"),
        insert(0, "List-Unsubscribe: <https://forged.example>\r\n"),
        insert(header, "Content-Type: text/html\r\n"),
        changed,
    ]
}

/// Whether a field repeats that RFC 5322 3.6 allows once: opendkim refuses to judge such a message.
pub(crate) fn repeats_a_single_field(message: &[u8]) -> bool {
    let header = message[..body_start(message)].to_ascii_lowercase();
    [
        "from",
        "to",
        "cc",
        "subject",
        "date",
        "message-id",
        "reply-to",
        "sender",
    ]
    .iter()
    .any(|name| {
        let start = format!("\r\n{name}:");
        let text = [b"\r\n", &header[..]].concat();
        memchr::memmem::find_iter(&text, &start).count() > 1
    })
}

/// Whether the body ends in lines of blanks, which relaxed canonicalisation empties and then drops.
pub(crate) fn ends_in_blank_lines(message: &[u8]) -> bool {
    let body = &message[body_start(message)..];
    let visible = body.iter().rposition(|byte| !byte.is_ascii_whitespace());
    let tail = visible.map_or(&b"\r\n"[..], |_| b"").to_vec();
    let tail = [&tail, &body[visible.map_or(0, |at| at + 1)..]].concat();
    [&b"\n "[..], b"\n\t"]
        .iter()
        .any(|blank| memchr::memmem::find(&tail, blank).is_some())
}
