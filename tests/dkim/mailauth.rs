//! mail-auth as verifier, with the zone in its cache: no name is ever asked for.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{
    AuthenticatedMessage, DkimResult, MX, MessageAuthenticator, Parameters, RecordSet,
    ResolverCache, Txt,
};
use postrider::dkim::{Canon, KeyKind, SignOptions};

use crate::corpus::{self, Setup, Zone, setup};

struct Cache(HashMap<Box<str>, Txt>);

impl Cache {
    fn of(zone: &Zone) -> Self {
        let parse = |(name, text): &(String, String)| {
            let key = DomainKey::parse(text.as_bytes()).unwrap();
            (format!("{name}.").into_boxed_str(), Txt::from(key))
        };
        Self(zone.iter().map(parse).collect())
    }
}

impl ResolverCache<Box<str>, Txt> for Cache {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let known = self.0.get(name).cloned();
        assert!(known.is_some(), "a name outside the zone was asked for");
        known
    }

    fn remove<Q>(&self, _name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _key: Box<str>, _value: Txt, _valid_until: Instant) {}
}

/// Caches for records that DKIM does not use.
struct Never;

macro_rules! never {
    ($key:ty, $value:ty) => {
        impl ResolverCache<$key, $value> for Never {
            fn get<Q>(&self, _name: &Q) -> Option<$value>
            where
                $key: Borrow<Q>,
                Q: Hash + Eq + ?Sized,
            {
                None
            }

            fn remove<Q>(&self, _name: &Q) -> Option<$value>
            where
                $key: Borrow<Q>,
                Q: Hash + Eq + ?Sized,
            {
                None
            }

            fn insert(&self, _key: $key, _value: $value, _valid_until: Instant) {}
        }
    };
}

never!(Box<str>, RecordSet<MX>);
never!(Box<str>, RecordSet<Ipv4Addr>);
never!(Box<str>, RecordSet<Ipv6Addr>);
never!(IpAddr, RecordSet<Box<str>>);

/// mail-auth, with records that it need not fetch.
pub(crate) struct Verifier {
    authenticator: MessageAuthenticator,
    cache: Cache,
    runtime: tokio::runtime::Runtime,
}

impl Verifier {
    pub(crate) fn new(zone: &Zone) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let authenticator =
            MessageAuthenticator::new(ResolverConfig::default(), ResolverOpts::default()).unwrap();
        Self {
            authenticator,
            cache: Cache::of(zone),
            runtime,
        }
    }

    /// The verdicts on signatures by example.com, topmost first.
    fn verify(&self, message: &[u8]) -> Vec<DkimResult> {
        let parsed = AuthenticatedMessage::parse(message).unwrap();
        let parameters: Parameters<'_, _, Cache, Never, Never, Never, Never> = Parameters {
            params: &parsed,
            cache_txt: Some(&self.cache),
            cache_mx: None,
            cache_ptr: None,
            cache_ipv4: None,
            cache_ipv6: None,
        };
        self.runtime
            .block_on(self.authenticator.verify_dkim(parameters))
            .iter()
            .filter(|output| output.signature().is_some_and(|one| one.d == "example.com"))
            .map(|output| output.result().clone())
            .collect()
    }

    pub(crate) fn assert_pass(&self, message: &[u8], signatures: usize) {
        let results = self.verify(message);
        let passed = results
            .iter()
            .all(|result| matches!(result, DkimResult::Pass));
        let shown = String::from_utf8_lossy(&message[..message.len().min(3000)]).into_owned();
        assert!(
            passed && results.len() == signatures,
            "{results:?}\n{shown}"
        );
    }

    pub(crate) fn assert_broken(&self, message: &[u8]) {
        let results = self.verify(message);
        let passed = results
            .iter()
            .any(|result| matches!(result, DkimResult::Pass));
        let shown = String::from_utf8_lossy(&message[..message.len().min(3000)]).into_owned();
        assert!(!passed, "a forgery passed: {results:?}\n{shown}");
    }
}

fn dual() -> Setup {
    setup(&[("rsa1", KeyKind::Rsa2048), ("ed1", KeyKind::Ed25519)])
}

/// mail-auth 0.13.3 keeps lines of blanks at the end of a relaxed body as empty lines; RFC 6376
/// 3.4.4 empties them first and then ignores them, and the other verifiers do so (`interop`). Such
/// messages are theirs to judge.
pub(crate) fn judged_by_mail_auth(body: Canon, message: &[u8]) -> bool {
    body == Canon::Simple || !corpus::ends_in_blank_lines(message)
}

fn judged_messages(body: Canon) -> Vec<Vec<u8>> {
    let all = corpus::messages().into_iter();
    all.filter(|message| judged_by_mail_auth(body, message))
        .collect()
}

// The whole corpus with two algorithms, in all four canonicalisations.
#[test]
fn mail_auth_verifies_every_message() {
    let setup = dual();
    let verifier = Verifier::new(&setup.zone);
    for header in [Canon::Relaxed, Canon::Simple] {
        for body in [Canon::Relaxed, Canon::Simple] {
            let messages = judged_messages(body);
            assert!(messages.len() >= 200, "{}", messages.len());
            let options = SignOptions::default()
                .with_canon(header, body)
                .with_lifetime(Some(Duration::from_secs(7 * 86_400)));
            for signed in corpus::sign(&setup, &options, body, &messages, corpus::now()) {
                verifier.assert_pass(&signed, 2);
            }
        }
    }
}

// A relay that adds the missing last line end does not break the signature.
#[test]
fn a_missing_last_line_end_is_no_harm() {
    let setup = dual();
    let verifier = Verifier::new(&setup.zone);
    let options = SignOptions::default();
    let messages = corpus::unfinished();
    for signed in corpus::sign(&setup, &options, Canon::Relaxed, &messages, corpus::now()) {
        verifier.assert_pass(&[&signed[..], b"\r\n"].concat(), 2);
    }
}

// Oversigning: another From, Subject, List-Unsubscribe or Content-Type, or a longer body, breaks
// it.
#[test]
fn forgeries_fail() {
    let setup = dual();
    let verifier = Verifier::new(&setup.zone);
    let options = SignOptions::default();
    let messages: Vec<_> = judged_messages(Canon::Relaxed)
        .into_iter()
        .step_by(13)
        .collect();
    for signed in corpus::sign(&setup, &options, Canon::Relaxed, &messages, corpus::now()) {
        verifier.assert_pass(&signed, 2);
        for forged in corpus::forgeries(&signed) {
            verifier.assert_broken(&forged);
        }
    }
}

// RSA-4096 from the lanes.
#[test]
fn mail_auth_verifies_longer_keys() {
    let setup = setup(&[("long", KeyKind::Rsa4096)]);
    let verifier = Verifier::new(&setup.zone);
    let options = SignOptions::default();
    let messages: Vec<_> = judged_messages(Canon::Relaxed)
        .into_iter()
        .take(20)
        .collect();
    for signed in corpus::sign(&setup, &options, Canon::Relaxed, &messages, corpus::now()) {
        verifier.assert_pass(&signed, 1);
    }
}

// A signature whose x= has passed is not accepted any more.
#[test]
fn expired_signatures_fail() {
    let setup = dual();
    let verifier = Verifier::new(&setup.zone);
    let options = SignOptions::default().with_lifetime(Some(Duration::from_secs(60)));
    let long_ago = postrider::time::Wall(1_600_000_000_000);
    let messages = vec![b"From: a@example.com\r\n\r\nx\r\n".to_vec()];
    for signed in corpus::sign(&setup, &options, Canon::Relaxed, &messages, long_ago) {
        verifier.assert_broken(&signed);
    }
}
