//! SharedWords - a small file as numbers in memory, kept by the kernel when the process dies.
//!
//! What: a file mapped for reading and writing, touched only through atomic words. Nothing is ever
//! synced: what was stored is there after any end of the process, and may not be after a power cut.
//! And the one thing a dying process does: a thread that is hit by a fatal signal of its own making
//! (an abort, an invalid access) marks the words that it watches over before the signal ends the
//! process. SIGKILL cannot be caught, so that a killed process leaves no mark.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Once};

use memmap2::MmapRaw;

/// Numbers that outlive the process, or, in a test, its end.
pub trait Words: Send + Sync + 'static {
    /// All of them.
    fn words(&self) -> &[AtomicU64];
}

impl Words for Vec<AtomicU64> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// See the module.
#[derive(Debug)]
pub struct SharedWords {
    map: MmapRaw,
}

impl SharedWords {
    /// Maps all of a file, whose blocks are allocated already: storing into a hole of a full file
    /// system would be a SIGBUS.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            map: MmapRaw::map_raw(&file.as_fd().try_clone_to_owned()?)?,
        })
    }
}

impl Words for SharedWords {
    fn words(&self) -> &[AtomicU64] {
        let count = self.map.len() / size_of::<AtomicU64>();
        // SAFETY: the map is page-aligned, lives as long as `self`, and is never resized; the file
        // belongs to the node that holds the lock of its directory. Any bits are an AtomicU64, and
        // every access of this process to them is atomic.
        // JUSTIFICATION: a store to memory is all that noting a message in hand may cost, and a
        // mapped page is the only memory that outlives the process.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), count) }
    }
}

/// Watches at most: nodes of one process, times their shards.
const WATCHES: usize = 512;

/// One word to mark, and the thread that it is about; free while null.
struct Slot {
    word: AtomicPtr<AtomicU64>,
    thread: AtomicI32,
}

/// A handler has nothing but statics. Nothing on the hot path looks at them.
static SLOTS: [Slot; WATCHES] = [const {
    Slot {
        word: AtomicPtr::new(ptr::null_mut()),
        thread: AtomicI32::new(0),
    }
}; WATCHES];

/// Sets a word to 1 when the calling thread, or a thread that nobody watches, crashes. Until
/// dropped.
pub struct CrashWatch {
    slot: Option<&'static Slot>,
    /// Keeps the word in place.
    _words: Arc<dyn Words>,
}

impl CrashWatch {
    /// Watches over the calling thread; `index` is the word to mark.
    ///
    /// # Panics
    /// Where there is no such word.
    #[must_use]
    pub fn new(words: &Arc<dyn Words>, index: usize) -> Self {
        install();
        let word = ptr::from_ref(&words.words()[index]).cast_mut();
        let free = SLOTS.iter().find(|slot| {
            let taken = slot.word.compare_exchange(
                ptr::null_mut(),
                word,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            taken.is_ok()
        });
        if let Some(slot) = free {
            slot.thread.store(this_thread(), Ordering::SeqCst);
        }
        Self {
            slot: free,
            _words: Arc::clone(words),
        }
    }
}

impl Drop for CrashWatch {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.thread.store(0, Ordering::SeqCst);
            slot.word.store(ptr::null_mut(), Ordering::SeqCst);
        }
    }
}

fn this_thread() -> i32 {
    // SAFETY: the call has no arguments and cannot fail.
    // JUSTIFICATION: a handler may call this, which no wrapper promises of its own.
    unsafe { libc::gettid() }
}

/// The signals by which a process ends itself.
const FATAL: [libc::c_int; 6] = [
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
];

/// Makes fatal signals leave their mark, once per process. Where that is refused crashes are not
/// counted, and nothing else is different.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in FATAL {
            // SAFETY: the structure is plain data, for which zeros are valid; the handler has the
            // signature that SA_SIGINFO asks for, and does only what is safe in a handler.
            // JUSTIFICATION: no wrapper of sigaction is safe, and only a handler runs between the
            // fault and the end.
            let done = unsafe {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction = on_fatal as *const () as usize;
                // On the thread's other stack: this one may have overflowed.
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
                libc::sigaction(signal, &raw const action, ptr::null_mut())
            };
            if done != 0 {
                tracing::warn!(signal, "crashes by this signal will not be counted");
            }
        }
    });
}

/// Marks, and lets the signal take its default effect: SA_RESETHAND has restored that already.
extern "C" fn on_fatal(
    signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    let thread = this_thread();
    let watched = SLOTS
        .iter()
        .any(|slot| slot.thread.load(Ordering::SeqCst) == thread);
    for slot in &SLOTS {
        let word = slot.word.load(Ordering::SeqCst);
        if word.is_null() || (watched && slot.thread.load(Ordering::SeqCst) != thread) {
            continue;
        }
        // SAFETY: a slot is cleared before the words of its watch can go; a thread that drops its
        // watch at this very moment races with the end of its own process.
        // JUSTIFICATION: this is the mark.
        unsafe { &*word }.store(1, Ordering::SeqCst);
    }
    let text = b"postrider: a fatal signal ends the process; what was in hand is noted\n";
    // SAFETY: write is async-signal-safe, and the text is there for as long as the program.
    // JUSTIFICATION: this handler stands in the place of the one that would have said something.
    // Where the text goes nowhere there is nothing else to do.
    let _: isize = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // Pending until the handler returns; then the process ends with this signal, whether the fault
    // would strike again or somebody sent it.
    // SAFETY: raise is async-signal-safe and has no other effect.
    // JUSTIFICATION: a signal that was sent, and not caused, does not come again by itself.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "POSTRIDER_CRASH_CHILD";
    const PAGE: usize = 4096;

    /// Runs this test again in a process of its own, which is to die; returns its signal and what
    /// the first words of the file are then.
    fn die(test: &str, how: &str) -> (Option<i32>, [u64; 3]) {
        let directory =
            std::env::temp_dir().join(format!("postrider-crash-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{test}-{how}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&[0; PAGE]).unwrap();
        let name = format!("engine::sys::shared::tests::{test}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(CHILD, format!("{how} {}", path.display()))
            .output()
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let word = |at: usize| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap());
        (output.status.signal(), [0, 1, 2].map(word))
    }

    fn overflow(depth: u64) -> u64 {
        let here = std::hint::black_box([depth; 512]);
        if depth == u64::MAX {
            return here[0];
        }
        overflow(depth + 1) + std::hint::black_box(here)[1]
    }

    /// What the child does: words 0 and 1 belong to two threads, word 2 is an ordinary store.
    fn child(how: &str, path: &str) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let words: Arc<dyn Words> = Arc::new(SharedWords::new(&file).unwrap());
        let other = Arc::clone(&words);
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _watch = CrashWatch::new(&other, 1);
            ready.send(()).unwrap();
            loop {
                std::thread::park();
            }
        });
        wait.recv().unwrap();
        let watch = (how != "stranger").then(|| CrashWatch::new(&words, 0));
        words.words()[2].store(7, Ordering::Relaxed);
        let signal = |number| nix::sys::signal::raise(number).unwrap();
        match how {
            "abort" | "stranger" => std::process::abort(),
            "segv" => signal(nix::sys::signal::SIGSEGV),
            "overflow" => assert!(overflow(0) > 0),
            _ => signal(nix::sys::signal::SIGKILL),
        }
        drop(watch);
        std::process::exit(0);
    }

    // The crashed thread's word is marked and no other; where nobody watches over it, all are. A
    // killed process leaves no mark, but what it stored.
    #[test]
    fn a_crash_leaves_its_mark_and_a_kill_does_not() {
        if let Ok(what) = std::env::var(CHILD) {
            let (how, path) = what.split_once(' ').unwrap();
            return child(how, path);
        }
        let expected = [
            ("abort", libc::SIGABRT, [1, 0, 7]),
            ("segv", libc::SIGSEGV, [1, 0, 7]),
            ("overflow", libc::SIGSEGV, [1, 0, 7]),
            ("stranger", libc::SIGABRT, [0, 1, 7]),
            ("kill", libc::SIGKILL, [0, 0, 7]),
        ];
        for (how, signal, words) in expected {
            let found = die("a_crash_leaves_its_mark_and_a_kill_does_not", how);
            assert_eq!(found, (Some(signal), words), "{how}");
        }
    }
}
