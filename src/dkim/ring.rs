//! dkim::ring - which keys sign a message, by the domain of its From field.
//!
//! What: [`KeyRing`], an immutable table made from the configuration; shards share it by `Arc` and
//! get a new one on reload. Lookup: the exact domain, then the nearest parent's wildcard
//! (`*.example.com`), then the default (`*`). All active identities of the rule found sign: both
//! algorithms, and both selectors during a rotation.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::dkim::key::PrivateKey;
use crate::limits;
use crate::time::Wall;

/// One signing identity: whose name (`d=`), which record (`s=`), which key.
#[derive(Debug)]
pub struct Identity {
    domain: Box<str>,
    selector: Box<str>,
    key: Arc<PrivateKey>,
    agent: Option<Box<str>>,
    active_from: Option<Wall>,
    active_until: Option<Wall>,
}

/// What is wrong with an identity or a rule, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingError {
    /// Not a domain name in A-label form.
    Domain(Box<str>),
    /// Not a selector (RFC 6376 3.1: labels with dots between).
    Selector(Box<str>),
    /// `i=` does not end in `@` and the signing domain or one below it (RFC 6376 3.5).
    Agent(Box<str>),
    /// More signatures on one message than [`limits::DKIM_SIGNATURES_MAX`].
    TooMany(Box<str>),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => write!(f, "`{name}` is not a domain name"),
            Self::Selector(name) => write!(f, "`{name}` is not a DKIM selector"),
            Self::Agent(agent) => write!(f, "i={agent} is not within the signing domain"),
            Self::TooMany(name) => write!(
                f,
                "more than {} keys would sign for `{name}`",
                limits::DKIM_SIGNATURES_MAX
            ),
        }
    }
}

impl std::error::Error for RingError {}

impl Identity {
    /// An identity that signs as `domain` with the record `selector._domainkey.domain`.
    pub fn new(domain: &str, selector: &str, key: Arc<PrivateKey>) -> Result<Self, RingError> {
        if !is_name(domain) || !domain.contains('.') {
            return Err(RingError::Domain(domain.into()));
        }
        if !is_name(selector) {
            return Err(RingError::Selector(selector.into()));
        }
        Ok(Self {
            domain: domain.to_ascii_lowercase().into(),
            selector: selector.to_ascii_lowercase().into(),
            key,
            agent: None,
            active_from: None,
            active_until: None,
        })
    }

    /// Adds `i=`: `@domain` or `local@domain`, the domain within ours.
    pub fn with_agent(mut self, agent: &str) -> Result<Self, RingError> {
        let wrong = || RingError::Agent(agent.into());
        let (local, domain) = agent.rsplit_once('@').ok_or_else(wrong)?;
        let domain = domain.to_ascii_lowercase();
        let within = domain
            .strip_suffix(&*self.domain)
            .is_some_and(|head| head.is_empty() || head.ends_with('.'));
        let plain = local
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/?^_`{|}~.".contains(&byte));
        if !within || !is_name(&domain) || !plain {
            return Err(wrong());
        }
        self.agent = Some(format!("{local}@{domain}").into());
        Ok(self)
    }

    /// Limits the time in which this identity signs, for a rotation planned beforehand.
    #[must_use]
    pub fn with_period(mut self, from: Option<Wall>, until: Option<Wall>) -> Self {
        self.active_from = from;
        self.active_until = until;
        self
    }

    /// `d=`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// `s=`.
    #[must_use]
    pub fn selector(&self) -> &str {
        &self.selector
    }

    /// `i=`, where configured.
    #[must_use]
    pub fn agent(&self) -> Option<&str> {
        self.agent.as_deref()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Arc<PrivateKey> {
        &self.key
    }

    /// The name of the DNS record with the public key.
    #[must_use]
    pub fn record_name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain)
    }

    fn is_active(&self, now: Wall) -> bool {
        self.active_from.is_none_or(|from| from <= now)
            && self.active_until.is_none_or(|until| now < until)
    }
}

/// What happens to a message whose From domain has no key, or that cannot be signed by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoKey {
    /// It goes out unsigned.
    #[default]
    SendUnsigned,
    /// Submission answers 550 5.7.1, or 554 5.6.0 where the form is to blame.
    Reject,
    /// Only the platform's identities sign it; what has no form to sign goes out unsigned.
    SignAsPlatform,
}

/// What the ring says about a message.
#[derive(Debug, Clone)]
pub enum Choice {
    /// These sign, in this order of fields from the top.
    Sign(Vec<Arc<Identity>>),
    /// Nobody signs.
    Unsigned,
    /// Refuse the submission.
    Reject,
}

/// The table of keys.
#[derive(Debug, Default)]
pub struct KeyRing {
    exact: HashMap<Box<str>, Vec<Arc<Identity>>>,
    below: HashMap<Box<str>, Vec<Arc<Identity>>>,
    default: Vec<Arc<Identity>>,
    platform: Vec<Arc<Identity>>,
    no_key: NoKey,
}

impl KeyRing {
    /// A ring without keys.
    #[must_use]
    pub fn new(no_key: NoKey) -> Self {
        Self {
            no_key,
            ..Self::default()
        }
    }

    /// Adds an identity for From domains that match `pattern`: `example.com`, `*.example.com`
    /// (everything below, not the domain itself) or `*`.
    pub fn add(&mut self, pattern: &str, identity: Arc<Identity>) -> Result<(), RingError> {
        let pattern = pattern.to_ascii_lowercase();
        let rule = if pattern == "*" {
            &mut self.default
        } else if let Some(parent) = pattern.strip_prefix("*.") {
            if !is_name(parent) {
                return Err(RingError::Domain(pattern.into()));
            }
            self.below.entry(parent.into()).or_default()
        } else {
            if !is_name(&pattern) {
                return Err(RingError::Domain(pattern.into()));
            }
            self.exact.entry(pattern.as_str().into()).or_default()
        };
        if rule.len() + self.platform.len() >= limits::DKIM_SIGNATURES_MAX {
            return Err(RingError::TooMany(pattern.into()));
        }
        rule.push(identity);
        Ok(())
    }

    /// Adds an identity of the platform, which signs every message besides the sender's own.
    pub fn add_platform(&mut self, identity: Arc<Identity>) -> Result<(), RingError> {
        let longest = [self.default.len()]
            .into_iter()
            .chain(self.exact.values().chain(self.below.values()).map(Vec::len))
            .max()
            .unwrap_or(0);
        if longest + self.platform.len() >= limits::DKIM_SIGNATURES_MAX {
            return Err(RingError::TooMany(identity.domain.clone()));
        }
        self.platform.push(identity);
        Ok(())
    }

    /// Who signs a message from `from_domain` (any case; `None` where the From field has none).
    #[must_use]
    pub fn choose(&self, from_domain: Option<&str>, now: Wall) -> Choice {
        let rule = from_domain.map_or(&[][..], |domain| self.rule(&domain.to_ascii_lowercase()));
        let mut signers: Vec<_> = rule
            .iter()
            .filter(|key| key.is_active(now))
            .cloned()
            .collect();
        if signers.is_empty() {
            match self.no_key {
                NoKey::Reject => return Choice::Reject,
                NoKey::SendUnsigned => return Choice::Unsigned,
                NoKey::SignAsPlatform => {}
            }
        }
        // The sender's own first: DMARC looks for alignment, and some receivers stop early.
        for platform in self.platform.iter().filter(|key| key.is_active(now)) {
            let same = |own: &Arc<Identity>| {
                own.domain == platform.domain && own.selector == platform.selector
            };
            if !signers.iter().any(same) {
                signers.push(Arc::clone(platform));
            }
        }
        if signers.is_empty() {
            return Choice::Unsigned;
        }
        Choice::Sign(signers)
    }

    /// Whether a message from this domain may be signed by somebody, at some time.
    #[must_use]
    pub fn may_sign(&self, from_domain: Option<&str>) -> bool {
        let platform = self.no_key == NoKey::SignAsPlatform && !self.platform.is_empty();
        let own = |domain: &str| !self.rule(&domain.to_ascii_lowercase()).is_empty();
        platform || from_domain.is_some_and(own)
    }

    /// Who signs mail from this domain at some time, the sender's own first.
    #[must_use]
    pub fn signers(&self, from_domain: &str) -> Vec<Arc<Identity>> {
        if !self.may_sign(Some(from_domain)) {
            return Vec::new();
        }
        let rule = self.rule(&from_domain.to_ascii_lowercase()).iter();
        rule.chain(&self.platform).cloned().collect()
    }

    fn rule(&self, domain: &str) -> &[Arc<Identity>] {
        if let Some(rule) = self.exact.get(domain) {
            return rule;
        }
        let mut rest = domain;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(rule) = self.below.get(parent) {
                return rule;
            }
            rest = parent;
        }
        &self.default
    }

    /// Whether mail that cannot be signed is refused rather than sent unsigned.
    #[must_use]
    pub fn refuses_unsigned(&self) -> bool {
        self.no_key == NoKey::Reject
    }

    /// Whether nothing would ever be signed or refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.no_key == NoKey::SendUnsigned && self.identities().next().is_none()
    }

    /// Every identity once, for checks and reports.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<Identity>> {
        self.exact
            .values()
            .chain(self.below.values())
            .flatten()
            .chain(&self.default)
            .chain(&self.platform)
    }
}

/// Labels of letters, digits, hyphens and underscores with dots between; bounded as RFC 1035 2.3.4.
fn is_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Choice, Identity, KeyRing, NoKey, RingError};
    use crate::dkim::key::PrivateKey;
    use crate::dkim::record::{KeyKind, keygen};
    use crate::limits;
    use crate::time::Wall;

    fn identity(domain: &str, selector: &str) -> Identity {
        let pem = keygen(KeyKind::Ed25519).unwrap().pem;
        let key = Arc::new(PrivateKey::from_pem(&pem).unwrap());
        Identity::new(domain, selector, key).unwrap()
    }

    fn names(choice: &Choice) -> Vec<String> {
        match choice {
            Choice::Sign(signers) => signers.iter().map(|one| one.record_name()).collect(),
            Choice::Unsigned => vec!["unsigned".to_owned()],
            Choice::Reject => vec!["reject".to_owned()],
        }
    }

    fn ring(no_key: NoKey, rules: &[(&str, &str, &str)]) -> KeyRing {
        let mut ring = KeyRing::new(no_key);
        for (pattern, domain, selector) in rules {
            ring.add(pattern, Arc::new(identity(domain, selector)))
                .unwrap();
        }
        ring
    }

    // Exact before the nearest wildcard before the default; a wildcard is not for the domain
    // itself.
    #[test]
    fn the_nearest_rule_wins() {
        let ring = ring(
            NoKey::SendUnsigned,
            &[
                ("a.example.com", "a.example.com", "exact"),
                ("*.example.com", "example.com", "wild"),
                ("*.b.example.com", "b.example.com", "near"),
                ("*", "platform.example", "default"),
            ],
        );
        for (from, record) in [
            ("A.Example.com", "exact._domainkey.a.example.com"),
            ("c.example.com", "wild._domainkey.example.com"),
            ("x.a.example.com", "wild._domainkey.example.com"),
            ("c.b.example.com", "near._domainkey.b.example.com"),
            ("b.example.com", "wild._domainkey.example.com"),
            ("example.com", "default._domainkey.platform.example"),
            ("other.test", "default._domainkey.platform.example"),
        ] {
            assert_eq!(names(&ring.choose(Some(from), Wall(0))), [record], "{from}");
        }
        assert_eq!(names(&ring.choose(None, Wall(0))), ["unsigned"]);
    }

    // Each policy for a domain without a key.
    #[test]
    fn no_key_follows_the_policy() {
        for (policy, result) in [
            (NoKey::SendUnsigned, "unsigned"),
            (NoKey::Reject, "reject"),
            (NoKey::SignAsPlatform, "p._domainkey.platform.example"),
        ] {
            let mut ring = ring(policy, &[("own.test", "own.test", "s")]);
            ring.add_platform(Arc::new(identity("platform.example", "p")))
                .unwrap();
            assert_eq!(names(&ring.choose(Some("other.test"), Wall(0))), [result]);
            assert_eq!(
                names(&ring.choose(Some("own.test"), Wall(0))),
                ["s._domainkey.own.test", "p._domainkey.platform.example"]
            );
        }
    }

    // A rotation planned beforehand: old, both, new.
    #[test]
    fn periods_rotate_without_a_gap() {
        let mut ring = KeyRing::new(NoKey::Reject);
        let old = identity("own.test", "old").with_period(None, Some(Wall(20)));
        let new = identity("own.test", "new").with_period(Some(Wall(10)), None);
        ring.add("own.test", Arc::new(old)).unwrap();
        ring.add("own.test", Arc::new(new)).unwrap();
        let at = |time| names(&ring.choose(Some("own.test"), Wall(time)));
        assert_eq!(at(9), ["old._domainkey.own.test"]);
        assert_eq!(
            at(10),
            ["old._domainkey.own.test", "new._domainkey.own.test"]
        );
        assert_eq!(at(20), ["new._domainkey.own.test"]);
    }

    // Names, selectors and agents are judged; the number of signatures is bounded.
    #[test]
    fn bad_identities_are_refused() {
        let key = Arc::clone(identity("own.test", "s").key());
        for domain in [
            "",
            "localhost",
            "a..b",
            "-a.test",
            "a.test-",
            "a b.test",
            "a;b.test",
        ] {
            let refused = Identity::new(domain, "s", Arc::clone(&key)).unwrap_err();
            assert_eq!(refused, RingError::Domain(domain.into()));
        }
        assert!(Identity::new("own.test", "s 1", Arc::clone(&key)).is_err());
        assert!(Identity::new("own.test", "2026.a_b", Arc::clone(&key)).is_ok());
        for (agent, good) in [
            ("@own.test", true),
            ("news@Sub.own.test", true),
            ("news@notown.test", false),
            ("news@test", false),
            ("own.test", false),
            ("a;b@own.test", false),
            ("a@.own.test", false),
        ] {
            let result = Identity::new("own.test", "s", Arc::clone(&key))
                .unwrap()
                .with_agent(agent);
            assert_eq!(result.is_ok(), good, "{agent}");
        }
        let mut ring = KeyRing::new(NoKey::Reject);
        let one = Arc::new(identity("own.test", "s"));
        for _ in 0..limits::DKIM_SIGNATURES_MAX {
            ring.add("own.test", Arc::clone(&one)).unwrap();
        }
        assert!(ring.add("own.test", Arc::clone(&one)).is_err());
        assert!(ring.add_platform(one).is_err());
    }
}
