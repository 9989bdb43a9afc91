//! ways - where the mail of a domain goes: its site, its home shard, the addresses to dial.

use std::sync::Arc;

use crate::engine::{Class, Port};
use crate::limits;
use crate::message::Domain;
use crate::queue::{Cause, CauseKind, EntryId, Event, Recipients};
use crate::routing::{self, AddressPlan, Families, Host, HostPort, Plan, RouteHost};
use crate::service::delivery::HostAddress;
use crate::service::dispatch::{Dispatch, Load, Path, Way, Work};
use crate::service::mesh::{Bounce, Failure, ShardMessage, Target, Transfer};
use crate::service::resolver::{Known, Question};
use crate::time::{Mono, Wall};

impl<P: Port> Dispatch<P> {
    /// Finds the way of a domain, now or after asking the DNS, and sends the load along it.
    pub(super) fn place(&self, domain: &Domain, load: Load) {
        if let Some(way) = self.way(domain) {
            self.send_along(&way, load);
            return;
        }
        let mut unrouted = self.unrouted.borrow_mut();
        if let Some(waiting) = unrouted.get_mut(domain) {
            waiting.push(load);
            return;
        }
        unrouted.insert(domain.clone(), vec![load]);
        drop(unrouted);
        let (me, domain) = (self.rc(), domain.clone());
        self.port.spawn(Class::Resolve, async move {
            let way = me.find_way(&domain).await;
            let waiting = me.unrouted.borrow_mut().remove(&domain);
            for load in waiting.unwrap_or_default() {
                me.send_along(&way, load);
            }
        });
    }

    /// The way of a domain, where the routes or a recent answer tell it.
    fn way(&self, domain: &Domain) -> Option<Way> {
        if let Some((until, way)) = self.ways.borrow().get(domain)
            && *until > self.port.now()
        {
            return Some(way.clone());
        }
        let position = self.settings.routes.position(domain)?;
        let via = &self.settings.routes.routes()[position].via;
        let target = Target::Route(u32::try_from(position).unwrap_or(u32::MAX));
        let way = Way::To(routing::route_site_name(via), target);
        self.remember(domain, Mono::NEVER, &way);
        Some(way)
    }

    /// Keeps a way for the next message; a full table is forgotten as a whole, which costs the
    /// names in use one look-up in the resolver's cache each.
    fn remember(&self, domain: &Domain, until: Mono, way: &Way) {
        let mut ways = self.ways.borrow_mut();
        if ways.len() >= limits::WAYS_MAX {
            ways.clear();
        }
        ways.insert(domain.clone(), (until, way.clone()));
    }

    async fn find_way(&self, domain: &Domain) -> Way {
        let (plan, known) = self.plan(domain).await;
        let way = match (&plan, plan.failure()) {
            // Not known now: a site of its own, whose dials will ask again and back off.
            (Plan::Temporary, _) => {
                Way::To(Arc::from(domain.as_str()), Target::Mail(domain.clone()))
            }
            (_, Some(status)) => Way::Never(status, unroutable(&plan)),
            (_, None) => Way::To(routing::site_name(&plan), Target::Mail(domain.clone())),
        };
        let until = known.map_or(Mono::NEVER, |known| known.until);
        self.remember(domain, until, &way);
        way
    }

    /// Which hosts take mail for a domain, by its MX records; and the answer that says so.
    async fn plan(&self, domain: &Domain) -> (Plan, Option<Known>) {
        let mut random = || self.port.random();
        if domain.is_literal() {
            let nothing = Ok(Vec::new());
            return (
                routing::plan(domain, nothing, &self.settings.own, &mut random),
                None,
            );
        }
        let known = self
            .resolver
            .look_up(Question::Mail(Arc::from(domain.as_str())))
            .await;
        let mx = known.answer.mx.clone();
        (
            routing::plan(domain, mx, &self.settings.own, &mut random),
            Some(known),
        )
    }

    fn send_along(&self, way: &Way, load: Load) {
        match way {
            Way::To(site, target) => {
                let home = self.home(load.source, site);
                let transfer = Transfer {
                    id: load.id,
                    recipients: load.recipients,
                    source: load.source,
                    site: Arc::clone(site),
                    target: target.clone(),
                    attempts: load.attempts,
                    due: load.due,
                    age: load.age,
                    as_of: load.as_of,
                    held: load.held,
                };
                if home == self.settings.shard {
                    self.take_over(transfer);
                } else {
                    self.post(home, ShardMessage::Enqueue(Box::new(transfer)));
                }
            }
            Way::Never(status, text) => {
                let failure = |recipient: &u32| Failure {
                    recipient: *recipient,
                    status: *status,
                    text: text.clone(),
                    remote: None,
                };
                let failures = load.recipients.as_slice().iter().map(failure).collect();
                // The storing shard writes the notification: it may be another where an entry is
                // routed anew.
                self.bounce(Bounce {
                    id: load.id,
                    failures,
                    expired: false,
                    held: load.held,
                });
            }
        }
    }

    /// The shard that owns an egress path: the highest of a hash per shard (rendezvous), so that a
    /// change of their number moves only the paths that it must.
    fn home(&self, source: u16, site: &str) -> u16 {
        if self.settings.spread {
            return self.settings.shard;
        }
        let base = fnv(fnv(FNV_BASIS, &source.to_le_bytes()), site.as_bytes());
        let weight = |shard: u16| mix(base ^ mix(u64::from(shard) + 1));
        (0..self.settings.shards)
            .max_by_key(|shard| weight(*shard))
            .unwrap_or(0)
    }

    /// The addresses to try for a path, in order.
    ///
    /// # Errors
    /// What the operator is told where there are none; always a matter of time, since what can
    /// never work is bounced when the message is routed.
    pub async fn addresses(&self, path: &Path) -> Result<Vec<HostAddress>, Cause> {
        match &path.target {
            Target::Route(route) => {
                let route = usize::try_from(*route).unwrap_or(usize::MAX);
                let via = self
                    .settings
                    .routes
                    .routes()
                    .get(route)
                    .map(|route| route.via.clone());
                self.addresses_of_route(path, &via.unwrap_or_default())
                    .await
            }
            Target::Mail(domain) => self.addresses_of_domain(path, domain).await,
        }
    }

    async fn addresses_of_route(
        &self,
        path: &Path,
        via: &[HostPort],
    ) -> Result<Vec<HostAddress>, Cause> {
        let mut found = Vec::new();
        let mut failure = Cause::new(CauseKind::Local, "the route has no host");
        for hop in via {
            let port = hop.port.unwrap_or(self.settings.mail_port);
            match &hop.host {
                RouteHost::Address(ip) => {
                    let (name, address) = (Arc::from(ip.to_string()), (*ip, port).into());
                    found.push(HostAddress { name, address });
                }
                RouteHost::Name(name) => {
                    let known = self
                        .resolver
                        .look_up(Question::Host(Arc::clone(name)))
                        .await;
                    let host = Host {
                        name: Arc::clone(name),
                        preference: 0,
                    };
                    match self.targets(path, std::slice::from_ref(&host), &known, port) {
                        Ok(addresses) => found.extend(addresses),
                        Err(cause) => failure = cause,
                    }
                }
            }
        }
        if found.is_empty() {
            Err(failure)
        } else {
            Ok(found)
        }
    }

    /// Whether a path leads nowhere: the DNS says now that the domain whose hosts it dials takes no
    /// mail, or is no more. Dialling for it would never end; its entries are routed anew, each
    /// recipient by its own domain, because a path may carry other domains too and none of them
    /// fails for one.
    pub async fn is_dead_end(&self, path: &Path) -> bool {
        match &path.target {
            Target::Mail(domain) => self.is_dead(domain).await,
            Target::Route(_) => false,
        }
    }

    /// Whether an entry that was tried before is for a domain that takes no mail any more, although
    /// its site does: the path is dialled for another domain of the site then.
    pub(super) async fn is_for_the_dead(&self, entry: EntryId, work: &Work) -> bool {
        let brain = self.brain.borrow();
        let retried = brain.get(entry).is_some_and(|entry| entry.attempts() > 0);
        drop(brain);
        if !retried {
            return false;
        }
        let recipients = &work.held.envelope.recipients;
        let indexes = work
            .recipients
            .iter()
            .filter_map(|index| usize::try_from(*index).ok());
        let recipients = indexes.filter_map(|index| recipients.get(index));
        let mut asked: Vec<&Domain> = Vec::new();
        for domain in recipients.map(|recipient| recipient.address.domain()) {
            // Each may be a question to the DNS, which the connection waits for.
            if asked.len() >= limits::DOMAINS_ASKED_MAX {
                return false;
            }
            if asked.contains(&domain) || self.settings.routes.position(domain).is_some() {
                continue;
            }
            asked.push(domain);
            if self.is_dead(domain).await {
                return true;
            }
        }
        false
    }

    async fn is_dead(&self, domain: &Domain) -> bool {
        match self.plan(domain).await.0 {
            Plan::Temporary => false,
            plan => {
                let dead = plan.failure().is_some();
                if dead {
                    self.forget_way(domain);
                }
                dead
            }
        }
    }

    /// Routes the recipients of an entry anew: those of a domain that takes no mail fail with what
    /// the DNS says (RFC 5321 5.1), others go to where their mail goes now.
    pub fn reroute(&self, entry: EntryId, work: &Work) {
        let held = &work.held;
        let (attempts, source) = {
            let brain = self.brain.borrow();
            let attempts = brain.get(entry).map_or(0, |entry| entry.attempts());
            let source = brain.path_of(entry).and_then(|path| brain.source(path));
            (attempts, source)
        };
        self.apply(Event::Outcome {
            entry,
            deferred: None,
            cause: Cause::SETTLED,
        });
        let mut domains: Vec<(&Domain, Vec<u32>)> = Vec::new();
        for index in &work.recipients {
            let Some(recipient) = held.envelope.recipients.get(*index as usize) else {
                continue;
            };
            let domain = recipient.address.domain();
            match domains.iter_mut().find(|(known, _)| *known == domain) {
                Some((_, indexes)) => indexes.push(*index),
                None => domains.push((domain, vec![*index])),
            }
        }
        for (domain, indexes) in domains {
            let Some(recipients) = Recipients::many(&indexes) else {
                continue;
            };
            let load = Load {
                id: held.id,
                recipients,
                source: source.unwrap_or_else(|| self.choose_source(&held.envelope)),
                attempts,
                due: Wall(0),
                age: self.age_of(held.received_at),
                as_of: self.port.now(),
                held: None,
            };
            self.place(domain, load);
        }
    }

    async fn addresses_of_domain(
        &self,
        path: &Path,
        domain: &Domain,
    ) -> Result<Vec<HostAddress>, Cause> {
        let (plan, known) = self.plan(domain).await;
        if let Plan::Literal(ip) = plan {
            let (name, address) = (
                Arc::from(ip.to_string()),
                (ip, self.settings.mail_port).into(),
            );
            return Ok(vec![HostAddress { name, address }]);
        }
        match (plan.failure(), known) {
            (None, Some(known)) => {
                self.targets(path, plan.hosts(), &known, self.settings.mail_port)
            }
            _ => {
                // The DNS has changed its mind since the domain was routed: ask anew next time.
                self.forget_way(domain);
                Err(Cause {
                    kind: CauseKind::Local,
                    text: Some(unroutable(&plan)),
                })
            }
        }
    }

    fn targets(
        &self,
        path: &Path,
        hosts: &[Host],
        known: &Known,
        port: u16,
    ) -> Result<Vec<HostAddress>, Cause> {
        let answers = known.answer.addresses_of(hosts);
        let both = Families { v4: true, v6: true };
        let families = path.source.address.map_or(both, Families::of);
        let mut random = || self.port.random();
        match routing::targets(hosts, &answers, families, &self.settings.own, &mut random) {
            AddressPlan::Targets(targets) => {
                let address = |target: routing::Target| HostAddress {
                    name: Arc::clone(&hosts[target.host].name),
                    address: (target.address, port).into(),
                };
                Ok(targets.into_iter().map(address).collect())
            }
            AddressPlan::Temporary => Err(Cause::new(
                CauseKind::Local,
                "4.4.3 the DNS does not answer for the site's hosts",
            )),
            AddressPlan::NotUsable => Err(Cause::new(
                CauseKind::Local,
                "5.4.4 no host of the site has an address",
            )),
            AddressPlan::WrongFamily => Err(Cause::new(
                CauseKind::Local,
                "5.4.4 no host of the site has an address of the source's family",
            )),
            AddressPlan::Loop => Err(Cause::new(
                CauseKind::Local,
                "5.4.6 the site's hosts are this host",
            )),
        }
    }

    fn forget_way(&self, domain: &Domain) {
        self.ways.borrow_mut().remove(domain);
    }
}

/// Why a plan leads nowhere, in words for the sender and the operator.
fn unroutable(plan: &Plan) -> Box<str> {
    Box::from(match plan {
        Plan::Null => "the domain accepts no mail (null MX)",
        Plan::NoSuchDomain => "the domain does not exist",
        Plan::Temporary => "the DNS does not answer for the domain",
        Plan::NotUsable => "the domain has no usable mail exchanger",
        Plan::Loop => "the domain's mail exchanger is this host",
        Plan::Hosts(_) | Plan::Implicit(_) | Plan::Literal(_) => "the domain is routable",
    })
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: short names, no adversary (a receiver cannot choose a shard to its advantage).
fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
