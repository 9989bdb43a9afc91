//! lab::demo::stage - the demo while it runs: who is on stage, the kills, the wait for the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::DemoOptions;
use super::daemon::Daemon;
use crate::lab::LabError;
use crate::lab::check::Books;
use crate::lab::ledger::{Arrival, LedgerReader, Sent};
use crate::lab::load::{self, LoadCounters, LoadOptions, LoadReport};
use crate::lab::personality::mix;
use crate::lab::sink::{Sink, SinkCounters};

/// How often the stage is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Deliveries within this time around a kill may have been in flight: not settled on disk, or not
/// answered. A settlement waits 2 ms for its group and then for the disk.
const IN_FLIGHT_TICKS: usize = 2;

/// Everybody on stage.
pub(super) struct Stage<'a> {
    pub(super) options: &'a DemoOptions,
    pub(super) daemon: Daemon,
    pub(super) sink: &'a Sink,
    pub(super) arrived: Arc<SinkCounters>,
    pub(super) sent: Arc<LoadCounters>,
    pub(super) ledger: PathBuf,
    recent: Vec<u64>,
    /// Duplicates that the kills explain at most.
    pub(super) explained: u64,
    /// Deliveries counted, and the time of the last change.
    last: (u64, Instant),
    bar: ProgressBar,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        options: &'a DemoOptions,
        daemon: Daemon,
        sink: &'a Sink,
        arrived: Arc<SinkCounters>,
        ledger: PathBuf,
    ) -> Self {
        let total = options.messages * u64::from(options.recipients);
        let bar = if options.progress {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let style = "{msg:10} {bar:32} {human_pos:>9} of {human_len} delivered  {per_sec:>16}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let last = (0, Instant::now());
        let sent = Arc::default();
        let recent = Vec::new();
        Self {
            options,
            daemon,
            sink,
            arrived,
            sent,
            ledger,
            recent,
            explained: 0,
            last,
            bar,
        }
    }

    fn settled(&self) -> u64 {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        read(&self.arrived.delivered) + read(&self.arrived.bounced)
    }

    /// One look at everybody.
    fn tick(&mut self) -> Result<(), LabError> {
        std::thread::sleep(TICK);
        self.daemon.check()?;
        if self.sink.failed() {
            return Err(LabError::Thread("lab-sink"));
        }
        let settled = self.settled();
        if settled != self.last.0 {
            self.last = (settled, Instant::now());
        }
        self.recent.push(settled);
        if self.recent.len() > IN_FLIGHT_TICKS {
            self.recent.remove(0);
        }
        self.bar.set_position(settled);
        Ok(())
    }

    /// Injects the campaign, with kills where asked for.
    pub(super) fn inject(&mut self, load: LoadOptions) -> Result<LoadReport, LabError> {
        let load = LoadOptions {
            counters: Arc::clone(&self.sent),
            ..load
        };
        let counters = Arc::clone(&self.sent);
        let thread = std::thread::Builder::new()
            .name("lab-load".to_owned())
            .spawn(move || load::run(load))
            .map_err(|error| LabError::File(PathBuf::from("lab-load"), error))?;
        self.bar.set_message("injecting");
        let watched = self.watch(&thread);
        if watched.is_err() {
            counters.stop.store(true, Ordering::Relaxed);
        }
        let report = thread.join().unwrap_or(Err(LabError::Thread("lab-load")));
        watched.and(report)
    }

    fn watch(&mut self, load: &JoinHandle<Result<LoadReport, LabError>>) -> Result<(), LabError> {
        let mut draw = 0;
        let mut next_kill = self.next_kill(&mut draw);
        while !load.is_finished() {
            self.tick()?;
            if next_kill.is_some_and(|at| Instant::now() >= at) {
                self.kill()?;
                next_kill = self.next_kill(&mut draw);
            }
        }
        Ok(())
    }

    fn next_kill(&self, draw: &mut u64) -> Option<Instant> {
        let every = self.options.kill_every?;
        if self
            .options
            .kills_max
            .is_some_and(|max| self.daemon.kills >= max)
        {
            return None;
        }
        *draw += 1;
        // Evenly from 0.1 to 1.9 times the average.
        let share = (mix(self.options.seed ^ 0x6b69_6c6c, *draw) % 1801 + 100) as f64 / 1000.0;
        Some(Instant::now() + every.mul_f64(share))
    }

    fn kill(&mut self) -> Result<(), LabError> {
        let before = self.recent.first().copied().unwrap_or(0);
        self.daemon.kill()?;
        // What was in the sockets still arrives.
        std::thread::sleep(TICK);
        self.explained += self.settled().saturating_sub(before);
        self.daemon.restart()?;
        self.recent.clear();
        self.recent.push(self.settled());
        Ok(())
    }

    /// Waits until every acknowledged recipient has its outcome, at most as long as the options
    /// say.
    pub(super) fn drain(&mut self, recipients: u64) -> Result<(), LabError> {
        self.bar.set_message("draining");
        let deadline = Instant::now() + self.options.drain;
        let mut target = recipients;
        loop {
            while self.settled() < target && Instant::now() < deadline {
                self.tick()?;
            }
            // Read before the ledgers, which are behind the counters by one report: whatever
            // arrives in between makes the next target too low, never too high.
            let settled = self.settled();
            self.tick()?;
            self.tick()?;
            let (books, _) = books(&self.ledger, self.sink.ledgers())?;
            let outstanding = books.verdict().outstanding();
            if outstanding == 0 || Instant::now() >= deadline {
                return Ok(());
            }
            // Duplicates and deliveries without acknowledgement were counted as well.
            target = settled + outstanding;
        }
    }

    /// When the last delivery was seen.
    pub(super) fn last_arrival(&self) -> Instant {
        self.last.1
    }

    /// Takes the progress bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The books of the ledgers, with the latencies from acknowledgement to arrival in microseconds.
pub(super) fn books(
    sent: &Path,
    arrivals: &[PathBuf],
) -> Result<(Books, Histogram<u64>), LabError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| LabError::File(path, error)
    };
    let mut books = Books::open(LedgerReader::<Sent>::open(sent)?).map_err(failed(sent))?;
    let mut latency = Histogram::new_with_bounds(1, 3_600_000_000, 3)
        .map_err(|_| LabError::Options("latency histogram"))?;
    for path in arrivals {
        for arrival in LedgerReader::<Arrival>::open(path)? {
            if let Some(late) = books.arrived(&arrival.map_err(failed(path))?) {
                let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
                latency.saturating_record(micros.max(1));
            }
        }
    }
    Ok((books, latency))
}
