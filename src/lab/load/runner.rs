//! lab::load::runner - what all sessions of a run share: the work, the books, the clock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::campaign::{Campaign, Next, Work};
use super::session::{Lost, session};
use super::{Latency, LoadOptions, LoadReport, RefusalCount, Unseen};
use crate::engine::{Class, NetError, Port, Signal};
use crate::lab::engine::thread_cpu;
use crate::lab::error::LabError;
use crate::lab::fingerprint::{Fingerprint, Fingerprinter};
use crate::lab::identity::LoadId;
use crate::lab::ledger::{LedgerWriter, Sent, SentKind};
use crate::lab::personality::mix;
use crate::lab::template::{Template, TemplateOptions};
use crate::lab::zone::Zone;
use crate::time::Mono;

/// How long a session waits before it looks again for work, or connects again.
const PAUSE: Duration = Duration::from_millis(10);

/// How often ledger and progress bar are brought up to date.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// Latencies are kept with 3 digits up to an hour, in microseconds: 200 KiB.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// One run.
pub(super) struct Run<P> {
    pub(super) port: P,
    pub(super) options: LoadOptions,
    pub(super) run: u32,
    pub(super) zone: Zone,
    pub(super) template: Template,
    pub(super) fingerprinter: Fingerprinter,
    pub(super) mail_command: Vec<u8>,
    campaign: RefCell<Campaign>,
    books: RefCell<Books>,
    sending: Cell<i64>,
    sessions: Cell<u32>,
    ended: Signal,
    last_contact: Cell<Mono>,
    last_reply: Cell<Mono>,
    failure: RefCell<Option<LabError>>,
}

struct Books {
    ledger: Option<LedgerWriter>,
    latency: Histogram<u64>,
    from_due: Histogram<u64>,
    refusals: BTreeMap<u16, u64>,
    /// What was said with each code, the first time.
    texts: BTreeMap<u16, String>,
    retried: u64,
    errors: u64,
    contacts: u64,
    last_error: Option<NetError>,
}

/// Carries out a run.
pub(super) async fn run<P: Port>(port: P, options: LoadOptions) -> Result<LoadReport, LabError> {
    let start = port.now();
    let cpu = thread_cpu();
    let run = Rc::new(Run::new(port.clone(), options, start)?);
    // A flood of connections in one instant is a test of its own; here they come in one turn each.
    for _ in 0..run.options.sessions {
        port.spawn(Class::Egress, session(Rc::clone(&run)));
    }
    port.spawn(Class::Background, report_progress(Rc::clone(&run)));
    run.ended.raised().await;
    run.flush()?;
    if let Some(failure) = run.failure.borrow_mut().take() {
        return Err(failure);
    }
    let books = run.books.borrow();
    if books.contacts == 0
        && let Some(error) = books.last_error
    {
        return Err(LabError::Connect(run.options.target, error));
    }
    drop(books);
    Ok(run.report(start, thread_cpu().saturating_sub(cpu)))
}

async fn report_progress<P: Port>(run: Rc<Run<P>>) {
    let bar = if run.options.progress {
        ProgressBar::with_draw_target(Some(run.options.messages), ProgressDrawTarget::stderr())
    } else {
        ProgressBar::hidden()
    };
    let style = "{msg:10} {bar:32} {human_pos:>9} of {human_len} messages  {per_sec:>16}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message("injecting");
    while run.sessions.get() > 0 {
        if let Err(error) = run.flush() {
            run.fail(error);
        }
        bar.set_position(run.options.counters.accepted.load(Ordering::Relaxed));
        run.port
            .sleep_until(run.port.now().after(REPORT_EVERY))
            .await;
    }
}

fn count(counter: &AtomicU64, amount: u64) {
    // Statistics: nothing is ordered by them.
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl<P: Port> Run<P> {
    fn new(port: P, options: LoadOptions, start: Mono) -> Result<Self, LabError> {
        let first = std::net::Ipv4Addr::LOCALHOST;
        let zone = Zone::new(&options.zone, options.domains, first, &[])?;
        let run = options
            .run
            .unwrap_or_else(|| mix(options.seed, port.wall().0) as u32 >> 8);
        let template = template(&options, port.wall())?;
        let sender = options
            .sender
            .clone()
            .unwrap_or_else(|| zone.bounce_address());
        if !sender
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'<' && byte != b'>')
        {
            return Err(LabError::Options(
                "the sender must be an ASCII mail address, or empty",
            ));
        }
        let body = if template.eight_bit() {
            " BODY=8BITMIME"
        } else {
            ""
        };
        let mail = format!("MAIL FROM:<{sender}> SIZE={}{body}\r\n", template.size());
        let ledger = match &options.ledger {
            Some(path) => {
                let created = LedgerWriter::create::<Sent>(path);
                Some(created.map_err(|error| LabError::File(path.clone(), error))?)
            }
            None => None,
        };
        // Bounds and precision are constants that the crate accepts.
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
                .map_err(|_| LabError::Options("latency histogram"))
        };
        let books = Books {
            ledger,
            latency: histogram()?,
            from_due: histogram()?,
            refusals: BTreeMap::new(),
            texts: BTreeMap::new(),
            retried: 0,
            errors: 0,
            contacts: 0,
            last_error: None,
        };
        Ok(Self {
            run,
            zone,
            template,
            fingerprinter: Fingerprinter::new(),
            mail_command: mail.into_bytes(),
            campaign: RefCell::new(Campaign::new(options.messages, options.rate, start)),
            books: RefCell::new(books),
            sending: Cell::new(0),
            sessions: Cell::new(options.sessions),
            ended: Signal::default(),
            last_contact: Cell::new(start),
            last_reply: Cell::new(start),
            failure: RefCell::new(None),
            port,
            options,
        })
    }

    /// A connection; `None` when the run is over, or nobody has answered for too long.
    pub(super) async fn connect(&self) -> Option<P::Stream> {
        loop {
            if matches!(self.next_without_taking(), Next::Finished) && !self.busy() {
                return None;
            }
            let deadline = self.port.now().after(self.options.timeout);
            let attempt = self
                .port
                .connect(self.options.source, self.options.target, deadline);
            match attempt.await {
                Ok(stream) => {
                    self.books.borrow_mut().contacts += 1;
                    return Some(stream);
                }
                Err(error) => {
                    let mut books = self.books.borrow_mut();
                    books.last_error = Some(error);
                    books.errors += 1;
                }
            }
            if !self.options.reconnect || self.out_of_patience() {
                return None;
            }
            self.pause().await;
        }
    }

    /// The daemon has taken EHLO.
    pub(super) fn greeted(&self) {
        self.last_contact.set(self.port.now());
    }

    /// Whether nobody has answered for too long.
    pub(super) fn out_of_patience(&self) -> bool {
        let contact = self.last_contact.get().max(self.last_reply.get());
        self.port.now().since(contact) > self.options.reconnect_patience
    }

    /// A short wait.
    pub(super) async fn pause(&self) {
        self.port.sleep_until(self.port.now().after(PAUSE)).await;
    }

    /// What a free session does.
    pub(super) fn next(&self) -> Next {
        let mut campaign = self.campaign.borrow_mut();
        if self.options.counters.stop.load(Ordering::Relaxed) {
            campaign.stop();
        }
        campaign.next(self.port.now())
    }

    fn next_without_taking(&self) -> Next {
        let next = self.next();
        if let Next::Send(work) = next {
            self.put_back(work);
        }
        next
    }

    /// Whether some message is under way, and may come back.
    pub(super) fn busy(&self) -> bool {
        self.sending.get() > 0
    }

    /// Counts messages under way.
    pub(super) fn sending(&self, change: i64) {
        self.sending.set(self.sending.get() + change);
    }

    /// Takes back what was not sent.
    pub(super) fn put_back(&self, work: Work) {
        self.campaign.borrow_mut().put_back(work);
    }

    /// The final 250 was read.
    pub(super) fn acknowledged(&self, id: LoadId, print: Fingerprint, began: Mono, due: Mono) {
        let now = self.port.now();
        self.last_reply.set(now);
        let mut books = self.books.borrow_mut();
        let micros = |from| u64::try_from(now.since(from).as_micros()).unwrap_or(u64::MAX);
        books.latency.saturating_record(micros(began).max(1));
        let due = if self.options.rate.is_some() {
            due
        } else {
            began
        };
        books.from_due.saturating_record(micros(due).max(1));
        drop(books);
        self.enter(id, print, SentKind::Acknowledged);
        count(&self.options.counters.accepted, 1);
        count(
            &self.options.counters.recipients,
            u64::from(self.options.recipients),
        );
    }

    /// The final reply will never be read. With `reconnect` another message takes its place.
    pub(super) fn unanswered(&self, id: LoadId, print: Fingerprint) {
        self.may_arrive(id, print);
        count(&self.options.counters.unanswered, 1);
        if self.options.reconnect {
            self.campaign.borrow_mut().again(self.port.now(), 0);
        }
    }

    /// The message may arrive though it does not count as accepted.
    pub(super) fn may_arrive(&self, id: LoadId, print: Fingerprint) {
        self.enter(id, print, SentKind::Unanswered);
    }

    fn enter(&self, id: LoadId, fingerprint: Fingerprint, kind: SentKind) {
        let mut books = self.books.borrow_mut();
        let Some(ledger) = &mut books.ledger else {
            return;
        };
        let at = self.port.now();
        let recipients = self.options.recipients;
        let record = Sent {
            id,
            at,
            fingerprint,
            recipients,
            kind,
        };
        if let Err(error) = ledger.append(&record) {
            drop(books);
            self.fail(LabError::File(
                self.options.ledger.clone().unwrap_or_default(),
                error,
            ));
        }
    }

    /// The message was refused: again later, or given up.
    pub(super) fn refused(&self, code: u16, work: Work) {
        self.last_reply.set(self.port.now());
        self.refused_with(code);
        if (400..500).contains(&code) && work.tries < self.options.retries {
            self.books.borrow_mut().retried += 1;
            let at = self.port.now().after(self.options.retry_delay);
            self.campaign.borrow_mut().again(at, work.tries + 1);
            return;
        }
        count(&self.options.counters.refused, 1);
    }

    /// Keeps what was said with a refusal, for each code once.
    pub(super) fn heard(&self, code: u16, text: impl FnOnce() -> String) {
        let mut books = self.books.borrow_mut();
        books.texts.entry(code).or_insert_with(text);
    }

    /// Counts a refusal of whatever kind.
    pub(super) fn refused_with(&self, code: u16) {
        *self.books.borrow_mut().refusals.entry(code).or_insert(0) += 1;
    }

    /// Counts a lost connection.
    pub(super) fn lost(&self, lost: &Lost) {
        let mut books = self.books.borrow_mut();
        match lost {
            Lost::Closing => {}
            Lost::Net(_) | Lost::Ended | Lost::Refused(_) => books.errors += 1,
        }
    }

    fn fail(&self, error: LabError) {
        self.failure.replace(Some(error));
        self.campaign.borrow_mut().stop();
    }

    /// A session has no more to do.
    pub(super) fn session_ended(&self) {
        self.sessions.set(self.sessions.get() - 1);
        if self.sessions.get() == 0 {
            self.ended.raise();
        }
    }

    fn flush(&self) -> Result<(), LabError> {
        match &mut self.books.borrow_mut().ledger {
            Some(ledger) => ledger.flush().map_err(|error| {
                LabError::File(self.options.ledger.clone().unwrap_or_default(), error)
            }),
            None => Ok(()),
        }
    }

    fn report(&self, start: Mono, cpu: Duration) -> LoadReport {
        let books = self.books.borrow();
        let counters = &self.options.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let accepted = read(&counters.accepted);
        let seconds = self.last_reply.get().since(start).as_secs_f64();
        let per_second = if seconds > 0.0 {
            accepted as f64 / seconds
        } else {
            0.0
        };
        let refusals = books.refusals.iter();
        LoadReport {
            accepted,
            recipients: read(&counters.recipients),
            refused: read(&counters.refused),
            refusals: refusals
                .map(|(code, count)| RefusalCount {
                    code: *code,
                    count: *count,
                    text: books.texts.get(code).cloned().unwrap_or_default(),
                })
                .collect(),
            retried: books.retried,
            errors: books.errors,
            unanswered: read(&counters.unanswered),
            seconds,
            messages_per_second: per_second,
            rate: self.options.rate,
            latency_us: percentiles(&books.latency),
            latency_from_due_us: percentiles(&books.from_due),
            client_cpu_us_per_message: cpu.as_secs_f64() * 1e6 / accepted.max(1) as f64,
            run: format!("{:06x}", self.run & 0xff_ffff),
            unseen: Unseen::default(),
        }
    }
}

/// The percentiles of a histogram of microseconds.
pub(in crate::lab) fn percentiles(histogram: &Histogram<u64>) -> Latency {
    if histogram.is_empty() {
        return Latency::default();
    }
    Latency {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    }
}

fn template(options: &LoadOptions, now: crate::time::Wall) -> Result<Template, LabError> {
    if let Some(path) = &options.message_file {
        let message = std::fs::read(path).map_err(|error| LabError::File(path.clone(), error))?;
        return Ok(Template::from_message(&message, &options.header_fields)?);
    }
    Ok(Template::generated(&TemplateOptions {
        size: options.size,
        from: format!("news@{}", options.zone),
        // "r0." and twelve digits, "@d" and six digits, and the zone behind its dot.
        recipient_len_max: 3 + 12 + 2 + 6 + 1 + options.zone.len(),
        zone: options.zone.clone(),
        fields: options.header_fields.clone(),
        seed: options.seed,
        date: now,
    })?)
}
