//! Tests of addresses and domains.

use super::*;
use crate::message::testing::Random;

// Valid paths: the text that goes on the wire, the normalised local part, the routable domain.
#[test]
fn valid_paths() {
    let table = [
        (
            "user@example.com",
            "user@example.com",
            "user",
            "example.com",
        ),
        (
            "User.Name+tag@Example.COM",
            "User.Name+tag@Example.COM",
            "User.Name+tag",
            "example.com",
        ),
        ("a@localhost", "a@localhost", "a", "localhost"),
        ("\"a\\b\"@x.org", "\"a\\b\"@x.org", "ab", "x.org"),
        ("\"a b\"@x.org", "\"a b\"@x.org", "\"a b\"", "x.org"),
        (
            "\"a\\ \\\"@\"@x.org",
            "\"a\\ \\\"@\"@x.org",
            "\"a \\\"@\"",
            "x.org",
        ),
        ("\"\"@x.org", "\"\"@x.org", "\"\"", "x.org"),
        ("@a.org,@[IPv6:::1]:u@x.org", "u@x.org", "u", "x.org"),
        ("u@[192.0.2.1]", "u@[192.0.2.1]", "u", "[192.0.2.1]"),
        (
            "u@[ipv6:2001:DB8:0::1]",
            "u@[ipv6:2001:DB8:0::1]",
            "u",
            "[IPv6:2001:db8::1]",
        ),
        ("us\u{e9}r@x.org", "us\u{e9}r@x.org", "us\u{e9}r", "x.org"),
        (
            "u@B\u{fc}cher.Example",
            "u@B\u{fc}cher.Example",
            "u",
            "xn--bcher-kva.example",
        ),
        (
            "u@\u{4f8b}\u{3002}jp",
            "u@\u{4f8b}\u{3002}jp",
            "u",
            "xn--fsq.jp",
        ),
        ("u@a_b.example", "u@a_b.example", "u", "a_b.example"),
        (
            "!#$%&'*+-/=?^_`{|}~@x",
            "!#$%&'*+-/=?^_`{|}~@x",
            "!#$%&'*+-/=?^_`{|}~",
            "x",
        ),
    ];
    for (path, text, local, domain) in table {
        let address = Address::parse_path(path.as_bytes()).expect(path);
        assert_eq!(address.as_str(), text);
        assert_eq!(address.local(), local, "{path}");
        assert_eq!(address.domain().as_str(), domain);
        assert_eq!(address.is_ascii(), text.is_ascii());
    }
}

// Malformed paths, each with its reason.
#[test]
fn refused_paths() {
    use AddressError as E;
    let table: [(&[u8], E); 30] = [
        (b"", E::Empty),
        (b"Postmaster", E::NoDomain),
        (b"a@", E::NoDomain),
        (b"@x.org", E::SourceRoute),
        (b"@x.org:", E::Empty),
        (b"@x..org:u@y", E::SourceRoute),
        (b".a@x", E::LocalPart),
        (b"a.@x", E::LocalPart),
        (b"a..b@x", E::LocalPart),
        (b"a b@x", E::LocalPart),
        (b"a\r\nb@x", E::LocalPart),
        (b"\"a@x", E::LocalPart),
        (b"\"a\"b@x", E::NoDomain),
        (b"\"a\r\n\"@x", E::LocalPart),
        (b"\"a\\\n\"@x", E::LocalPart),
        (b"a\x00@x", E::LocalPart),
        (b"a\xc2\x85@x", E::LocalPart),
        (b"a\xff@x", E::Encoding),
        (b"a@x.org:25", E::Domain),
        (b"a@x.", E::Domain),
        (b"a@.x", E::Domain),
        (b"a@x..y", E::Domain),
        (b"a@-x", E::Domain),
        (b"a@x-.org", E::Domain),
        (b"a@x y", E::Domain),
        (b"a@b@c", E::Domain),
        (b"a@[192.0.2.256]", E::Literal),
        (b"a@[192.0.2.1", E::Literal),
        (b"a@[IPv6:zz]", E::Literal),
        (b"a@x\xef\xbc\x8fy.org", E::Domain),
    ];
    for (path, error) in table {
        assert_eq!(
            Address::parse_path(path),
            Err(error),
            "{}",
            path.escape_ascii()
        );
    }
}

// Each limit holds at the limit and refuses one above: 64, 63, 255, 256.
#[test]
fn limits_hold() {
    let parse = |text: String| Address::parse_path(text.as_bytes()).map(|_| ());
    assert_eq!(parse(format!("{}@x", "a".repeat(64))), Ok(()));
    assert_eq!(
        parse(format!("{}@x", "a".repeat(65))),
        Err(AddressError::LocalPartTooLong)
    );
    assert_eq!(parse(format!("a@{}", "a".repeat(63))), Ok(()));
    assert_eq!(
        parse(format!("a@{}", "a".repeat(64))),
        Err(AddressError::Domain)
    );
    let domain = format!("{}a", "abcdefg.".repeat(31)) + ".abcde";
    assert_eq!(domain.len(), 255);
    assert!(Domain::parse(&domain).is_ok());
    assert_eq!(
        Domain::parse(&format!("{domain}a")),
        Err(AddressError::DomainTooLong)
    );
    let short = &domain[255 - 252..];
    assert_eq!(parse(format!("a@{short}")), Ok(()));
    assert_eq!(parse(format!("aa@{short}")), Err(AddressError::PathTooLong));
}

// The same mailbox written in two ways is equal; the text stays what it was.
#[test]
fn equality_is_by_mailbox() {
    let one: Address = "\"user\"@EXAMPLE.com".parse().unwrap();
    let two: Address = "user@example.com".parse().unwrap();
    assert_eq!(one, two);
    assert_ne!(one.as_str(), two.as_str());
    assert_ne!(two, "User@example.com".parse().unwrap());
    let set: std::collections::HashSet<Domain> = [one.domain().clone()].into();
    assert!(set.contains("example.com"));
    let postmaster = Address::postmaster(two.domain()).unwrap();
    assert_eq!(postmaster.as_str(), "postmaster@example.com");
}

// Random texts from the grammar's own pieces, and random octets, through the fuzz hook.
#[test]
fn random_octets() {
    let mut random = Random(1);
    let pieces: [&[u8]; 24] = [
        b"a",
        b"Z9",
        b"@",
        b"@",
        b".",
        b"-",
        b"\"",
        b"\\",
        b" ",
        b"[",
        b"]",
        b":",
        b",",
        b"IPv6:",
        b"192.0.2.1",
        b"::1",
        b"xn--",
        b"\xc3\xa9",
        b"\xe3\x80\x82",
        b"\xff",
        b"\r\n",
        b"\x00",
        b"_",
        b"x.org",
    ];
    let mut parsed = 0;
    for _ in 0..100_000 {
        let start: &[u8] = if random.below(2) == 0 { b"u@" } else { b"" };
        let text = [start, &random.soup(&pieces, 9)].concat();
        fuzz_address(&text);
        parsed += usize::from(Address::parse_path(&text).is_ok());
    }
    assert!(parsed > 500, "the pieces make addresses: {parsed}");
    for _ in 0..10_000 {
        let octets: Vec<u8> = (0..random.below(300))
            .map(|_| random.next() as u8)
            .collect();
        fuzz_address(&octets);
    }
}
