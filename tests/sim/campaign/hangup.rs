//! A site that hangs up in the middle of messages sent behind each other, and takes its replies to
//! the earlier ones with it: what it took without saying so comes again, but not again and again.

use std::time::Duration;

use postrider::engine::sim::RunEnd;
use postrider::engine::{Class, Port};

use super::{Campaign, STEPS_MAX, Scenario};

const MESSAGES: u64 = 30;
const SEEDS: u64 = 20;

#[test]
fn what_a_site_took_without_a_word_comes_alone_the_next_time() {
    let mut repeated = 0;
    for seed in 0..SEEDS {
        let campaign = Campaign::new(Scenario {
            shards: 1,
            messages: MESSAGES,
            bytes_max: 600,
            recipients_max: 3,
            sessions: 2,
            spread: 0,
            personalities: vec!["accept+connections:1+close:rcpt:35%".to_owned()],
            ..Scenario::calm(seed)
        });
        let node = std::rc::Rc::clone(&campaign.node);
        let control = campaign.control.clone();
        control.spawn(Class::Control, node.supervise(control.clone()));
        campaign.injector.start(2);
        let ledger = &campaign.ledger;
        let done = || {
            let ledger = ledger.borrow();
            let mut sent = ledger.sent.values();
            sent.all(|sent| sent.acknowledged.len() == sent.recipients.len())
                && ledger.missing().is_empty()
        };
        let deadline = campaign.world.now().after(Duration::from_secs(48 * 3_600));
        let end = campaign.world.run_until(deadline, STEPS_MAX, done);
        assert_eq!(end, RunEnd::Reached, "seed {seed}");
        let ledger = ledger.borrow();
        assert_eq!(ledger.violations, Vec::<String>::new(), "seed {seed}");
        let copies = ledger.receipts.values().map(|all| all.len() as u64 - 1);
        repeated += copies.sum::<u64>();
    }
    // Sent together again it was 218, three times as many.
    println!("{repeated} copies too many");
    assert!(repeated < MESSAGES * SEEDS / 4, "{repeated}");
}
