//! Tests of the service on the simulator's engine.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{SignError, SignService};
use crate::dkim::{
    BodyHash, Canon, Identity, KeyKind, KeyRing, NoKey, PrepareError, PrivateKey, SignOptions,
    keygen,
};
use crate::engine::sim::{RunEnd, SimOptions, SimPort, SimWorld};
use crate::engine::{Class, Port, yield_now};
use crate::message::{Address, ArrivedBody, Envelope, MessageId, header};
use crate::service::budget::Turns;
use crate::service::held::Held;
use crate::time::{Mono, Wall};

type Service = Rc<SignService<SimPort>>;

fn ring(no_key: NoKey, keys: &[(&str, &str, KeyKind)]) -> Arc<KeyRing> {
    let mut ring = KeyRing::new(no_key);
    for (domain, selector, kind) in keys {
        let key = PrivateKey::from_pem(&keygen(*kind).unwrap().pem).unwrap();
        let identity = Identity::new(domain, selector, Arc::new(key)).unwrap();
        ring.add(domain, Arc::new(identity)).unwrap();
    }
    Arc::new(ring)
}

fn own(selector: &str) -> Arc<KeyRing> {
    ring(NoKey::Reject, &[("own.test", selector, KeyKind::Ed25519)])
}

fn held(number: u64, from: &str) -> Held {
    let content = format!("From: {from}\r\nSubject: {number}\r\n\r\nHello\r\n");
    let sender = Some(Address::parse_path(b"a@own.test").unwrap());
    let envelope = Envelope {
        sender,
        ..Envelope::default()
    };
    Held::mapped(
        MessageId::new(0, number),
        envelope,
        Bytes::from(content),
        Wall(0),
    )
}

fn fields(held: &Held) -> String {
    String::from_utf8(held.signature.get().unwrap().to_vec()).unwrap()
}

/// Runs `scenario` on a service with these keys, in a calm world.
fn with_service<T: 'static, F: Future<Output = T> + 'static>(
    ring: Arc<KeyRing>,
    scenario: impl FnOnce(Service) -> F,
) -> T {
    let world = SimWorld::new(1, SimOptions::calm());
    let port = world.host("signer").port();
    let service = Rc::new(SignService::new(port.clone(), ring, SignOptions::default()));
    port.spawn(Class::Sign, Rc::clone(&service).run());
    let result = Rc::new(RefCell::new(None));
    let (shared, work) = (Rc::clone(&result), scenario(service));
    port.spawn(Class::Egress, async move {
        let output = work.await;
        shared.replace(Some(output));
    });
    let end = world.run_until(Mono::NEVER, 1_000_000, || result.borrow().is_some());
    assert_eq!(end, RunEnd::Reached);
    result.take().expect("run_until waited for it")
}

// Both algorithms sign, the sender's order kept; a second call changes nothing.
#[test]
fn a_message_is_signed_once_by_every_key() {
    let keys = [
        ("own.test", "r", KeyKind::Rsa2048),
        ("own.test", "e", KeyKind::Ed25519),
    ];
    with_service(ring(NoKey::SendUnsigned, &keys), async |service| {
        let message = held(1, "A <a@Own.Test>");
        service.sign(&message).await.unwrap();
        let text = fields(&message);
        assert_eq!(text.matches("DKIM-Signature:").count(), 2);
        let (rsa, ed) = (
            text.find("a=rsa-sha256").unwrap(),
            text.find("a=ed25519").unwrap(),
        );
        assert!(rsa < ed, "{text}");
        service.sign(&message).await.unwrap();
        let report = service.report();
        assert_eq!(report.single_signatures + report.lane_signatures, 1);
        assert_eq!((report.ed25519_signatures, report.failures), (1, 0));
    });
}

// Many at once: every waiter gets its own signature, and the lanes or the fallback made all.
#[test]
fn waiting_messages_get_their_own_signatures() {
    let keys = [("own.test", "r", KeyKind::Rsa2048)];
    with_service(ring(NoKey::SendUnsigned, &keys), async |service| {
        let messages: Vec<Rc<Held>> = (0..20).map(|n| Rc::new(held(n, "a@own.test"))).collect();
        let left = Rc::new(std::cell::Cell::new(messages.len()));
        let done = crate::engine::Signal::default();
        for message in &messages {
            let (service, message) = (Rc::clone(&service), Rc::clone(message));
            let (left, done) = (Rc::clone(&left), done.clone());
            let port = service.port.clone();
            port.spawn(Class::Egress, async move {
                service.sign(&message).await.unwrap();
                left.set(left.get() - 1);
                if left.get() == 0 {
                    done.raise();
                }
            });
        }
        done.raised().await;
        let mut all: Vec<String> = messages.iter().map(|message| fields(message)).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 20);
        let report = service.report();
        assert_eq!(report.single_signatures + report.lane_signatures, 20);
        assert!(service.waiting.borrow().is_empty());
    });
}

// A message read again from the spool has the signature of its first attempt; after a change of
// keys it gets a new one.
#[test]
fn a_retry_reuses_the_signature_until_the_keys_change() {
    with_service(own("old"), async |service| {
        let first = held(7, "a@own.test");
        service.sign(&first).await.unwrap();
        service.keep(&first);
        let again = held(7, "a@own.test");
        service.sign(&again).await.unwrap();
        assert_eq!(first.signature.get(), again.signature.get());
        assert_eq!(
            (service.report().ed25519_signatures, service.reused()),
            (1, 1)
        );
        let other = held(8, "a@own.test");
        service.sign(&other).await.unwrap();
        assert_eq!(
            (service.report().ed25519_signatures, service.reused()),
            (2, 1)
        );
        service.rekey(own("new"));
        let rekeyed = held(7, "a@own.test");
        service.sign(&rekeyed).await.unwrap();
        assert!(fields(&rekeyed).contains("s=new;"), "{}", fields(&rekeyed));
        assert_eq!(service.reused(), 1);
    });
}

// The 7-bit form of a message is signed for itself, and both signatures are kept for retries, for
// which the message is read and converted again.
#[test]
fn each_form_of_a_message_has_its_own_signature() {
    with_service(own("s1"), async |service| {
        let turns = Turns::default();
        let read = || {
            let content = Bytes::from("From: a@own.test\r\n\r\nGr\u{fc}n\r\n");
            let id = MessageId::new(0, 9);
            Arc::new(Held::mapped(id, Envelope::default(), content, Wall(0)))
        };
        let first = read();
        let form = first.for_receiver(false, &turns).await.unwrap();
        assert!(first.eight_bit && !form.eight_bit && form.content.is_ascii());
        assert!(Arc::ptr_eq(
            &form,
            &first.for_receiver(false, &turns).await.unwrap()
        ));
        assert!(Arc::ptr_eq(
            &first,
            &first.for_receiver(true, &turns).await.unwrap()
        ));
        service.sign(&form).await.unwrap();
        service.sign(&first).await.unwrap();
        assert_ne!(fields(&form), fields(&first));
        service.keep(&first);
        let again = read();
        let converted = again.for_receiver(false, &turns).await.unwrap();
        service.sign(&converted).await.unwrap();
        service.sign(&again).await.unwrap();
        assert_eq!(fields(&converted), fields(&form));
        assert_eq!(fields(&again), fields(&first));
        assert_eq!(converted.content, form.content);
        let made = service.report().ed25519_signatures;
        assert_eq!((made, service.reused()), (2, 2));
    });
}

/// What is learnt of a message while it arrives in pieces of so many octets.
fn arrive(service: &Service, message: &Held, step: usize) -> Option<ArrivedBody> {
    let mut watch = service.watch(&message.envelope)?;
    let content = &message.content;
    for end in (step..content.len()).step_by(step) {
        if !watch.more(&content[..end]) {
            return None;
        }
    }
    watch.finish(content)
}

// The body is hashed on its way in, and the signature is the one that would have been made without.
#[test]
fn a_body_that_was_hashed_on_arrival_is_not_hashed_again() {
    with_service(own("s1"), async |service| {
        let plain = held(1, "a@own.test");
        service.sign(&plain).await.unwrap();
        assert_eq!(service.hashed_on_arrival(), 0);
        for (count, step) in [(1, 1), (2, 7), (3, 1000)] {
            let mut message = held(1, "a@own.test");
            message.body = arrive(&service, &message, step);
            assert_eq!(message.body.unwrap().len, "Hello\r\n".len());
            service.sign(&message).await.unwrap();
            assert_eq!(fields(&message), fields(&plain));
            assert_eq!(service.hashed_on_arrival(), count);
        }
    });
}

// A hash of another body, or of another form of it, is not used.
#[test]
fn a_stale_hash_is_not_used() {
    with_service(own("s1"), async |service| {
        let plain = held(1, "a@own.test");
        service.sign(&plain).await.unwrap();
        let hash = |canon| BodyHash {
            canon,
            digest: [0; 32],
        };
        for (canon, len) in [(Canon::Relaxed, 6), (Canon::Simple, 7)] {
            let mut message = held(1, "a@own.test");
            let hash = hash(canon);
            message.body = Some(ArrivedBody { hash, len });
            service.sign(&message).await.unwrap();
            assert_eq!(fields(&message), fields(&plain));
        }
        let content = Bytes::from("From: a@own.test\r\n\r\nGr\u{fc}n\r\n");
        let id = MessageId::new(0, 9);
        let mut eight = Held::mapped(id, Envelope::default(), content, Wall(0));
        eight.body = arrive(&service, &eight, 5);
        assert!(eight.body.is_some());
        let turns = Turns::default();
        let form = Arc::new(eight).for_receiver(false, &turns).await.unwrap();
        assert_eq!(form.body, None, "a converted body is another body");
        service.sign(&form).await.unwrap();
        assert_eq!(service.hashed_on_arrival(), 0);
    });
}

// Only mail that may be signed is hashed on arrival: the envelope or the From field says so.
#[test]
fn mail_that_nobody_signs_is_not_hashed_on_arrival() {
    let message = |sender: &str, from: &str| {
        let mut message = held(1, from);
        message.envelope.sender = Address::parse_path(sender.as_bytes()).ok();
        message
    };
    with_service(own("s1"), async move |service| {
        for (sender, from, watched) in [
            ("a@own.test", "a@own.test", true),
            ("bounce@mail.test", "a@OWN.test", true),
            ("", "a@own.test", true),
            ("bounce@mail.test", "a@mail.test", false),
            ("bounce@mail.test", "nobody", false),
        ] {
            for step in [1, 10, 1000] {
                let arrived = arrive(&service, &message(sender, from), step);
                assert_eq!(arrived.is_some(), watched, "{sender} {from} {step}");
            }
        }
        service.rekey(ring(NoKey::Reject, &[]));
        assert!(service.watch(&held(1, "a@own.test").envelope).is_none());
    });
}

// Mail without a key is refused at submission; where its key went away later it waits; our own
// notifications go out unsigned.
#[test]
fn no_key_is_answered_by_policy() {
    with_service(own("s1"), async |service| {
        let admits = |from| {
            let message = held(1, from);
            service.admits(&message.content, &header::scan(&message.content))
        };
        for from in ["a@own.test", "X <A@OWN.TEST>"] {
            assert_eq!(admits(from), Ok(()));
        }
        for from in ["a@other.test", "", "a@sub.own.test"] {
            assert_eq!(admits(from), Err(SignError::NoKey));
        }
        let foreign = held(2, "a@other.test");
        assert_eq!(service.sign(&foreign).await, Err(SignError::NoKey));
        assert!(foreign.signature.get().is_none());
        let mut notification = held(3, "Mail Delivery System <postmaster@mta.test>");
        notification.envelope.sender = None;
        service.sign(&notification).await.unwrap();
        assert!(notification.signature.get().unwrap().is_empty());
    });
    with_service(ring(NoKey::SendUnsigned, &[]), async |service| {
        let message = held(1, "a@other.test");
        let scan = header::scan(&message.content);
        assert_eq!(service.admits(&message.content, &scan), Ok(()));
        service.sign(&message).await.unwrap();
        assert!(message.signature.get().unwrap().is_empty());
    });
}

/// Messages for which there is a key, which cannot be signed, and why.
fn unsignable() -> Vec<(Held, PrepareError)> {
    let from = "From: a@own.test\r\n";
    let many = |name: &str, count| {
        format!(
            "{from}{}\r\nbody\r\n",
            format!("{name}: x\r\n").repeat(count)
        )
    };
    let most = crate::limits::DKIM_SIGNED_FIELDS_MAX;
    [
        (
            "Subject: no From\r\n\r\nbody\r\n".to_owned(),
            PrepareError::NoFrom,
        ),
        (many("Subject", most), PrepareError::TooManyFields),
        // Behind a line that is no field: there our scan of the header ends, a verifier's does not.
        (
            format!("{from}no field\r\n{}", many("To", most)),
            PrepareError::TooManyFields,
        ),
    ]
    .into_iter()
    .map(|(content, reason)| {
        let mut message = held(1, "");
        message.content = Bytes::from(content);
        (message, reason)
    })
    .collect()
}

// Mail that has a key and no form to sign follows the policy for mail without a key: it is refused
// when it is submitted; what is stored all the same fails, our own notifications aside.
#[test]
fn mail_that_cannot_be_signed_is_refused_where_unsigned_mail_is() {
    with_service(own("s1"), async |service| {
        for (mut message, reason) in unsignable() {
            let error = SignError::Form(reason);
            let scan = header::scan(&message.content);
            assert_eq!(service.admits(&message.content, &scan), Err(error));
            if reason == PrepareError::TooManyFields {
                assert_eq!(service.sign(&message).await, Err(error));
                assert!(message.signature.get().is_none());
            }
            message.envelope.sender = None;
            service.sign(&message).await.unwrap();
            assert!(message.signature.get().unwrap().is_empty());
        }
        // Many fields that are not signed are no reason.
        let others = "X-Other: x\r\n".repeat(3 * crate::limits::DKIM_SIGNED_FIELDS_MAX);
        let content = format!("From: a@own.test\r\n{others}\r\nbody\r\n");
        let scan = header::scan(content.as_bytes());
        assert_eq!(service.admits(content.as_bytes(), &scan), Ok(()));
    });
}

// Where unsigned mail is sent, such mail is sent as well, and counted.
#[test]
fn mail_that_cannot_be_signed_is_counted_where_unsigned_mail_is_sent() {
    let mut keys = KeyRing::new(NoKey::SignAsPlatform);
    let key = PrivateKey::from_pem(&keygen(KeyKind::Ed25519).unwrap().pem).unwrap();
    let identity = Identity::new("platform.test", "p", Arc::new(key)).unwrap();
    keys.add_platform(Arc::new(identity)).unwrap();
    with_service(Arc::new(keys), async |service| {
        for (count, (message, _)) in (1..).zip(unsignable()) {
            let scan = header::scan(&message.content);
            assert_eq!(service.admits(&message.content, &scan), Ok(()));
            service.sign(&message).await.unwrap();
            assert!(message.signature.get().unwrap().is_empty());
            assert_eq!(service.unsignable(), count);
        }
        let good = held(2, "a@own.test");
        service.sign(&good).await.unwrap();
        assert!(fields(&good).contains("d=platform.test"));
        assert_eq!(service.unsignable(), 3);
    });
}

// A rotation planned beforehand: each key signs in its time, and outside of it counts as none.
#[test]
fn keys_sign_in_their_time() {
    with_service(own("s1"), async |service| {
        let start = service.port.wall();
        let hour = |count: u64| Some(start.after(Duration::from_secs(3600 * count)));
        let mut keys = KeyRing::new(NoKey::Reject);
        for (selector, from, until) in [("old", None, hour(2)), ("new", hour(1), hour(3))] {
            let key = PrivateKey::from_pem(&keygen(KeyKind::Ed25519).unwrap().pem).unwrap();
            let identity = Identity::new("own.test", selector, Arc::new(key)).unwrap();
            let identity = identity.with_period(from, until);
            keys.add("own.test", Arc::new(identity)).unwrap();
        }
        service.rekey(Arc::new(keys));
        for selectors in [&["old"][..], &["old", "new"], &["new"]] {
            let message = held(1, "a@own.test");
            service.sign(&message).await.unwrap();
            let text = fields(&message);
            let signs = |selector: &&str| text.contains(&format!("s={selector};"));
            assert!(selectors.iter().all(signs), "{text}");
            assert_eq!(text.matches("DKIM-Signature:").count(), selectors.len());
            let later = service.port.now().after(Duration::from_secs(3600));
            service.port.sleep_until(later).await;
        }
        let message = held(1, "a@own.test");
        let scan = header::scan(&message.content);
        let admitted = service.admits(&message.content, &scan);
        assert_eq!(admitted, Err(SignError::NoKey));
        assert_eq!(service.sign(&message).await, Err(SignError::NoKey));
    });
}

// Connections that wait for the same message convert it once, and a turn that nobody waits for any
// more goes to the next.
#[test]
fn a_message_is_converted_once_for_all_who_wait() {
    with_service(own("s1"), async |service| {
        let body = "Gr\u{fc}n ".repeat(crate::limits::MESSAGE_SLICE_BYTES);
        let content = Bytes::from(format!("From: a@own.test\r\n\r\n{body}\r\n"));
        let id = MessageId::new(0, 9);
        let message = Arc::new(Held::mapped(id, Envelope::default(), content, Wall(0)));
        let turns = Rc::new(Turns::default());
        let forms = Rc::new(RefCell::new(Vec::new()));
        let done = crate::engine::Signal::default();
        for _ in 0..5 {
            let (message, turns) = (Arc::clone(&message), Rc::clone(&turns));
            let (forms, done) = (Rc::clone(&forms), done.clone());
            service.port.spawn(Class::Egress, async move {
                let form = message.for_receiver(false, &turns).await.unwrap();
                forms.borrow_mut().push(form);
                if forms.borrow().len() == 5 {
                    done.raise();
                }
            });
        }
        yield_now().await;
        // One that gives up while others wait behind it.
        {
            let mut given_up = Box::pin(message.for_receiver(false, &turns));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(given_up.as_mut().poll(&mut context).is_pending());
        }
        done.raised().await;
        let forms = forms.borrow();
        assert!(forms.iter().all(|form| Arc::ptr_eq(form, &forms[0])));
    });
}
