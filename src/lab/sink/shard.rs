//! lab::sink::shard - one thread of the sink: its listeners, its sessions, its ledger.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;

use super::outbox::Outbox;
use super::{SinkCounters, SinkOptions};
use crate::engine::{Class, NetError, Port, Stream};
use crate::lab::engine::thread_cpu;
use crate::lab::error::LabError;
use crate::lab::fingerprint::Fingerprinter;
use crate::lab::identity::recipient_index;
use crate::lab::ledger::{Arrival, ArrivalKind, LedgerWriter};
use crate::lab::parcel::{self, Parcel};
use crate::lab::receiver::{Received, Receiver, ReceiverEvent, Site};
use crate::lab::zone::Zone;
use crate::time::Mono;

/// What one thread of the sink starts with.
pub(super) struct Plan {
    pub(super) number: u16,
    pub(super) options: SinkOptions,
    pub(super) zone: Zone,
    /// Shared between the threads: what greylisting remembers.
    pub(super) greylists: Vec<crate::lab::receiver::Greylist>,
}

/// How often counters and ledger are brought up to date.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// Ports tried where the kernel's choice for the first site is taken at another one.
const PORT_TRIES: usize = 16;

struct Shard<P> {
    port: P,
    zone: Zone,
    fingerprinter: Fingerprinter,
    ledger: RefCell<Option<LedgerWriter>>,
    ledger_path: PathBuf,
    dump: Option<PathBuf>,
    dumped: RefCell<u64>,
    number: u16,
    idle: Duration,
    counters: Arc<SinkCounters>,
    failure: RefCell<Option<LabError>>,
}

/// Serves until the counters' `stop` is set; says through `ready` which port it has.
pub(super) async fn serve<P: Port>(
    port: P,
    plan: Plan,
    ready: &Sender<Result<u16, LabError>>,
) -> Result<(), LabError> {
    let started = start(port.clone(), plan);
    let (shard, bound) = match started {
        Ok(started) => started,
        Err(error) => {
            // The one who waits gets the error; there is nothing to serve.
            return ready
                .send(Err(error))
                .map_err(|_| LabError::Thread("lab-sink"));
        }
    };
    ready
        .send(Ok(bound))
        .map_err(|_| LabError::Thread("lab-sink"))?;
    let mut last_cpu = Duration::ZERO;
    loop {
        // Read before the flush: what arrived until the stop is in the ledger then.
        let stop = shard.counters.stop.load(Ordering::Relaxed);
        let cpu = thread_cpu();
        let more = u64::try_from((cpu - last_cpu).as_nanos()).unwrap_or(u64::MAX);
        shard.counters.cpu_nanos.fetch_add(more, Ordering::Relaxed);
        last_cpu = cpu;
        if let Some(ledger) = shard.ledger.borrow_mut().as_mut() {
            ledger
                .flush()
                .map_err(|error| LabError::File(shard.ledger_path.clone(), error))?;
        }
        if let Some(failure) = shard.failure.borrow_mut().take() {
            return Err(failure);
        }
        if stop {
            return Ok(());
        }
        port.sleep_until(port.now().after(REPORT_EVERY)).await;
    }
}

fn start<P: Port>(port: P, plan: Plan) -> Result<(Rc<Shard<P>>, u16), LabError> {
    let Plan {
        number,
        options,
        zone,
        greylists,
    } = plan;
    let ledger_path = match &options.ledger {
        Some(directory) => directory.join(format!("arrivals-{number}.ledger")),
        None => PathBuf::new(),
    };
    let ledger = match &options.ledger {
        Some(_) => {
            let created = LedgerWriter::create::<Arrival>(&ledger_path);
            Some(created.map_err(|error| LabError::File(ledger_path.clone(), error))?)
        }
        None => None,
    };
    let (listeners, bound) = listen(&port, &zone, options.port)?;
    let shard = Rc::new(Shard {
        port: port.clone(),
        zone: zone.clone(),
        fingerprinter: Fingerprinter::new(),
        ledger: RefCell::new(ledger),
        ledger_path,
        dump: options.dump.clone(),
        dumped: RefCell::new(0),
        number,
        idle: options.idle,
        counters: Arc::clone(&options.counters),
        failure: RefCell::new(None),
    });
    for ((index, listener), greylist) in (0..).zip(listeners).zip(greylists) {
        let bounces = index == zone.sites();
        let (name, personality) = if bounces {
            (format!("mx.bounces.{}", zone.name()), Default::default())
        } else {
            let personality = options.mix.personality(index, zone.sites());
            (format!("mx.d{index}.{}", zone.name()), personality)
        };
        let seed = options.seed ^ u64::from(index) << 32 ^ u64::from(number) << 20;
        let mut site = Site::new(index, name, personality, seed, options.size_max);
        site.greylist = greylist;
        port.spawn(
            Class::Ingress,
            accept(Rc::clone(&shard), Rc::new(site), listener),
        );
    }
    Ok((shard, bound))
}

fn listen<P: Port>(
    port: &P,
    zone: &Zone,
    wanted: u16,
) -> Result<(Vec<P::Listener>, u16), LabError> {
    let mut tries = if wanted == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match listen_once(port, zone, wanted) {
            Err(LabError::Listen(_, NetError::AddressInUse)) if tries > 0 => {}
            result => return result,
        }
    }
}

fn listen_once<P: Port>(
    port: &P,
    zone: &Zone,
    wanted: u16,
) -> Result<(Vec<P::Listener>, u16), LabError> {
    let mut listeners = Vec::new();
    let mut number = wanted;
    for index in 0..=zone.sites() {
        let address = SocketAddr::from((zone.address(index), number));
        let listener = port
            .listen(address)
            .map_err(|error| LabError::Listen(address, error))?;
        number = port.listening_on(&listener).port();
        listeners.push(listener);
    }
    Ok((listeners, number))
}

async fn accept<P: Port>(shard: Rc<Shard<P>>, site: Rc<Site>, mut listener: P::Listener) {
    loop {
        match shard.port.accept(&mut listener).await {
            Ok(stream) => {
                let session = session(Rc::clone(&shard), Rc::clone(&site), stream);
                shard.port.spawn(Class::Ingress, session);
            }
            Err(error) => {
                tracing::error!(site = site.name, %error, "the sink cannot accept any more");
                return;
            }
        }
    }
}

async fn session<P: Port>(shard: Rc<Shard<P>>, site: Rc<Site>, mut stream: P::Stream) {
    let counters = &shard.counters;
    counters.connections.fetch_add(1, Ordering::Relaxed);
    counters.open.fetch_add(1, Ordering::Relaxed);
    site.open.set(site.open.get() + 1);
    if let Err(error) = converse(&shard, &site, &mut stream).await {
        tracing::debug!(site = site.name, %error, "a session of the sink ended");
    }
    site.open.set(site.open.get() - 1);
    counters.open.fetch_sub(1, Ordering::Relaxed);
}

async fn converse<P: Port>(
    shard: &Shard<P>,
    site: &Site,
    stream: &mut P::Stream,
) -> Result<(), NetError> {
    let mut receiver = Receiver::new();
    let mut outbox = Outbox::default();
    let mut out = Vec::new();
    let mut end = receiver.greet(site, &mut out);
    let peer = stream.peer().ip();
    loop {
        if end == Some(ReceiverEvent::HangUp) {
            return Ok(());
        }
        let now = shard.port.now();
        outbox.push(&mut out, &site.personality, now);
        let due = outbox.take_due(now);
        let idle = now.after(shard.idle);
        if !due.is_empty() {
            stream.send(vec![Bytes::from(due)], idle).await?;
        }
        let next = outbox.next_due();
        if end.is_some() {
            match next {
                Some(at) => shard.port.sleep_until(at).await,
                None => return Ok(()),
            }
            continue;
        }
        match stream.recv(next.unwrap_or(idle).min(idle)).await {
            Ok(chunk) if chunk.is_empty() => return Ok(()),
            Ok(chunk) => end = shard.take(&mut receiver, site, peer, &chunk, &mut out),
            Err(NetError::TimedOut) if next.is_some() => {}
            Err(error) => return Err(error),
        }
    }
}

impl<P: Port> Shard<P> {
    /// Gives a whole chunk to the receiver and enters what arrives. Returns how the session ends.
    fn take(
        &self,
        receiver: &mut Receiver,
        site: &Site,
        peer: IpAddr,
        chunk: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<ReceiverEvent> {
        let now = self.port.now();
        let mut rest = chunk;
        let mut end = None;
        while end.is_none() && !rest.is_empty() {
            let (taken, event) = receiver.input(rest, site, peer, now, out);
            rest = &rest[taken..];
            match event {
                Some(ReceiverEvent::Message) => {
                    self.enter(&receiver.message(), peer, now, true);
                    receiver.accepted(out);
                }
                Some(ReceiverEvent::MessageThenClose) => {
                    self.enter(&receiver.message(), peer, now, false);
                    end = Some(ReceiverEvent::HangUp);
                }
                other => end = other,
            }
        }
        let counters = &self.counters;
        counters
            .violations
            .fetch_add(receiver.take_violations(), Ordering::Relaxed);
        counters
            .refused
            .fetch_add(receiver.take_refusals(), Ordering::Relaxed);
        end
    }

    /// Writes what arrived into the ledger.
    fn enter(&self, message: &Received<'_>, source: IpAddr, at: Mono, answered: bool) {
        let counters = &self.counters;
        if answered {
            let bytes = message.content.len() as u64;
            counters.messages.fetch_add(1, Ordering::Relaxed);
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        if let Err(error) = self.dump(message.content) {
            self.failure.replace(Some(error));
        }
        let domain_of = |recipient: &[u8]| {
            let domain = memchr::memrchr(b'@', recipient).map(|at| &recipient[at + 1..]);
            domain
                .and_then(|name| self.zone.domain_index(name))
                .unwrap_or(u32::MAX)
        };
        let record = |id, fingerprint, domain, recipient, kind| {
            self.append(&Arrival {
                id,
                at,
                fingerprint,
                source,
                domain,
                recipient,
                kind,
            });
        };
        match parcel::open(message.content, message.sender) {
            Parcel::Load(id, original) => {
                let print = self.fingerprinter.of(original);
                let kind = if answered {
                    ArrivalKind::Delivered
                } else {
                    ArrivalKind::Unanswered
                };
                for recipient in message.recipients {
                    let local = recipient
                        .split(|byte| *byte == b'@')
                        .next()
                        .unwrap_or_default();
                    let index = recipient_index(local).unwrap_or(u16::MAX);
                    record(id, print, domain_of(recipient), index, kind);
                }
                let recipients = message.recipients.len() as u64;
                counters.delivered.fetch_add(recipients, Ordering::Relaxed);
            }
            Parcel::Notice {
                id,
                failed,
                delayed,
            } => {
                for (recipients, kind, counter) in [
                    (failed, ArrivalKind::Bounced, &counters.bounced),
                    (delayed, ArrivalKind::Delayed, &counters.delayed),
                ] {
                    for index in &recipients {
                        record(id, [0; 16], u32::MAX, *index, kind);
                    }
                    counter.fetch_add(recipients.len() as u64, Ordering::Relaxed);
                }
            }
            Parcel::Foreign => {}
        }
    }

    fn append(&self, arrival: &Arrival) {
        let Some(result) = self
            .ledger
            .borrow_mut()
            .as_mut()
            .map(|ledger| ledger.append(arrival))
        else {
            return;
        };
        if let Err(error) = result {
            self.failure
                .replace(Some(LabError::File(self.ledger_path.clone(), error)));
        }
    }

    fn dump(&self, content: &[u8]) -> Result<(), LabError> {
        let Some(directory) = &self.dump else {
            return Ok(());
        };
        let count = *self.dumped.borrow();
        self.dumped.replace(count + 1);
        let path = directory.join(format!("{}-{count:08}.eml", self.number));
        let written: io::Result<()> = std::fs::write(&path, content);
        written.map_err(|error| LabError::File(path, error))
    }
}
