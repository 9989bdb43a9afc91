//! node - boot order, the control thread's duties, drain, shutdown.
//!
//! Boot: lock the data directory; start one thread per shard, which makes its engine and its
//! mailbox; exchange mailboxes; recover spools and open listeners; only when all of that has worked
//! is the node ready. Whatever fails ends the node with one error that says what to change.
//! Shutdown: every shard drains (finishes what is in hand, refuses new mail, makes its logs
//! durable) and ends; a second signal, or a shard that does not end in time, ends the process
//! without more ado, which the spool survives as it survives a crash.

mod in_hand;
mod memory;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit};

use crate::config::{Listener, Shards, Snapshot};
use crate::control::{Control, Names, key_stamps};
use crate::dkim::KeyRing;
use crate::engine::mesh::{MailSender, mailbox};
use crate::engine::uring::{UringConfig, UringRuntime, UringSetupError, reserve_port};
use crate::engine::{CrashWatch, Port, Words};
use crate::limits;
use crate::queue::Grants;
use crate::service::balance::Board;
use crate::service::hands::{Hands, crash_word};
use crate::service::mesh::{Mesh, OperatorRequest, ShardMessage};
use crate::service::resolver::Ask;
use crate::settings;
use crate::shard::{BootError, Plan, Shard};

/// Why a node could not start.
#[derive(Debug)]
pub enum NodeError {
    /// The data directory cannot be used: what was tried, and the system's answer.
    DataDirectory(PathBuf, &'static str, io::Error),
    /// Another process uses the data directory.
    Locked(PathBuf),
    /// A DKIM key cannot be used; the text names the file and the way out.
    Keys(String),
    /// io_uring is refused; the text says what to change.
    Engine(UringSetupError),
    /// A shard could not boot.
    Shard(u16, BootError),
    /// A thread could not be started.
    Thread(io::Error),
    /// A shard's thread ended before it was ready: a panic, logged above.
    ShardDied(u16),
    /// The control thread could not start: DNS configuration, admin socket.
    Control(String),
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataDirectory(path, action, error) => {
                write!(
                    f,
                    "node.data_dir {}: cannot {action}: {error}",
                    path.display()
                )?;
                match error.kind() {
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; give it, and every directory above it the right to be entered, to the \
                         user that runs the daemon",
                    ),
                    _ => Ok(()),
                }
            }
            Self::Locked(path) => write!(
                f,
                "node.data_dir {}: another postrider runs on it (the lock file is held)",
                path.display()
            ),
            Self::Engine(error) => write!(f, "{error}"),
            Self::Shard(number, error) => write!(f, "shard {number}: {error}"),
            Self::Thread(error) => write!(f, "cannot start a thread: {error}"),
            Self::ShardDied(number) => write!(f, "shard {number} ended before it was ready"),
            Self::Keys(text) | Self::Control(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for NodeError {}

/// A running node.
pub struct Node {
    mesh: Mesh,
    threads: Vec<JoinHandle<()>>,
    listening: Vec<SocketAddr>,
    control: Control,
    started: Instant,
    _lock: Flock<File>,
}

/// What a shard's thread tells the node while it boots.
enum Progress {
    Mailbox(u16, MailSender<ShardMessage>),
    Ready(u16, Vec<SocketAddr>, u64),
    Failed(NodeError),
}

impl Node {
    /// Starts a node and returns when it accepts mail.
    ///
    /// # Errors
    /// See [`NodeError`]; nothing is left running then.
    pub fn start(mut snapshot: Arc<Snapshot>) -> Result<Self, NodeError> {
        let lock = lock_data_directory(&snapshot.node.data_dir)?;
        let stamps = key_stamps(&snapshot);
        let keys = Arc::new(settings::key_ring(&snapshot).map_err(NodeError::Keys)?);
        let cpus = allowed_cpus();
        let shards = match snapshot.node.shards {
            Shards::Auto => NonZeroU16::new(u16::try_from(cpus.len()).unwrap_or(u16::MAX)),
            Shards::Count(count) => Some(count),
        };
        let shards = shards.map_or(1, NonZeroU16::get).min(limits::SHARDS_MAX);
        let _reserved = choose_ports(&mut snapshot)?;
        let (names, questions) = Names::channel();
        let spools = spools_in_care(&snapshot.node.data_dir, shards)?;
        let grants = Arc::<Grants>::default();
        let in_hand = in_hand::open(&snapshot.node.data_dir, shards, snapshot.delivery.expire);
        let (to_node, progress) = mpsc::channel();
        let mut threads = Vec::new();
        let board = Board::new(shards);
        let mut starts = Vec::new();
        for (number, spools) in (0..shards).zip(spools) {
            let (start, wait) = mpsc::channel::<Mesh>();
            let seed = ShardThread {
                number,
                shards,
                cpu: cpus.get(usize::from(number) % cpus.len().max(1)).copied(),
                spools,
                snapshot: Arc::clone(&snapshot),
                keys: Arc::clone(&keys),
                in_hand: Arc::clone(&in_hand),
                ask: names.ask(number),
                grants: Arc::clone(&grants),
                board: Arc::clone(&board),
                progress: to_node.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn(move || seed.run(&wait))
                .map_err(NodeError::Thread)?;
            threads.push(thread);
            starts.push(start);
        }
        drop(to_node);
        let mesh = exchange_mailboxes(&progress, &starts, shards)?;
        let control =
            Control::start(&snapshot, &mesh, questions, stamps).map_err(NodeError::Control)?;
        let listening = wait_until_ready(&progress, &mesh, &threads)?;
        let started = Instant::now();
        Ok(Self {
            mesh,
            threads,
            listening,
            control,
            started,
            _lock: lock,
        })
    }
}

impl Node {
    /// The addresses of the listeners, in the order of the configuration.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Reads the DKIM key files again; a file that cannot be used leaves the old keys at work.
    pub fn reload_keys(&self) {
        self.control.reload_keys();
    }

    /// Drains every shard and ends; false when a shard did not end in time.
    pub fn stop(self) -> bool {
        tracing::info!("draining");
        self.control.draining();
        for mailbox in self.mesh.iter() {
            send_drain(mailbox);
        }
        let deadline = Instant::now() + limits::DRAIN_TIME_MAX + STOP_GRACE;
        let mut all = true;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            // A thread that panicked has logged it; its mail is in the spool.
            all &= thread.is_finished() && thread.join().is_ok();
        }
        self.control.stop();
        tracing::info!(
            seconds = self.started.elapsed().as_secs(),
            clean = all,
            "ended"
        );
        all
    }
}

/// Gives the listeners that let the kernel choose a port one that all shards share. It is reserved
/// until the returned sockets go.
fn choose_ports(snapshot: &mut Arc<Snapshot>) -> Result<Vec<OwnedFd>, NodeError> {
    if snapshot.listeners.iter().all(|l| l.address.port() != 0) {
        return Ok(Vec::new());
    }
    let listeners = &mut Arc::make_mut(snapshot).listeners;
    let open = listeners.iter_mut().filter(|l| l.address.port() == 0);
    let choose = |listener: &mut Listener| {
        let failed = |error| NodeError::Shard(0, BootError::Listen(listener.address, error));
        let (reserved, address) = reserve_port(listener.address.ip()).map_err(failed)?;
        listener.address = address;
        Ok(reserved)
    };
    open.map(choose).collect()
}

/// How long shards may take beyond the drain itself, to close their spools.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A mailbox that is full for a while is tried again: this one letter must arrive.
fn send_drain(mailbox: &MailSender<ShardMessage>) {
    for _ in 0..1_000 {
        if mailbox
            .try_send(ShardMessage::Operator(OperatorRequest::Drain))
            .is_ok()
        {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Everything that a shard's thread starts with.
struct ShardThread {
    number: u16,
    shards: u16,
    cpu: Option<usize>,
    spools: Vec<u16>,
    snapshot: Arc<Snapshot>,
    keys: Arc<KeyRing>,
    in_hand: Arc<dyn Words>,
    ask: Ask,
    grants: Arc<Grants>,
    board: Arc<Board>,
    progress: Sender<Progress>,
}

impl ShardThread {
    fn run(self, wait: &Receiver<Mesh>) {
        let config = UringConfig {
            shard: self.number,
            cpu: self.cpu,
            seed: seed(),
            ..UringConfig::default()
        };
        let runtime = match UringRuntime::new(config) {
            Ok(runtime) => runtime,
            Err(error) => return self.tell(Progress::Failed(NodeError::Engine(error))),
        };
        let port = runtime.port();
        let (sender, letters) = mailbox(port.remote_waker(), limits::MAILBOX_LETTERS_MAX);
        self.tell(Progress::Mailbox(self.number, sender));
        // No mesh: another shard failed, and the node has given up.
        let Ok(mesh) = wait.recv() else { return };
        let crashes_max = self.snapshot.spool.poison_crashes;
        let hands = Hands::new(Arc::clone(&self.in_hand), self.number, crashes_max);
        let _watch = CrashWatch::new(&self.in_hand, crash_word(self.number));
        let plan = Plan {
            hands,
            sessions_max: sessions_max(self.shards),
            session_memory_max: session_memory(self.shards),
            number: self.number,
            shards: self.shards,
            spools: self.spools.clone(),
            snapshot: Arc::clone(&self.snapshot),
            keys: Arc::clone(&self.keys),
            mesh,
            board: Arc::clone(&self.board),
            ask: Arc::clone(&self.ask),
            grants: Arc::clone(&self.grants),
        };
        runtime.run(async {
            match Shard::boot(port, plan).await {
                Ok(shard) => {
                    // From here on the node counts on this shard: a panic that ends its thread ends
                    // the process, and the next start has all of its mail.
                    let _last = LastWord(self.number);
                    let ready = Progress::Ready(self.number, shard.listening(), shard.queued());
                    self.tell(ready);
                    shard.run(letters).await;
                }
                Err(error) => self.tell(Progress::Failed(NodeError::Shard(self.number, error))),
            }
        });
    }

    /// The node listens until every shard is ready or one has failed; after a failure it does not
    /// matter what else is said.
    fn tell(&self, progress: Progress) {
        drop(self.progress.send(progress));
    }
}

/// What mail on its way in may take of one shard's memory.
fn session_memory(shards: u16) -> u64 {
    memory::limit().map_or(limits::SESSION_MEMORY_DEFAULT, |bytes| {
        bytes / limits::SESSION_MEMORY_PART / u64::from(shards.max(1))
    })
}

/// How many sessions the descriptors allow one shard: three quarters of what the spools leave, so
/// that mail can leave while others fill the house. (Half would refuse 10,000 sessions where the
/// common hard limit of 20,000 is in force.) Beyond it a peer hears 421 instead of nothing.
fn sessions_max(shards: u16) -> u32 {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let each = (soft / u64::from(shards.max(1))).saturating_sub(limits::DESCRIPTORS_KEPT) / 4 * 3;
    u32::try_from(each.max(1)).unwrap_or(u32::MAX)
}

/// Ends the process when a shard's thread unwinds.
struct LastWord(u16);

impl Drop for LastWord {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(shard = self.0, "a shard has panicked: the process ends");
            std::process::abort();
        }
    }
}

/// Collects every shard's mailbox and gives all of them to each.
fn exchange_mailboxes(
    progress: &Receiver<Progress>,
    starts: &[Sender<Mesh>],
    shards: u16,
) -> Result<Mesh, NodeError> {
    let mut mailboxes: Vec<Option<MailSender<ShardMessage>>> = Vec::new();
    mailboxes.resize_with(usize::from(shards), || None);
    while mailboxes.iter().any(Option::is_none) {
        match progress.recv() {
            Ok(Progress::Mailbox(number, sender)) => mailboxes[usize::from(number)] = Some(sender),
            Ok(Progress::Failed(error)) => return Err(error),
            Ok(Progress::Ready(number, ..)) => return Err(NodeError::ShardDied(number)),
            Err(_) => {
                let missing = mailboxes.iter().position(Option::is_none).unwrap_or(0);
                return Err(NodeError::ShardDied(
                    u16::try_from(missing).unwrap_or(u16::MAX),
                ));
            }
        }
    }
    let mesh: Mesh = mailboxes.into_iter().flatten().collect();
    for (number, start) in (0..).zip(starts) {
        start
            .send(Arc::clone(&mesh))
            .map_err(|_| NodeError::ShardDied(number))?;
    }
    Ok(mesh)
}

/// Waits for every shard; on a failure the others are told to end.
fn wait_until_ready(
    progress: &Receiver<Progress>,
    mesh: &Mesh,
    threads: &[JoinHandle<()>],
) -> Result<Vec<SocketAddr>, NodeError> {
    let mut ready = BTreeSet::new();
    let mut addresses = Vec::new();
    let mut queued = 0;
    let failure = loop {
        if ready.len() == mesh.len() {
            tracing::info!(shards = mesh.len(), queued, "recovered");
            return Ok(addresses);
        }
        match progress.recv_timeout(BOOT_LOOK) {
            Ok(Progress::Ready(number, listening, found)) => {
                ready.insert(number);
                queued += found;
                addresses = listening;
            }
            Ok(Progress::Failed(error)) => break error,
            Ok(Progress::Mailbox(number, _)) => break NodeError::ShardDied(number),
            Err(_) => {
                let dead = (0..)
                    .zip(threads)
                    .find(|(number, thread)| thread.is_finished() && !ready.contains(number));
                if let Some((number, _)) = dead {
                    break NodeError::ShardDied(number);
                }
            }
        }
    };
    for mailbox in mesh.iter() {
        send_drain(mailbox);
    }
    Err(failure)
}

/// How often the boot looks for a thread that died without a word.
const BOOT_LOOK: Duration = Duration::from_millis(100);

/// Makes the data directory where it is missing, and takes its lock for as long as the node lives.
fn lock_data_directory(path: &Path) -> Result<Flock<File>, NodeError> {
    let failed = |action| move |error| NodeError::DataDirectory(path.to_owned(), action, error);
    // Not its parents: a path with a typing error must be noticed, not created.
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make it")(error));
        }
        _ => {}
    }
    std::fs::read_dir(path).map_err(failed("read it"))?;
    let lock = path.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock)
        .map_err(failed("open its lock file"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => NodeError::Locked(path.to_owned()),
        errno => NodeError::DataDirectory(path.to_owned(), "lock it", errno.into()),
    })
}

/// The file whose lock says that a node runs on the data directory; offline tools respect it.
pub const LOCK_FILE: &str = "lock";

/// For each shard the spools in its care: its own, and those of shards that are no more.
fn spools_in_care(data: &Path, shards: u16) -> Result<Vec<Vec<u16>>, NodeError> {
    let failed = |error| NodeError::DataDirectory(data.to_owned(), "read it", error);
    let mut spools: Vec<Vec<u16>> = (0..shards).map(|number| vec![number]).collect();
    for own in 0..shards {
        let path = settings::spool_directory(data, own);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| NodeError::DataDirectory(path, "make it", error))?;
    }
    for entry in std::fs::read_dir(data).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-"));
        if let Some(number) = number.and_then(|digits| digits.parse::<u16>().ok())
            && number >= shards
        {
            spools[usize::from(number % shards)].push(number);
        }
    }
    Ok(spools)
}

/// The CPUs that this process may use, in order.
fn allowed_cpus() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let Ok(set) = set else { return Vec::new() };
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect()
}

/// A seed that differs between runs; choices of order and jitter hang on it, no secret does.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
