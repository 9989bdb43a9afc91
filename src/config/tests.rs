//! Tests of the reader against whole files.

use super::*;
use crate::dkim::{Canon, NoKey};
use crate::time::Wall;

const MINIMAL: &str = "[node]\nhostname = \"mta1.example.com\"\n";

/// The file of the design's section on contracts, as it stands there.
const DESIGN: &str = r#"
[node]
hostname = "mta1.example.com"
data_dir = "/var/lib/postrider"       # spool and state
shards = "auto"                       # one per core; or a number

[admin]
socket = "/run/postrider/admin.sock"

[[listener]]
address = "127.0.0.1:2525"
relay_from = ["127.0.0.0/8"]          # who may relay without authentication

[dns]
servers = ["127.0.0.1:5353"]          # default: the system's

[delivery]
port = 25                             # another port for tests
connections_max = 20                  # per (source, site), where no site rule says otherwise

[[dkim]]                              # signed when the From domain matches
domain = "example.com"
selector = "s1"
key = "/etc/postrider/dkim/example.com.pem"

[[source]]
name = "ip1"
address = "127.0.1.1"
helo = "ip1.example.com"

[[pool]]
name = "default"
sources = [{ source = "ip1", weight = 1 }]

[[route]]                             # first match wins; without a route, MX
domains = ["*"]
via = "127.0.0.1:2526"                # smarthost
"#;

fn problems(text: &str) -> Vec<String> {
    match parse(text.as_bytes()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// The only problem of a minimal file with `text` appended.
fn problem(text: &str) -> String {
    let found = problems(&format!("{MINIMAL}{text}"));
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    found[0].clone()
}

#[test]
fn the_file_of_the_design_is_understood() {
    let loaded = parse(DESIGN.as_bytes()).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let snapshot = loaded.snapshot;
    assert_eq!(&*snapshot.node.hostname, "mta1.example.com");
    assert_eq!(snapshot.node.shards, Shards::Auto);
    assert_eq!(
        snapshot.admin.socket.as_deref(),
        Some(Path::new("/run/postrider/admin.sock"))
    );
    assert_eq!(
        snapshot.listeners[0].address,
        "127.0.0.1:2525".parse().unwrap()
    );
    assert!(snapshot.listeners[0].may_relay("127.9.9.9".parse().unwrap()));
    assert!(!snapshot.listeners[0].may_relay("10.0.0.1".parse().unwrap()));
    assert_eq!(snapshot.dns.servers, ["127.0.0.1:5353".parse().unwrap()]);
    let key = &snapshot.dkim[0];
    assert_eq!(
        (&*key.selector, &*key.signing_domain),
        ("s1", "example.com")
    );
    assert_eq!(key.domain, DomainPattern::Exact("example.com".into()));
    assert_eq!((key.platform, &key.identity), (false, &None));
    assert_eq!(
        snapshot.sources[0].address,
        Some("127.0.1.1".parse().unwrap())
    );
    assert_eq!(
        snapshot.pools[0].members,
        [PoolMember {
            source: 0,
            weight: 1
        }]
    );
    assert_eq!(snapshot.routes[0].domains, [DomainPattern::Any]);
    assert_eq!(snapshot.routes[0].via[0].to_string(), "127.0.0.1:2526");
}

// Every default of the table reaches its field, and the unnamed source and pool exist.
#[test]
fn a_minimal_file_has_every_default() {
    let loaded = parse(MINIMAL.as_bytes()).unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    let snapshot = loaded.snapshot;
    assert_eq!(snapshot.node.data_dir, Path::new("/var/lib/postrider"));
    assert_eq!(snapshot.admin.socket, None);
    assert_eq!(snapshot.sources.len(), 1);
    assert_eq!(
        (&*snapshot.sources[0].helo, snapshot.sources[0].address),
        ("mta1.example.com", None)
    );
    assert_eq!(
        snapshot.pools[snapshot.default_pool].members,
        [PoolMember {
            source: 0,
            weight: 1
        }]
    );
    assert_eq!(snapshot.delivery.retry.len(), 6);
    assert_eq!(snapshot.delivery.rate, None);
    assert_eq!(snapshot.delivery.port, 25);
    assert_eq!(
        (snapshot.log.level, snapshot.log.format),
        (LogLevel::Info, LogFormat::Text)
    );
    let relaxed = (Canon::Relaxed, Canon::Relaxed);
    assert_eq!(snapshot.signing.no_key, NoKey::SendUnsigned);
    assert_eq!(snapshot.signing.canonicalization, relaxed);
    assert!(snapshot.signing.oversign.is_empty() && snapshot.signing.expire.is_none());
}

// A file that sets every parameter of the table to its example is understood, so that no example is
// wrong and no row is unknown to the builder.
#[test]
fn every_example_is_understood() {
    let mut text = String::new();
    for section in SECTIONS {
        match section.shape {
            Shape::Table => text.push_str(&format!("[{}]\n", section.name)),
            Shape::Array => text.push_str(&format!("[[{}]]\n", section.name)),
            Shape::Inline => continue,
        }
        for row in PARAMETERS.iter().filter(|row| row.section == section.name) {
            text.push_str(&format!("{} = {}\n", row.name, row.example));
        }
    }
    text.push_str("[[source]]\nname = \"ip2\"\n");
    let loaded = parse(text.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
    assert_eq!(
        loaded.snapshot.delivery.rate.map(|rate| rate.amount),
        Some(100)
    );
    assert_eq!(loaded.snapshot.pools[0].members[0].weight, 3);
    assert_eq!(loaded.snapshot.log.format, LogFormat::Json);
}

// Every row is in a section that exists, once, with a default and an example of its own type.
#[test]
fn the_table_is_consistent() {
    let mut seen = std::collections::HashSet::new();
    for row in PARAMETERS {
        let path = row.path();
        assert!(seen.insert(path.clone()), "{path} stands twice");
        assert!(
            parameters::section(row.section).is_some(),
            "{path} has no section"
        );
        assert!(
            row.about.ends_with('.') && row.about.len() > 15,
            "{path} is not documented"
        );
        assert!(
            read::read_literal(row, row.example).is_some(),
            "{path}: its example is wrong"
        );
        if let Absent::Default(literal) = row.absent {
            assert!(
                read::read_literal(row, literal).is_some(),
                "{path}: its default is wrong"
            );
        }
    }
    for section in SECTIONS {
        assert!(
            PARAMETERS.iter().any(|row| row.section == section.name),
            "{}",
            section.name
        );
    }
}

// Place, key, what is wrong, and the nearest name, for each kind of mistake.
#[test]
fn mistakes_say_where_and_what() {
    for (text, expected) in [
        (
            "[delivry]\n",
            "3:2: delivry: unknown section; did you mean \"delivery\"?",
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:25\"\nrelay_form = []\n",
            "5:1: listener[1].relay_form: unknown key; did you mean \"relay_from\"?",
        ),
        (
            "[delivery]\nhostname = \"x.example\"\n",
            "4:1: delivery.hostname: unknown key here; there is node.hostname",
        ),
        (
            "[[listener]]\nrelay_from = []\n",
            "3:1: listener[1].address: missing; for example address = \"127.0.0.1:2525\"",
        ),
        (
            "[delivery]\nconnections_max = 0\n",
            "4:19: delivery.connections_max: expected a number from 1 to 1000, found the number 0",
        ),
        (
            "[delivery]\nconnections_max = \"20\"\n",
            "4:19: delivery.connections_max: expected a number from 1 to 1000, found \"20\"",
        ),
        (
            "[spool]\nsegment_size = 64\n",
            "4:16: spool.segment_size: expected a size such as \"10MiB\", from 1MiB to 1GiB, \
             found the number 64",
        ),
        (
            "[delivery]\nexpire = \"4 days\"\n",
            "4:10: delivery.expire: \"4 days\" is not a duration such as \"20m\" \
             (ms, s, m, h, d, w)",
        ),
        (
            "[delivery]\nretry = [\"5m\", \"x\"]\n",
            "4:16: delivery.retry[2]: \"x\" is not a duration such as \"20m\" (ms, s, m, h, d, w)",
        ),
        (
            "[delivery]\nretry = []\n",
            "4:9: delivery.retry: an empty list; at least one is needed",
        ),
        (
            "[log]\nlevel = \"inof\"\n",
            "4:9: log.level: expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", \
             found \"inof\"; did you mean \"info\"?",
        ),
        (
            "[[node2]]\n",
            "3:3: node2: unknown section; did you mean \"node\"?",
        ),
        (
            "[[dns]]\n",
            "3:1: dns: expected one table [dns], found a list",
        ),
        (
            "[source]\nname = \"a\"\n",
            "3:1: source: expected tables [[source]], found a table",
        ),
    ] {
        assert_eq!(problem(text), expected, "{text}");
    }
}

#[test]
fn impossible_combinations_are_refused() {
    let source = |name: &str| format!("[[source]]\nname = \"{name}\"\n");
    let pool = |sources: &str| format!("[[pool]]\nname = \"p\"\nsources = [{sources}]\n");
    let listener = "[[listener]]\naddress = \"127.0.0.1:2525\"\n";
    for (text, expected) in [
        (
            source("a") + &source("a"),
            "source[2].name: \"a\" is already the name of source[1]",
        ),
        (
            pool("{ source = \"ip1\" }") + &source("ip2"),
            "no [[source]] is called \"ip1\"; did you mean",
        ),
        (
            pool("{ source = \"a\" }, { source = \"a\" }") + &source("a"),
            "\"a\" is in this pool already",
        ),
        (
            pool("{ source = \"a\", weight = 0 }") + &source("a"),
            "weight: expected a number from 1",
        ),
        (
            pool("{ source = \"a\", wieght = 1 }") + &source("a"),
            "did you mean \"weight\"?",
        ),
        (
            format!("{listener}{listener}"),
            "127.0.0.1:2525 is already the address of listener[1]",
        ),
        (
            format!("{listener}[[route]]\ndomains = [\"*\"]\nvia = \"127.0.0.1:2525\"\n"),
            "is a [[listener]] of this node: a mail loop",
        ),
        (
            "[delivery]\nexpire = \"5m\"\n".to_owned(),
            "before its second attempt",
        ),
        (
            "[spool]\nsegment_size = \"1048577\"\n".to_owned(),
            "multiple of 4 KiB",
        ),
        (
            format!("{listener}[spool]\nsegment_size = \"16MiB\"\n"),
            "does not fit into a segment",
        ),
        (
            "[[source]]\nname = \"a\"\naddress = \"0.0.0.0\"\n".to_owned(),
            "cannot leave from it",
        ),
        (
            "[[source]]\nname = \"a b\"\n".to_owned(),
            "a name of 1 to 64 letters",
        ),
    ] {
        let found = problem(&text);
        assert!(found.contains(expected), "{text}: {found}");
    }
}

fn dkim(rows: &str) -> String {
    format!("[[dkim]]\nselector = \"s1\"\nkey = \"/a.pem\"\n{rows}\n")
}

// Patterns, the signing domain that follows from them, and several rows of one rule.
#[test]
fn signing_is_understood() {
    let text = [
        MINIMAL,
        "[signing]\nno_key = \"platform\"\ncanonicalization = \"relaxed/simple\"\n\
         oversign = [\"X-A\", \"Precedence\"]\nexpire = \"2w\"\n",
        &dkim("domain = \"*.Example.com\"\nidentity = \"News@Sub.Example.com\""),
        &dkim("domain = \"*\"\nsigning_domain = \"platform.example\""),
        &dkim("domain = \"platform.example\"\nplatform = true"),
        "[[dkim]]\ndomain = \"platform.example\"\nselector = \"s2\"\nkey = \"/b.pem\"\n",
    ];
    let snapshot = parse(text.concat().as_bytes()).unwrap().snapshot;
    let signing = &snapshot.signing;
    assert_eq!(signing.no_key, NoKey::SignAsPlatform);
    assert_eq!(signing.canonicalization, (Canon::Relaxed, Canon::Simple));
    assert_eq!(signing.oversign, ["X-A".into(), "Precedence".into()]);
    assert_eq!(
        signing.expire.map(|expire| expire.as_secs()),
        Some(1_209_600)
    );
    let rows: Vec<(String, &str, bool)> = snapshot
        .dkim
        .iter()
        .map(|row| (row.domain.to_string(), &*row.signing_domain, row.platform))
        .collect();
    let row = |pattern: &str, domain, platform| (pattern.to_owned(), domain, platform);
    assert_eq!(
        rows,
        [
            row("*.example.com", "example.com", false),
            row("*", "platform.example", false),
            row("platform.example", "platform.example", true),
            row("platform.example", "platform.example", false),
        ]
    );
    assert_eq!(
        snapshot.dkim[0].identity.as_deref(),
        Some("News@sub.example.com")
    );
}

// The period of a key, as a TOML date-time and as a string; either end may be open.
#[test]
fn periods_of_keys_are_understood() {
    let text = [
        MINIMAL,
        &dkim("domain = \"always.test\""),
        &dkim("domain = \"a.test\"\nnot_after = 2027-01-08 01:30:00+01:30"),
        &dkim("domain = \"b.test\"\nnot_before = \"2027-01-01T00:00:00Z\""),
    ];
    let snapshot = parse(text.concat().as_bytes()).unwrap().snapshot;
    let [always, a, b] = &snapshot.dkim[..] else {
        panic!("three keys")
    };
    assert_eq!((always.not_before, always.not_after), (None, None));
    let (new_year, week) = (Wall(1_798_761_600_000), Wall(1_799_366_400_000));
    assert_eq!((a.not_before, a.not_after), (None, Some(week)));
    assert_eq!((b.not_before, b.not_after), (Some(new_year), None));
}

#[test]
fn impossible_periods_are_refused() {
    let own = dkim("domain = \"own.test\"");
    for (text, expected) in [
        (
            own.clone() + "not_before = 2027-01-01\n",
            "is not a date-time with its offset such as",
        ),
        (
            own.clone() + "not_after = 2027-01-01T00:00:00\n",
            "is not a date-time with its offset such as",
        ),
        (
            own.clone() + "not_after = \"tomorrow\"\n",
            "\"tomorrow\" is not a date-time",
        ),
        (
            own.clone() + "not_after = 5\n",
            "expected a date-time such as 2027-01-01T00:00:00Z, found the number 5",
        ),
        (
            own.clone()
                + "not_before = 2027-01-01T01:00:00+01:00\nnot_after = 2027-01-01T00:00:00Z\n",
            "not_after: not later than not_before",
        ),
    ] {
        let found = problem(&text);
        assert!(found.contains(expected), "{text}: {found}");
    }
}

#[test]
fn impossible_signing_is_refused() {
    let own = dkim("domain = \"own.test\"");
    for (text, expected) in [
        (
            own.clone() + &own,
            "dkim[1] is already the key of s1._domainkey.own.test",
        ),
        (
            own.clone() + &dkim("domain = \"*.own.test\"").replace("/a.pem", "/b.pem"),
            "dkim[1] has another key for s1._domainkey.own.test",
        ),
        (dkim("domain = \"*\""), "give signing_domain as well"),
        (dkim("domain = \"localhost\""), "not a full domain name"),
        (dkim("domain = \"a.*.test\""), "is not a host name"),
        (
            dkim("domain = \"*.own.test\"\nplatform = true"),
            "the platform has one domain, not *.own.test",
        ),
        (
            dkim("domain = \"own.test\"\nplatform = \"yes\""),
            "expected true or false, found \"yes\"",
        ),
        (
            dkim("domain = \"own.test\"\nidentity = \"@notown.test\""),
            "is not within the signing domain",
        ),
        (
            dkim("domain = \"own.test\"\nidentity = \"own.test\""),
            "is not an address such as",
        ),
        (
            own.clone() + "[signing]\nno_key = \"platform\"\n",
            "no [[dkim]] has platform = true",
        ),
        (
            "[signing]\noversign = [\"Received\"]\n".to_owned(),
            "\"Received\" is not the name of a header field that can be signed",
        ),
        (
            "[signing]\noversign = [\"a b\"]\n".to_owned(),
            "is not the name of a header field",
        ),
        (
            "[signing]\nexpire = \"4d\"\n".to_owned(),
            "signatures expire after 4d, mail waits up to 4d",
        ),
        (
            "[signing]\ncanonicalization = \"relaxed\"\n".to_owned(),
            "expected one of \"relaxed/relaxed\"",
        ),
    ] {
        let found = problem(&text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    let names: Vec<String> = (0..100).map(|number| format!("\"X-{number}\"")).collect();
    let many = format!("[signing]\noversign = [{}]\n", names.join(", "));
    assert!(problem(&many).contains("too many fields"));
    let nobody = format!("{MINIMAL}[signing]\nno_key = \"reject\"\n");
    let warnings = parse(nobody.as_bytes()).unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|one| one.message.contains("every message is refused"))
    );
}

// A person sees all mistakes of a file at once, in its order.
#[test]
fn all_mistakes_are_reported() {
    let text = "[node]\nhostnam = 1\n[delivery]\nport = 0\nexpires = \"1d\"\n[lgo]\n";
    let found = problems(text);
    assert_eq!(found.len(), 5, "{found:?}");
    let lines: Vec<&str> = found
        .iter()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(lines, ["1", "2", "4", "5", "6"]);
}

#[test]
fn syntax_errors_have_their_place() {
    let found = problems("[node]\nhostname = \"a.example\"\nshards = \n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("3:") && found[0].contains("not TOML"),
        "{found:?}"
    );
    let twice = problems("[node]\nhostname = \"a.example\"\nhostname = \"b.example\"\n");
    assert!(twice[0].contains("duplicate"), "{twice:?}");
}

#[test]
fn warnings_name_what_is_probably_not_meant() {
    let text = "[node]\nhostname = \"mta\"\n\
        [[listener]]\naddress = \"0.0.0.0:25\"\nrelay_from = [\"0.0.0.0/0\"]\n\
        [[listener]]\naddress = \"127.0.0.1:26\"\n\
        [[route]]\ndomains = [\"*\"]\nvia = \"relay.example\"\n\
        [[route]]\ndomains = [\"a.example\"]\nvia = [\"b.example\", \"10.0.0.1:26\"]\n";
    let warnings = parse(text.as_bytes()).unwrap().warnings;
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 4, "{texts:?}");
    for (text, part) in
        texts
            .iter()
            .zip(["full name", "open relay", "nobody may relay", "never used"])
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn descriptions_come_from_the_table() {
    let text = describe("delivery.retry").unwrap();
    assert!(
        text.contains("until delivery.expire") && text.contains("\"5m\""),
        "{text}"
    );
    assert!(
        describe("listener")
            .unwrap()
            .contains("listener.max_recipients")
    );
    let error = describe("delivery.retyr").unwrap_err();
    assert!(error.contains("did you mean \"delivery.retry\""), "{error}");
    assert_eq!(json().as_array().map(Vec::len), Some(PARAMETERS.len()));
    for row in PARAMETERS {
        assert!(
            markdown().contains(&format!("| `{}` |", row.name)),
            "{}",
            row.path()
        );
    }
}

// The committed reference is the one that the table prints.
#[test]
fn the_committed_reference_is_current() {
    let committed = include_str!("../../docs/configuration.md");
    let command = "cargo run -- check config --describe --markdown > docs/configuration.md";
    assert!(committed == markdown(), "the reference is old: {command}");
}

// Total: any bytes give a snapshot or problems. Mutations of real files reach deeper than noise.
#[test]
fn any_bytes_give_an_answer() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % bound as u64).unwrap()
    };
    let pieces: [&[u8]; 12] = [
        b"[",
        b"]]",
        b"\"",
        b"=",
        b"\n",
        b"\xff",
        b"{",
        b"99999999999999999999",
        b"-1",
        b"'''",
        b".",
        b"\0",
    ];
    let (mut understood, mut refused) = (0, 0);
    for _ in 0..3_000 {
        let mut bytes = DESIGN.as_bytes().to_vec();
        for _ in 0..random(6) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => drop(bytes.splice(at..at, pieces[random(pieces.len())].iter().copied())),
                2 => drop(bytes.drain(at..(at + random(30)).min(bytes.len()))),
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.is_empty() {
                bytes.push(b' ');
            }
        }
        match parse(&bytes) {
            Ok(_) => understood += 1,
            Err(problems) => {
                assert!(!problems.is_empty());
                assert!(
                    problems
                        .iter()
                        .all(|problem| !problem.message.contains("internal"))
                );
                refused += 1;
            }
        }
    }
    // Both ways were taken, so the mutations neither all miss nor all destroy.
    assert!(understood > 100 && refused > 100, "{understood} {refused}");
    let deep = "[".repeat(100_000);
    assert!(parse(format!("a = {deep}").as_bytes()).is_err());
    assert!(parse(&vec![b' '; CONFIG_BYTES_MAX + 1]).is_err());
}
