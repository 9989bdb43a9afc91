//! routing - where mail goes. Pure: DNS answers and chance come in as arguments.
//!
//! What, in the order of use:
//! 1. [`RouteTable`]: does the operator send this domain through a smarthost?
//! 2. [`question`] and [`plan()`]: which hosts take mail for a domain (RFC 5321 5.1, RFC 7505)?
//! 3. [`site_name`]: the site that these hosts are, the name under which limits are kept.
//! 4. [`targets`]: which addresses are tried, in which order.
//!
//! Worked example: `example.com` has `MX 10 mx1.example.net`, `MX 10 mx2.example.net`. The plan is
//! both hosts in random order, the site `mx#.example.net`; the targets are all addresses of the
//! first host, IPv6 and IPv4 in turn, then those of the second.
//!
//! A DNS fault (SERVFAIL, timeout) is never permanent and never leads to the domain's own address.
//! Standards: RFC 5321 5.1, RFC 7505, RFC 2181 10.3, RFC 8305 4, RFC 3974.

mod plan;
mod site;
mod table;
mod target;

pub use plan::{
    DnsFailure, DnsResult, Host, Mx, Own, Plan, Question, follow_cnames, plan, question,
};
pub use site::{route_site_name, site_name};
pub use table::{DomainPattern, HostPort, Route, RouteError, RouteHost, RouteTable};
pub use target::{AddressPlan, Families, HostAddresses, Target, targets};

/// A number below `bound` (at least 1) from 64 random bits; the bias is under `bound` / 2^64.
fn below(bound: usize, random: &mut dyn FnMut() -> u64) -> usize {
    let wide = u128::from(random()) * bound as u128;
    // Below `bound`, which is a usize.
    (wide >> 64) as usize
}

/// Fisher and Yates: every order is equally likely.
fn shuffle<T>(items: &mut [T], random: &mut dyn FnMut() -> u64) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(last + 1, random));
    }
}

/// A host name in lower case without its final dot; `None` where no host can have this name, as
/// with an IP address where a name should be (RFC 5321 5.1 asks for a name).
fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() || name.len() > 253 || name.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    // Underscores are no host name (RFC 1123 2.1), but do exist, and resolve.
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.split('.')
        .all(label)
        .then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
fn chance(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
