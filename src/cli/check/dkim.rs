//! check dkim - do the published keys belong to the private ones?

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{CONFIG_DEFAULT, Failure, Finding, State, print, print_json, show};
use crate::cli::keygen;
use crate::config;
use crate::control;
use crate::dkim::record::{record_text, zone_line};
use crate::dkim::{Identity, KeyRing, PublicRecord};
use crate::routing::{DnsFailure, DnsResult};
use crate::settings;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The domain of From addresses, or of signatures
    #[arg(value_name = "DOMAIN", value_parser = keygen::domain)]
    domain: String,
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// The name server to ask, instead of those of the configuration
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Option<SocketAddr>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> Result<(), Failure> {
    let mut snapshot = config::load(&args.config)?.snapshot;
    if let Some(server) = args.dns {
        snapshot.dns.servers = vec![server];
    }
    let ring = settings::load_keys(&snapshot).map_err(Failure::Unusable)?;
    let identities = concerned(&ring, &args.domain);
    if identities.is_empty() {
        let (file, domain) = (args.config.display(), &args.domain);
        let advice = format!("make a key: postrider keygen --domain {domain} --selector s1");
        let text = format!("{file}: no [[dkim]] signs for {domain}; {advice}");
        return Err(Failure::Failed(text));
    }
    let names: Vec<String> = identities.iter().map(|one| one.record_name()).collect();
    let answers = control::texts(&snapshot.dns, &names).map_err(Failure::Failed)?;
    let judged = identities.iter().zip(&answers);
    let findings: Vec<Finding> = judged.map(|(one, answer)| judge(one, answer)).collect();
    if args.json {
        print_json(&findings)?;
    } else {
        print(&show(&findings))?;
    }
    if findings.iter().any(|finding| finding.state == State::Wrong) {
        Err(Failure::Reported)
    } else {
        Ok(())
    }
}

/// Who signs mail from `domain`, and who else signs as `domain`; each record once.
fn concerned(ring: &KeyRing, domain: &str) -> Vec<Arc<Identity>> {
    // A key that signs later, or no more, has a record all the same.
    let mut found = ring.signers(domain);
    let own = ring.identities().filter(|one| one.domain() == domain);
    found.extend(own.cloned());
    found.sort_by_key(|one| (one.domain() != domain, one.record_name()));
    found.dedup_by_key(|one| one.record_name());
    found
}

/// What the DNS says about one key.
fn judge(identity: &Identity, answer: &DnsResult<Vec<Vec<u8>>>) -> Finding {
    let what = identity.record_name();
    let kind = identity.key().algorithm().key_type();
    let wrong = |found: String, advice: &str| Finding {
        state: State::Wrong,
        what: what.clone(),
        found,
        advice: advice.to_owned(),
    };
    let publish = match record_text(identity.key()) {
        Ok(record) => format!("publish {}", zone_line(&what, &record)),
        Err(error) => error.to_string(),
    };
    let record = match answer {
        Ok(records) => match records.as_slice() {
            [record] => record,
            // RFC 6376 3.6.2.2: the result is undefined.
            several => {
                let found = format!("{} TXT records; verifiers take any", several.len());
                return wrong(found, "leave one record at this name");
            }
        },
        Err(DnsFailure::NoSuchDomain | DnsFailure::NoData) => {
            return wrong("not published".to_owned(), &publish);
        }
        Err(DnsFailure::Temporary) => {
            return wrong(
                "the DNS did not answer".to_owned(),
                "try again, or give --dns",
            );
        }
    };
    let matched = PublicRecord::parse(record).and_then(|record| {
        record.matches(identity.key())?;
        Ok(record)
    });
    let published = match matched {
        Ok(published) => published,
        Err(error) => return wrong(error.to_string(), &publish),
    };
    let below = identity.agent().is_some_and(|agent| {
        let host = agent.rsplit_once('@').map(|(_, host)| host);
        host != Some(identity.domain())
    });
    if published.is_strict() && below {
        let found = "t=s forbids that i= is below the signing domain".to_owned();
        return wrong(found, "remove t=s from the record, or change dkim.identity");
    }
    let found = format!(
        "published, {kind} {} bits, the key matches",
        identity.key().bits()
    );
    let advice = "remove t=y from the record: receivers may ignore the signatures";
    Finding::judge(
        !published.is_testing(),
        State::Warning,
        &what,
        found,
        advice,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dkim::{KeyKind, NoKey, PrivateKey, keygen};

    fn identity(domain: &str, selector: &str) -> (Arc<Identity>, String) {
        let new = keygen(KeyKind::Ed25519).unwrap();
        let key = Arc::new(PrivateKey::from_pem(&new.pem).unwrap());
        let identity = Identity::new(domain, selector, key).unwrap();
        (Arc::new(identity), new.record)
    }

    // The sender's keys, the platform's, and those that sign as the domain for others; each once.
    #[test]
    fn every_key_of_a_domain_is_looked_at() {
        let mut ring = KeyRing::new(NoKey::Reject);
        let (own, _) = identity("own.test", "s1");
        ring.add("own.test", Arc::clone(&own)).unwrap();
        ring.add("*.own.test", own).unwrap();
        ring.add("*.own.test", identity("own.test", "s2").0)
            .unwrap();
        ring.add_platform(identity("platform.test", "p").0).unwrap();
        let names = |domain| -> Vec<String> {
            let found = concerned(&ring, domain);
            found.iter().map(|one| one.record_name()).collect()
        };
        let (s1, s2) = ("s1._domainkey.own.test", "s2._domainkey.own.test");
        assert_eq!(names("own.test"), [s1, s2, "p._domainkey.platform.test"]);
        assert_eq!(names("platform.test"), ["p._domainkey.platform.test"]);
        assert!(names("other.test").is_empty());
    }

    // Each answer of the DNS, and what is made of it.
    #[test]
    fn answers_are_judged() {
        let (one, record) = identity("own.test", "s1");
        let (_, foreign) = identity("own.test", "s1");
        let good = || record.clone().into_bytes();
        for (answer, state, part) in [
            (Ok(vec![good()]), State::Good, "the key matches"),
            (Ok(vec![good(), good()]), State::Wrong, "2 TXT records"),
            (
                Ok(vec![foreign.into_bytes()]),
                State::Wrong,
                "not the public half",
            ),
            (Ok(vec![b"v=DKIM1; p=".to_vec()]), State::Wrong, "revoked"),
            (
                Ok(vec![b"v=spf1 -all".to_vec()]),
                State::Wrong,
                "not a DKIM key record",
            ),
            (
                Ok(vec![[&good()[..], b"; t=y"].concat()]),
                State::Warning,
                "matches",
            ),
            (Err(DnsFailure::NoSuchDomain), State::Wrong, "not published"),
            (Err(DnsFailure::Temporary), State::Wrong, "did not answer"),
        ] {
            let finding = judge(&one, &answer);
            assert_eq!(finding.state, state, "{answer:?}");
            assert!(finding.found.contains(part), "{finding:?}");
            assert_eq!(finding.advice.is_empty(), state == State::Good);
        }
        let missing = judge(&one, &Err(DnsFailure::NoData));
        assert!(missing.advice.contains(&record), "{missing:?}");
    }

    // t=s binds i= to the very domain.
    #[test]
    fn strict_records_are_held_against_the_identity() {
        let new = keygen(KeyKind::Ed25519).unwrap();
        let key = Arc::new(PrivateKey::from_pem(&new.pem).unwrap());
        let answer = Ok(vec![[new.record.as_bytes(), b"; t=s"].concat()]);
        for (agent, state) in [("@own.test", State::Good), ("@news.own.test", State::Wrong)] {
            let identity = Identity::new("own.test", "s1", Arc::clone(&key)).unwrap();
            let identity = identity.with_agent(agent).unwrap();
            assert_eq!(judge(&identity, &answer).state, state, "{agent}");
        }
    }
}
