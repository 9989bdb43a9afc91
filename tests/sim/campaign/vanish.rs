//! A domain that vanishes from the DNS while its mail waits: it is returned, with the status that
//! says why, after few dials; and what shares its site arrives.

use std::time::Duration;

use postrider::engine::sim::RunEnd;
use postrider::engine::{Class, Port};
use postrider::service::mesh::OperatorRequest;

use super::{Campaign, STEPS_MAX, Scenario};

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
        for (id, sent) in &mut campaign.ledger.borrow_mut().sent {
            let domains: &[u64] = [&[0][..], &[1], &[0, 1]][(id % 3) as usize];
            let address = |domain: &u64| format!("u{domain}-{id}@d{domain}.test");
            sent.recipients = domains.iter().map(address).collect();
        }
        let node = std::rc::Rc::clone(&campaign.node);
        let control = campaign.control.clone();
        control.spawn(Class::Control, node.supervise(control.clone()));
        campaign.injector.start(2);
        let ledger = &campaign.ledger;
        let taken = || {
            let ledger = ledger.borrow();
            let mut sent = ledger.sent.values();
            sent.all(|sent| sent.acknowledged.len() == sent.recipients.len())
        };
        let deadline = campaign.world.now().after(Duration::from_secs(120));
        let end = campaign.world.run_until(deadline, STEPS_MAX, taken);
        assert_eq!(end, RunEnd::Reached, "seed {seed}");
        campaign.node.zone.borrow_mut().remove("d0.test");
        let done = || ledger.borrow().missing().is_empty();
        let deadline = campaign.world.now().after(Duration::from_secs(3_600));
        let end = campaign.world.run_until(deadline, STEPS_MAX, done);
        let missing = ledger.borrow().missing();
        assert_eq!(end, RunEnd::Reached, "seed {seed}: {missing:?}");
        let figures = campaign.ask(OperatorRequest::Status);
        let dials: u64 = figures
            .iter()
            .map(|figures| figures.counters.dials_failed)
            .sum();
        assert!(dials < 20, "seed {seed}: {dials} dials failed");
        let ledger = ledger.borrow();
        assert_eq!(ledger.violations, Vec::<String>::new(), "seed {seed}");
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
