//! What several shards share: the connections of an egress path.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use postrider::engine::sim::RunEnd;
use postrider::engine::{Class, Port};
use postrider::service::mesh::{OperatorRequest, ShardMessage};
use tokio::sync::oneshot;

use super::{Campaign, STEPS_MAX, Scenario};

/// Per source and site; two sources are used.
const CONNECTIONS: u32 = 16;

/// Two shards, no faults, and one receiver that takes its time.
fn scenario(seed: u64, sessions: u64, messages: u64) -> Scenario {
    Scenario {
        shards: 2,
        connections: u64::from(CONNECTIONS),
        depth: 1,
        messages,
        bytes_max: 600,
        recipients_max: 1,
        sessions,
        spread: 0,
        personalities: vec!["accept+delay:500ms".to_owned()],
        ..Scenario::calm(seed)
    }
}

/// A campaign whose mail is all for the one receiver.
fn campaign(seed: u64, sessions: u64, messages: u64) -> Campaign {
    let campaign = Campaign::new(scenario(seed, sessions, messages));
    campaign.address(|id| vec![format!("u{id}@d0.test")]);
    campaign
}

/// What was seen at most: connections at the receiver, and what each shard said it had.
struct Peak {
    receiver: u32,
    shards: [u64; 2],
}

/// Runs until all mail is where it belongs.
fn run(campaign: &Campaign) -> Peak {
    campaign.begin();
    let shards = Rc::new(Cell::new([0; 2]));
    watch(campaign, &shards);
    let receiver = Cell::new(0);
    let all = || {
        receiver.set(campaign.sites[0].open.get().max(receiver.get()));
        campaign.injector.open.get() == 0 && campaign.ledger.borrow().missing().is_empty()
    };
    let deadline = campaign.world.now().after(Duration::from_secs(3_600));
    let end = campaign.world.run_until(deadline, STEPS_MAX, all);
    assert_eq!(end, RunEnd::Reached, "{}", campaign.describe_node());
    campaign.ledger.borrow_mut().judge();
    campaign.assert_sound();
    Peak {
        receiver: receiver.get(),
        shards: shards.get(),
    }
}

/// Asks both shards for their connections ten times a second.
fn watch(campaign: &Campaign, most: &Rc<Cell<[u64; 2]>>) {
    let (node, most) = (Rc::clone(&campaign.node), Rc::clone(most));
    let port = campaign.control.clone();
    campaign.control.spawn(Class::Control, async move {
        loop {
            port.sleep_until(port.now().after(Duration::from_millis(100)))
                .await;
            let Some(mesh) = node.mesh.borrow().clone() else {
                continue;
            };
            for (shard, mailbox) in mesh.iter().enumerate() {
                let (reply, answer) = oneshot::channel();
                let letter = ShardMessage::Operator(OperatorRequest::Status(reply));
                if mailbox.try_send(letter).is_ok()
                    && let Ok(figures) = answer.await
                {
                    let mut peaks = most.get();
                    peaks[shard] = peaks[shard].max(figures.connections);
                    most.set(peaks);
                }
            }
        }
    });
}

// One session's mail arises on one shard: it goes out over all the connections that the
// configuration allows, and never over more.
#[test]
fn one_session_uses_every_connection() {
    for seed in 0..2 {
        let campaign = campaign(seed, 1, 350);
        let peak = run(&campaign);
        assert_eq!(peak.receiver, 2 * CONNECTIONS, "seed {seed}");
        // A fixed share would be CONNECTIONS. Not all: the session may have been moved, and what it
        // left behind goes out from where it was.
        let most = peak.shards.iter().max().copied().unwrap_or(0);
        assert!(most > u64::from(CONNECTIONS) * 3 / 2, "seed {seed}: {most}");
    }
}

// Mail on both shards: together they have no more than the limit, and each has had its part.
#[test]
fn two_shards_share_the_connections() {
    // The simulator, as the kernel, gives each session to a shard by chance, and the balance may
    // bring few sessions together on one: about half of the seeds have mail on both.
    let mut both = 0;
    for seed in 0..12 {
        let campaign = campaign(seed, 6, 600);
        let peak = run(&campaign);
        assert_eq!(peak.receiver, 2 * CONNECTIONS, "seed {seed}");
        if peak.shards.contains(&0) {
            continue;
        }
        for most in peak.shards {
            assert!(most >= u64::from(CONNECTIONS), "seed {seed}: {most}");
        }
        both += 1;
        if both == 2 {
            return;
        }
    }
    panic!("both shards had mail in {both} runs only");
}
