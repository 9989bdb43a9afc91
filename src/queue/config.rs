//! config - the plain structures that steer the brain; filled by the room `config`.

use std::time::Duration;

use crate::limits::{
    QUEUE_CONNECTIONS_INITIAL, QUEUE_CONNECTIONS_TOTAL_MAX, QUEUE_PATH_CONNECTIONS_MAX,
};

use super::retry::RetryPolicy;
use super::shaping::Rate;

/// What one egress path may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathLimits {
    /// Connections at once, from the `Dial` to the `Closed`; at least 1.
    pub connections_max: u32,
    /// Messages on one connection before it is closed; at least 1.
    pub messages_per_connection_max: u32,
    /// Messages per time; `None` for as fast as the receiver takes them.
    pub rate: Option<Rate>,
}

impl Default for PathLimits {
    /// 20 connections, as design section 8 has it; 100 messages each; no rate.
    fn default() -> Self {
        Self {
            connections_max: 20,
            messages_per_connection_max: 100,
            rate: None,
        }
    }
}

impl PathLimits {
    /// The same limits, within the bounds of the house.
    pub(super) fn bounded(self) -> Self {
        Self {
            connections_max: self.connections_max.clamp(1, QUEUE_PATH_CONNECTIONS_MAX),
            messages_per_connection_max: self.messages_per_connection_max.max(1),
            rate: self.rate,
        }
    }
}

/// Which sites a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SitePattern {
    /// Every site; written `*`.
    Any,
    /// This site.
    Exact(Box<str>),
    /// Every site whose name ends so, the dot included; written `*.example.com`.
    Suffix(Box<str>),
}

impl SitePattern {
    /// Reads `*`, `*.suffix` or a site name; case is ignored.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) if suffix.starts_with('.') => Self::Suffix(suffix.into()),
            _ => Self::Exact(text.into()),
        }
    }

    /// Whether `site` (in lower case, as routing makes it) is meant.
    #[must_use]
    pub fn matches(&self, site: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => **name == *site,
            Self::Suffix(suffix) => site.ends_with(&**suffix),
        }
    }
}

/// Other limits for some paths; the first rule that matches is taken, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// The source; `None` for all.
    pub source: Option<u16>,
    /// The sites.
    pub site: SitePattern,
    /// Instead of [`QueueConfig::limits`].
    pub limits: PathLimits,
    /// Instead of [`QueueConfig::retry`]; `None` to keep it.
    pub retry: Option<RetryPolicy>,
}

/// How a path sleeps after failures of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// After the first failure; doubled by each further one.
    pub first: Duration,
    /// Never longer.
    pub max: Duration,
    /// After so many failures in a row all ready entries count an attempt and are deferred, so that
    /// mail for a dead site expires in the end; at least 1.
    pub failures_max: u32,
}

impl Default for BackoffPolicy {
    /// 5 s, doubled up to 5 min; entries are deferred at the third failure, after about 15 s: long
    /// enough to ride out a restart of the receiver, short enough that the journal tells the truth.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            max: Duration::from_secs(300),
            failures_max: 3,
        }
    }
}

/// All that steers one [`super::Queue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// When messages are tried again, and when they expire.
    pub retry: RetryPolicy,
    /// What a path may do where no rule says otherwise.
    pub limits: PathLimits,
    /// Rules for some paths; first match wins.
    pub rules: Vec<PathRule>,
    /// How paths sleep.
    pub backoff: BackoffPolicy,
    /// Connections that a path opens before the first success; doubled by each window of successes
    /// (the slow start of Postfix's `initial_destination_concurrency`).
    pub connections_initial: u32,
    /// Connections of all paths together: descriptors are finite.
    pub connections_total_max: u32,
    /// How long an idle connection is kept for the next message of its path.
    pub idle_max: Duration,
    /// Decides every draw of jitter.
    pub seed: u64,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            limits: PathLimits::default(),
            rules: Vec::new(),
            backoff: BackoffPolicy::default(),
            connections_initial: QUEUE_CONNECTIONS_INITIAL,
            connections_total_max: QUEUE_CONNECTIONS_TOTAL_MAX,
            idle_max: Duration::from_secs(5),
            seed: 0,
        }
    }
}

impl QueueConfig {
    /// The first rule for a path, if any.
    pub(super) fn rule(&self, source: u16, site: &str) -> Option<usize> {
        self.rules.iter().position(|rule| {
            rule.source.is_none_or(|only| only == source) && rule.site.matches(site)
        })
    }

    /// The limits of a path with this rule.
    pub(super) fn limits_of(&self, rule: Option<usize>) -> PathLimits {
        rule.map_or(self.limits, |index| self.rules[index].limits)
            .bounded()
    }

    /// The schedule of a path with this rule.
    pub(super) fn retry_of(&self, rule: Option<usize>) -> &RetryPolicy {
        rule.and_then(|index| self.rules[index].retry.as_ref())
            .unwrap_or(&self.retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // First match wins, by source and by site.
    #[test]
    fn first_matching_rule_wins() {
        let rule = |source, site, connections_max| PathRule {
            source,
            site: SitePattern::parse(site),
            limits: PathLimits {
                connections_max,
                ..PathLimits::default()
            },
            retry: None,
        };
        let config = QueueConfig {
            rules: vec![
                rule(Some(2), "google", 3),
                rule(None, "*.example.com", 4),
                rule(None, "GOOGLE", 0),
            ],
            ..QueueConfig::default()
        };
        let limit = |source, site| config.limits_of(config.rule(source, site)).connections_max;
        assert_eq!(limit(2, "google"), 3);
        assert_eq!(limit(1, "google"), 1, "zero is taken as one");
        assert_eq!(limit(1, "mx.example.com"), 4);
        assert_eq!(limit(1, "example.com"), 20);
        assert_eq!(limit(1, "mx.example.org"), 20);
        assert!(SitePattern::parse("*").matches("anything"));
    }
}
