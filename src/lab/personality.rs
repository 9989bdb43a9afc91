//! lab::personality - the manners of receiving providers, as a pure, seeded decision.
//!
//! What: a [`Personality`] says how one site behaves; [`Mix`] says which part of the sites behaves
//! how. A personality is written as traits joined by `+`, for example `greylist:60s+no-chunking`:
//!
//! | trait | what the site does |
//! |---|---|
//! | `accept` | takes everything at once |
//! | `greylist:TIME` | 451 to a new (sender, recipient) until TIME has passed |
//! | `tempfail:P` | 451 at RCPT with probability P per attempt |
//! | `tempfail-dot:P` | 451 after the message with probability P per attempt |
//! | `reject:P` | 550 at RCPT for the share P of the recipients, always the same ones |
//! | `messages:N` | 421 to the MAIL after N messages on one connection |
//! | `connections:N` | 421 instead of a greeting while N connections are open |
//! | `delay:TIME` | every reply leaves TIME after its command came, as over a long path |
//! | `tarpit:TIME` | every reply leaves TIME after the previous one |
//! | `no-chunking`, `no-pipelining` | does not offer the extension |
//! | `no-8bitmime` | offers neither 8BITMIME nor SMTPUTF8, which needs it |
//! | `close:PHASE[:P]` | hangs up in PHASE (connect ehlo mail rcpt data content dot) |
//!
//! `close:dot` takes the whole message, writes it to the ledger as unanswered, and never replies.
//! Why this way: the same seed gives the same refusals, so a failed run can be run again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::time::Mono;

/// A probability, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Chance(u32);

impl Chance {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Always.
    pub const ALWAYS: Self = Self(1_000_000);

    /// Whether this chance comes true for `random`, which must be well mixed.
    #[must_use]
    pub fn hits(self, random: u64) -> bool {
        random % 1_000_000 < u64::from(self.0)
    }

    /// As a fraction of one.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl FromStr for Chance {
    type Err = PersonalityError;

    /// Percent, with or without the sign: `12.5` or `12.5%`.
    fn from_str(text: &str) -> Result<Self, PersonalityError> {
        let bad = || PersonalityError::Percentage(text.to_owned());
        let number = text.strip_suffix('%').unwrap_or(text);
        let percent: f64 = number.parse().map_err(|_| bad())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(bad());
        }
        // Between 0 and 1,000,000 by the line above.
        Ok(Self((percent * 1e4).round() as u32))
    }
}

/// A moment of the dialogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the greeting.
    Connect,
    /// At EHLO or HELO.
    Ehlo,
    /// At MAIL.
    Mail,
    /// At RCPT.
    Rcpt,
    /// At DATA or the first BDAT.
    Data,
    /// After some of the content.
    Content,
    /// After all of the content, instead of the reply.
    Dot,
}

impl FromStr for Phase {
    type Err = PersonalityError;

    fn from_str(text: &str) -> Result<Self, PersonalityError> {
        Ok(match text {
            "connect" => Self::Connect,
            "ehlo" => Self::Ehlo,
            "mail" => Self::Mail,
            "rcpt" => Self::Rcpt,
            "data" => Self::Data,
            "content" => Self::Content,
            "dot" => Self::Dot,
            other => return Err(PersonalityError::Phase(other.to_owned())),
        })
    }
}

/// How one site behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Personality {
    /// 451 for a new (sender, recipient) until this much later.
    pub greylist: Option<Duration>,
    /// 451 at RCPT, per attempt.
    pub tempfail: Chance,
    /// 451 after the message, per attempt.
    pub tempfail_dot: Chance,
    /// 550 at RCPT, per recipient.
    pub reject: Chance,
    /// Messages on one connection before 421.
    pub messages_max: Option<u32>,
    /// Connections at once before 421.
    pub connections_max: Option<u32>,
    /// Latency of every reply, in parallel.
    pub delay: Option<Duration>,
    /// Latency of every reply, one after the other.
    pub tarpit: Option<Duration>,
    /// CHUNKING is offered.
    pub chunking: bool,
    /// PIPELINING is offered.
    pub pipelining: bool,
    /// 8BITMIME and SMTPUTF8 are offered.
    pub eight_bit_mime: bool,
    /// Hangs up in this phase, with this chance.
    pub close: Option<(Phase, Chance)>,
}

impl Default for Personality {
    fn default() -> Self {
        Self {
            greylist: None,
            tempfail: Chance::NEVER,
            tempfail_dot: Chance::NEVER,
            reject: Chance::NEVER,
            messages_max: None,
            connections_max: None,
            delay: None,
            tarpit: None,
            chunking: true,
            pipelining: true,
            eight_bit_mime: true,
            close: None,
        }
    }
}

/// What a site says to one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// 250.
    Accept,
    /// 451 4.7.1: try again later.
    Greylisted,
    /// 451 4.3.0: try again.
    TempFail,
    /// 550 5.1.1.
    Reject,
}

/// What a verdict depends on besides the personality.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// The sink's seed.
    pub seed: u64,
    /// A hash of the recipient alone.
    pub recipient: u64,
    /// How many attempts this site has judged before this one.
    pub ordinal: u64,
    /// When the site first saw the pair, now where it is new.
    pub first_seen: Mono,
    /// Now.
    pub now: Mono,
}

impl Personality {
    /// What this site says to one RCPT.
    #[must_use]
    pub fn judge(&self, attempt: &Attempt) -> Verdict {
        if self
            .reject
            .hits(mix(attempt.seed ^ 0x01, attempt.recipient))
        {
            return Verdict::Reject;
        }
        if let Some(wait) = self.greylist
            && (attempt.now == attempt.first_seen || attempt.now.since(attempt.first_seen) < wait)
        {
            return Verdict::Greylisted;
        }
        if self
            .tempfail
            .hits(mix(attempt.seed ^ 0x02, attempt.ordinal))
        {
            return Verdict::TempFail;
        }
        Verdict::Accept
    }

    /// Whether the site refuses the `ordinal`-th whole message for now.
    #[must_use]
    pub fn defers_message(&self, seed: u64, ordinal: u64) -> bool {
        self.tempfail_dot.hits(mix(seed ^ 0x03, ordinal))
    }

    /// Whether the site hangs up at the `ordinal`-th time that `phase` is reached.
    #[must_use]
    pub fn closes(&self, phase: Phase, seed: u64, ordinal: u64) -> bool {
        self.close
            .is_some_and(|(at, chance)| at == phase && chance.hits(mix(seed ^ 0x04, ordinal)))
    }
}

/// A well mixed number from two.
#[must_use]
pub fn mix(seed: u64, value: u64) -> u64 {
    // SplitMix64's finaliser: every bit of the result depends on every bit of both.
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(value);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A hash of text: FNV-1a, then mixed.
#[must_use]
pub fn text_hash(seed: u64, text: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(seed, hash)
}

/// Why a description of a personality was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PersonalityError {
    /// No trait has this name.
    Unknown(String),
    /// The trait needs a value, or takes none.
    Value(String),
    /// Not a percentage between 0 and 100.
    Percentage(String),
    /// Not a number with a unit: `50ms`, `2s`, `5m`.
    Time(String),
    /// Not a moment of the dialogue.
    Phase(String),
    /// The shares of a mix are more than 100 % together.
    Shares,
}

impl fmt::Display for PersonalityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(
                f,
                "unknown personality `{name}`; known: accept greylist:TIME tempfail:P \
                 tempfail-dot:P reject:P messages:N connections:N delay:TIME tarpit:TIME \
                 no-chunking no-pipelining no-8bitmime close:PHASE[:P]"
            ),
            Self::Value(name) => write!(f, "`{name}`: a value is missing, extra or not a number"),
            Self::Percentage(text) => write!(f, "`{text}` is not a percentage from 0 to 100"),
            Self::Time(text) => write!(f, "`{text}` is not a time such as 50ms, 2s or 5m"),
            Self::Phase(text) => write!(
                f,
                "`{text}` is not a phase; known: connect ehlo mail rcpt data content dot"
            ),
            Self::Shares => f.write_str("the shares of the personalities exceed 100 %"),
        }
    }
}

impl std::error::Error for PersonalityError {}

impl FromStr for Personality {
    type Err = PersonalityError;

    fn from_str(text: &str) -> Result<Self, PersonalityError> {
        let mut personality = Self::default();
        for part in text.split('+') {
            let (name, value) = match part.split_once(':') {
                Some((name, value)) => (name, Some(value)),
                None => (part, None),
            };
            personality.set(name, value)?;
        }
        Ok(personality)
    }
}

impl Personality {
    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), PersonalityError> {
        let needed = || value.ok_or_else(|| PersonalityError::Value(name.to_owned()));
        let count = || {
            let number = needed()?.parse::<u32>();
            number.map_err(|_| PersonalityError::Value(name.to_owned()))
        };
        match name {
            "accept" | "no-chunking" | "no-pipelining" | "no-8bitmime" if value.is_some() => {
                return Err(PersonalityError::Value(name.to_owned()));
            }
            "accept" => {}
            "no-chunking" => self.chunking = false,
            "no-pipelining" => self.pipelining = false,
            "no-8bitmime" => self.eight_bit_mime = false,
            "greylist" => self.greylist = Some(parse_time(needed()?)?),
            "tempfail" => self.tempfail = needed()?.parse()?,
            "tempfail-dot" => self.tempfail_dot = needed()?.parse()?,
            "reject" => self.reject = needed()?.parse()?,
            "messages" => self.messages_max = Some(count()?),
            "connections" => self.connections_max = Some(count()?),
            "delay" => self.delay = Some(parse_time(needed()?)?),
            "tarpit" => self.tarpit = Some(parse_time(needed()?)?),
            "close" => {
                let value = needed()?;
                let (phase, chance) = match value.split_once(':') {
                    Some((phase, chance)) => (phase, chance.parse()?),
                    None => (value, Chance::ALWAYS),
                };
                self.close = Some((phase.parse()?, chance));
            }
            other => return Err(PersonalityError::Unknown(other.to_owned())),
        }
        Ok(())
    }
}

fn parse_time(text: &str) -> Result<Duration, PersonalityError> {
    let bad = || PersonalityError::Time(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u32 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match &text[digits..] {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(bad()),
    };
    Ok(unit * number)
}

/// Which part of the sites behaves how; the rest accepts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mix(Vec<(Personality, Chance)>);

impl Mix {
    /// From descriptions such as `greylist:5s=10` (percent of the sites). A description without a
    /// share is for all sites.
    ///
    /// # Errors
    /// The first description that does not parse, or shares above 100 % together.
    pub fn parse<S: AsRef<str>>(descriptions: &[S]) -> Result<Self, PersonalityError> {
        let mut parts = Vec::new();
        let mut total = 0;
        for description in descriptions {
            let (name, share) = match description.as_ref().split_once('=') {
                Some((name, share)) => (name, share.parse()?),
                None => (description.as_ref(), Chance::ALWAYS),
            };
            total += u64::from(share.0);
            parts.push((name.parse()?, share));
        }
        if total > u64::from(Chance::ALWAYS.0) {
            return Err(PersonalityError::Shares);
        }
        Ok(Self(parts))
    }

    /// Every site behaves like this.
    #[must_use]
    pub fn uniform(personality: Personality) -> Self {
        Self(vec![(personality, Chance::ALWAYS)])
    }

    /// How site `index` of `count` behaves. Shares are exact: of 50 sites, 10 % are 5.
    #[must_use]
    pub fn personality(&self, index: u32, count: u32) -> Personality {
        let place = (f64::from(index) + 0.5) / f64::from(count.max(1));
        let mut below = 0.0;
        for (personality, share) in &self.0 {
            below += share.fraction();
            if place < below {
                return personality.clone();
            }
        }
        Personality::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(ordinal: u64, first: u64, now: u64) -> Attempt {
        Attempt {
            seed: 1,
            recipient: mix(9, ordinal),
            ordinal,
            first_seen: Mono(first),
            now: Mono(now),
        }
    }

    // The table of the module's documentation parses into the field it names.
    #[test]
    fn descriptions_parse() {
        let text = "greylist:60s+tempfail:12.5%+tempfail-dot:1+reject:3+messages:100+connections:2+\
                    delay:50ms+tarpit:5m+no-chunking+no-pipelining+no-8bitmime+close:dot:50";
        let expected = Personality {
            greylist: Some(Duration::from_secs(60)),
            tempfail: Chance(125_000),
            tempfail_dot: Chance(10_000),
            reject: Chance(30_000),
            messages_max: Some(100),
            connections_max: Some(2),
            delay: Some(Duration::from_millis(50)),
            tarpit: Some(Duration::from_secs(300)),
            chunking: false,
            pipelining: false,
            eight_bit_mime: false,
            close: Some((Phase::Dot, Chance(500_000))),
        };
        assert_eq!(text.parse(), Ok(expected));
        assert_eq!("accept".parse(), Ok(Personality::default()));
        for (text, error) in [
            ("angry", PersonalityError::Unknown("angry".into())),
            ("accept:1", PersonalityError::Value("accept".into())),
            ("tempfail", PersonalityError::Value("tempfail".into())),
            ("tempfail:101", PersonalityError::Percentage("101".into())),
            ("tempfail:NaN", PersonalityError::Percentage("NaN".into())),
            ("delay:50", PersonalityError::Time("50".into())),
            ("delay:5y", PersonalityError::Time("5y".into())),
            ("messages:x", PersonalityError::Value("messages".into())),
            ("close:later", PersonalityError::Phase("later".into())),
        ] {
            assert_eq!(text.parse::<Personality>(), Err(error), "{text}");
        }
    }

    // Shares are exact counts of sites, what is left accepts, and more than all is refused.
    #[test]
    fn a_mix_gives_exact_shares() {
        let mix = Mix::parse(&["greylist:1s=10", "reject:100=30%"]).unwrap();
        let sites: Vec<_> = (0..50).map(|index| mix.personality(index, 50)).collect();
        assert_eq!(
            sites.iter().filter(|site| site.greylist.is_some()).count(),
            5
        );
        assert_eq!(
            sites
                .iter()
                .filter(|site| site.reject == Chance::ALWAYS)
                .count(),
            15
        );
        assert_eq!(
            sites
                .iter()
                .filter(|site| **site == Personality::default())
                .count(),
            30
        );
        assert_eq!(
            Mix::parse(&["accept=60", "accept=41"]),
            Err(PersonalityError::Shares)
        );
        let all = Mix::parse(&["no-chunking"]).unwrap();
        assert!((0..7).all(|index| !all.personality(index, 7).chunking));
    }

    // Greylisting refuses the first attempt, even at time zero, and every one until the wait is
    // over.
    #[test]
    fn greylisting_ends_after_its_wait() {
        let site: Personality = "greylist:2s".parse().unwrap();
        let second = 1_000_000_000;
        assert_eq!(site.judge(&attempt(0, 5, 5)), Verdict::Greylisted);
        assert_eq!(
            site.judge(&attempt(1, 5, 5 + 2 * second - 1)),
            Verdict::Greylisted
        );
        assert_eq!(site.judge(&attempt(2, 5, 5 + 2 * second)), Verdict::Accept);
        let instant: Personality = "greylist:0s".parse().unwrap();
        assert_eq!(instant.judge(&attempt(0, 5, 5)), Verdict::Greylisted);
        assert_eq!(instant.judge(&attempt(1, 5, 6)), Verdict::Accept);
    }

    // A rejected recipient is rejected at every attempt; a temporary failure is drawn anew each
    // time; both come at about their rate, and the same seed draws the same.
    #[test]
    fn refusals_are_seeded() {
        let site: Personality = "reject:10+tempfail:20".parse().unwrap();
        let draw = |ordinal| site.judge(&attempt(ordinal, 0, 0));
        let all: Vec<_> = (0..20_000).map(draw).collect();
        assert_eq!(all, (0..20_000).map(draw).collect::<Vec<_>>());
        let share = |verdict| all.iter().filter(|v| **v == verdict).count() as f64 / 20_000.0;
        assert!((0.09..0.11).contains(&share(Verdict::Reject)));
        assert!((0.16..0.20).contains(&share(Verdict::TempFail)));
        let rejected = (0..100).find(|n| draw(*n) == Verdict::Reject).unwrap();
        let again = Attempt {
            ordinal: 77_777,
            ..attempt(rejected, 0, 0)
        };
        assert_eq!(site.judge(&again), Verdict::Reject);
        let failed = (0..100).find(|n| draw(*n) == Verdict::TempFail).unwrap();
        let again = |ordinal| Attempt {
            ordinal,
            ..attempt(failed, 0, 0)
        };
        assert!((0..100).any(|n| site.judge(&again(n)) == Verdict::Accept));
    }
}
