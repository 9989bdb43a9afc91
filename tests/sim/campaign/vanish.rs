//! A domain that vanishes from the DNS while its mail waits: it is returned, with the status that
//! says why, after few dials; and what shares its site arrives.

use std::time::Duration;

use postrider::service::mesh::OperatorRequest;

use super::{Campaign, Scenario};

const MESSAGES: u64 = 30;

#[test]
fn mail_for_a_domain_that_vanishes_is_returned_and_its_neighbour_is_served() {
    for seed in 0..20 {
        let campaign = Campaign::new(Scenario {
            shards: 1 + u16::try_from(seed % 2).unwrap_or(0),
            messages: MESSAGES,
            bytes_max: 600,
            recipients_max: 1,
            sessions: 2,
            spread: 0,
            // Nothing is taken before the DNS has forgotten the domain.
            personalities: vec!["accept+greylist:600s".to_owned()],
            ..Scenario::calm(seed)
        });
        // d0 and d1 have the same mail exchanger, hence one site; every third message is for both.
        campaign.address(|id| {
            let domains: &[u64] = [&[0][..], &[1], &[0, 1]][(id % 3) as usize];
            let address = |domain: &u64| format!("u{domain}-{id}@d{domain}.test");
            domains.iter().map(address).collect()
        });
        campaign.begin();
        let ledger = &campaign.ledger;
        campaign.until("all taken", Duration::from_secs(120), || {
            ledger.borrow().is_all_acknowledged()
        });
        campaign.node.zone.borrow_mut().remove("d0.test");
        campaign.until("all at an end", Duration::from_secs(3_600), || {
            ledger.borrow().missing().is_empty()
        });
        let figures = campaign.ask(OperatorRequest::Status);
        let dials: u64 = figures
            .iter()
            .map(|figures| figures.counters.dials_failed)
            .sum();
        assert!(dials < 20, "seed {seed}: {dials} dials failed");
        campaign.assert_sound();
        let ledger = ledger.borrow();
        for (_, address) in ledger.bounces.keys() {
            assert!(address.ends_with("@d0.test"), "seed {seed}: {address}");
        }
        for (_, address) in ledger.receipts.keys() {
            assert!(address.ends_with("@d1.test"), "seed {seed}: {address}");
        }
        assert_eq!(ledger.bounces.len() as u64, MESSAGES * 2 / 3, "seed {seed}");
        for (id, text) in &ledger.bounce_texts {
            assert!(text.contains("Status: 5.1.2"), "seed {seed}, {id}: {text}");
        }
    }
}
