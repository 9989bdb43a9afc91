//! What became of recipients cannot be read at a start, and is read later: nobody gets a message
//! again, or is reported as failed, who was known by then to have it.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use postrider::engine::sim::{CrashKind, DiskFaults, RunEnd};
use postrider::engine::{Class, Port};
use postrider::service::mesh::OperatorRequest;
use postrider::spool::Alarm;

use super::node::DATA;
use super::{Campaign, STEPS_MAX, Scenario, note_crashes};

const MESSAGES: u64 = 12;

/// How long the settlements cannot be read: longer than a start waits for them.
const UNREAD: Duration = Duration::from_secs(100);

/// Each message is for one who has it at once, and for one who has it after an hour, so that it is
/// in the spool all the time.
fn campaign(seed: u64) -> Campaign {
    let campaign = Campaign::new(Scenario {
        shards: 1 + u16::try_from(seed % 3).unwrap_or(0),
        messages: MESSAGES,
        bytes_max: 600,
        recipients_max: 1,
        sessions: 3,
        spread: 0,
        personalities: vec!["accept".to_owned(), "accept+greylist:3600s".to_owned()],
        ..Scenario::calm(seed)
    });
    for (id, sent) in &mut campaign.ledger.borrow_mut().sent {
        sent.recipients = vec![format!("u{id}@d0.test"), format!("u{id}@d1.test")];
    }
    let node = Rc::clone(&campaign.node);
    let control = campaign.control.clone();
    control.spawn(Class::Control, node.supervise(control.clone()));
    let crashes = Rc::clone(&campaign.ledger);
    note_crashes(&control, &campaign.node.host, crashes);
    campaign.injector.start(campaign.scenario.sessions);
    campaign
}

impl Campaign {
    fn until(&self, what: &str, limit: Duration, done: impl FnMut() -> bool) {
        let deadline = self.world.now().after(limit);
        let end = self.world.run_until(deadline, STEPS_MAX, done);
        let seed = self.scenario.seed;
        assert_eq!(end, RunEnd::Reached, "seed {seed}: {what}");
    }

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
}

#[test]
fn who_was_settled_stays_so_when_that_is_read_late() {
    for seed in 0..12 {
        let campaign = campaign(seed);
        let receipts = || campaign.ledger.borrow().receipts.len() as u64;
        campaign.until("delivered", Duration::from_secs(300), || {
            receipts() == MESSAGES
        });
        campaign.advance(campaign.world.now().after(Duration::from_secs(30)));
        // Nobody is sent to while the DNS fails: what the start finds waits in the queue.
        campaign.node.dns_fails.set(1_000_000);
        campaign.hide_settlements();
        campaign.node.host.crash(CrashKind::PowerCut);
        let started = campaign.world.now();
        campaign.advance(started.after(Duration::from_secs(80)));
        assert!(campaign.is_unread(), "seed {seed}: all was read");
        campaign.advance(started.after(Duration::from_secs(600)));
        assert!(!campaign.is_unread(), "seed {seed}: not read later");
        assert_eq!(receipts(), MESSAGES, "seed {seed}");
        // In half of the worlds the first domain has vanished: its mail would be returned.
        if seed % 2 == 1 {
            campaign.node.zone.borrow_mut().remove("d0.test");
        }
        campaign.node.dns_fails.set(0);
        campaign.until("all delivered", Duration::from_secs(7_200), || {
            campaign.ledger.borrow().missing().is_empty()
        });
        campaign.advance(campaign.world.now().after(Duration::from_secs(600)));
        let mut ledger = campaign.ledger.borrow_mut();
        ledger.judge();
        assert_eq!(ledger.violations, Vec::<String>::new(), "seed {seed}");
        assert!(ledger.bounces.is_empty(), "seed {seed}");
    }
}
