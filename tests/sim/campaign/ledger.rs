//! What was sent, what arrived, and what must be true of the two.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use postrider::time::Mono;

/// The header field that names a message.
const ID_FIELD: &str = "X-Sim-Id: ";

/// How long a settlement may take to be durable on a disk that works.
const SETTLE_TIME: Duration = Duration::from_secs(15);

/// One message of the injector.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) recipients: Vec<String>,
    pub(crate) content: Vec<u8>,
    /// Recipients for which the final 250 was read.
    pub(crate) acknowledged: BTreeSet<String>,
}

/// One message that a receiver took for one recipient.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) at: Mono,
    /// When its connection was made. A receiver that takes its time may read what a node sent long
    /// after that node has died, and after the next one has sent it again.
    pub(crate) since: Mono,
    /// By then the node had read the reply, as one could see; when before that is unknown.
    pub(crate) known: Option<Mono>,
}

/// Key of a recipient of a message.
pub(crate) type Key = (u64, String);

/// Everything that both ends of a campaign know.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) sent: BTreeMap<u64, Sent>,
    pub(crate) receipts: BTreeMap<Key, Vec<Receipt>>,
    pub(crate) bounces: BTreeMap<Key, u32>,
    /// Message and notification, in the order of their arrival.
    pub(crate) bounce_texts: Vec<(u64, String)>,
    pub(crate) crashes: Vec<Mono>,
    /// The disk failed at times, so that settlements may have waited for long.
    pub(crate) disk_failed: bool,
    /// Bits flipped: a message may be lost, but never wrong.
    pub(crate) rot: bool,
    pub(crate) violations: Vec<String>,
}

/// Shared by the parties of one campaign.
pub(crate) type Shared = Rc<RefCell<Ledger>>;

/// The bytes that tell a message from all others.
pub(crate) fn marker(seed: u64, id: u64) -> String {
    format!("sim-marker-{seed:016x}-{id:08}-")
}

/// A message's content: a small header, the marker, then text with lines that begin with dots.
pub(crate) fn content(seed: u64, id: u64, len: usize) -> Vec<u8> {
    let mut text = format!(
        "From: <bounce-{id}@home.test>\r\nSubject: campaign\r\n{ID_FIELD}{id}\r\n\r\n{}\r\n",
        marker(seed, id)
    )
    .into_bytes();
    let mut state = seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while text.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let line = match state >> 61 {
            0 => ".\r\n".to_owned(),
            1 => "..stuffed\r\n".to_owned(),
            _ => format!("{state:016x}{id:048}\r\n"),
        };
        text.extend_from_slice(line.as_bytes());
    }
    text
}

fn id_of(content: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(content).ok()?;
    let start = text.find(ID_FIELD)? + ID_FIELD.len();
    let end = start + text[start..].find('\r')?;
    text[start..end].parse().ok()
}

impl Ledger {
    pub(crate) fn violate(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Whether every message was acknowledged for all its recipients.
    pub(crate) fn is_all_acknowledged(&self) -> bool {
        let mut sent = self.sent.values();
        sent.all(|sent| sent.acknowledged.len() == sent.recipients.len())
    }

    /// A receiver has a whole message: checks it and notes it. Returns the keys noted.
    pub(crate) fn receive(
        &mut self,
        sender: &[u8],
        recipients: &[Vec<u8>],
        content: &[u8],
        since: Mono,
        at: Mono,
    ) -> Vec<Key> {
        if sender.is_empty() {
            self.receive_bounce(recipients, content);
            return Vec::new();
        }
        let Some((id, sent)) = id_of(content).and_then(|id| Some((id, self.sent.get(&id)?))) else {
            self.violate(format!("corrupt: a message that nobody sent, at {at:?}"));
            return Vec::new();
        };
        if !is_faithful(content, &sent.content) {
            self.violate(format!("corrupt: message {id} arrived changed at {at:?}"));
            return Vec::new();
        }
        let mut keys = Vec::new();
        for recipient in recipients {
            let recipient = String::from_utf8_lossy(recipient).into_owned();
            if !self.sent[&id].recipients.contains(&recipient) {
                self.violate(format!("corrupt: message {id} arrived for {recipient}"));
            }
            let key = (id, recipient);
            self.receipts.entry(key.clone()).or_default().push(Receipt {
                at,
                since,
                known: None,
            });
            keys.push(key);
        }
        keys
    }

    fn receive_bounce(&mut self, recipients: &[Vec<u8>], content: &[u8]) {
        let text = String::from_utf8_lossy(content);
        let id = recipients.first().and_then(|to| {
            let to = String::from_utf8_lossy(to).into_owned();
            to.strip_prefix("bounce-")?
                .split('@')
                .next()?
                .parse::<u64>()
                .ok()
        });
        let Some(id) = id.filter(|id| self.sent.contains_key(id)) else {
            self.violate(format!("a bounce for nobody: {recipients:?}"));
            return;
        };
        // Mail expires after 30 days, and no campaign lasts for one.
        if text.contains("Status: 4.4.7") || text.contains("Status: 5.4.7") {
            self.violate(format!("message {id} has expired: {text}"));
        }
        self.bounce_texts.push((id, text.to_string()));
        let fields = text
            .lines()
            .filter_map(|line| line.strip_prefix("Final-Recipient:"));
        for address in fields.filter_map(|value| value.split(';').nth(1)) {
            *self
                .bounces
                .entry((id, address.trim().to_owned()))
                .or_default() += 1;
        }
    }

    /// Recipients that were acknowledged and are neither delivered nor bounced.
    pub(crate) fn missing(&self) -> Vec<Key> {
        let mut missing = Vec::new();
        for (id, sent) in &self.sent {
            for recipient in &sent.acknowledged {
                let key = (*id, recipient.clone());
                if !self.receipts.contains_key(&key) && !self.bounces.contains_key(&key) {
                    missing.push(key);
                }
            }
        }
        missing
    }

    /// Whether the node may send a message again that it sent at `receipt`.
    fn excused(&self, receipt: &Receipt) -> bool {
        let Some(known) = receipt.known else {
            return true;
        };
        // A flipped bit takes settlements with it, long after they were written; in the last group
        // of the log it cannot be told from a write that a crash tore.
        let until = if self.disk_failed || self.rot {
            Mono::NEVER
        } else {
            known.after(SETTLE_TIME)
        };
        let struck = |crash: &Mono| *crash >= receipt.at && *crash <= until;
        self.crashes.iter().any(struck)
    }

    /// All that can be said at the end.
    pub(crate) fn judge(&mut self) {
        let mut found = Vec::new();
        if !self.rot {
            found.extend(
                self.missing()
                    .into_iter()
                    .map(|key| format!("lost: {key:?}")),
            );
        }
        for (key, receipts) in &self.receipts {
            // In flight at a crash, as nobody can know: no attempt of the living follows them.
            let orphan = |receipt: &&Receipt| {
                let cut = |crash: &Mono| (receipt.since..=receipt.at).contains(crash);
                receipt.known.is_none() && self.crashes.iter().any(cut)
            };
            let live: Vec<&Receipt> = receipts.iter().filter(|one| !orphan(one)).collect();
            let Some((last, before)) = live.split_last() else {
                continue;
            };
            for receipt in before.iter().filter(|receipt| !self.excused(receipt)) {
                found.push(format!(
                    "duplicate: {key:?} after {receipt:?}: {receipts:?}"
                ));
            }
            if self.bounces.contains_key(key) && !self.excused(last) {
                found.push(format!("delivered and bounced: {key:?} {receipts:?}"));
            }
        }
        self.violations.append(&mut found);
    }
}

/// What arrived is what was sent, behind fields that the node added.
fn is_faithful(arrived: &[u8], sent: &[u8]) -> bool {
    let Some(added) = arrived.strip_suffix(sent) else {
        return false;
    };
    let whole = added.is_empty() || added.ends_with(b"\r\n");
    let fields = added.starts_with(b"Received: ") && !added.windows(4).any(|w| w == b"\r\n\r\n");
    whole && fields
}
