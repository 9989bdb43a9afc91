//! watch - says in the log what goes wrong for longer than a moment, and when it is over.
//!
//! What: egress paths that fail and paths that deliver again; alarms of the spools, raised and
//! cleared. One line at the beginning and one at the end, however many messages wait.
//! Why a look every few seconds: who is paged wants to know what does not work now, not each of the
//! refusals that come and go within seconds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Port;
use crate::queue::PathReport;
use crate::spool::Alarm;

use super::Dispatch;

/// How often it looks: well below the minutes after which people ask.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Lines about paths in one look; a network that is down must not fill the log with its sites.
const LINES_MAX: usize = 20;

/// Alarms, each with the number of its spool.
type Raised = Vec<(u16, Alarm)>;

/// What has been said, and holds until the opposite is said.
#[derive(Debug, Default)]
struct Said {
    /// Paths that fail: source and site.
    failing: BTreeSet<(u16, Arc<str>)>,
    /// Alarms, with the spool's number.
    alarms: Raised,
}

/// What is to be said of the paths.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    /// Source, site, failures in a row, the last reason.
    failing: Vec<(u16, Arc<str>, u32, String)>,
    /// Source and site of those that work again.
    mended: Vec<(u16, Arc<str>)>,
    /// How many more fail or work again than are listed.
    more: usize,
}

impl Said {
    /// Compares the paths with what was said of them.
    fn paths<'a>(&mut self, paths: impl Iterator<Item = PathReport<'a>>) -> News {
        let mut news = News::default();
        let mut still = BTreeSet::new();
        for path in paths {
            let key = (path.source, Arc::clone(path.site));
            let known = self.failing.remove(&key);
            let room = news.failing.len() + news.mended.len() < LINES_MAX;
            let fails = path.failures > 0;
            match (known, fails) {
                (false, true) if room => {
                    let reason = path.last_error.map_or_else(String::new, |(_, text)| {
                        text.chars().filter(|c| !c.is_control()).collect()
                    });
                    news.failing
                        .push((key.0, Arc::clone(&key.1), path.failures, reason));
                }
                (true, false) if room => news.mended.push(key.clone()),
                (false, true) | (true, false) => news.more += 1,
                _ => {}
            }
            if fails {
                still.insert(key);
            }
        }
        // Paths that are gone had nothing left to send.
        self.failing = still;
        news
    }

    /// Which alarms are new, and which are over.
    fn alarms(&mut self, now: Raised) -> (Raised, Raised) {
        let raised = now.iter().filter(|alarm| !self.alarms.contains(alarm));
        let raised = raised.copied().collect();
        let over = self.alarms.iter().filter(|alarm| !now.contains(alarm));
        let over = over.copied().collect();
        self.alarms = now;
        (raised, over)
    }
}

impl<P: Port> Dispatch<P> {
    /// Looks at paths and spools now and then, and says what has changed; runs for ever.
    pub async fn watch(&self) {
        let mut said = Said::default();
        loop {
            let then = self.port.now().after(LOOK_EVERY);
            self.port.sleep_until(then).await;
            let news = said.paths(self.brain.borrow().paths());
            self.tell(&news);
            let status = self
                .spools
                .iter()
                .map(|(number, spool)| (number, spool.status()));
            let alarms = status.flat_map(|(number, status)| {
                status.alarms.into_iter().map(|alarm| (*number, alarm))
            });
            let (raised, over) = said.alarms(alarms.collect());
            for (spool, alarm) in raised {
                tracing::error!(spool, "{alarm}");
            }
            for (spool, alarm) in over {
                tracing::info!(spool, "no longer: {alarm}");
            }
        }
    }

    fn tell(&self, news: &News) {
        let source = |number: u16| {
            let source = self.settings.sources.get(usize::from(number));
            source.map_or("", |source| &*source.name)
        };
        for (number, site, failures, reason) in &news.failing {
            let source = source(*number);
            tracing::warn!(source, %site, failures, reason, "deliveries to a site fail");
        }
        for (number, site) in &news.mended {
            tracing::info!(source = source(*number), %site, "deliveries to a site work again");
        }
        if news.more > 0 {
            tracing::warn!(paths = news.more, "more sites: `postrider ctl paths`");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{CauseKind, PathCounters, PathLimits, Queue, QueueConfig};

    fn report(site: &Arc<str>, failures: u32) -> PathReport<'_> {
        PathReport {
            id: Queue::<()>::new(QueueConfig::default()).path(0, site),
            source: 0,
            site,
            ready: 0,
            deferred: 1,
            in_flight: 0,
            expired: 0,
            connections: 0,
            dialing: 0,
            window: 1,
            limits: PathLimits::default(),
            suspended: false,
            backoff_until: None,
            failures,
            last_error: (failures > 0).then_some((CauseKind::Host, "refused\r\nby \u{1b}[1mhost")),
            counters: PathCounters::default(),
        }
    }

    // Each path is named once when it begins to fail and once when it works again.
    #[test]
    fn trouble_is_said_once_and_its_end_too() {
        let mut said = Said::default();
        let sites: Vec<Arc<str>> = (0..30).map(|n| Arc::from(format!("s{n}"))).collect();
        assert_eq!(
            said.paths(sites.iter().map(|s| report(s, 0))),
            News::default()
        );
        let news = said.paths(sites.iter().map(|s| report(s, 2)));
        assert_eq!((news.failing.len(), news.more), (LINES_MAX, 10));
        assert_eq!(
            news.failing[0].3, "refusedby [1mhost",
            "nothing that moves a cursor"
        );
        assert_eq!(
            said.paths(sites.iter().map(|s| report(s, 3))),
            News::default()
        );
        let news = said.paths(sites[..1].iter().map(|s| report(s, 0)));
        assert_eq!(news.mended, [(0, Arc::clone(&sites[0]))]);
        // The others are gone: what comes back in trouble is news again.
        let news = said.paths(sites[1..2].iter().map(|s| report(s, 1)));
        assert_eq!(news.failing.len(), 1);
    }

    #[test]
    fn alarms_are_said_once_and_their_end_too() {
        let mut said = Said::default();
        let full = vec![(0, Alarm::DiskFull)];
        assert_eq!(said.alarms(full.clone()), (full.clone(), vec![]));
        assert_eq!(said.alarms(full.clone()), (vec![], vec![]));
        assert_eq!(
            said.alarms(vec![(1, Alarm::DiskFull)]),
            (vec![(1, Alarm::DiskFull)], full)
        );
    }
}
