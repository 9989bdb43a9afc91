//! spooler::late - what the disk did not give, asked for again.

use crate::engine::{Map, Port};
use crate::limits;
use crate::spool::format::Log;

use super::recovery::{Patience, rewrite};
use super::{Loaded, Spooler};

impl<P: Port> Spooler<P> {
    /// Waits until a message of an earlier life can be read that could not be before, and says
    /// which: at most `max`, never none. Looks again and again, less and less often; returns never
    /// when nothing is missing. For the one who called [`Spooler::load`] to its end.
    pub async fn load_late(&self, max: usize) -> Vec<Loaded> {
        loop {
            let pause = self.0.late_pause.get();
            let port = &self.0.port;
            port.sleep_until(port.now().after(pause)).await;
            if self.0.late.borrow().is_empty() && self.0.core.borrow().unread().is_empty() {
                // Nothing gets lost again in this life.
                std::future::pending::<()>().await;
            }
            self.0
                .late_pause
                .set((pause * 2).min(limits::SPOOL_LATE_PAUSE_MAX));
            let unread = self.0.core.borrow().unread();
            for (log, number) in unread {
                self.look_again(log, number).await;
            }
            let out = self.take_late(max).await;
            if !out.is_empty() {
                self.0.late_pause.set(limits::SPOOL_LATE_PAUSE);
                return out;
            }
        }
    }

    /// Takes in a segment that recovery could not read, if all of it can be read now.
    async fn look_again(&self, log: Log, number: u32) {
        let port = &self.0.port;
        let file = self.0.files.borrow().get(&(log, number)).cloned();
        let Some(map) = file.as_ref().and_then(|file| port.map(file).ok()) else {
            return;
        };
        let Some(file) = file else { return };
        let bytes = map.bytes();
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes.len().min(at + limits::SPOOL_GROUP_BYTES_MAX);
            if port.prefetch(&map, at..end).await.is_err() {
                return;
            }
            at = end;
        }
        let doubtful = self.0.core.borrow_mut().doubtful(log, number, bytes);
        for range in doubtful {
            if rewrite(port, &file, range, &Patience::none())
                .await
                .is_err()
            {
                return;
            }
        }
        let adopted = {
            let mut core = self.0.core.borrow_mut();
            core.adopt(log, number, bytes, port.now())
        };
        tracing::warn!(
            ?log,
            segment = number,
            messages = adopted.waiting.len(),
            damaged = adopted.damaged,
            "a segment that could not be read at the start has been taken in"
        );
        self.0.late.borrow_mut().extend(adopted.waiting);
        self.0.wake.raise();
    }

    /// Messages of the list that can be read now; each that cannot goes to its end. One leaves the
    /// list only when it has been read, so that the alarm stays until then.
    async fn take_late(&self, max: usize) -> Vec<Loaded> {
        let mut out = Vec::new();
        let count = self.0.late.borrow().len();
        for _ in 0..count {
            if out.len() >= max.max(1) {
                break;
            }
            let id = self.0.late.borrow().front().copied();
            let Some(id) = id else { break };
            let waiting = self.0.core.borrow().waiting(id);
            let again = match waiting {
                Some(waiting) => self.load_one(waiting, &mut out).await,
                None => false,
            };
            let mut late = self.0.late.borrow_mut();
            late.pop_front();
            late.extend(again.then_some(id));
        }
        out
    }
}
