//! The tasks of a shard: a slab, polled in the order of their wakes; deliveries after everything
//! else, and for as long as everything else took.
//!
//! Why: a retry storm keeps dozens of deliveries ready at all times. In one queue with them a
//! session's turn comes after all of theirs, four times per message: the accept p99 rose from 2 to
//! 22 ms. With slices a session waits for one of those. Deliveries have half of the time at least.
//! A turn: the spool and the signer, sessions, the spool again (one commit for all of them), the
//! kernel (their writes and replies leave), the same once more, deliveries, the kernel.
//! A task that gives way is not polled again before the kernel had its turn.
//! Hurry: while more mail has come in than has left, sessions get a part of the time of the
//! deliveries where the processor is short, so that mail leaves before it is cold.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use slab::Slab;

use super::remote::{Kind, Ready, Shared, TaskHeader};
use crate::engine::Class;
use crate::limits::{PATIENT_SLICE, TASKS_PER_TURN};
use crate::time::Mono;

/// How many tasks are polled between two looks at the clock.
const POLLS_PER_LOOK: usize = 2;

/// When too much fresh mail waits to leave, sessions get this part of the time of the deliveries.
const HURRIED_SHARE: u32 = 4;

/// The index that the main future's header carries instead of a slot.
pub(crate) const MAIN: u32 = u32::MAX;

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    header: Arc<TaskHeader>,
    class: Class,
    // None while it is being polled.
    work: Option<Work>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: RefCell<Slab<Slot>>,
    /// More mail has come in than has left: sessions are to go slower.
    pub(crate) hurried: Cell<bool>,
    /// How long deliveries ran in the last turn that had any.
    last_patient: Cell<Duration>,
}

impl Tasks {
    /// Adds a task and queues it for its first poll.
    pub(crate) fn spawn(&self, shared: &Arc<Shared>, class: Class, work: Work) {
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let (index, kind) = (entry.key() as u32, Kind::of(class));
        let header = Arc::new(TaskHeader::new(Arc::clone(shared), index, kind));
        entry.insert(Slot {
            header: Arc::clone(&header),
            class,
            work: Some(work),
        });
        header.wake();
    }

    /// One turn's work: what others wait for, sessions, then deliveries. `exchange` gives the
    /// kernel what was started and takes what it reports. True when the main future is to be
    /// polled.
    pub(crate) fn run(
        &self,
        shared: &Shared,
        clock: impl Fn() -> Mono,
        exchange: impl FnOnce(),
    ) -> bool {
        shared.ready.with(Ready::resume_yielded);
        let busy = |ready: &mut Ready| !ready.patient.is_empty();
        if !shared.ready.with(busy).unwrap_or(false) {
            return self.run_prompt(shared, &clock);
        }
        let began = clock();
        let mut main = self.run_prompt(shared, &clock);
        // What the others wait for is on its way before the deliveries begin.
        exchange();
        main |= self.run_prompt(shared, &clock);
        let now = clock();
        let slice = now.since(began).max(PATIENT_SLICE);
        let most = shared.ready.with(|ready| ready.patient.len()).unwrap_or(0);
        self.poll_some(shared, Kind::Patient, most, now.after(slice), &clock);
        self.last_patient.set(clock().since(now));
        main
    }

    /// Polls what is ready except deliveries, at most a batch of each kind; what sessions leave to
    /// do is done after them, so that one commit serves all of them.
    fn run_prompt(&self, shared: &Shared, clock: &impl Fn() -> Mono) -> bool {
        let mut main = self.poll_some(shared, Kind::Prompt, TASKS_PER_TURN, Mono::NEVER, clock);
        let (sessions, outgoing) = shared
            .ready
            .with(|ready| (!ready.ingress.is_empty(), ready.has_outgoing()))
            .unwrap_or((false, false));
        if sessions {
            let end = if outgoing && self.hurried.get() {
                clock().after(self.last_patient.get() / HURRIED_SHARE)
            } else {
                Mono::NEVER
            };
            self.poll_some(shared, Kind::Ingress, TASKS_PER_TURN, end, clock);
            main |= self.poll_some(shared, Kind::Prompt, TASKS_PER_TURN, Mono::NEVER, clock);
        }
        main
    }

    /// Polls at most `most` tasks of a kind, until `end`. True when the main future was among them.
    fn poll_some(
        &self,
        shared: &Shared,
        kind: Kind,
        most: usize,
        end: Mono,
        clock: &impl Fn() -> Mono,
    ) -> bool {
        let mut main = false;
        for polled in 1..=most.min(TASKS_PER_TURN) {
            let next = |ready: &mut Ready| ready.next(kind);
            let Some(header) = shared.ready.with(next).flatten() else {
                break;
            };
            header.dequeued();
            if header.index == MAIN {
                main = true;
            } else {
                self.poll(header);
            }
            if end != Mono::NEVER && polled % POLLS_PER_LOOK == 0 && clock() >= end {
                break;
            }
        }
        shared.ready.with(|ready| ready.polled = None);
        main
    }

    /// Ends all tasks where they stand, and those that they start meanwhile.
    pub(crate) fn drop_all(&self) {
        loop {
            let slots = std::mem::take(&mut *self.slots.borrow_mut());
            if slots.is_empty() {
                return;
            }
            for (_, slot) in slots {
                let class = slot.class;
                report(
                    class,
                    catch_unwind(AssertUnwindSafe(|| drop(slot.work))).err(),
                );
            }
        }
    }

    fn poll(&self, header: Arc<TaskHeader>) {
        let index = header.index as usize;
        let (mut work, class) = {
            let mut slots = self.slots.borrow_mut();
            // A wake that outlived its task must not poll the slot's next one.
            let slot = slots
                .get_mut(index)
                .filter(|slot| Arc::ptr_eq(&slot.header, &header));
            let Some((work, class)) = slot.and_then(|slot| Some((slot.work.take()?, slot.class)))
            else {
                return;
            };
            (work, class)
        };
        let waker = Waker::from(header);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            match polled {
                Poll::Pending => Some(work),
                Poll::Ready(()) => {
                    drop(work);
                    None
                }
            }
        }));
        let mut slots = self.slots.borrow_mut();
        match polled {
            Ok(Some(work)) => match slots.get_mut(index) {
                Some(slot) => slot.work = Some(work),
                None => debug_assert!(false, "a slot lives as long as its task"),
            },
            Ok(None) => drop(slots.try_remove(index)),
            Err(panic) => {
                drop(slots.try_remove(index));
                drop(slots);
                report(class, Some(panic));
            }
        }
    }
}

/// Logs a panic. Where the node cannot do without the task the process ends: a spool whose
/// bookkeeping is wrong could acknowledge mail that is not stored, and without its signer, its
/// clock or its mailbox a shard would stand still with everybody's mail.
fn report(class: Class, panic: Option<Box<dyn Any + Send>>) {
    let Some(panic) = panic else { return };
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    tracing::error!(?class, panic = text, "a task panicked");
    if !class.is_expendable() {
        std::process::abort();
    }
}
