//! site - the name under which everything that goes to the same receivers is counted.
//!
//! What: many domains share one set of MX hosts, and one receiver has many hosts; limits and
//! reputation are the receiver's. [`site_name`] rolls a plan up: known providers by the suffix of
//! their hosts, everything else by its host names with their numbers replaced by `#`, sorted.
//! Best effort: two names for one receiver cost a limit that is kept twice; one name for two
//! receivers would throttle one for the other, so names are only joined where they differ in
//! numbers left of the registered domain (`mx1.126.com` and `mx1.163.com` are two).

use std::sync::Arc;

use crate::limits::SITE_NAME_BYTES_MAX;

use super::plan::{Host, Plan};
use super::table::HostPort;

/// Suffixes of host names, and the receiver that all of them are. The longer suffix comes first
/// where one contains another.
const PROVIDERS: [(&str, &str); 27] = [
    // Gmail and Google Workspace share their hosts and their limits.
    ("google.com", "google"),
    ("googlemail.com", "google"),
    // Consumer mailboxes (outlook.com, hotmail.com) are another system than the tenants, each of
    // which has a host name of its own.
    ("olc.protection.outlook.com", "outlook-consumer"),
    ("mail.protection.outlook.com", "outlook-business"),
    ("mail.eo.outlook.com", "outlook-business"),
    ("mx.microsoft", "outlook-business"),
    ("yahoodns.net", "yahoo"),
    ("mail.icloud.com", "icloud"),
    ("pphosted.com", "proofpoint"),
    ("ppe-hosted.com", "proofpoint-essentials"),
    ("mimecast.com", "mimecast"),
    ("mimecast.co.za", "mimecast"),
    ("messagelabs.com", "messagelabs"),
    ("iphmx.com", "cisco"),
    ("barracudanetworks.com", "barracuda"),
    ("trendmicro.com", "trendmicro"),
    ("trendmicro.eu", "trendmicro"),
    ("emailsrvr.com", "rackspace"),
    ("secureserver.net", "godaddy"),
    ("zoho.com", "zoho"),
    ("zoho.eu", "zoho"),
    ("yandex.net", "yandex"),
    ("yandex.ru", "yandex"),
    ("qq.com", "qq"),
    ("kundenserver.de", "ionos"),
    ("mx.comcast.net", "comcast"),
    ("messagingengine.com", "fastmail"),
];

/// The site of a plan. A plan that leads nowhere has no entries to count: `unroutable`.
#[must_use]
pub fn site_name(plan: &Plan) -> Arc<str> {
    match plan {
        Plan::Hosts(hosts) => roll_up(hosts),
        Plan::Implicit(host) => roll_up(std::slice::from_ref(host)),
        Plan::Literal(address) => format!("[{address}]").into(),
        Plan::Null | Plan::NoSuchDomain | Plan::Temporary | Plan::NotUsable | Plan::Loop => {
            "unroutable".into()
        }
    }
}

/// The site of a route: its hosts, as the operator wrote them.
#[must_use]
pub fn route_site_name(via: &[HostPort]) -> Arc<str> {
    joined(via.iter().map(ToString::to_string).collect())
}

fn roll_up(hosts: &[Host]) -> Arc<str> {
    let name = |host: &Host| {
        provider(&host.name).map_or_else(|| without_numbers(&host.name), str::to_owned)
    };
    joined(hosts.iter().map(name).collect())
}

fn provider(host: &str) -> Option<&'static str> {
    let found = PROVIDERS.iter().find(|(suffix, _)| {
        // At a label's edge: `notgoogle.com` is not Google.
        host.strip_suffix(suffix)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    found.map(|(_, name)| *name)
}

/// Every run of digits as `#`, in the labels left of the registered domain.
fn without_numbers(host: &str) -> String {
    let labels: Vec<&str> = host.split('.').collect();
    // The registered domain: two labels, or three where the second is of the kind of `co.uk`.
    let second = labels.len().checked_sub(2).map_or("", |at| labels[at]);
    let country = labels.last().is_some_and(|last| last.len() == 2);
    let kept = if country && second.len() <= 3 { 3 } else { 2 };
    let open = labels.len().saturating_sub(kept);
    let shown = labels
        .iter()
        .enumerate()
        .map(|(at, label)| match at < open {
            true => numbers_replaced(label),
            false => (*label).to_owned(),
        });
    shown.collect::<Vec<String>>().join(".")
}

fn numbers_replaced(label: &str) -> String {
    let mut shown = String::with_capacity(label.len());
    for letter in label.chars() {
        match letter.is_ascii_digit() {
            true if shown.ends_with('#') => {}
            true => shown.push('#'),
            false => shown.push(letter),
        }
    }
    shown
}

/// Sorted, each once, bounded: a longer name ends in a hash of the whole.
fn joined(mut names: Vec<String>) -> Arc<str> {
    names.sort_unstable();
    names.dedup();
    let name = names.join(",");
    if name.len() <= SITE_NAME_BYTES_MAX {
        return name.into();
    }
    // FNV-1a: stable over versions and machines, since limits are kept under this name.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let kept = name.floor_char_boundary(SITE_NAME_BYTES_MAX - 17);
    format!("{}~{hash:016x}", &name[..kept]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(hosts: &[&str]) -> String {
        let host = |(n, name): (u16, &&str)| Host {
            name: (*name).into(),
            preference: n,
        };
        site_name(&Plan::Hosts((0..).zip(hosts).map(host).collect())).to_string()
    }

    // Hosts as they stood in the DNS of these receivers, and what they roll up to.
    #[test]
    fn receivers_have_one_name() {
        let cases: [(&[&str], &str); 14] = [
            (
                &[
                    "gmail-smtp-in.l.google.com",
                    "alt1.gmail-smtp-in.l.google.com",
                ],
                "google",
            ),
            (
                &[
                    "aspmx.l.google.com",
                    "alt2.aspmx.l.google.com",
                    "aspmx3.googlemail.com",
                ],
                "google",
            ),
            (&["smtp.google.com"], "google"),
            (
                &["contoso-com.mail.protection.outlook.com"],
                "outlook-business",
            ),
            (&["contoso-com.n-v1.mx.microsoft"], "outlook-business"),
            (
                &["hotmail-com.olc.protection.outlook.com"],
                "outlook-consumer",
            ),
            (&["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"], "yahoo"),
            (&["mx1.example.net", "mx2.example.net"], "mx#.example.net"),
            (
                &["b.example.net", "a.example.net"],
                "a.example.net,b.example.net",
            ),
            (&["mx1.126.com"], "mx#.126.com"),
            (&["mx1.163.com"], "mx#.163.com"),
            (&["mx10.123.co.uk"], "mx#.123.co.uk"),
            (&["mx.notgoogle.com"], "mx.notgoogle.com"),
            (
                &["aspmx.l.google.com", "mx9.example.net"],
                "google,mx#.example.net",
            ),
        ];
        for (hosts, name) in cases {
            assert_eq!(site(hosts), name);
            let turned: Vec<&str> = hosts.iter().rev().copied().collect();
            assert_eq!(site(&turned), name, "order does not matter");
        }
    }

    // Names that no other row of the table may hide.
    #[test]
    fn every_provider_can_be_found() {
        for (suffix, name) in PROVIDERS {
            assert_eq!(site(&[&format!("x.{suffix}")]), name);
            assert_eq!(site(&[suffix]), name);
        }
    }

    // Implicit hosts, literals and routes have names too.
    #[test]
    fn other_plans_have_names() {
        let host = Host {
            name: "example7.com".into(),
            preference: 0,
        };
        assert_eq!(&*site_name(&Plan::Implicit(host)), "example7.com");
        assert_eq!(
            &*site_name(&Plan::Literal([192, 0, 2, 1].into())),
            "[192.0.2.1]"
        );
        assert_eq!(&*site_name(&Plan::Null), "unroutable");
        let via: Vec<HostPort> = ["b:25", "127.0.0.1:2526"]
            .iter()
            .flat_map(|text| HostPort::parse(text))
            .collect();
        assert_eq!(&*route_site_name(&via), "127.0.0.1:2526,b:25");
    }

    // A hostile MX set gets a short name, and another set another one.
    #[test]
    fn long_names_end_in_a_hash() {
        let hosts: Vec<String> = (b'a'..=b't')
            .map(|c| format!("{0}{0}{0}.example.net", char::from(c)))
            .collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let (all, fewer) = (site(&hosts), site(&hosts[..19]));
        assert_eq!(all.len(), SITE_NAME_BYTES_MAX);
        assert_eq!(all[..180], fewer[..180]);
        assert_ne!(all, fewer);
    }
}
