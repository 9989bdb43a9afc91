//! A site that hangs up in the middle of messages sent behind each other, and takes its replies to
//! the earlier ones with it: what it took without saying so comes again, but not again and again.

use std::time::Duration;

use super::{Campaign, Scenario};

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
        campaign.begin();
        campaign.until("all arrived", Duration::from_secs(48 * 3_600), || {
            let ledger = campaign.ledger.borrow();
            ledger.is_all_acknowledged() && ledger.missing().is_empty()
        });
        campaign.assert_sound();
        let ledger = campaign.ledger.borrow();
        let copies = ledger.receipts.values().map(|all| all.len() as u64 - 1);
        repeated += copies.sum::<u64>();
    }
    // Sent together again it was 218, three times as many.
    println!("{repeated} copies too many");
    assert!(repeated < MESSAGES * SEEDS / 4, "{repeated}");
}
