//! target - which addresses are tried, in which order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::limits::{HOST_ADDRESSES_MAX, TARGETS_MAX};
use crate::message::EnhancedStatus;

use super::plan::{DnsFailure, DnsResult, Host, Own};
use super::shuffle;

/// The addresses of one host. A family that was not asked for is `Err(DnsFailure::NoData)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddresses {
    /// Its A records.
    pub v4: DnsResult<Vec<Ipv4Addr>>,
    /// Its AAAA records.
    pub v6: DnsResult<Vec<Ipv6Addr>>,
}

/// The families that a source can send from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// The source has an IPv4 address.
    pub v4: bool,
    /// The source has an IPv6 address.
    pub v6: bool,
}

impl Families {
    /// The family of one source address.
    #[must_use]
    pub fn of(source: IpAddr) -> Self {
        Self {
            v4: source.is_ipv4(),
            v6: source.is_ipv6(),
        }
    }
}

/// One address to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Which of the hosts it belongs to.
    pub host: usize,
    /// Where to connect.
    pub address: IpAddr,
}

/// What to try, or why there is nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressPlan {
    /// In this order; never empty.
    Targets(Vec<Target>),
    /// At least one answer is unknown for now, and the known ones give nothing: 4.4.3.
    Temporary,
    /// No host has a usable address: 5.4.4. Never the domain's own address instead.
    NotUsable,
    /// The hosts have addresses, but not of the source's family: 5.4.4. Another source may reach
    /// them.
    WrongFamily,
    /// The best host has one of our own addresses: 5.4.6.
    Loop,
}

impl AddressPlan {
    /// The status of a failure; `None` where there is something to try.
    #[must_use]
    pub fn failure(&self) -> Option<EnhancedStatus> {
        match self {
            Self::Targets(_) => None,
            Self::Temporary => Some(EnhancedStatus::DIRECTORY_FAILURE),
            Self::NotUsable | Self::WrongFamily => Some(EnhancedStatus::UNROUTABLE),
            Self::Loop => Some(EnhancedStatus::ROUTING_LOOP),
        }
    }
}

/// The addresses to try for `hosts` (of a plan, in its order), given the answers for them, in the
/// same order. Hosts for which there is no answer yet count as temporarily unknown.
#[must_use]
pub fn targets(
    hosts: &[Host],
    answers: &[HostAddresses],
    families: Families,
    own: &Own,
    random: &mut dyn FnMut() -> u64,
) -> AddressPlan {
    let cut = own_preference(hosts, answers, own);
    let mut found = Vec::new();
    let mut unknown = answers.len() < hosts.len();
    let mut wrong_family = false;
    let mut ours = false;
    for (index, (host, answer)) in hosts.iter().zip(answers).enumerate() {
        // RFC 5321 5.1: ourselves, and what is no better than ourselves.
        if cut.is_some_and(|cut| host.preference >= cut) {
            ours = true;
            continue;
        }
        let (v4, v6) = (usable_v4(&answer.v4), usable_v6(&answer.v6));
        unknown |= families.v4 && answer.v4 == Err(DnsFailure::Temporary);
        unknown |= families.v6 && answer.v6 == Err(DnsFailure::Temporary);
        wrong_family |= (!families.v4 && !v4.is_empty()) || (!families.v6 && !v6.is_empty());
        let v4 = if families.v4 {
            picked(v4, random)
        } else {
            Vec::new()
        };
        let v6 = if families.v6 {
            picked(v6, random)
        } else {
            Vec::new()
        };
        let both = interleaved(&v6, &v4);
        found.extend(both.into_iter().map(|address| Target {
            host: index,
            address,
        }));
    }
    found.truncate(TARGETS_MAX);
    match (found.is_empty(), unknown, ours, wrong_family) {
        (false, ..) => AddressPlan::Targets(found),
        (true, true, ..) => AddressPlan::Temporary,
        (true, false, true, _) => AddressPlan::Loop,
        (true, false, false, true) => AddressPlan::WrongFamily,
        (true, false, false, false) => AddressPlan::NotUsable,
    }
}

/// The best preference of a host that has one of our addresses.
fn own_preference(hosts: &[Host], answers: &[HostAddresses], own: &Own) -> Option<u16> {
    let is_ours = |answer: &HostAddresses| {
        let v4 = answer
            .v4
            .iter()
            .flatten()
            .any(|a| own.is_address((*a).into()));
        v4 || answer
            .v6
            .iter()
            .flatten()
            .any(|a| own.is_address((*a).into()))
    };
    let ours = hosts
        .iter()
        .zip(answers)
        .filter(|(_, answer)| is_ours(answer));
    ours.map(|(host, _)| host.preference).min()
}

fn usable_v4(answer: &DnsResult<Vec<Ipv4Addr>>) -> Vec<IpAddr> {
    let usable = |a: &&Ipv4Addr| !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast();
    answer
        .iter()
        .flatten()
        .filter(usable)
        .map(|a| (*a).into())
        .collect()
}

/// A mapped address (`::ffff:192.0.2.1`) in the DNS is a mistake: it would leave over IPv4.
fn usable_v6(answer: &DnsResult<Vec<Ipv6Addr>>) -> Vec<IpAddr> {
    let usable =
        |a: &&Ipv6Addr| !a.is_unspecified() && !a.is_multicast() && a.to_ipv4_mapped().is_none();
    answer
        .iter()
        .flatten()
        .filter(usable)
        .map(|a| (*a).into())
        .collect()
}

/// Addresses of one host are equals: random order, each once, bounded.
fn picked(mut addresses: Vec<IpAddr>, random: &mut dyn FnMut() -> u64) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    shuffle(&mut addresses, random);
    addresses.truncate(HOST_ADDRESSES_MAX);
    addresses
}

/// In turn, so that a family that does not work costs one connect timeout and no more before the
/// other is tried (RFC 8305 4).
fn interleaved(first: &[IpAddr], second: &[IpAddr]) -> Vec<IpAddr> {
    let rounds = first.len().max(second.len());
    (0..rounds)
        .flat_map(|n| [first.get(n), second.get(n)])
        .flatten()
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::chance;
    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };
    const V4: Families = Families {
        v4: true,
        v6: false,
    };

    fn host(name: &str, preference: u16) -> Host {
        Host {
            name: name.into(),
            preference,
        }
    }

    fn v4(list: &[u8]) -> DnsResult<Vec<Ipv4Addr>> {
        Ok(list.iter().map(|n| Ipv4Addr::new(192, 0, 2, *n)).collect())
    }

    fn v6(list: &[u16]) -> DnsResult<Vec<Ipv6Addr>> {
        Ok(list
            .iter()
            .map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, *n))
            .collect())
    }

    fn run(hosts: &[Host], answers: &[HostAddresses], families: Families) -> AddressPlan {
        let own = Own::new([], &[[192, 0, 2, 7].into()]);
        targets(hosts, answers, families, &own, &mut chance(5))
    }

    fn list(plan: AddressPlan) -> Vec<Target> {
        match plan {
            AddressPlan::Targets(targets) => targets,
            other => panic!("{other:?}"),
        }
    }

    // All addresses of the best host come before the next; families alternate, IPv6 first.
    #[test]
    fn best_host_first_families_in_turn() {
        let hosts = [host("a", 10), host("b", 20)];
        let a = HostAddresses {
            v4: v4(&[1, 2, 3]),
            v6: v6(&[1]),
        };
        let b = HostAddresses {
            v4: v4(&[9]),
            v6: Err(DnsFailure::NoData),
        };
        let found = list(run(&hosts, &[a, b], BOTH));
        let hosts: Vec<usize> = found.iter().map(|t| t.host).collect();
        assert_eq!(hosts, [0, 0, 0, 0, 1]);
        let families: Vec<bool> = found.iter().map(|t| t.address.is_ipv6()).collect();
        assert_eq!(families, [true, false, false, false, false]);
    }

    // The source's family decides; the other family's fault does not matter then.
    #[test]
    fn source_family_decides() {
        let hosts = [host("a", 10)];
        let dual = HostAddresses {
            v4: v4(&[1]),
            v6: v6(&[1, 2]),
        };
        assert_eq!(list(run(&hosts, &[dual], V4)).len(), 1);
        let six = HostAddresses {
            v4: Err(DnsFailure::NoData),
            v6: v6(&[1]),
        };
        assert_eq!(run(&hosts, &[six], V4), AddressPlan::WrongFamily);
        let broken = HostAddresses {
            v4: v4(&[1]),
            v6: Err(DnsFailure::Temporary),
        };
        assert_eq!(
            list(run(&hosts, std::slice::from_ref(&broken), BOTH)).len(),
            1
        );
        let none = HostAddresses {
            v4: Err(DnsFailure::NoData),
            ..broken
        };
        assert_eq!(
            run(&hosts, std::slice::from_ref(&none), BOTH),
            AddressPlan::Temporary
        );
        assert_eq!(run(&hosts, &[none], V4), AddressPlan::NotUsable);
    }

    // An MX that does not resolve leads to the next one; none that resolves is a failure.
    #[test]
    fn unresolvable_hosts_are_skipped() {
        let hosts = [host("a", 10), host("b", 20)];
        let gone = HostAddresses {
            v4: Err(DnsFailure::NoSuchDomain),
            v6: Err(DnsFailure::NoSuchDomain),
        };
        let good = HostAddresses {
            v4: v4(&[1]),
            v6: Err(DnsFailure::NoData),
        };
        assert_eq!(list(run(&hosts, &[gone.clone(), good], BOTH))[0].host, 1);
        let both = [gone.clone(), gone.clone()];
        assert_eq!(run(&hosts, &both, BOTH), AddressPlan::NotUsable);
        assert_eq!(
            run(&hosts, &[gone], BOTH),
            AddressPlan::Temporary,
            "one is not known yet"
        );
    }

    // Our own address cuts like our own name.
    #[test]
    fn own_address_cuts_the_list() {
        let hosts = [host("a", 10), host("b", 20), host("c", 20)];
        let at = |n: u8| HostAddresses {
            v4: v4(&[n]),
            v6: Err(DnsFailure::NoData),
        };
        let found = list(run(&hosts, &[at(1), at(7), at(2)], BOTH));
        assert_eq!(
            found,
            [Target {
                host: 0,
                address: [192, 0, 2, 1].into()
            }]
        );
        assert_eq!(run(&hosts[1..], &[at(7), at(2)], BOTH), AddressPlan::Loop);
    }

    // Hostile answers: bounded, and nothing that is no host.
    #[test]
    fn answers_are_bounded_and_cleaned() {
        let hosts: Vec<Host> = (0..20).map(|n| host("x", n)).collect();
        let many: Vec<u8> = (10..250).collect();
        let wide = HostAddresses {
            v4: v4(&many),
            v6: v6(&[1, 1, 1]),
        };
        let found = list(run(&hosts, &vec![wide; 20], BOTH));
        assert_eq!(found.len(), TARGETS_MAX);
        assert_eq!(
            found.iter().filter(|t| t.host == 0).count(),
            HOST_ADDRESSES_MAX + 1
        );
        let odd = HostAddresses {
            v4: Ok(vec![
                Ipv4Addr::UNSPECIFIED,
                Ipv4Addr::BROADCAST,
                Ipv4Addr::new(224, 0, 0, 1),
            ]),
            v6: Ok(vec![
                Ipv6Addr::UNSPECIFIED,
                Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
            ]),
        };
        assert_eq!(run(&hosts[..1], &[odd], BOTH), AddressPlan::NotUsable);
    }
}
