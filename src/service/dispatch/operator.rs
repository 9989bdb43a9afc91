//! operator - what the operator sees of a shard's dispatcher, and may ask of it.

use std::sync::Arc;

use crate::engine::Port;
use crate::message::Domain;
use crate::queue::{Event, PathId, PathReport};
use crate::service::dispatch::{Dispatch, Way};
use crate::service::mesh::{Figures, PathFigures, Target};
use crate::time::Mono;

impl<P: Port> Dispatch<P> {
    /// Takes nothing new into hand from now on; connections say QUIT when they are done.
    pub fn stop(&self) {
        self.stopping.set(true);
        for link in self.links.borrow().values() {
            link.stop();
        }
    }

    /// Connections with a transaction under way.
    pub fn in_hand(&self) -> usize {
        self.links
            .borrow()
            .values()
            .filter(|link| link.is_busy())
            .count()
    }

    /// The outbound half of the shard's figures.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            counters: self.counters.get(),
            signing: self.signer.report(),
            signatures_reused: self.signer.reused(),
            hashed_on_arrival: self.signer.hashed_on_arrival(),
            unsignable: self.signer.unsignable(),
            ..Figures::default()
        };
        for path in self.brain.borrow().paths() {
            figures.connections += u64::from(path.connections);
            figures.ready += u64::from(path.ready);
            figures.deferred += u64::from(path.deferred);
            figures.in_flight += u64::from(path.in_flight);
        }
        // Suspects wait outside the brain.
        figures.deferred += u64::try_from(self.suspects.borrow().len()).unwrap_or(u64::MAX);
        figures
    }

    /// Every egress path that lives here.
    pub fn path_figures(&self) -> Vec<PathFigures> {
        let brain = self.brain.borrow();
        let now = self.port.now();
        let seconds = |until: Mono| until.since(now).as_millis().div_ceil(1000);
        let figures = |path: PathReport<'_>| PathFigures {
            source: self.settings.sources[usize::from(path.source)]
                .name
                .to_string(),
            site: path.site.to_string(),
            ready: u64::from(path.ready),
            deferred: u64::from(path.deferred),
            in_flight: u64::from(path.in_flight),
            connections: u64::from(path.connections),
            suspended: path.suspended,
            failures: path.failures,
            sleeps_seconds: path
                .backoff_until
                .map(|until| u64::try_from(seconds(until)).unwrap_or(u64::MAX)),
            last_error: path.last_error.map(|(_, text)| text.to_owned()),
        };
        brain.paths().map(figures).collect()
    }

    /// Stops or restarts the paths of a source, to a site, or both; returns how many. A site may be
    /// named by any domain whose mail is known to go there.
    pub fn suspend(&self, source: Option<&str>, site: Option<&str>, stop: bool) -> u64 {
        let of_domain = site.and_then(|name| self.site_of(name));
        let chosen: Vec<PathId> = {
            let brain = self.brain.borrow();
            let names = |path: &PathReport<'_>, wanted: &str| {
                wanted.eq_ignore_ascii_case(path.site)
                    || of_domain.as_deref() == Some(&**path.site)
                    || self.leads_to(path.id, wanted)
            };
            let wanted = |path: &PathReport<'_>| {
                let name = &self.settings.sources[usize::from(path.source)].name;
                source.is_none_or(|wanted| *wanted == **name)
                    && site.is_none_or(|wanted| names(path, wanted))
                    && path.suspended != stop
            };
            brain.paths().filter(wanted).map(|path| path.id).collect()
        };
        if !chosen.is_empty() {
            let (source, site) = (source.unwrap_or("all"), site.unwrap_or("all"));
            let what = if stop { "suspended" } else { "resumed" };
            tracing::info!(
                source,
                site,
                paths = chosen.len(),
                "an operator has {what} paths"
            );
        }
        for path in &chosen {
            let path = *path;
            self.apply(if stop {
                Event::Suspend { path }
            } else {
                Event::Resume { path }
            });
        }
        u64::try_from(chosen.len()).unwrap_or(u64::MAX)
    }

    /// The site where this shard last sent the mail of a domain.
    fn site_of(&self, domain: &str) -> Option<Arc<str>> {
        let domain = Domain::parse(domain).ok()?;
        match self.ways.borrow().get(&domain) {
            Some((_, Way::To(site, _))) => Some(Arc::clone(site)),
            _ => None,
        }
    }

    /// Whether the hosts of a path are those that a domain names.
    fn leads_to(&self, path: PathId, domain: &str) -> bool {
        let paths = self.paths.borrow();
        let target = paths.get(&path).map(|path| &path.target);
        matches!(target, Some(Target::Mail(of)) if of.as_str().eq_ignore_ascii_case(domain))
    }
}
