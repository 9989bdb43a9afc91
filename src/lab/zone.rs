//! lab::zone - the names of the test domains, their addresses, and what DNS says about them.
//!
//! What: `d0.ZONE` to `dN-1.ZONE` are the destinations, `bounces.ZONE` takes notifications. Domain
//! I has `MX 10 mx.dI.ZONE`, whose A record is the address of its site; sites are consecutive
//! loopback addresses, and domains share them in turn when there are more domains than sites. Each
//! address has a PTR record, each domain a TXT record (SPF). Names for tests of the resolver:
//!
//! | name | answer |
//! |---|---|
//! | `two.ZONE` | two MX of unequal preference, the better one refuses connections |
//! | `equal.ZONE` | four MX of equal preference, all of site 0 |
//! | `implicit.ZONE` | no MX, but an A record (RFC 5321 5.1) |
//! | `nullmx.ZONE` | `MX 0 .` (RFC 7505) |
//! | `empty.ZONE` | the name exists without any record |
//! | `refused.ZONE` | an MX where nobody listens |
//! | `servfail.ZONE` | SERVFAIL |
//! | `silent.ZONE` | no answer at all |
//! | anything else | NXDOMAIN |

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::lab::error::LabError;
use crate::lab::identity::push_decimal;
use crate::limits::{LAB_DOMAINS_MAX, LAB_SITES_MAX};

/// The names and addresses of one laboratory.
#[derive(Debug, Clone)]
pub struct Zone {
    name: String,
    domains: u32,
    first: Ipv4Addr,
    txt: HashMap<String, Vec<String>>,
}

/// A question's type, as far as this zone has answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Mail exchangers.
    Mx,
    /// Addresses.
    A,
    /// Texts.
    Txt,
    /// The name of an address.
    Ptr,
    /// Any other type: names have none of those.
    Other,
}

/// A record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Preference and host; an empty host is the root.
    Mx(u16, String),
    /// An address.
    A(Ipv4Addr),
    /// A text.
    Txt(String),
    /// A name.
    Ptr(String),
}

/// What DNS says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records.
    Records(Vec<Data>),
    /// The name exists; it has no record of this type.
    NoData,
    /// No such name.
    NxDomain,
    /// The server failed.
    ServFail,
    /// Nothing at all.
    Silence,
}

/// Where nobody listens: TEST-NET would be routed, so the last loopback address.
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);

impl Zone {
    /// The zone `name` with `domains` destinations on sites from `first` on, and further TXT
    /// records.
    ///
    /// # Errors
    /// Names the option that is out of range.
    pub fn new(
        name: &str,
        domains: u32,
        first: Ipv4Addr,
        txt: &[(String, String)],
    ) -> Result<Self, LabError> {
        if domains == 0 || domains > LAB_DOMAINS_MAX {
            return Err(LabError::Options("domains must be from 1 to 100000"));
        }
        if !first.is_loopback() || u32::from(first) > u32::from(NOBODY) - 2 * LAB_SITES_MAX {
            return Err(LabError::Options(
                "the sites' addresses must be loopback addresses",
            ));
        }
        let label = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.len() > 100 || !name.split('.').all(label) {
            return Err(LabError::Options(
                "the zone must be a domain name such as lab.test",
            ));
        }
        let mut texts: HashMap<String, Vec<String>> = HashMap::new();
        for (owner, text) in txt {
            let owner = owner.trim_end_matches('.').to_ascii_lowercase();
            texts.entry(owner).or_default().push(text.clone());
        }
        let name = name.to_ascii_lowercase();
        Ok(Self {
            name,
            domains,
            first,
            txt: texts,
        })
    }

    /// How many destination domains there are.
    #[must_use]
    pub fn domains(&self) -> u32 {
        self.domains
    }

    /// How many destination sites; the site of `bounces` follows them.
    #[must_use]
    pub fn sites(&self) -> u32 {
        self.domains.min(LAB_SITES_MAX - 1)
    }

    /// The address of site `index`; `index == sites()` is the one of `bounces`.
    #[must_use]
    pub fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first) + index)
    }

    /// The name of the zone.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The default envelope sender.
    #[must_use]
    pub fn bounce_address(&self) -> String {
        format!("bounce@bounces.{}", self.name)
    }

    /// Appends the domain of recipient `index` of message `number`: the domains in turn.
    pub fn push_domain(&self, index: u16, number: u64, out: &mut Vec<u8>) {
        out.push(b'd');
        push_decimal((number + u64::from(index)) % u64::from(self.domains), out);
        out.push(b'.');
        out.extend_from_slice(self.name.as_bytes());
    }

    /// Which domain a name is: its number, or `domains()` for the one of bounces.
    #[must_use]
    pub fn domain_index(&self, name: &[u8]) -> Option<u32> {
        let label = self.label(name)?;
        if label.eq_ignore_ascii_case(b"bounces") {
            return Some(self.domains);
        }
        let digits = label
            .strip_prefix(b"d")
            .or_else(|| label.strip_prefix(b"D"))?;
        let leading_zero = digits.len() > 1 && digits[0] == b'0';
        if digits.is_empty() || digits.len() > 6 || leading_zero {
            return None;
        }
        let mut index = 0_u32;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return None;
            }
            index = index * 10 + u32::from(digit - b'0');
        }
        (index < self.domains).then_some(index)
    }

    /// What stands before `.ZONE` in `name`.
    fn label<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let at = name.len().checked_sub(self.name.len() + 1)?;
        let ours = name[at] == b'.' && name[at + 1..].eq_ignore_ascii_case(self.name.as_bytes());
        ours.then_some(&name[..at])
    }

    fn site_of(&self, domain: u32) -> u32 {
        if domain == self.domains {
            self.sites()
        } else {
            domain % self.sites()
        }
    }

    /// What DNS says about `name`, given without a final dot.
    #[must_use]
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        let name = name.to_ascii_lowercase();
        if let Some(texts) = self.txt.get(&name)
            && kind == Kind::Txt
        {
            return Answer::Records(texts.iter().cloned().map(Data::Txt).collect());
        }
        if let Some(reverse) = name.strip_suffix(".in-addr.arpa") {
            return self.reverse(reverse, kind);
        }
        if name == self.name {
            return Answer::NoData;
        }
        let Some(label) = self.label(name.as_bytes()) else {
            return Answer::NxDomain;
        };
        // `name` is text and its tail is the zone's ASCII name, so the label ends on a boundary.
        let label = &name[..label.len()];
        if let Some(special) = self.special(label, kind) {
            return special;
        }
        if self.domain_index(name.as_bytes()).is_some() {
            return match kind {
                Kind::Mx => records([Data::Mx(10, format!("mx.{name}"))]),
                Kind::Txt => records([Data::Txt("v=spf1 ip4:127.0.0.0/8 -all".to_owned())]),
                Kind::A | Kind::Ptr | Kind::Other => Answer::NoData,
            };
        }
        if let Some(domain) = name.strip_prefix("mx.")
            && let Some(domain) = self.domain_index(domain.as_bytes())
        {
            let address = self.address(self.site_of(domain));
            return if kind == Kind::A {
                records([Data::A(address)])
            } else {
                Answer::NoData
            };
        }
        if self.txt.contains_key(&name) {
            Answer::NoData
        } else {
            Answer::NxDomain
        }
    }

    fn special(&self, label: &str, kind: Kind) -> Option<Answer> {
        let mx = |preference, host: &str| Data::Mx(preference, format!("{host}.{}", self.name));
        let mail = |answers: Vec<Data>| match kind {
            Kind::Mx => Answer::Records(answers),
            Kind::A | Kind::Txt | Kind::Ptr | Kind::Other => Answer::NoData,
        };
        let host = |address| match kind {
            Kind::A => records([Data::A(address)]),
            Kind::Mx | Kind::Txt | Kind::Ptr | Kind::Other => Answer::NoData,
        };
        Some(match label {
            "two" => mail(vec![mx(20, "mx.d0"), mx(10, "nobody")]),
            "equal" => mail(["e1", "e2", "e3", "e4"].map(|name| mx(10, name)).to_vec()),
            "e1" | "e2" | "e3" | "e4" | "implicit" => host(self.address(0)),
            "nullmx" => mail(vec![Data::Mx(0, String::new())]),
            "empty" => Answer::NoData,
            "refused" => mail(vec![mx(10, "nobody")]),
            "nobody" => host(NOBODY),
            "servfail" => Answer::ServFail,
            "silent" => Answer::Silence,
            _ => return None,
        })
    }

    fn reverse(&self, reverse: &str, kind: Kind) -> Answer {
        let mut octets = [0_u8; 4];
        let mut parts = reverse.split('.');
        for octet in octets.iter_mut().rev() {
            let Some(value) = parts.next().and_then(|part| part.parse().ok()) else {
                return Answer::NxDomain;
            };
            *octet = value;
        }
        let offset = u32::from(Ipv4Addr::from(octets)).checked_sub(u32::from(self.first));
        match offset {
            Some(site) if parts.next().is_none() && site <= self.sites() => {
                let label = if site == self.sites() {
                    "bounces".to_owned()
                } else {
                    format!("d{site}")
                };
                match kind {
                    Kind::Ptr => records([Data::Ptr(format!("mx.{label}.{}", self.name))]),
                    Kind::Mx | Kind::A | Kind::Txt | Kind::Other => Answer::NoData,
                }
            }
            Some(_) | None => Answer::NxDomain,
        }
    }
}

fn records<const N: usize>(data: [Data; N]) -> Answer {
    Answer::Records(data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(domains: u32) -> Zone {
        let txt = [(
            "s1._domainkey.D0.lab.test.".to_owned(),
            "v=DKIM1; p=".to_owned(),
        )];
        Zone::new("lab.test", domains, Ipv4Addr::new(127, 9, 1, 1), &txt).unwrap()
    }

    // Domain to MX to address and back: the path of every delivery, also when sites are shared.
    #[test]
    fn domains_lead_to_their_sites() {
        for domains in [1, 17, 600] {
            let zone = zone(domains);
            for domain in [0, domains / 2, domains - 1] {
                let name = format!("D{domain}.LAB.test");
                assert_eq!(zone.domain_index(name.as_bytes()), Some(domain));
                let Answer::Records(mx) = zone.answer(&name, Kind::Mx) else {
                    panic!("{name}")
                };
                let [Data::Mx(10, host)] = &mx[..] else {
                    panic!("{mx:?}")
                };
                let site = domain % zone.sites();
                let expected = records([Data::A(zone.address(site))]);
                assert_eq!(zone.answer(host, Kind::A), expected);
                assert_eq!(zone.answer(&name, Kind::A), Answer::NoData);
            }
        }
        let zone = zone(3);
        assert_eq!(
            zone.answer("mx.bounces.lab.test", Kind::A),
            records([Data::A(zone.address(3))])
        );
        assert_eq!(zone.domain_index(b"bounces.lab.test"), Some(3));
        let pointer = records([Data::Ptr("mx.d1.lab.test".into())]);
        assert_eq!(zone.answer("2.1.9.127.in-addr.arpa", Kind::Ptr), pointer);
        for other in [
            "d3.lab.test",
            "d.lab.test",
            "d01.lab.test",
            "d0.lab.test.org",
            "xlab.test",
        ] {
            assert_eq!(zone.domain_index(other.as_bytes()), None, "{other}");
        }
    }

    // The special names answer as the table says, and what does not exist is NXDOMAIN.
    #[test]
    fn special_names_answer_as_documented() {
        let zone = zone(3);
        assert_eq!(zone.answer("servfail.lab.test", Kind::Mx), Answer::ServFail);
        assert_eq!(zone.answer("silent.lab.test", Kind::A), Answer::Silence);
        assert_eq!(zone.answer("empty.lab.test", Kind::A), Answer::NoData);
        assert_eq!(
            zone.answer("nullmx.lab.test", Kind::Mx),
            records([Data::Mx(0, "".into())])
        );
        assert_eq!(zone.answer("implicit.lab.test", Kind::Mx), Answer::NoData);
        let first = records([Data::A(zone.address(0))]);
        assert_eq!(zone.answer("implicit.lab.test", Kind::A), first);
        assert_eq!(
            zone.answer("nobody.lab.test", Kind::A),
            records([Data::A(NOBODY)])
        );
        let Answer::Records(equal) = zone.answer("equal.lab.test", Kind::Mx) else {
            panic!()
        };
        assert_eq!(equal.len(), 4);
        let key = records([Data::Txt("v=DKIM1; p=".into())]);
        assert_eq!(zone.answer("s1._domainkey.d0.lab.test", Kind::Txt), key);
        assert_eq!(
            zone.answer("s1._domainkey.d0.lab.test", Kind::A),
            Answer::NoData
        );
        for name in [
            "nx.lab.test",
            "d3.lab.test",
            "mx.d3.lab.test",
            "example.com",
        ] {
            assert_eq!(zone.answer(name, Kind::Mx), Answer::NxDomain, "{name}");
        }
        for name in [
            "9.1.9.127.in-addr.arpa",
            "x.in-addr.arpa",
            "1.2.1.9.127.in-addr.arpa",
        ] {
            assert_eq!(zone.answer(name, Kind::Ptr), Answer::NxDomain, "{name}");
        }
    }

    // Recipients go around all domains, and addresses outside loopback are refused.
    #[test]
    fn recipients_take_the_domains_in_turn() {
        let zone = zone(3);
        let name = |index, number| {
            let mut out = Vec::new();
            zone.push_domain(index, number, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(name(0, 4), "d1.lab.test");
        assert_eq!(name(1, 4), "d2.lab.test");
        assert_eq!(name(2, 4), "d0.lab.test");
        assert!(Zone::new("lab.test", 3, Ipv4Addr::new(10, 0, 0, 1), &[]).is_err());
        assert!(Zone::new("lab.test", 0, Ipv4Addr::LOCALHOST, &[]).is_err());
        assert!(Zone::new("lab..test", 1, Ipv4Addr::LOCALHOST, &[]).is_err());
    }
}
