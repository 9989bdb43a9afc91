//! table - the operator's routes: which domains go through which smarthosts.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::limits::ROUTES_MAX;
use crate::message::Domain;

use super::host_name;

/// Which domains a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DomainPattern {
    /// `*`: every domain, address literals too.
    Any,
    /// `example.com`: this domain alone. Also an address literal, with its brackets.
    Exact(Box<str>),
    /// `*.example.com`: its subdomains of any depth, not the domain itself.
    Below(Box<str>),
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RouteHost {
    /// An address.
    Address(IpAddr),
    /// A host name, in lower case; its addresses are asked for, its MX records are not.
    Name(Arc<str>),
}

/// A host and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host.
    pub host: RouteHost,
    /// Its port; `None` for that of deliveries.
    pub port: Option<u16>,
}

/// Why a route is refused; the operator's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteError {
    /// Neither `*`, `domain` nor `*.domain`.
    Domain,
    /// Neither a host name nor an address.
    Host,
    /// Not a number from 1 to 65535.
    Port,
    /// A route without domains or without hosts.
    Empty,
    /// More than `limits::ROUTES_MAX`.
    TooMany,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain => write!(f, "neither \"*\", a domain, nor \"*.\" and a domain"),
            Self::Host => write!(f, "neither a host name nor an address"),
            Self::Port => write!(f, "the port is no number from 1 to 65535"),
            Self::Empty => write!(f, "a route needs at least one domain and one host"),
            Self::TooMany => write!(f, "more than {ROUTES_MAX} routes"),
        }
    }
}

impl std::error::Error for RouteError {}

impl DomainPattern {
    /// Reads `*`, `example.com` or `*.example.com`.
    ///
    /// # Errors
    /// [`RouteError::Domain`] for anything else.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (below, name) = text
            .strip_prefix("*.")
            .map_or((false, text), |name| (true, name));
        let domain = Domain::parse(name).map_err(|_| RouteError::Domain)?;
        match below {
            true if domain.is_literal() => Err(RouteError::Domain),
            true => Ok(Self::Below(domain.as_str().into())),
            false => Ok(Self::Exact(domain.as_str().into())),
        }
    }
}

impl HostPort {
    /// Reads `host`, `host:port`, `192.0.2.1`, `192.0.2.1:25`, `2001:db8::1`, `[2001:db8::1]` or
    /// `[2001:db8::1]:25`.
    ///
    /// # Errors
    /// Where it is none of these.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            let port = Some(address.port())
                .filter(|port| *port != 0)
                .ok_or(RouteError::Port)?;
            return Ok(Self {
                host: RouteHost::Address(address.ip()),
                port: Some(port),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self {
                host: RouteHost::Address(address),
                port: None,
            });
        }
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => {
                let number = port
                    .parse::<u16>()
                    .ok()
                    .filter(|n| *n != 0)
                    .ok_or(RouteError::Port)?;
                (name, Some(number))
            }
        };
        // All digits and dots is a mistyped address, never a host.
        if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(RouteError::Host);
        }
        let name = host_name(name).ok_or(RouteError::Host)?;
        Ok(Self {
            host: RouteHost::Name(name.into()),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (RouteHost::Name(name), _) => write!(f, "{name}")?,
            (RouteHost::Address(IpAddr::V6(address)), _) => write!(f, "[{address}]")?,
            (RouteHost::Address(address), _) => write!(f, "{address}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// For these domains.
    pub domains: Vec<DomainPattern>,
    /// Through one of these hosts: equals, tried in random order.
    pub via: Vec<HostPort>,
}

/// All routes; the first one that matches wins.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    exact: HashMap<Box<str>, usize>,
    below: HashMap<Box<str>, usize>,
    any: Option<usize>,
}

impl RouteTable {
    /// Indexes the routes, so that a lookup costs one probe per label, however many there are.
    ///
    /// # Errors
    /// For a route that is empty, or too many of them.
    pub fn new(routes: Vec<Route>) -> Result<Self, RouteError> {
        if routes.len() > ROUTES_MAX {
            return Err(RouteError::TooMany);
        }
        let mut table = Self::default();
        for (index, route) in routes.iter().enumerate() {
            if route.domains.is_empty() || route.via.is_empty() {
                return Err(RouteError::Empty);
            }
            for pattern in &route.domains {
                // The first route that names a pattern keeps it.
                match pattern {
                    DomainPattern::Any => {
                        table.any.get_or_insert(index);
                    }
                    DomainPattern::Exact(name) => {
                        table.exact.entry(name.clone()).or_insert(index);
                    }
                    DomainPattern::Below(name) => {
                        table.below.entry(name.clone()).or_insert(index);
                    }
                }
            }
        }
        table.routes = routes;
        Ok(table)
    }

    /// The first route for this domain; `None` for the way of the MX records.
    #[must_use]
    pub fn lookup(&self, domain: &Domain) -> Option<&Route> {
        self.position(domain)
            .and_then(|index| self.routes.get(index))
    }

    /// The position of the first route for this domain.
    #[must_use]
    pub fn position(&self, domain: &Domain) -> Option<usize> {
        let name = domain.as_str();
        let exact = self.exact.get(name).copied();
        let dots = name
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'.' && !domain.is_literal());
        let parents = dots.filter_map(|(at, _)| self.below.get(&name[at + 1..]).copied());
        parents.chain(exact).chain(self.any).min()
    }

    /// All routes, by position.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(domains: &[&str], via: &str) -> Route {
        let pattern = |text: &&str| match DomainPattern::parse(text) {
            Ok(pattern) => pattern,
            Err(error) => panic!("{text}: {error}"),
        };
        let Ok(via) = HostPort::parse(via) else {
            panic!("{via}")
        };
        Route {
            domains: domains.iter().map(pattern).collect(),
            via: vec![via],
        }
    }

    fn found(table: &RouteTable, domain: &str) -> Option<String> {
        let Ok(domain) = Domain::parse(domain) else {
            panic!("{domain}")
        };
        table.lookup(&domain).map(|route| route.via[0].to_string())
    }

    // Order decides, not how specific a pattern is.
    #[test]
    fn first_match_wins() {
        let table = RouteTable::new(vec![
            route(&["special.example.com", "[192.0.2.1]"], "one"),
            route(&["*.example.com"], "two:2525"),
            route(&["deep.sub.example.com", "example.org"], "three"),
            route(&["*.org", "example.org"], "four"),
        ]);
        let Ok(table) = table else {
            panic!("a good table")
        };
        let cases = [
            ("special.example.com", Some("one")),
            ("SPECIAL.example.com", Some("one")),
            ("deep.sub.example.com", Some("two:2525")),
            ("example.com", None),
            ("notexample.com", None),
            ("example.org", Some("three")),
            ("a.b.c.org", Some("four")),
            ("org", None),
            ("[192.0.2.1]", Some("one")),
            ("[192.0.2.2]", None),
        ];
        for (domain, via) in cases {
            assert_eq!(found(&table, domain).as_deref(), via, "{domain}");
        }
        let Ok(any) = RouteTable::new(vec![route(&["*"], "127.0.0.1:2526"), route(&["a.b"], "x")])
        else {
            panic!("a good table")
        };
        assert_eq!(found(&any, "a.b").as_deref(), Some("127.0.0.1:2526"));
        assert_eq!(
            found(&any, "[192.0.2.1]").as_deref(),
            Some("127.0.0.1:2526")
        );
    }

    // What an operator may write, and what comes back.
    #[test]
    fn host_ports_are_read() {
        let good = [
            ("Relay.Example.com.", "relay.example.com"),
            ("relay:587", "relay:587"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:25", "192.0.2.1:25"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[2001:db8::1]:25", "[2001:db8::1]:25"),
        ];
        for (text, shown) in good {
            let read = HostPort::parse(text).map(|via| via.to_string());
            assert_eq!(read.as_deref(), Ok(shown), "{text}");
        }
        let bad = [
            ("", RouteError::Host),
            ("relay:", RouteError::Port),
            ("relay:0", RouteError::Port),
            ("192.0.2.1:0", RouteError::Port),
            ("relay:70000", RouteError::Port),
            ("192.0.2.300", RouteError::Host),
            ("a b", RouteError::Host),
            ("user@host", RouteError::Host),
        ];
        for (text, error) in bad {
            assert_eq!(HostPort::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn bad_tables_are_refused() {
        for text in ["", "*.", "a*b.example", "**", "*.[192.0.2.1]", "a..b"] {
            assert_eq!(
                DomainPattern::parse(text),
                Err(RouteError::Domain),
                "{text}"
            );
        }
        let empty = Route {
            domains: vec![DomainPattern::Any],
            via: Vec::new(),
        };
        assert_eq!(RouteTable::new(vec![empty]).err(), Some(RouteError::Empty));
        let many = vec![route(&["*"], "x"); ROUTES_MAX + 1];
        assert_eq!(RouteTable::new(many).err(), Some(RouteError::TooMany));
    }
}
