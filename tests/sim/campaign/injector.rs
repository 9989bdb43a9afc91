//! The campaign's sender: the real client machine on a small driver.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use postrider::engine::sim::{SimHost, SimPort};
use postrider::engine::{Class, NetError, Port, Stream};
use postrider::smtp::client::{
    Client, ClientConfig, ClientEvent, Disconnect, Outcome, Transaction,
};
use postrider::time::Mono;

use super::ledger::{Shared, marker};

/// How long a connection attempt may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// The wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(700);

/// What the sessions of the injector share.
pub(crate) struct Injector {
    pub(crate) seed: u64,
    pub(crate) port: SimPort,
    pub(crate) node: SimHost,
    pub(crate) target: SocketAddr,
    pub(crate) ledger: Shared,
    /// Messages that were not tried.
    pub(crate) waiting: RefCell<VecDeque<u64>>,
    /// Messages without an outcome yet.
    pub(crate) open: std::cell::Cell<u64>,
    /// No pause between messages when false.
    pub(crate) spread: u64,
}

impl Injector {
    /// Starts `sessions` senders.
    pub(crate) fn start(self: &Rc<Self>, sessions: u64) {
        for _ in 0..sessions {
            let me = Rc::clone(self);
            self.port
                .spawn(Class::Egress, async move { me.send_all().await });
        }
    }

    async fn send_all(&self) {
        while !self.waiting.borrow().is_empty() {
            let deadline = self.port.now().after(CONNECT_TIME);
            if let Ok(stream) = self.port.connect(None, self.target, deadline).await {
                self.session(stream).await;
            }
            self.port.sleep_until(self.port.now().after(PAUSE)).await;
        }
    }

    async fn session<S: Stream>(&self, mut stream: S) {
        let mut config = ClientConfig::new("injector.test");
        config.chunking = self.port.random() & 1 == 0;
        config.pipelining = self.port.random() & 2 == 0;
        let mut client = Client::new(config);
        let mut events = Vec::new();
        let mut pieces = Vec::new();
        loop {
            self.next_message(&mut client, &mut events).await;
            while client.poll_output(self.port.now(), &mut pieces) {
                let deadline = self.port.now().after(Duration::from_secs(60));
                if stream
                    .send(std::mem::take(&mut pieces), deadline)
                    .await
                    .is_err()
                {
                    client.disconnected(Disconnect::Reset, &mut events);
                    break;
                }
            }
            if !self.act(&mut events) {
                return;
            }
            let deadline = client.deadline().unwrap_or(Mono::NEVER);
            match stream.recv(deadline).await {
                Ok(chunk) if chunk.is_empty() => client.disconnected(Disconnect::Eof, &mut events),
                Ok(chunk) => client.input(&chunk, self.port.now(), &mut events),
                Err(NetError::TimedOut) => client.timed_out(self.port.now(), &mut events),
                Err(_) => client.disconnected(Disconnect::Reset, &mut events),
            }
            if !self.act(&mut events) {
                return;
            }
        }
    }

    async fn next_message(&self, client: &mut Client, events: &mut Vec<ClientEvent>) {
        if !client.can_send() || client.in_flight() > 0 {
            return;
        }
        if self.spread > 0 {
            let pause = Duration::from_millis(self.port.random() % self.spread);
            self.port.sleep_until(self.port.now().after(pause)).await;
        }
        let Some(id) = self.waiting.borrow_mut().pop_front() else {
            client.quit();
            return;
        };
        let ledger = self.ledger.borrow();
        let sent = &ledger.sent[&id];
        let content = Bytes::from(sent.content.clone());
        let transaction = Transaction {
            token: id,
            sender: Bytes::from(format!("bounce-{id}@home.test")),
            recipients: sent
                .recipients
                .iter()
                .map(|to| Bytes::from(to.clone()))
                .collect(),
            size: content.len() as u64,
            content: vec![content],
            ..Transaction::default()
        };
        drop(ledger);
        events.extend(client.send(transaction));
    }

    /// Notes outcomes; false when the connection is over.
    fn act(&self, events: &mut Vec<ClientEvent>) -> bool {
        let mut alive = true;
        for event in events.drain(..) {
            match event {
                ClientEvent::Ready => {}
                ClientEvent::Closed | ClientEvent::Refused { .. } => alive = false,
                ClientEvent::Done { token, outcomes } => self.done(token, &outcomes),
            }
        }
        alive
    }

    /// A message that was refused, or whose fate is unknown, is not sent again: another send would
    /// be another message.
    fn done(&self, id: u64, outcomes: &[Outcome]) {
        self.open.set(self.open.get() - 1);
        let delivered = |outcome: &Outcome| matches!(outcome, Outcome::Delivered { .. });
        let mut ledger = self.ledger.borrow_mut();
        if !outcomes.iter().any(delivered) {
            return;
        }
        let needle = marker(self.seed, id);
        // A message that went out already may have made room for others; one that rots may be gone.
        let arrived = ledger.receipts.keys().any(|key| key.0 == id);
        if !arrived && !ledger.rot && !self.node.durably_contains(needle.as_bytes()) {
            ledger.violate(format!(
                "message {id} was acknowledged before it was durable"
            ));
        }
        let Some(sent) = ledger.sent.get_mut(&id) else {
            return;
        };
        for (recipient, outcome) in sent.recipients.iter().zip(outcomes) {
            if delivered(outcome) {
                sent.acknowledged.insert(recipient.clone());
            }
        }
    }
}
