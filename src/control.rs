//! control - the control thread: name resolution, the admin socket, key files, on tokio, off the
//! hot path.
//!
//! Role: answer the shards' DNS questions with hickory-resolver (its traits want Send futures, so
//! it cannot live on a shard), and turn admin calls into letters to the shards and back.
//! Flow: `Question` -> hickory -> `MailAnswer` -> mailbox of the shard that asked; admin `Call` ->
//! `OperatorRequest` per shard -> one answer.
//! Shard: none; it shares nothing with them but mailboxes.
//! Limits: `limits::QUESTIONS_AT_ONCE_MAX` look-ups at a time; further ones wait.
//! Failure: a look-up without an answer is a temporary failure, which defers and never bounces.
//! Standards: RFC 5321 5.1, RFC 2308, RFC 7505.

mod keys;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::admin::{
    AdminSocket, Call, Changed, Counters, NodeStatus, PathStatus, Probed, Quarantine,
    QuarantinedMessage, Released, ShardStatus, SpoolShardStatus, calls, serve,
};
use crate::config::{Dns, Snapshot};
use crate::limits;
use crate::message::MessageId;
use crate::routing::{DnsFailure, DnsResult, HostAddresses, Mx};
use crate::service::mesh::{Figures, Mesh, OperatorRequest, PathFigures, ShardMessage, answer};
use crate::service::resolver::{Ask, MailAnswer, Question};
use crate::service::spooler::{Listed, ReleaseError};
use crate::spool::SpoolStatus;

use self::keys::KeyWatch;
pub use self::keys::{KeyStamps, key_stamps};

/// Where shards put their questions.
#[derive(Clone)]
pub struct Names(mpsc::UnboundedSender<(u16, Question)>);

/// The questions of all shards, for the control thread.
pub type Questions = mpsc::UnboundedReceiver<(u16, Question)>;

impl Names {
    /// The way for questions. Unbounded, yet finite: a shard asks each name once at a time, and
    /// only for recipients that it holds.
    #[must_use]
    pub fn channel() -> (Self, Questions) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// How the shard with this number asks.
    #[must_use]
    pub fn ask(&self, shard: u16) -> Ask {
        let names = self.0.clone();
        Arc::new(move |question| names.send((shard, question)).is_ok())
    }
}

/// The control thread of a node.
pub struct Control {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    draining: Arc<AtomicBool>,
    reload_keys: Arc<Notify>,
}

impl Control {
    /// Starts the thread; the admin socket exists when this returns. `keys` is how the key files
    /// were before the node read them.
    ///
    /// # Errors
    /// The DNS configuration cannot be read, the admin socket cannot be made, or no thread.
    pub fn start(
        snapshot: &Arc<Snapshot>,
        mesh: &Mesh,
        questions: Questions,
        keys: KeyStamps,
    ) -> Result<Self, String> {
        let resolver = resolver(&snapshot.dns)?;
        let socket = match &snapshot.admin.socket {
            Some(path) => Some(AdminSocket::bind(path).map_err(|error| error.to_string())?),
            None => None,
        };
        let draining = Arc::new(AtomicBool::new(false));
        let desk = Desk {
            hostname: snapshot.node.hostname.to_string(),
            mesh: Arc::clone(mesh),
            started: Instant::now(),
            draining: Arc::clone(&draining),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start the control thread: {error}"))?;
        let (stop, stopped) = oneshot::channel();
        let watch = KeyWatch::new(Arc::clone(snapshot), Arc::clone(mesh), keys);
        let reload_keys = Arc::new(Notify::new());
        let asked = Arc::clone(&reload_keys);
        let mesh = Arc::clone(mesh);
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::spawn(answer_questions(resolver, mesh, questions));
                    tokio::spawn(watch.run(asked));
                    if let Some(socket) = socket {
                        let (sender, receiver) = calls();
                        tokio::spawn(desk.answer_calls(receiver));
                        tokio::spawn(async move {
                            let never = std::future::pending();
                            if let Err(error) = serve(socket, sender, never).await {
                                tracing::error!(%error, "the admin socket failed");
                            }
                        });
                    }
                    // An error means that the node let go of its end: time to end as well.
                    drop(stopped.await);
                });
            })
            .map_err(|error| format!("cannot start the control thread: {error}"))?;
        Ok(Self {
            thread,
            stop,
            draining,
            reload_keys,
        })
    }

    /// From now on the status says that the node is draining.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Reads the key files again, whether or not they seem to have changed.
    pub fn reload_keys(&self) {
        self.reload_keys.notify_one();
    }

    /// Ends the thread; the admin socket goes with it.
    pub fn stop(self) {
        // Either end may be gone first; both orders end the thread.
        if self.stop.send(()).is_err() {
            tracing::debug!("the control thread had ended already");
        }
        if self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

/// The resolver that the configuration asks for.
fn resolver(dns: &Dns) -> Result<TokioResolver, String> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = if dns.servers.is_empty() {
        TokioResolver::builder(provider)
            .map_err(|error| format!("dns: cannot read /etc/resolv.conf: {error}"))?
    } else {
        let server = |address: &std::net::SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        };
        let servers = dns.servers.iter().map(server).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        TokioResolver::builder_with_config(config, provider)
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = dns.timeout;
    options.attempts = usize::try_from(dns.attempts).unwrap_or(usize::MAX);
    // Names are absolute here: a search list would send mail to the wrong company.
    options.ndots = 0;
    options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
    builder.build().map_err(|error| format!("dns: {error}"))
}

/// The TXT records of each name, the strings of a record joined (RFC 6376 3.6.2.2); for verbs that
/// ask the DNS without a node. Blocks.
///
/// # Errors
/// The DNS configuration cannot be read, or no runtime.
pub fn texts(dns: &Dns, names: &[String]) -> Result<Vec<DnsResult<Vec<Vec<u8>>>>, String> {
    let resolver = resolver(dns)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot ask the DNS: {error}"))?;
    runtime.block_on(async {
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let mut lifetime = Lifetime(limits::RESOLVER_TTL_MAX);
            let found = query(
                &resolver,
                name,
                RecordType::TXT,
                &mut lifetime,
                |data| match data {
                    RData::TXT(text) => Some(text.txt_data.concat()),
                    _ => None,
                },
            );
            all.push(found.await);
        }
        Ok(all)
    })
}

async fn answer_questions(resolver: TokioResolver, mesh: Mesh, mut questions: Questions) {
    let places = Arc::new(Semaphore::new(limits::QUESTIONS_AT_ONCE_MAX));
    while let Some((shard, question)) = questions.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (resolver, mesh) = (resolver.clone(), Arc::clone(&mesh));
        tokio::spawn(async move {
            let answer = Arc::new(look_up(&resolver, &question).await);
            let mut letter = ShardMessage::Resolved { question, answer };
            // The mailbox is full only for as long as the shard is busy; the answer must arrive.
            while let Err(returned) = mesh[usize::from(shard)].try_send(letter) {
                letter = returned;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(place);
        });
    }
}

async fn look_up(resolver: &TokioResolver, question: &Question) -> MailAnswer {
    let mut lifetime = Lifetime(limits::RESOLVER_TTL_MAX);
    let mut addresses = HashMap::new();
    let mx = match question {
        Question::Mail(domain) => mail_exchangers(resolver, domain, &mut lifetime).await,
        Question::Host(_) => Err(DnsFailure::NoData),
    };
    let hosts: Vec<Arc<str>> = match (&mx, question) {
        (Ok(records), _) => {
            let mut best: Vec<&Mx> = records.iter().collect();
            best.sort_by_key(|mx| mx.preference);
            best.iter()
                .take(limits::MX_MAX)
                .map(|mx| Arc::from(&*mx.exchange))
                .collect()
        }
        (Err(DnsFailure::NoData), Question::Mail(name) | Question::Host(name)) => {
            vec![Arc::clone(name)]
        }
        (Err(_), _) => Vec::new(),
    };
    for host in hosts {
        if host.is_empty() || addresses.contains_key(&host) {
            continue;
        }
        let found = host_addresses(resolver, &host, &mut lifetime).await;
        addresses.insert(host, found);
    }
    MailAnswer {
        mx,
        addresses,
        lifetime: lifetime.0,
    }
}

/// The shortest lifetime of all answers that went into one.
struct Lifetime(Duration);

impl Lifetime {
    fn at_most(&mut self, other: Duration) {
        self.0 = self.0.min(other);
    }
}

async fn mail_exchangers(
    resolver: &TokioResolver,
    domain: &str,
    lifetime: &mut Lifetime,
) -> DnsResult<Vec<Mx>> {
    let records = query(
        resolver,
        domain,
        RecordType::MX,
        lifetime,
        |data| match data {
            RData::MX(mx) => Some(Mx {
                preference: mx.preference,
                exchange: host_name(&mx.exchange.to_ascii()),
            }),
            _ => None,
        },
    );
    records.await
}

/// A and AAAA of one host, asked at once.
async fn host_addresses(
    resolver: &TokioResolver,
    host: &str,
    lifetime: &mut Lifetime,
) -> HostAddresses {
    let (mut short, mut long) = (Lifetime(lifetime.0), Lifetime(lifetime.0));
    let v4 = query(
        resolver,
        host,
        RecordType::A,
        &mut short,
        |data| match data {
            RData::A(address) => Some(address.0),
            _ => None,
        },
    );
    let v6 = query(
        resolver,
        host,
        RecordType::AAAA,
        &mut long,
        |data| match data {
            RData::AAAA(address) => Some(address.0),
            _ => None,
        },
    );
    let (v4, v6) = tokio::join!(v4, v6);
    lifetime.at_most(short.0);
    lifetime.at_most(long.0);
    HostAddresses { v4, v6 }
}

async fn query<T>(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
    lifetime: &mut Lifetime,
    mut take: impl FnMut(&RData) -> Option<T>,
) -> DnsResult<Vec<T>> {
    let absolute = format!("{name}.");
    match resolver.lookup(absolute, kind).await {
        Ok(lookup) => {
            lifetime.at_most(
                lookup
                    .valid_until()
                    .saturating_duration_since(Instant::now()),
            );
            let found: Vec<T> = lookup
                .answers()
                .iter()
                .filter_map(|record| take(&record.data))
                .collect();
            // A CNAME without the type behind it has an answer section and still no data.
            if found.is_empty() {
                Err(DnsFailure::NoData)
            } else {
                Ok(found)
            }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let ttl = none
                .negative_ttl
                .map_or(limits::RESOLVER_TTL_MIN, |seconds| {
                    Duration::from_secs(u64::from(seconds))
                });
            lifetime.at_most(ttl.min(limits::RESOLVER_NEGATIVE_TTL_MAX));
            match none.response_code {
                ResponseCode::NXDomain => Err(DnsFailure::NoSuchDomain),
                // A referral instead of an answer says nothing about the name (a lame server).
                ResponseCode::NoError if none.soa.is_some() || none.ns.is_none() => {
                    Err(DnsFailure::NoData)
                }
                _ => Err(DnsFailure::Temporary),
            }
        }
        Err(error) => {
            tracing::debug!(name, %kind, %error, "no answer from the DNS");
            lifetime.at_most(limits::RESOLVER_TTL_MIN);
            Err(DnsFailure::Temporary)
        }
    }
}

/// A host name as the rest of the house has it: lower case, without the final dot.
fn host_name(name: &str) -> Box<str> {
    Box::from(name.trim_end_matches('.').to_ascii_lowercase())
}

/// Where admin calls are answered.
struct Desk {
    hostname: String,
    mesh: Mesh,
    started: Instant,
    draining: Arc<AtomicBool>,
}

impl Desk {
    async fn answer_calls(self, mut calls: mpsc::Receiver<Call>) {
        while let Some(call) = calls.recv().await {
            self.answer(call).await;
        }
    }

    async fn answer(&self, call: Call) {
        match call {
            Call::Status { reply } => {
                if let Some(shards) = self.each(OperatorRequest::Status).await {
                    answer(reply, self.status(&shards));
                }
            }
            Call::Paths { reply } => {
                if let Some(paths) = self.each(OperatorRequest::Paths).await {
                    answer(reply, path_status(paths));
                }
            }
            Call::Spool { reply } => {
                if let Some(spools) = self.each(OperatorRequest::Spools).await {
                    answer(
                        reply,
                        spools.into_iter().flatten().map(spool_status).collect(),
                    );
                }
            }
            Call::Suspend { selector, reply } => {
                if let Some(paths) = self.suspend(&selector, true).await {
                    answer(reply, Changed { paths });
                }
            }
            Call::Resume { selector, reply } => {
                if let Some(paths) = self.suspend(&selector, false).await {
                    answer(reply, Changed { paths });
                }
            }
            Call::Quarantine { reply } => {
                if let Some(listed) = self.each(OperatorRequest::Quarantine).await {
                    answer(reply, quarantine(listed));
                }
            }
            Call::Release { id, reply } => {
                if let Some(done) = self.release(&id).await {
                    answer(reply, done);
                }
            }
            Call::Discard { id, reply } => {
                if let Some(done) = self.discard(&id).await {
                    answer(reply, done);
                }
            }
            Call::ProbeSpool { reply } => {
                if let Some(alarmed) = self.each(OperatorRequest::Probe).await {
                    let shards = alarmed.into_iter().filter(|alarmed| *alarmed).count();
                    answer(
                        reply,
                        Probed {
                            shards: u64::try_from(shards).unwrap_or(u64::MAX),
                        },
                    );
                }
            }
        }
    }

    async fn suspend(&self, selector: &crate::admin::Selector, stop: bool) -> Option<u64> {
        let request = |reply| OperatorRequest::Suspend {
            source: selector.source.clone(),
            site: selector.site.clone(),
            stop,
            reply,
        };
        Some(self.each(request).await?.into_iter().sum())
    }

    /// Sends a message in quarantine after all: its new id, or a sentence.
    async fn release(&self, id: &str) -> Option<Result<Released, String>> {
        let Ok(id) = id.parse::<MessageId>() else {
            return Some(Err(NO_ID.to_owned()));
        };
        let done = self
            .storing(id, |reply| OperatorRequest::Release { id, reply })
            .await?;
        Some(done.map(released).map_err(not_released))
    }

    /// Removes a message from quarantine: its id, or a sentence.
    async fn discard(&self, id: &str) -> Option<Result<Released, String>> {
        let Ok(id) = id.parse::<MessageId>() else {
            return Some(Err(NO_ID.to_owned()));
        };
        let done = self
            .storing(id, |reply| OperatorRequest::Discard { id, reply })
            .await?;
        Some(done.map(|()| released(id)).map_err(not_released))
    }

    /// Puts a request to the shard in whose care the spool of a message is.
    async fn storing<T>(
        &self,
        id: MessageId,
        request: impl FnOnce(oneshot::Sender<T>) -> OperatorRequest,
    ) -> Option<T> {
        let shard = usize::from(id.shard()) % self.mesh.len().max(1);
        let (reply, answer) = oneshot::channel();
        self.mesh
            .get(shard)?
            .try_send(ShardMessage::Operator(request(reply)))
            .ok()?;
        answer.await.ok()
    }

    /// Puts one request to every shard; none when one of them has ended or does not take letters.
    async fn each<T>(
        &self,
        request: impl Fn(oneshot::Sender<T>) -> OperatorRequest,
    ) -> Option<Vec<T>> {
        let mut answers = Vec::new();
        for mailbox in self.mesh.iter() {
            let (reply, answer) = oneshot::channel();
            mailbox
                .try_send(ShardMessage::Operator(request(reply)))
                .ok()?;
            answers.push(answer);
        }
        let mut all = Vec::new();
        for answer in answers {
            all.push(answer.await.ok()?);
        }
        Some(all)
    }

    fn status(&self, shards: &[Figures]) -> NodeStatus {
        let shards: Vec<ShardStatus> = (0..).zip(shards).map(shard_status).collect();
        let mut sum = Counters::default();
        for shard in &shards {
            sum.add(&shard.counters);
        }
        NodeStatus {
            hostname: self.hostname.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            draining: self.draining.load(Ordering::Relaxed),
            alarms: sum.alarms(),
            shards,
        }
    }
}

fn shard_status((shard, figures): (u16, &Figures)) -> ShardStatus {
    let (mail, signing) = (&figures.counters, &figures.signing);
    ShardStatus {
        shard,
        sessions: figures.sessions,
        connections: figures.connections,
        ready: figures.ready,
        deferred: figures.deferred,
        in_flight: figures.in_flight,
        restoring: figures.restoring,
        counters: Counters {
            sessions_total: figures.sessions_total,
            sessions_refused: figures.sessions_refused,
            sessions_moved: figures.sessions_moved,
            messages_accepted: mail.accepted,
            recipients_accepted: mail.accepted_recipients,
            bytes_accepted: mail.accepted_bytes,
            messages_refused: mail.refused,
            delivered: mail.delivered,
            attempts_deferred: mail.deferred,
            failed: mail.failed,
            expired: mail.expired,
            ambiguous: mail.ambiguous,
            notifications: mail.notifications,
            connections_total: mail.connections,
            connections_failed: mail.dials_failed,
            dkim_lane_signatures: signing.lane_signatures,
            dkim_lane_batches: signing.lane_batches,
            dkim_single_signatures: signing.single_signatures,
            dkim_ed25519_signatures: signing.ed25519_signatures,
            dkim_reused: figures.signatures_reused,
            dkim_hashed_on_arrival: figures.hashed_on_arrival,
            dkim_unsignable: figures.unsignable,
            dkim_mismatches: signing.lane_mismatches,
            dkim_failures: signing.failures,
        },
    }
}

fn path_status(shards: Vec<Vec<PathFigures>>) -> Vec<PathStatus> {
    let mut all = Vec::new();
    for (shard, paths) in (0..).zip(shards) {
        all.extend(paths.into_iter().map(|path| PathStatus {
            source: path.source,
            site: path.site,
            shard,
            ready: path.ready,
            deferred: path.deferred,
            in_flight: path.in_flight,
            connections: path.connections,
            suspended: path.suspended,
            failures: path.failures,
            sleeps_seconds: path.sleeps_seconds,
            last_error: path.last_error,
        }));
    }
    all
}

fn spool_status((shard, status): (u16, SpoolStatus)) -> SpoolShardStatus {
    SpoolShardStatus {
        shard,
        messages: status.queued_messages,
        live_bytes: status.live_bytes,
        segments: u64::from(status.segments),
        free_bytes: status.free_bytes,
        quarantined: status.quarantined,
        accepting: status.accepting,
        alarms: status.alarms.iter().map(ToString::to_string).collect(),
    }
}

const NO_ID: &str = "an id has sixteen hexadecimal digits";

fn released(id: MessageId) -> Released {
    Released { id: id.to_string() }
}

fn not_released(error: ReleaseError) -> String {
    match error {
        ReleaseError::Absent => "no such message is in quarantine",
        ReleaseError::Damaged => {
            "the message is damaged and is never sent; `postrider spool export --quarantined` \
             copies what is left of it"
        }
        ReleaseError::UnderWay => "it is being released, or put aside, at this moment",
        ReleaseError::Io => "the disk does not do it now; see the log",
    }
    .to_owned()
}

fn quarantine(listed: Vec<(Vec<Listed>, u64)>) -> Quarantine {
    let total = listed.iter().map(|(_, count)| count).sum();
    let message = |listed: Listed| QuarantinedMessage {
        id: listed.aside.id.to_string(),
        reason: listed.aside.reason.to_string(),
        bytes: u64::from(listed.aside.len),
        received_at_ms: listed.received_at.map(|at| at.0),
        sender: listed.sender,
        waiting: listed.waiting,
    };
    let messages = listed.into_iter().flat_map(|(rows, _)| rows).map(message);
    Quarantine {
        messages: messages.collect(),
        total,
    }
}

#[cfg(test)]
mod tests;
