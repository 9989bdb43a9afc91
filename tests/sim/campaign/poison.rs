//! A message that crashes whoever sends it: put aside after three times, and all else arrives.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use postrider::engine::sim::{CrashKind, Poison};
use postrider::engine::{Class, Port};
use postrider::service::mesh::{OperatorRequest, ShardMessage};
use postrider::service::spooler::Listed;
use postrider::spool::quarantine::Reason;
use tokio::sync::oneshot;

use super::ledger::marker;
use super::node::mark_crashed;
use super::{Campaign, Scenario};

/// The one that nobody survives.
const BAD: u64 = 5;

fn campaign(seed: u64) -> Campaign {
    let campaign = Campaign::new(Scenario {
        shards: 1 + u16::try_from(seed % 2).unwrap_or(0),
        messages: 20,
        bytes_max: 5_000,
        recipients_max: 1,
        sessions: 3,
        spread: 500,
        personalities: vec!["accept".to_owned()],
        ..Scenario::calm(seed)
    });
    // Everybody's domain is there, so that every message reaches a receiver.
    campaign.address(|id| vec![format!("u-{id}@d0.test")]);
    let host = &campaign.node.host;
    let (in_hand, shards) = (Rc::clone(&campaign.node.in_hand), campaign.node.shards);
    host.survive_panics(move || mark_crashed(&in_hand, shards));
    campaign.begin();
    campaign
}

impl Campaign {
    /// Runs until all that was acknowledged has arrived, but for the bad one where `without`.
    fn settle(&self, without: bool) {
        self.until("settled", Duration::from_secs(7_200), || {
            let missing = self.ledger.borrow().missing();
            // What a crash left without an answer is not sent again.
            self.injector.open.get() == 0 && missing.iter().all(|(id, _)| without && *id == BAD)
        });
    }

    /// Asks every shard and waits for the answers.
    pub(crate) fn ask<T: 'static>(
        &self,
        request: impl Fn(oneshot::Sender<T>) -> OperatorRequest,
    ) -> Vec<T> {
        let mesh = self.node.mesh.borrow().clone().expect("the node is up");
        let answers = Rc::new(RefCell::new(Vec::new()));
        for mailbox in mesh.iter() {
            let (reply, answer) = oneshot::channel();
            let letter = ShardMessage::Operator(request(reply));
            assert!(mailbox.try_send(letter).is_ok());
            let answers = Rc::clone(&answers);
            self.control.spawn(Class::Control, async move {
                let answer = answer.await.ok();
                answers.borrow_mut().extend(answer);
            });
        }
        self.until("answered", Duration::from_secs(600), || {
            answers.borrow().len() == mesh.len()
        });
        answers.take()
    }

    fn quarantined(&self) -> Vec<Listed> {
        let listed = self.ask(OperatorRequest::Quarantine);
        listed.into_iter().flat_map(|(rows, _)| rows).collect()
    }

    /// Waits until something is in quarantine.
    fn await_quarantine(&self) -> Vec<Listed> {
        for _ in 0..1_000 {
            let found = self.quarantined();
            if !found.is_empty() {
                return found;
            }
            let then = self.world.now().after(Duration::from_secs(5));
            self.advance(then);
        }
        panic!("seed {}: nothing was put aside", self.scenario.seed);
    }

    fn check(self, crashes: u64) {
        self.settle(true);
        // The last crash may be still to come.
        let later = self.world.now().after(Duration::from_secs(300));
        self.advance(later);
        let found = self.await_quarantine();
        let seed = self.scenario.seed;
        assert_eq!(found.len(), 1, "seed {seed}: {found:?}");
        assert_eq!(found[0].aside.reason, Reason::Poison);
        assert_eq!(found[0].waiting, 1);
        let sender = found[0].sender.clone().unwrap_or_default();
        assert!(sender.starts_with(&format!("bounce-{BAD}@")), "{sender}");
        assert_eq!(self.node.host.crashes(), crashes, "seed {seed}");
        // A restart does not bring it back.
        self.node.host.crash(CrashKind::PowerCut);
        let later = self.world.now().after(Duration::from_secs(600));
        self.advance(later);
        assert_eq!(self.node.host.crashes(), crashes + 1, "seed {seed}");
        assert!(
            self.ledger
                .borrow()
                .missing()
                .iter()
                .all(|(id, _)| *id == BAD)
        );
        // Once the bug is mended the operator sends it after all.
        self.node.host.poison(b"", Poison::Panic);
        let id = found[0].aside.id;
        let spool = usize::from(id.shard());
        let mesh = self.node.mesh.borrow().clone().expect("the node is up");
        let (reply, mut answer) = oneshot::channel();
        let letter = ShardMessage::Operator(OperatorRequest::Release { id, reply });
        assert!(mesh[spool].try_send(letter).is_ok());
        self.until("released", Duration::from_secs(600), || {
            answer.try_recv().is_ok_and(|answer| answer.is_ok())
        });
        self.settle(false);
        assert!(self.quarantined().is_empty());
        self.ledger.borrow_mut().judge();
        self.assert_sound();
    }
}

// A panic in the task of one connection: the node goes on, what else that connection had is sent,
// and the third panic puts the message aside.
#[test]
fn a_message_that_panics_is_put_aside_and_the_node_stays() {
    for seed in 0..20 {
        let campaign = campaign(seed);
        let bad = marker(seed, BAD);
        campaign.node.host.poison(bad.as_bytes(), Poison::Panic);
        campaign.check(0);
    }
}

// A message for a receiver that takes its mail at once, and for a slow one, whose connection often
// belongs to another shard: when it has panicked three times for the first it does not panic for
// the other.
#[test]
fn what_one_shard_condemns_no_other_tries() {
    let messages = 20;
    let bad = messages - 1;
    for seed in 0..20 {
        let campaign = Campaign::new(Scenario {
            shards: 3,
            // One for all shards.
            connections: 1,
            messages,
            bytes_max: 600,
            recipients_max: 1,
            sessions: 1,
            spread: 0,
            personalities: vec!["accept".to_owned(), "accept+delay:20000ms".to_owned()],
            ..Scenario::calm(seed)
        });
        campaign.address(|id| vec![format!("u-{id}@d0.test"), format!("u-{id}@d1.test")]);
        let host = &campaign.node.host;
        host.survive_panics(|| panic!("the process ends"));
        host.poison(marker(seed, bad).as_bytes(), Poison::Panic);
        campaign.begin();
        campaign.until("settled", Duration::from_secs(7_200), || {
            let missing = campaign.ledger.borrow().missing();
            campaign.injector.open.get() == 0 && missing.iter().all(|(id, _)| *id == bad)
        });
        let found = campaign.await_quarantine();
        campaign.advance(campaign.world.now().after(Duration::from_secs(600)));
        assert_eq!((found.len(), found[0].waiting), (1, 2), "seed {seed}");
        assert_eq!(host.strikes(), 3, "seed {seed}");
        assert_eq!(host.crashes(), 0, "seed {seed}");
    }
}

// An abort: three crashes, and no fourth.
#[test]
fn a_message_that_aborts_is_put_aside_after_three_crashes() {
    for seed in 0..20 {
        let campaign = campaign(seed);
        let bad = marker(seed, BAD);
        campaign.node.host.poison(bad.as_bytes(), Poison::Abort);
        campaign.check(3);
    }
}
