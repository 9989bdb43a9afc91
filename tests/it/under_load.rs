//! under_load - a node under a steady load, for tests that do something to it meanwhile.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use postrider::lab::check::Verdict;
use postrider::lab::ledger::{Arrival, LedgerReader};
use postrider::lab::load::{self, LoadCounters, LoadOptions, LoadReport};
use postrider::lab::sink::{Sink, SinkCounters};

use crate::books;
use crate::harness::{Client, PATIENCE, Scratch, wait_until};
use crate::life::{Life, place, sink_counting};

/// Inbound connections of the load.
const SESSIONS: u32 = 20;

/// A node, what sends to it, and what receives from it.
pub(crate) struct UnderLoad {
    pub(crate) life: Life,
    receiver: Sink,
    received: Arc<SinkCounters>,
    sent: Arc<LoadCounters>,
    ledger: PathBuf,
    load: JoinHandle<LoadReport>,
}

/// What the ledgers say at the end.
pub(crate) struct Outcome {
    pub(crate) report: LoadReport,
    pub(crate) verdict: Verdict,
    /// In the order of their times.
    pub(crate) arrivals: Vec<Arrival>,
}

impl UnderLoad {
    /// Starts all three; the load comes at `rate` messages a second, whatever the node does. `more`
    /// is added to the configuration.
    pub(crate) fn start(scratch: &Scratch, rate: f64, more: &str) -> Self {
        let there = place();
        let received = Arc::<SinkCounters>::default();
        let arrivals = scratch.path().join("arrivals");
        let receiver = sink_counting(there, &arrivals, Arc::clone(&received));
        let node = scratch.path().join("node");
        let mut life = Life::new(&node, &node.join("data"), there);
        life.configure(more);
        life.start();
        let sent = Arc::<LoadCounters>::default();
        let ledger = scratch.path().join("sent.ledger");
        let options = LoadOptions {
            target: life.address,
            messages: u64::MAX,
            rate: Some(rate),
            sessions: SESSIONS,
            domains: 1,
            ledger: Some(ledger.clone()),
            retries: 1000,
            reconnect: true,
            reconnect_patience: PATIENCE,
            counters: Arc::clone(&sent),
            ..LoadOptions::default()
        };
        let load = std::thread::spawn(move || load::run(options).unwrap());
        Self {
            life,
            receiver,
            received,
            sent,
            ledger,
            load,
        }
    }

    /// Messages that had their 250.
    pub(crate) fn accepted(&self) -> u64 {
        self.sent.accepted.load(Ordering::Relaxed)
    }

    fn delivered(&self) -> u64 {
        self.received.delivered.load(Ordering::Relaxed)
    }

    /// Waits until so many more messages have come in, and one has gone out.
    pub(crate) fn wait_for(&self, messages: u64) {
        let (accepted, delivered) = (self.accepted() + messages, self.delivered());
        wait_until("mail in and out", || {
            self.accepted() >= accepted && self.delivered() > delivered
        });
    }

    /// Waits until the receiver has read all that a node which is gone had sent.
    pub(crate) fn wait_for_the_receiver(&self) {
        wait_until("the end of the connections", || {
            self.received.open.load(Ordering::Relaxed) == 0
        });
    }

    /// Ends the load, waits for the deliveries, and ends the node in order.
    pub(crate) fn end(mut self) -> Outcome {
        self.wait_for(100);
        self.sent.stop.store(true, Ordering::Relaxed);
        let report = self.load.join().unwrap();
        wait_until("an empty queue", || self.life.waiting() == 0);
        assert_eq!(self.life.stop(), Some(0), "{}", self.life.log());
        let ledgers = self.receiver.ledgers().to_vec();
        self.receiver.stop().unwrap();
        let verdict = books::verdict(&self.ledger, &ledgers);
        assert_eq!(verdict.acknowledged, report.accepted);
        let mut arrivals: Vec<Arrival> = ledgers.iter().flat_map(|path| read(path)).collect();
        arrivals.sort_by_key(|arrival| arrival.at);
        Outcome {
            report,
            verdict,
            arrivals,
        }
    }
}

fn read(path: &Path) -> Vec<Arrival> {
    let reader = LedgerReader::<Arrival>::open(path).unwrap();
    reader.map(|arrival| arrival.unwrap()).collect()
}

/// Connects as soon as somebody listens there; returns past the greeting.
pub(crate) fn connect(address: SocketAddr) -> Client {
    let mut client = None;
    wait_until("a greeting", || {
        client = Client::try_connect(address).and_then(|mut client| {
            // Who is in the queue of a listener that ends is hung up on.
            (client.read_reply() == 220).then_some(client)
        });
        client.is_some()
    });
    client.unwrap()
}

/// Has a message acknowledged, of which the load knows nothing.
pub(crate) fn submit(client: &mut Client) {
    assert_eq!(client.command("EHLO client.test.example"), 250);
    assert_eq!(client.command("MAIL FROM:<a@b.example>"), 250);
    assert_eq!(client.command("RCPT TO:<r0@d0.lab.test>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send("Subject: the first\r\n\r\nHello\r\n.\r\n");
    assert_eq!(client.read_reply(), 250, "{}", client.reply);
}
