//! A receiving MTA of a campaign: the lab's machine, which shares no code with the node.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use postrider::engine::sim::{SimHost, SimPort, SimStream};
use postrider::engine::{Class, Port, Stream};
use postrider::lab::receiver::{Receiver, ReceiverEvent, Site};
use postrider::time::Mono;

use super::ledger::{Key, Shared};

/// How long a receiver waits for a command.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts a receiver on `host`.
pub(crate) fn start(host: &SimHost, address: SocketAddr, site: Rc<Site>, ledger: Shared) {
    let port = host.port();
    let mut listener = port
        .listen(address)
        .expect("the receiver's address is its host's");
    let acceptor = port.clone();
    port.spawn(Class::Ingress, async move {
        while let Ok(stream) = acceptor.accept(&mut listener).await {
            let (port, site, ledger) = (acceptor.clone(), Rc::clone(&site), Rc::clone(&ledger));
            acceptor.spawn(Class::Ingress, async move {
                site.open.set(site.open.get() + 1);
                let mut session = Session {
                    since: port.now(),
                    port,
                    site: Rc::clone(&site),
                    ledger,
                    stream,
                    receiver: Receiver::new(),
                    out: Vec::new(),
                    keys: Vec::new(),
                };
                session.run().await;
                site.open.set(site.open.get() - 1);
            });
        }
    });
}

struct Session {
    port: SimPort,
    site: Rc<Site>,
    ledger: Shared,
    stream: SimStream,
    receiver: Receiver,
    out: Vec<u8>,
    /// When the connection was accepted.
    since: Mono,
    /// What was replied to with 250 on this connection, with its place among the receipts.
    keys: Vec<(Key, usize)>,
}

impl Session {
    async fn run(&mut self) {
        match self.receiver.greet(&self.site, &mut self.out) {
            None => {}
            Some(ReceiverEvent::HangUp) => return,
            Some(_) => {
                self.flush().await;
                return;
            }
        }
        loop {
            if !self.flush().await {
                return;
            }
            let deadline = self.port.now().after(PATIENCE);
            match self.stream.recv(deadline).await {
                Ok(chunk) if !chunk.is_empty() => {
                    if !self.feed(&chunk).await {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    async fn flush(&mut self) -> bool {
        if self.out.is_empty() {
            return true;
        }
        let manners = &self.site.personality;
        if let Some(pause) = manners.delay.or(manners.tarpit) {
            self.port.sleep_until(self.port.now().after(pause)).await;
        }
        let replies = Bytes::from(std::mem::take(&mut self.out));
        let deadline = self.port.now().after(PATIENCE);
        self.stream.send(vec![replies], deadline).await.is_ok()
    }

    /// False when the connection is over.
    async fn feed(&mut self, chunk: &[u8]) -> bool {
        let peer = self.stream.peer().ip();
        let mut rest = chunk;
        // The client quits only when it has read every reply.
        if chunk
            .windows(6)
            .any(|part| part.eq_ignore_ascii_case(b"QUIT\r\n"))
        {
            self.know_all();
        }
        while !rest.is_empty() {
            let now = self.port.now();
            let (used, event) = self
                .receiver
                .input(rest, &self.site, peer, now, &mut self.out);
            rest = &rest[used..];
            match event {
                None => {}
                Some(ReceiverEvent::Message) => {
                    self.note(true);
                    self.receiver.accepted(&mut self.out);
                }
                Some(ReceiverEvent::MessageThenClose) => {
                    self.note(false);
                    return false;
                }
                Some(ReceiverEvent::Close) => {
                    self.flush().await;
                    return false;
                }
                Some(ReceiverEvent::HangUp) => return false,
            }
        }
        true
    }

    fn note(&mut self, replied: bool) {
        let message = self.receiver.message();
        let mut ledger = self.ledger.borrow_mut();
        let (sender, recipients) = (message.sender, message.recipients);
        let now = self.port.now();
        let keys = ledger.receive(sender, recipients, message.content, self.since, now);
        if replied {
            for key in keys {
                let place = ledger.receipts[&key].len() - 1;
                self.keys.push((key, place));
            }
        }
    }

    fn know_all(&mut self) {
        let mut ledger = self.ledger.borrow_mut();
        for (key, place) in self.keys.drain(..) {
            if let Some(receipt) = ledger
                .receipts
                .get_mut(&key)
                .and_then(|all| all.get_mut(place))
            {
                receipt.known = Some(self.port.now());
            }
        }
    }
}
