//! Clocks that jump while mail waits, running and across a restart: nothing expires, nothing is
//! tried in a storm, everything arrives.

use std::time::Duration;

use postrider::engine::sim::{CrashKind, DiskFaults};
use postrider::service::mesh::OperatorRequest;

use super::{Campaign, Scenario};

const HOUR: i64 = 3_600_000;

/// How the clock jumps.
#[derive(Debug, Clone, Copy)]
enum When {
    Running,
    /// While the node is down, after a crash of this kind.
    Restart(CrashKind),
    /// While it runs; then it is restarted.
    RunningThenRestart,
    /// After a restart, while recovery waits for the disk.
    Recovery,
}

fn waiting(seed: u64) -> Campaign {
    let campaign = Campaign::new(Scenario {
        shards: 2,
        messages: 30,
        bytes_max: 600,
        recipients_max: 2,
        sessions: 2,
        spread: 0,
        // An hour of temporary failures: everything is deferred when the clock jumps.
        personalities: vec!["accept+greylist:3600s".to_owned()],
        jumps: true,
        ..Scenario::calm(seed)
    });
    campaign.address(|id| vec![format!("u-{id}@d0.test")]);
    campaign.begin();
    let later = campaign.world.now().after(Duration::from_secs(900));
    campaign.advance(later);
    campaign
}

fn deferred(campaign: &Campaign) -> u64 {
    let figures = campaign.ask(OperatorRequest::Status);
    figures
        .iter()
        .map(|figures| figures.counters.deferred)
        .sum()
}

fn play(seed: u64, jump: i64, when: When) {
    let campaign = waiting(seed);
    let host = &campaign.node.host;
    let what = format!("seed {seed}, {jump} ms {when:?}");
    let later = |seconds| campaign.world.now().after(Duration::from_secs(seconds));
    match when {
        When::Running | When::RunningThenRestart => host.jump_wall(jump),
        When::Restart(kind) => {
            host.crash(kind);
            host.jump_wall(jump);
        }
        When::Recovery => {
            host.set_disk(DiskFaults {
                latency: 5_000_000_000..=10_000_000_000,
                ..DiskFaults::calm()
            });
            host.crash(CrashKind::Kill);
            // It is started again within a second.
            campaign.advance(later(3));
            host.jump_wall(jump);
            host.set_disk(DiskFaults::calm());
            campaign.advance(later(10));
        }
    }
    campaign.advance(later(10));
    if matches!(when, When::RunningThenRestart) {
        host.crash(CrashKind::Kill);
        campaign.advance(later(10));
    }
    // No storm: each message waits a minute between its attempts, as the schedule says.
    let before = deferred(&campaign);
    campaign.advance(later(600));
    let attempts = deferred(&campaign) - before;
    assert!(
        attempts < 30 * 14,
        "{what}: {attempts} attempts in ten minutes"
    );
    // No hang: when the receiver takes mail, it comes.
    campaign.until(&what, Duration::from_secs(7_200), || {
        campaign.ledger.borrow().missing().is_empty()
    });
    let ledger = campaign.ledger.borrow();
    assert!(ledger.bounces.is_empty(), "{what}: {:?}", ledger.bounces);
    assert_eq!(ledger.violations, Vec::<String>::new(), "{what}");
    assert_eq!(ledger.receipts.len(), 30, "{what}");
}

// Mail expires after 30 days here, and the largest jump is 31.
#[test]
fn no_jump_of_the_clock_expires_mail_or_makes_a_storm() {
    let whens = [
        When::Running,
        When::Restart(CrashKind::Kill),
        When::Restart(CrashKind::PowerCut),
        When::RunningThenRestart,
        When::Recovery,
    ];
    for (seed, when) in (0..).zip(whens) {
        for jump in [HOUR, -HOUR, 31 * 24 * HOUR, -24 * HOUR] {
            play(seed, jump, when);
        }
    }
}
