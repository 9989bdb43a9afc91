//! plan - which hosts take mail for a domain: RFC 5321 5.1 and RFC 7505 as a function.

use std::net::IpAddr;
use std::sync::Arc;

use crate::limits::{CNAME_CHAIN_MAX, MX_MAX};
use crate::message::{Domain, EnhancedStatus};

use super::{host_name, shuffle};

/// What a DNS query failed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DnsFailure {
    /// The name exists, but has no record of this type (NODATA).
    NoData,
    /// The name does not exist (NXDOMAIN).
    NoSuchDomain,
    /// SERVFAIL, timeout, a CNAME loop, a broken answer: unknown, ask again later.
    Temporary,
}

/// An answer: the records, or why there are none.
pub type DnsResult<T> = Result<T, DnsFailure>;

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mx {
    /// Lower is better.
    pub preference: u16,
    /// A host name in any case, with or without its final dot; `.` for the null MX.
    pub exchange: Box<str>,
}

/// One host that takes mail for a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Lower case, no final dot.
    pub name: Arc<str>,
    /// Lower is better.
    pub preference: u16,
}

/// The names and addresses that are us: mail sent there would come back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Own {
    names: Vec<Box<str>>,
    addresses: Vec<IpAddr>,
}

impl Own {
    /// Our host names and the addresses on which we accept mail.
    #[must_use]
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, addresses: &[IpAddr]) -> Self {
        let names = names
            .into_iter()
            .filter_map(host_name)
            .map(Into::into)
            .collect();
        let addresses = addresses.iter().map(IpAddr::to_canonical).collect();
        Self { names, addresses }
    }

    /// Whether this name, in lower case, is ours.
    #[must_use]
    pub fn is_name(&self, name: &str) -> bool {
        self.names.iter().any(|own| **own == *name)
    }

    /// Whether this address is ours.
    #[must_use]
    pub fn is_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address.to_canonical())
    }
}

/// What must be known about a domain before [`plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Ask for MX records of this name. It ends in a dot: no search list may be applied, or mail
    /// for a single-label domain would go to a neighbour.
    Mx(String),
    /// Nothing: an address literal. [`plan`] takes any answer.
    Nothing,
}

/// Where mail for a domain goes, or why it goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Its MX hosts, in the order in which they are tried; never empty.
    Hosts(Vec<Host>),
    /// It has no MX record: the domain itself is its host (RFC 5321 5.1).
    Implicit(Host),
    /// An address literal.
    Literal(IpAddr),
    /// It takes no mail and says so (RFC 7505): 5.1.10.
    Null,
    /// It does not exist: 5.1.2.
    NoSuchDomain,
    /// Unknown for now: 4.4.3.
    Temporary,
    /// It has MX records, but none that a host can have: 5.4.4.
    NotUsable,
    /// The best host is ourselves: 5.4.6.
    Loop,
}

impl Plan {
    /// The hosts whose addresses are to be asked for; empty for a literal and for failures.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        match self {
            Self::Hosts(hosts) => hosts,
            Self::Implicit(host) => std::slice::from_ref(host),
            _ => &[],
        }
    }

    /// The status of a failure; `None` where there is somewhere to go. Its class tells whether to
    /// retry.
    #[must_use]
    pub fn failure(&self) -> Option<EnhancedStatus> {
        match self {
            Self::Hosts(_) | Self::Implicit(_) | Self::Literal(_) => None,
            Self::Null => Some(EnhancedStatus::RECIPIENT_NULL_MX),
            Self::NoSuchDomain => Some(EnhancedStatus::NO_SUCH_DOMAIN),
            Self::Temporary => Some(EnhancedStatus::DIRECTORY_FAILURE),
            Self::NotUsable => Some(EnhancedStatus::UNROUTABLE),
            Self::Loop => Some(EnhancedStatus::ROUTING_LOOP),
        }
    }
}

/// What to ask the DNS before [`plan`].
#[must_use]
pub fn question(domain: &Domain) -> Question {
    if domain.is_literal() {
        return Question::Nothing;
    }
    Question::Mx(format!("{}.", domain.as_str().trim_end_matches('.')))
}

/// Where mail for `domain` goes, given the answer to its [`question`].
#[must_use]
pub fn plan(
    domain: &Domain,
    mx: DnsResult<Vec<Mx>>,
    own: &Own,
    random: &mut dyn FnMut() -> u64,
) -> Plan {
    if domain.is_literal() {
        return match domain.literal_ip() {
            None => Plan::NotUsable,
            Some(address) if own.is_address(address) => Plan::Loop,
            Some(address) => Plan::Literal(address),
        };
    }
    match mx {
        Ok(records) if !records.is_empty() => from_records(&records, own, random),
        // RFC 5321 5.1: an implicit MX only where the list is known to be empty.
        Ok(_) | Err(DnsFailure::NoData) => implicit(domain, own),
        Err(DnsFailure::NoSuchDomain) => Plan::NoSuchDomain,
        Err(DnsFailure::Temporary) => Plan::Temporary,
    }
}

fn implicit(domain: &Domain, own: &Own) -> Plan {
    match host_name(domain.as_str()) {
        None => Plan::NotUsable,
        Some(name) if own.is_name(&name) => Plan::Loop,
        Some(name) => Plan::Implicit(Host {
            name: name.into(),
            preference: 0,
        }),
    }
}

fn from_records(records: &[Mx], own: &Own, random: &mut dyn FnMut() -> u64) -> Plan {
    let is_null = |mx: &Mx| mx.exchange.is_empty() || *mx.exchange == *".";
    // RFC 7505 3: alone it means "no mail"; beside other records it is a mistake and names no host.
    if records.iter().all(is_null) {
        return Plan::Null;
    }
    let mut hosts: Vec<Host> = records
        .iter()
        .filter(|mx| !is_null(mx))
        .filter_map(|mx| {
            Some(Host {
                name: host_name(&mx.exchange)?.into(),
                preference: mx.preference,
            })
        })
        .collect();
    if hosts.is_empty() {
        // RFC 5321 5.1: MX records of which none is usable are an error, never an implicit MX.
        return Plan::NotUsable;
    }
    // RFC 5321 5.1: our own name cuts itself and everything of the same or higher preference.
    let ours = hosts
        .iter()
        .filter(|host| own.is_name(&host.name))
        .map(|host| host.preference);
    if let Some(cut) = ours.min() {
        hosts.retain(|host| host.preference < cut);
    }
    if hosts.is_empty() {
        return Plan::Loop;
    }
    // A host listed twice is tried once, at its best preference.
    hosts.sort_by(|a, b| (&a.name, a.preference).cmp(&(&b.name, b.preference)));
    hosts.dedup_by(|later, first| later.name == first.name);
    // RFC 5321 5.1: equal preference MUST be randomised. The sort is stable, so it keeps the random
    // order among equals.
    shuffle(&mut hosts, random);
    hosts.sort_by_key(|host| host.preference);
    hosts.truncate(MX_MAX);
    Plan::Hosts(hosts)
}

/// Follows CNAME records, (owner, target), from `name` to the name that carries the data: for
/// resolvers that hand out the records of an answer as they came. A chain that loops or is longer
/// than
/// `limits::CNAME_CHAIN_MAX` is a fault of the zone, which may be mended: temporary.
///
/// # Errors
/// [`DnsFailure::Temporary`] for such a chain.
pub fn follow_cnames<'a>(name: &'a str, cnames: &[(&'a str, &'a str)]) -> DnsResult<&'a str> {
    let bare = |name: &'a str| name.strip_suffix('.').unwrap_or(name);
    let mut at = bare(name);
    for _ in 0..=CNAME_CHAIN_MAX {
        let link = cnames
            .iter()
            .find(|(owner, _)| bare(owner).eq_ignore_ascii_case(at));
        let Some((_, target)) = link else {
            return Ok(at);
        };
        at = bare(target);
    }
    Err(DnsFailure::Temporary)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::chance;
    use super::*;

    fn domain(text: &str) -> Domain {
        match Domain::parse(text) {
            Ok(domain) => domain,
            Err(error) => panic!("{text}: {error:?}"),
        }
    }

    fn records(list: &[(u16, &str)]) -> DnsResult<Vec<Mx>> {
        let mx = |(preference, name): &(u16, &str)| Mx {
            preference: *preference,
            exchange: (*name).into(),
        };
        Ok(list.iter().map(mx).collect())
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.hosts()
            .iter()
            .map(|host| host.name.to_string())
            .collect()
    }

    fn planned(name: &str, mx: DnsResult<Vec<Mx>>) -> Plan {
        let own = Own::new(["mta1.us.example."], &[[192, 0, 2, 7].into()]);
        plan(&domain(name), mx, &own, &mut chance(1))
    }

    // Over 10,000 draws, each of three equal MX is first in a third of them, +-2 %; and all six
    // orders appear about equally often.
    #[test]
    fn equal_preference_is_randomised() {
        let mut random = chance(42);
        let (mut first, mut orders) = (HashMap::new(), HashMap::new());
        for _ in 0..10_000 {
            let mx = records(&[
                (10, "a.example"),
                (10, "b.example"),
                (10, "c.example"),
                (20, "z.example"),
            ]);
            let order = names(&plan(
                &domain("example.com"),
                mx,
                &Own::default(),
                &mut random,
            ));
            assert_eq!(order.len(), 4);
            assert_eq!(order[3], "z.example");
            *first.entry(order[0].clone()).or_insert(0) += 1;
            *orders.entry(order).or_insert(0) += 1;
        }
        assert_eq!((first.len(), orders.len()), (3, 6));
        assert!(
            first.values().all(|n| (3133..=3533).contains(n)),
            "{first:?}"
        );
        assert!(
            orders.values().all(|n| (1500..=1833).contains(n)),
            "{orders:?}"
        );
    }

    // The table of answers that decide without a host.
    #[test]
    fn answers_without_hosts() {
        let empty = Ok(Vec::new());
        let host = Host {
            name: "example.com".into(),
            preference: 0,
        };
        assert_eq!(
            planned("Example.COM", Err(DnsFailure::NoData)),
            Plan::Implicit(host.clone())
        );
        assert_eq!(planned("example.com", empty), Plan::Implicit(host));
        assert_eq!(
            planned("example.com", Err(DnsFailure::NoSuchDomain)),
            Plan::NoSuchDomain
        );
        assert_eq!(
            planned("example.com", Err(DnsFailure::Temporary)),
            Plan::Temporary
        );
        assert_eq!(planned("example.com", records(&[(0, ".")])), Plan::Null);
        assert_eq!(
            planned("example.com", records(&[(10, "."), (20, "")])),
            Plan::Null
        );
        assert_eq!(
            planned("mta1.us.example", Err(DnsFailure::NoData)),
            Plan::Loop
        );
        let odd = records(&[(1, "192.0.2.1"), (2, "bad name"), (3, "a..b")]);
        assert_eq!(planned("example.com", odd), Plan::NotUsable);
        let table = [
            (Plan::Null, "5.1.10"),
            (Plan::NoSuchDomain, "5.1.2"),
            (Plan::Temporary, "4.4.3"),
            (Plan::NotUsable, "5.4.4"),
            (Plan::Loop, "5.4.6"),
        ];
        for (plan, status) in table {
            assert_eq!(
                plan.failure().map(|s| s.to_string()).as_deref(),
                Some(status)
            );
        }
    }

    // A dot beside other records is ignored; names are normalised; a host listed twice counts once.
    #[test]
    fn records_are_cleaned() {
        let mx = records(&[
            (0, "."),
            (20, "MX2.Example.net."),
            (10, "mx1.example.net"),
            (30, "mx2.example.net"),
            (5, "10.0.0.1"),
        ]);
        assert_eq!(
            names(&planned("example.com", mx)),
            ["mx1.example.net", "mx2.example.net"]
        );
        let many: Vec<(u16, String)> = (0..60).map(|n| (n, format!("mx{n}.example"))).collect();
        let many: Vec<(u16, &str)> = many.iter().map(|(n, name)| (*n, name.as_str())).collect();
        let hosts = names(&planned("example.com", records(&many)));
        assert_eq!(
            (hosts.len(), hosts[0].as_str(), hosts[19].as_str()),
            (MX_MAX, "mx0.example", "mx19.example")
        );
    }

    // Our own name cuts itself and its equals and betters' followers; nothing left is a loop.
    #[test]
    fn own_name_cuts_the_list() {
        let mx = records(&[
            (10, "a.example"),
            (20, "MTA1.us.example"),
            (20, "b.example"),
            (30, "c.example"),
        ]);
        assert_eq!(names(&planned("example.com", mx)), ["a.example"]);
        let mx = records(&[
            (10, "mta1.us.example."),
            (10, "b.example"),
            (30, "c.example"),
        ]);
        assert_eq!(planned("example.com", mx), Plan::Loop);
    }

    // Literals need no DNS; single labels are asked for with a final dot.
    #[test]
    fn literals_and_single_labels() {
        let v4: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(
            planned("[192.0.2.1]", Err(DnsFailure::Temporary)),
            Plan::Literal(v4)
        );
        assert_eq!(planned("[192.0.2.7]", Err(DnsFailure::NoData)), Plan::Loop);
        assert!(matches!(
            planned("[IPv6:2001:db8::1]", Err(DnsFailure::NoData)),
            Plan::Literal(IpAddr::V6(_))
        ));
        assert_eq!(question(&domain("[192.0.2.1]")), Question::Nothing);
        assert_eq!(
            question(&domain("localhost")),
            Question::Mx("localhost.".into())
        );
        assert_eq!(
            names(&planned("intranet", Err(DnsFailure::NoData))),
            ["intranet"]
        );
    }

    // Chains end where the data is; loops and long ones are temporary.
    #[test]
    fn cname_chains_are_bounded() {
        let chain = [("a.", "B.example."), ("b.EXAMPLE", "c")];
        assert_eq!(follow_cnames("A", &chain), Ok("c"));
        assert_eq!(follow_cnames("x", &chain), Ok("x"));
        assert_eq!(
            follow_cnames("a", &[("a", "b"), ("b", "a")]),
            Err(DnsFailure::Temporary)
        );
        let names: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
        let links: Vec<(&str, &str)> = names
            .windows(2)
            .map(|pair| (pair[0].as_str(), pair[1].as_str()))
            .collect();
        assert_eq!(follow_cnames("n0", &links[..8]), Ok("n8"));
        assert_eq!(follow_cnames("n0", &links[..9]), Err(DnsFailure::Temporary));
    }
}
