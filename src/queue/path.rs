//! path - the egress paths: (source, site), its lists, its limits, its health.

use std::collections::HashMap;
use std::sync::Arc;

use crate::limits::{QUEUE_CAUSE_BYTES_MAX, QUEUE_PATHS_MAX, QUEUE_PATHS_VACANT_MAX};
use crate::time::Mono;

use super::config::{PathLimits, QueueConfig};
use super::event::{Cause, CauseKind, PathId};
use super::grants::{Grants, Share};
use super::ready::{Links, List, Nodes};
use super::shaping::Bucket;
use super::standing::Standing;

/// How often what happened on a path, since the path is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathCounters {
    /// Entries settled.
    pub settled: u64,
    /// Attempts deferred because of the recipient or message.
    pub deferred_recipient: u64,
    /// Attempts deferred because the host said 421 or the like.
    pub deferred_host: u64,
    /// Attempts deferred because the connection failed.
    pub deferred_connection: u64,
    /// Attempts whose end-of-data reply never came: each a possible duplicate.
    pub ambiguous: u64,
    /// Attempts deferred for a local or DNS reason.
    pub deferred_local: u64,
    /// Entries that grew too old.
    pub expired: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// Entries that went back because the host ended a connection that had taken mail.
    pub spent: u64,
}

/// The state of one path, for the operator.
#[derive(Debug, Clone, Copy)]
pub struct PathReport<'a> {
    /// The path.
    pub id: PathId,
    /// Its source.
    pub source: u16,
    /// Its site.
    pub site: &'a Arc<str>,
    /// Entries that wait for a connection.
    pub ready: u32,
    /// Entries that wait for their time.
    pub deferred: u32,
    /// Entries assigned to connections.
    pub in_flight: u32,
    /// Entries handed out as expired, not yet settled.
    pub expired: u32,
    /// Connections, dialing and closing ones included.
    pub connections: u32,
    /// Those of them that are dialing.
    pub dialing: u32,
    /// How many connections the slow start allows at present.
    pub window: u32,
    /// What is configured.
    pub limits: PathLimits,
    /// Stopped by the operator.
    pub suspended: bool,
    /// Sleeps until then; `None` where it is awake.
    pub backoff_until: Option<Mono>,
    /// Failures of the host in a row.
    pub failures: u32,
    /// The last fault and its words.
    pub last_error: Option<(CauseKind, &'a str)>,
    /// Since the path is known.
    pub counters: PathCounters,
}

#[derive(Debug)]
pub(super) struct Path {
    pub(super) generation: u32,
    pub(super) source: u16,
    pub(super) site: Arc<str>,
    pub(super) rule: Option<usize>,
    pub(super) limits: PathLimits,
    pub(super) bucket: Option<Bucket>,
    pub(super) ready: List,
    pub(super) in_flight: List,
    pub(super) expired: List,
    pub(super) deferred: u32,
    /// Connections with a free slot.
    pub(super) available: List,
    pub(super) connections: u32,
    pub(super) dialing: u32,
    /// Of the open ones, those that end as soon as nothing is assigned to them.
    pub(super) leaving: u32,
    /// What this shard holds of the path's connections; `None` where no other shard has the path.
    pub(super) share: Option<Share>,
    /// Slow start: connections allowed, and successes since it last grew.
    pub(super) window: u32,
    pub(super) successes: u32,
    pub(super) failures: u32,
    /// Short rests in a row, before anything counts as a failure.
    pub(super) stumbles: u32,
    /// What the host takes.
    pub(super) standing: Standing,
    pub(super) backoff_until: Mono,
    /// Ready entries that are still to be deferred because the path failed too often.
    pub(super) spill: u32,
    pub(super) suspended: bool,
    /// Waits for a connection of the total.
    pub(super) hungry: bool,
    /// The valid timer of this path; `NEVER` for none.
    pub(super) wake_at: Mono,
    pub(super) last_error: Option<(CauseKind, Box<str>)>,
    pub(super) counters: PathCounters,
    vacant: Links,
}

impl Path {
    fn new(source: u16, site: Arc<str>, config: &QueueConfig, generation: u32) -> Self {
        let rule = config.rule(source, &site);
        Self {
            generation,
            source,
            site,
            rule,
            limits: config.limits_of(rule),
            bucket: None,
            ready: List::EMPTY,
            in_flight: List::EMPTY,
            expired: List::EMPTY,
            deferred: 0,
            available: List::EMPTY,
            connections: 0,
            dialing: 0,
            leaving: 0,
            share: None,
            window: config.connections_initial.max(1),
            successes: 0,
            failures: 0,
            stumbles: 0,
            standing: Standing::default(),
            backoff_until: Mono(0),
            spill: 0,
            suspended: false,
            hungry: false,
            wake_at: Mono::NEVER,
            last_error: None,
            counters: PathCounters::default(),
            vacant: Links::DETACHED,
        }
    }

    /// Nothing to do and nothing open: may be forgotten. A suspended path is kept.
    fn is_vacant(&self) -> bool {
        let entries = self.ready.len() + self.in_flight.len() + self.expired.len() + self.deferred;
        entries == 0 && self.connections == 0 && !self.suspended
    }

    pub(super) fn sleeps(&self, now: Mono) -> bool {
        now < self.backoff_until
    }

    pub(super) fn note_error(&mut self, cause: Cause) {
        let mut text = cause.text.unwrap_or_default();
        if text.len() > QUEUE_CAUSE_BYTES_MAX {
            text = text[..text.floor_char_boundary(QUEUE_CAUSE_BYTES_MAX)].into();
        }
        self.last_error = Some((cause.kind, text));
    }

    /// Messages that the rate allows now.
    pub(super) fn tokens(&mut self, now: Mono) -> u64 {
        let Some(rate) = self.limits.rate else {
            return u64::MAX;
        };
        self.bucket
            .get_or_insert_with(|| Bucket::new(rate, now))
            .available(now)
    }

    pub(super) fn configure(&mut self, config: &QueueConfig, now: Mono) {
        self.rule = config.rule(self.source, &self.site);
        self.limits = config.limits_of(self.rule);
        match (self.limits.rate, &mut self.bucket) {
            (Some(rate), Some(bucket)) => bucket.set_rate(rate, now),
            (None, bucket) => *bucket = None,
            // Made at the next use.
            (Some(_), None) => {}
        }
        if let Some(share) = &self.share {
            share.set_limit(self.limits.connections_max);
        }
    }
}

/// All paths, found by (source, site) and by index.
#[derive(Debug)]
pub(super) struct Paths {
    places: Vec<Path>,
    by_name: HashMap<(u16, Arc<str>), u32>,
    /// Those with nothing to do, the longest unused one first.
    vacant: List,
    /// Where other shards send on the same paths.
    grants: Option<Arc<Grants>>,
}

struct Vacant<'a>(&'a mut Vec<Path>);

impl Nodes for Vacant<'_> {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self.0[index as usize].vacant
    }
}

impl Paths {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            by_name: HashMap::new(),
            vacant: List::EMPTY,
            grants: None,
        }
    }

    /// Paths share their connections with the other shards from now on; before the first path.
    pub(super) fn share_with(&mut self, grants: Arc<Grants>) {
        assert!(self.places.is_empty(), "every path has a share, or none");
        self.grants = Some(grants);
    }

    /// The path of this name, if it is known.
    pub(super) fn known(&self, source: u16, site: &Arc<str>) -> Option<PathId> {
        let index = self.by_name.get(&(source, Arc::clone(site)))?;
        Some(self.id(*index))
    }

    /// The path of this name, made where it is new.
    pub(super) fn open(&mut self, source: u16, site: &Arc<str>, config: &QueueConfig) -> PathId {
        let key = (source, Arc::clone(site));
        if let Some(&index) = self.by_name.get(&key) {
            if self.at(index).vacant != Links::DETACHED {
                // The last used one is forgotten last.
                self.vacant.remove(&mut Vacant(&mut self.places), index);
                self.vacant.push_back(&mut Vacant(&mut self.places), index);
            }
            return self.id(index);
        }
        let index = self.place(source, site, config);
        self.by_name.insert(key, index);
        self.vacant.push_back(&mut Vacant(&mut self.places), index);
        self.id(index)
    }

    fn place(&mut self, source: u16, site: &Arc<str>, config: &QueueConfig) -> u32 {
        let site = Arc::clone(site);
        if self.vacant.len() > QUEUE_PATHS_VACANT_MAX
            && let Some(index) = self.vacant.pop_front(&mut Vacant(&mut self.places))
        {
            let old = &mut self.places[index as usize];
            let generation = old.generation.wrapping_add(1);
            let key = (old.source, Arc::clone(&old.site));
            *old = Self::fresh(&self.grants, source, site, config, generation);
            self.by_name.remove(&key);
            return index;
        }
        let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        assert!(
            index < QUEUE_PATHS_MAX,
            "each path beyond the vacant ones has an entry"
        );
        let path = Self::fresh(&self.grants, source, site, config, 0);
        self.places.push(path);
        index
    }

    fn fresh(
        grants: &Option<Arc<Grants>>,
        source: u16,
        site: Arc<str>,
        config: &QueueConfig,
        generation: u32,
    ) -> Path {
        let mut path = Path::new(source, site, config, generation);
        let limit = path.limits.connections_max;
        let share = grants.as_ref();
        path.share = share.map(|grants| grants.share(source, &path.site, limit));
        if let Some(share) = &path.share {
            path.standing = Standing::new(share.reach());
        }
        path
    }

    /// The index of a path, unless it is forgotten.
    pub(super) fn find(&self, id: PathId) -> Option<u32> {
        let place = self.places.get(id.index as usize)?;
        (place.generation == id.generation).then_some(id.index)
    }

    pub(super) fn id(&self, index: u32) -> PathId {
        PathId {
            index,
            generation: self.at(index).generation,
        }
    }

    pub(super) fn at(&self, index: u32) -> &Path {
        &self.places[index as usize]
    }

    pub(super) fn at_mut(&mut self, index: u32) -> &mut Path {
        &mut self.places[index as usize]
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Path> {
        self.places.iter_mut()
    }

    /// Puts the path on the list of vacant ones, or takes it off, as it is now. Called after
    /// each change of what it has.
    pub(super) fn review(&mut self, index: u32, config: &QueueConfig) {
        let path = &mut self.places[index as usize];
        let listed = path.vacant != Links::DETACHED;
        match (path.is_vacant(), listed) {
            (true, false) => {
                // A quiet path starts slowly again.
                path.window = config.connections_initial.max(1);
                path.successes = 0;
                self.vacant.push_back(&mut Vacant(&mut self.places), index);
            }
            (false, true) => self.vacant.remove(&mut Vacant(&mut self.places), index),
            _ => {}
        }
    }

    pub(super) fn reports(&self, now: Mono) -> impl Iterator<Item = PathReport<'_>> {
        self.places
            .iter()
            .zip(0u32..)
            .map(move |(path, index)| PathReport {
                id: PathId {
                    index,
                    generation: path.generation,
                },
                source: path.source,
                site: &path.site,
                ready: path.ready.len(),
                deferred: path.deferred,
                in_flight: path.in_flight.len(),
                expired: path.expired.len(),
                connections: path.connections,
                dialing: path.dialing,
                window: path.window,
                limits: path.limits,
                suspended: path.suspended,
                backoff_until: path.sleeps(now).then_some(path.backoff_until),
                failures: path.failures,
                last_error: path
                    .last_error
                    .as_ref()
                    .map(|(kind, text)| (*kind, &**text)),
                counters: path.counters,
            })
    }
}
