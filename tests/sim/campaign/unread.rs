//! What became of recipients cannot be read at a start, and is read later: nobody gets a message
//! again, or is reported as failed, who was known by then to have it.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postrider::engine::Port;
use postrider::engine::sim::{CrashKind, DiskFaults};
use postrider::service::mesh::OperatorRequest;
use postrider::spool::Alarm;

use super::node::DATA;
use super::{Campaign, Scenario};

const MESSAGES: u64 = 12;

/// How long the settlements cannot be read: longer than a start waits for them.
const UNREAD: Duration = Duration::from_secs(100);

/// Each message is for one who has it at once, and for one who has it after an hour, so that it is
/// in the spool all the time; mail expires after that time.
fn campaign(seed: u64, expire: Duration) -> Campaign {
    let mut campaign = Campaign::new(Scenario {
        shards: 1 + u16::try_from(seed % 3).unwrap_or(0),
        messages: MESSAGES,
        bytes_max: 600,
        recipients_max: 1,
        sessions: 3,
        spread: 0,
        personalities: vec!["accept".to_owned(), "accept+greylist:3600s".to_owned()],
        ..Scenario::calm(seed)
    });
    campaign.address(|id| vec![format!("u{id}@d0.test"), format!("u{id}@d1.test")]);
    let node = Rc::get_mut(&mut campaign.node).expect("nobody else has it yet");
    let snapshot = Arc::get_mut(&mut node.snapshot).expect("nobody else has it yet");
    snapshot.delivery.expire = expire;
    campaign.begin();
    campaign
}

impl Campaign {
    /// Nothing of the state logs can be read for a while.
    fn hide_settlements(&self) {
        let host = &self.node.host;
        host.set_disk(DiskFaults {
            outage: 1,
            ..DiskFaults::calm()
        });
        let until = self.world.now().after(UNREAD);
        for shard in 0..self.node.shards {
            let directory = Path::new(DATA).join(format!("shard-{shard:03}"));
            let names = host.port().list(&directory).expect("it is there");
            for name in names.iter().filter(|name| name.starts_with("state-")) {
                assert!(host.hide(&directory.join(name), until));
            }
        }
    }

    /// Whether some shard says that it could not read all.
    fn is_unread(&self) -> bool {
        let spools = self.ask(OperatorRequest::Spools);
        let mut all = spools.into_iter().flatten();
        all.any(|(_, status)| status.alarms.contains(&Alarm::Unread))
    }

    /// Delivers to those who take their mail at once, crashes, and lets the node start without what
    /// it knew of them, and read that later.
    fn read_settlements_late(&self) {
        let seed = self.scenario.seed;
        let receipts = || self.ledger.borrow().receipts.len() as u64;
        self.until("delivered", Duration::from_secs(100), || {
            receipts() == MESSAGES
        });
        self.advance(self.world.now().after(Duration::from_secs(30)));
        // Nobody is sent to while the DNS fails: what the start finds waits in the queue.
        self.node.dns_fails.set(1_000_000);
        self.hide_settlements();
        self.node.host.crash(CrashKind::PowerCut);
        let started = self.world.now();
        self.advance(started.after(Duration::from_secs(80)));
        assert!(self.is_unread(), "seed {seed}: all was read");
        self.advance(started.after(Duration::from_secs(600)));
        assert!(!self.is_unread(), "seed {seed}: not read later");
        assert_eq!(receipts(), MESSAGES, "seed {seed}");
    }
}

#[test]
fn who_was_settled_stays_so_when_that_is_read_late() {
    for seed in 0..12 {
        let campaign = campaign(seed, Duration::from_secs(30 * 86_400));
        campaign.read_settlements_late();
        // In half of the worlds the first domain has vanished: its mail would be returned.
        if seed % 2 == 1 {
            campaign.node.zone.borrow_mut().remove("d0.test");
        }
        campaign.node.dns_fails.set(0);
        campaign.until("all delivered", Duration::from_secs(7_200), || {
            campaign.ledger.borrow().missing().is_empty()
        });
        campaign.advance(campaign.world.now().after(Duration::from_secs(600)));
        campaign.ledger.borrow_mut().judge();
        campaign.assert_sound();
        assert!(campaign.ledger.borrow().bounces.is_empty(), "seed {seed}");
    }
}

// The mail expires before the DNS is back: whoever has it is not reported.
#[test]
fn nobody_is_told_that_mail_expired_that_was_delivered() {
    for seed in 0..6 {
        let campaign = campaign(seed, Duration::from_secs(1_200));
        campaign.read_settlements_late();
        campaign.advance(campaign.world.now().after(Duration::from_secs(1_200)));
        campaign.node.dns_fails.set(0);
        campaign.until("all returned", Duration::from_secs(7_200), || {
            campaign.ledger.borrow().missing().is_empty()
        });
        campaign.advance(campaign.world.now().after(Duration::from_secs(600)));
        let ledger = campaign.ledger.borrow();
        assert!(ledger.receipts.values().all(|receipts| receipts.len() == 1));
        assert_eq!(ledger.receipts.len() as u64, MESSAGES, "seed {seed}");
        let late = |address: &String| address.ends_with("@d1.test");
        assert!(ledger.bounces.keys().all(|(_, address)| late(address)));
        assert_eq!(ledger.bounces.len() as u64, MESSAGES, "seed {seed}");
    }
}
