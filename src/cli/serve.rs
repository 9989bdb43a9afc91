//! serve - what `postrider run` does between its configuration and its end: start the node, say
//! that it is ready, wait for a signal, drain.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::Failure;
use crate::config::Snapshot;
use crate::engine::huge_pages_for_the_asking;
use crate::node::{Node, NodeError};

/// Runs a node until SIGTERM or SIGINT. A second signal ends the process at once, which the spool
/// survives as it survives a crash.
///
/// # Errors
/// What keeps the node from starting (78 where that is a key, which no new start puts right), or
/// that it did not end in good order.
pub(super) fn serve(snapshot: Arc<Snapshot>) -> Result<(), Failure> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // Before any thread is made, so that all of them inherit the mask and only this one is told.
    signals
        .thread_block()
        .map_err(|errno| Failure::Failed(format!("cannot block signals: {errno}")))?;
    raise_limits();
    small_pages();
    if !snapshot.dkim.is_empty() {
        keep_keys_private();
    }
    name_absent_sources(&snapshot);
    let node = Node::start(snapshot).map_err(|error| match error {
        NodeError::Keys(fault) => Failure::Unusable(vec![fault]),
        other => Failure::failed(other),
    })?;
    for address in node.listening() {
        tracing::info!(%address, "listening");
    }
    announce().map_err(|error| Failure::Failed(format!("cannot write to stdout: {error}")))?;
    let next = || {
        signals
            .wait()
            .map_err(|errno| Failure::Failed(format!("cannot wait for signals: {errno}")))
    };
    while next()? == Signal::SIGHUP {
        tracing::info!("SIGHUP: the DKIM key files are read again, the rest only at start");
        node.reload_keys();
    }
    // From here on a second signal has its default effect.
    signals
        .thread_unblock()
        .map_err(|errno| Failure::Failed(format!("cannot unblock signals: {errno}")))?;
    if node.stop() {
        Ok(())
    } else {
        let text = "a shard did not end in time; its mail is in the spool";
        Err(Failure::Failed(text.to_owned()))
    }
}

/// The one line of the contract: programs that start us wait for it.
fn announce() -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "postrider: ready")?;
    stdout.flush()
}

/// Warns of sources that are not addresses of this host: their mail waits until they are.
fn name_absent_sources(snapshot: &Snapshot) {
    for source in &snapshot.sources {
        let Some(address) = source.address else {
            continue;
        };
        // An address may come later, with its interface: no reason not to start.
        if let Err(error) = UdpSocket::bind(SocketAddr::new(address, 0)) {
            let name = &source.name;
            tracing::warn!(
                source = %name, %address, %error,
                "a source is no address of this host: its mail waits; see `postrider check host`"
            );
        }
    }
}

/// Keeps the kernel from backing with huge pages what did not ask for them: they make slack between
/// growing tables resident. What asks, has them where the kernel can make that difference (6.18):
/// what the spool writes from, and the allocator's arenas. An idle connection then takes 1,960
/// bytes; 1,130 with no huge page at all, as on an older kernel, where a message costs 0.7 us more.
fn small_pages() {
    let done = huge_pages_for_the_asking().or_else(|_| nix::sys::prctl::set_thp_disable(true));
    if let Err(errno) = done {
        tracing::debug!(%errno, "cannot turn huge pages off for this process");
    }
}

/// Before private keys are read: no core dump, whatever the limits and the dump handler say, and no
/// debugger and no reader of /proc/PID/mem but root's (prctl(2), PR_SET_DUMPABLE). perf and gdb of
/// root work as before. Sensitive pages need no MADV_DONTDUMP then: there is no dump.
fn keep_keys_private() {
    if let Err(errno) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%errno, "cannot forbid core dumps: one would show the DKIM keys");
    }
}

/// Takes the descriptors and locked memory that the system's hard limits allow. Where that fails
/// the engine says what it lacks.
fn raise_limits() {
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        let raised = getrlimit(resource).and_then(|(soft, hard)| {
            if soft < hard {
                setrlimit(resource, hard, hard)
            } else {
                Ok(())
            }
        });
        if let Err(errno) = raised {
            tracing::warn!(?resource, %errno, "cannot raise a limit");
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::prctl::{get_dumpable, set_dumpable};

    #[test]
    fn memory_with_keys_is_not_dumped() {
        set_dumpable(true).unwrap();
        super::keep_keys_private();
        assert_eq!(get_dumpable(), Ok(false));
        // The other tests of this process may be debugged.
        set_dumpable(true).unwrap();
    }
}
