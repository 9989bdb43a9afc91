//! A machine's disk: what programs see, what is on stable storage, and what lies in between.
//!
//! Each file has a live image, which a map shows (a memory file of the kernel, so that a map sees
//! later writes as MAP_SHARED does, without unsafe code here), and a durable image. A write is
//! under way for a drawn time, during which a crash may apply any of its sectors; then it is in
//! both.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::options::DiskFaults;
use super::world::{CrashKind, Process, World};
use crate::engine::sys::map::FileMap;
use crate::engine::{Block, Map, OpenMode};
use crate::time::Mono;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What a file system hands to a disk whole when nothing but a process ends.
const PAGE: usize = 4096;

/// Free space of a disk without a capacity.
const ENDLESS: u64 = 1 << 40;

/// How much zeroing a file gets done per request.
const PREWRITE: u64 = 1 << 20;

/// A machine's disk.
pub(super) struct Disk {
    pub(super) faults: RefCell<DiskFaults>,
    /// Names as programs see them.
    names: RefCell<BTreeMap<PathBuf, Rc<Inode>>>,
    /// Names as they were when their directory was last synced.
    durable_names: RefCell<BTreeMap<PathBuf, Rc<Inode>>>,
    directories: RefCell<BTreeSet<PathBuf>>,
    /// Pages that cannot be read, or could not once, by file: until when.
    outages: RefCell<BTreeMap<(u64, u64), Mono>>,
    inodes: Cell<u64>,
}

/// One file, whatever its name.
struct Inode {
    number: u64,
    live: RefCell<Rc<File>>,
    len: Cell<u64>,
    durable: RefCell<Image>,
    under_way: RefCell<BTreeMap<u64, Write>>,
    writes: Cell<u64>,
}

/// A file's bytes, holes left out.
#[derive(Default)]
struct Image {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// A write on its way to the disk.
struct Write {
    offset: u64,
    data: Rc<[u8]>,
}

/// An open file.
#[derive(Clone)]
pub struct SimFile(Rc<Inode>);

/// A map of a file.
pub struct SimMap {
    map: FileMap,
    inode: u64,
}

impl Map for SimMap {
    fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }
}

fn errno(errno: Errno) -> io::Error {
    io::Error::from(errno)
}

impl Image {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut data = data;
        while !data.is_empty() {
            let (number, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let part = data.len().min(PAGE - within);
            let page = self
                .pages
                .entry(number)
                .or_insert_with(|| vec![0; PAGE].into());
            page[within..within + part].copy_from_slice(&data[..part]);
            data = &data[part..];
            at += part as u64;
        }
        self.len = self.len.max(at);
    }

    fn zero(&mut self, range: Range<u64>) {
        let (start, end) = (range.start.div_ceil(PAGE as u64), range.end / PAGE as u64);
        self.pages
            .retain(|number, _| !(start..end).contains(number));
        self.len = self.len.max(range.end);
    }

    /// Whether `needle` lies in the pages that were written, possibly across two of them.
    fn contains(&self, needle: &[u8]) -> bool {
        let finder = memchr::memmem::Finder::new(needle);
        let (mut text, mut next): (Vec<u8>, u64) = (Vec::new(), 0);
        self.pages.iter().any(|(number, page)| {
            let kept = if *number == next {
                (needle.len() - 1).min(text.len())
            } else {
                0
            };
            text.drain(..text.len() - kept);
            text.extend_from_slice(page);
            next = number + 1;
            finder.find(&text).is_some()
        })
    }

    fn file(&self) -> io::Result<File> {
        let file = File::from(memfd_create(c"sim", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(self.len)?;
        for (number, page) in &self.pages {
            let offset = number * PAGE as u64;
            let len = (self.len - offset).min(PAGE as u64) as usize;
            file.write_all_at(&page[..len], offset)?;
        }
        Ok(file)
    }
}

impl Inode {
    fn new(number: u64) -> io::Result<Self> {
        let live = File::from(memfd_create(c"sim", MFdFlags::MFD_CLOEXEC)?);
        Ok(Self {
            number,
            live: RefCell::new(Rc::new(live)),
            len: Cell::new(0),
            durable: RefCell::default(),
            under_way: RefCell::default(),
            writes: Cell::new(0),
        })
    }

    /// Makes bytes visible to programs.
    fn show(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.live.borrow().write_all_at(data, offset)?;
        self.len.set(self.len.get().max(offset + data.len() as u64));
        Ok(())
    }

    fn show_zeros(&self, range: &Range<u64>) -> io::Result<()> {
        if range.start >= self.len.get() {
            self.len.set(range.end);
            return self.live.borrow().set_len(range.end);
        }
        self.show(
            range.start,
            &vec![0; usize::try_from(range.end - range.start).unwrap_or(0)],
        )
    }

    /// Makes what is durable what programs see.
    fn reload(&self) {
        let durable = self.durable.borrow();
        match durable.file() {
            Ok(file) => {
                self.live.replace(Rc::new(file));
                self.len.set(durable.len);
            }
            Err(error) => panic!("the simulator's own files failed: {error}"),
        }
    }
}

impl Disk {
    pub(super) fn new(faults: DiskFaults) -> Self {
        Self {
            faults: RefCell::new(faults),
            names: RefCell::default(),
            durable_names: RefCell::default(),
            directories: RefCell::default(),
            outages: RefCell::default(),
            inodes: Cell::new(0),
        }
    }

    pub(super) fn make_directory(&self, path: &Path) {
        let mut directories = self.directories.borrow_mut();
        directories.extend(path.ancestors().map(Path::to_path_buf));
    }

    fn used(&self) -> u64 {
        self.names
            .borrow()
            .values()
            .map(|inode| inode.len.get())
            .sum()
    }

    fn free(&self) -> u64 {
        let capacity = self.faults.borrow().capacity;
        capacity.map_or(ENDLESS, |capacity| capacity.saturating_sub(self.used()))
    }

    pub(super) fn free_space(&self, path: &Path) -> io::Result<u64> {
        if !self.directories.borrow().contains(path) {
            return Err(errno(Errno::ENOENT));
        }
        Ok(self.free())
    }

    pub(super) fn open(&self, world: &World, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        let inode = self.names.borrow().get(path).map(Rc::clone);
        let inode = match (mode, inode) {
            (OpenMode::Existing, Some(inode)) => inode,
            (OpenMode::Existing, None) => return Err(errno(Errno::ENOENT)),
            (OpenMode::Create, Some(_)) => return Err(errno(Errno::EEXIST)),
            (OpenMode::Create, None) => self.create(world, path)?,
        };
        world.note("open", inode.number, inode.len.get());
        Ok(SimFile(inode))
    }

    fn create(&self, world: &World, path: &Path) -> io::Result<Rc<Inode>> {
        let known = |parent: &Path| self.directories.borrow().contains(parent);
        if !path.parent().is_some_and(known) {
            return Err(errno(Errno::ENOENT));
        }
        if self.free() == 0 {
            return Err(errno(Errno::ENOSPC));
        }
        if world.random.chance(self.faults.borrow().directory_error) {
            world.note("create fails", 0, 0);
            return Err(errno(Errno::EIO));
        }
        let number = self.inodes.get();
        self.inodes.set(number + 1);
        let inode = Rc::new(Inode::new(number)?);
        self.names
            .borrow_mut()
            .insert(path.to_path_buf(), Rc::clone(&inode));
        Ok(inode)
    }

    pub(super) fn remove(&self, world: &World, path: &Path) -> io::Result<()> {
        let removed = self.names.borrow_mut().remove(path);
        let removed = removed.ok_or_else(|| errno(Errno::ENOENT))?;
        world.note("remove", removed.number, 0);
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        if !self.directories.borrow().contains(path) {
            return Err(errno(Errno::ENOENT));
        }
        let names = self.names.borrow();
        let directories = self.directories.borrow();
        let below = names
            .keys()
            .chain(directories.iter())
            .filter(|name| name.parent() == Some(path));
        let text = |name: &PathBuf| name.file_name()?.to_str().map(str::to_owned);
        Ok(below.filter_map(text).collect())
    }

    pub(super) fn sync_directory(&self, world: &World, path: &Path) -> io::Result<()> {
        if !self.directories.borrow().contains(path) {
            return Err(errno(Errno::ENOENT));
        }
        if world.random.chance(self.faults.borrow().directory_error) {
            world.note("directory sync fails", 0, 0);
            return Err(errno(Errno::EIO));
        }
        world.note("directory sync", 0, 0);
        let names = self.names.borrow();
        let mut durable = self.durable_names.borrow_mut();
        durable.retain(|name, _| name.parent() != Some(path));
        let below = names.iter().filter(|(name, _)| name.parent() == Some(path));
        durable.extend(below.map(|(name, inode)| (name.clone(), Rc::clone(inode))));
        Ok(())
    }

    /// What the process or the power going away leaves behind.
    pub(super) fn crash(&self, world: &World, kind: CrashKind) {
        let mut inodes: BTreeMap<u64, Rc<Inode>> = BTreeMap::new();
        for names in [&self.names, &self.durable_names] {
            let names = names.borrow();
            inodes.extend(names.values().map(|inode| (inode.number, Rc::clone(inode))));
        }
        for inode in inodes.values() {
            crash_writes(world, inode, kind);
        }
        if kind == CrashKind::Kill {
            return;
        }
        self.crash_names(world);
        self.flip_bits(world);
        for inode in inodes.values() {
            inode.reload();
        }
    }

    /// What was not synced in a directory happened or did not, name by name.
    fn crash_names(&self, world: &World) {
        let mut live = self.names.borrow_mut();
        let mut durable = self.durable_names.borrow_mut();
        let all: BTreeSet<PathBuf> = live.keys().chain(durable.keys()).cloned().collect();
        for name in all {
            let (now, then) = (live.get(&name), durable.get(&name));
            let same = match (now, then) {
                (Some(now), Some(then)) => Rc::ptr_eq(now, then),
                _ => false,
            };
            let chosen = if same || world.random.coin() {
                now
            } else {
                then
            };
            let chosen = chosen.map(Rc::clone);
            world.note("name", u64::from(chosen.is_some()), u64::from(same));
            match chosen {
                Some(inode) => {
                    live.insert(name.clone(), Rc::clone(&inode));
                    durable.insert(name, inode);
                }
                None => {
                    live.remove(&name);
                    durable.remove(&name);
                }
            }
        }
    }

    /// Rot: some bits of what is stored are not what was written.
    fn flip_bits(&self, world: &World) {
        let most = self.faults.borrow().rot;
        if most == 0 {
            return;
        }
        let names = self.names.borrow();
        let inodes: Vec<_> = names.values().collect();
        for _ in 0..world.random.within(&(0..=u64::from(most))) {
            let Some(inode) = inodes.get(world.random.index(inodes.len())) else {
                return;
            };
            let mut durable = inode.durable.borrow_mut();
            let count = durable.pages.len();
            let chosen = durable.pages.values_mut().nth(world.random.index(count));
            let Some(page) = chosen else { continue };
            let (byte, bit) = (world.random.index(page.len()), world.random.below(8));
            page[byte] ^= 1 << bit;
            world.note("bit flips", inode.number, byte as u64);
        }
    }

    /// Flips one drawn bit of one named file, in what is stored and in what programs see; for tests
    /// that aim. False when the file has no such byte.
    pub(super) fn flip(&self, path: &Path, byte: u64) -> bool {
        let names = self.names.borrow();
        let Some(inode) = names
            .get(path)
            .filter(|inode| byte < inode.durable.borrow().len)
        else {
            return false;
        };
        let mut one = [0];
        if inode.live.borrow().read_exact_at(&mut one, byte).is_err() {
            return false;
        }
        one[0] ^= 1;
        inode.durable.borrow_mut().write(byte, &one);
        inode.show(byte, &one).is_ok()
    }

    /// No page of one named file can be read until then, while outages are switched on. False when
    /// there is no such file.
    pub(super) fn hide(&self, path: &Path, until: Mono) -> bool {
        let names = self.names.borrow();
        let Some(inode) = names.get(path) else {
            return false;
        };
        let pages = inode.len.get().div_ceil(PAGE as u64);
        let mut outages = self.outages.borrow_mut();
        outages.extend((0..pages).map(|page| ((inode.number, page), until)));
        true
    }

    /// Whether `needle` is in a file that a power cut now would surely leave.
    pub(super) fn durably_contains(&self, needle: &[u8]) -> bool {
        let names = self.durable_names.borrow();
        names
            .values()
            .any(|inode| inode.durable.borrow().contains(needle))
    }

    /// What would be read after a power cut now, if all that is under way were lost.
    pub(super) fn durable(&self, path: &Path) -> Option<Vec<u8>> {
        let names = self.durable_names.borrow();
        let durable = names.get(path)?.durable.borrow();
        let mut bytes = vec![0; usize::try_from(durable.len).ok()?];
        for (number, page) in &durable.pages {
            let offset = (number * PAGE as u64) as usize;
            let len = page.len().min(bytes.len() - offset);
            bytes[offset..offset + len].copy_from_slice(&page[..len]);
        }
        Some(bytes)
    }
}

/// Applies any part of the writes under way, at the granularity that the end of its kind has.
fn crash_writes(world: &World, inode: &Inode, kind: CrashKind) {
    let under_way = std::mem::take(&mut *inode.under_way.borrow_mut());
    for write in under_way.values() {
        let unit = if kind == CrashKind::Kill {
            PAGE
        } else {
            SECTOR
        };
        // Nothing, everything, a fair subset, or nearly all: each has its own bugs.
        let ppm = [0, 1_000_000, 500_000, 950_000][world.random.index(4)];
        for (number, part) in write.data.chunks(unit).enumerate() {
            if world.random.chance(ppm) {
                let offset = write.offset + (number * unit) as u64;
                inode.durable.borrow_mut().write(offset, part);
                if let Err(error) = inode.show(offset, part) {
                    panic!("the simulator's own files failed: {error}");
                }
            }
        }
        world.note("write torn", inode.number, u64::from(ppm));
    }
}

/// The result of one request, shared by the event that ends it and the future that waits.
struct Pending {
    result: RefCell<Option<io::Result<()>>>,
    waiter: RefCell<Option<Waker>>,
}

impl Pending {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            result: RefCell::new(None),
            waiter: RefCell::new(None),
        })
    }

    fn end(&self, result: io::Result<()>) {
        self.result.replace(Some(result));
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    async fn ended(&self) -> io::Result<()> {
        poll_fn(|context| match self.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                self.waiter.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

fn draw_latency(world: &World, faults: &DiskFaults) -> Duration {
    let range = if world.random.chance(faults.slow) {
        &faults.slow_latency
    } else {
        &faults.latency
    };
    Duration::from_nanos(world.random.within(range))
}

pub(super) fn len(file: &SimFile) -> u64 {
    file.0.len.get()
}

pub(super) async fn write_durable(
    world: &Rc<World>,
    disk: &Disk,
    file: &SimFile,
    offset: u64,
    block: Block,
) -> (Block, io::Result<()>) {
    let end = offset + block.len() as u64;
    let grows = end.saturating_sub(file.0.len.get());
    if !offset.is_multiple_of(PAGE as u64) {
        return (block, Err(errno(Errno::EINVAL)));
    }
    if grows > disk.free() {
        world.note("no space", file.0.number, grows);
        return (block, Err(errno(Errno::ENOSPC)));
    }
    let faults = disk.faults.borrow().clone();
    let fate = if world.random.chance(faults.write_error) {
        Fate::Fails
    } else if world.random.chance(faults.lie) {
        Fate::Lies
    } else {
        Fate::Lasts
    };
    let number = file.0.writes.get();
    file.0.writes.set(number + 1);
    let data: Rc<[u8]> = Rc::from(&*block);
    file.0.under_way.borrow_mut().insert(
        number,
        Write {
            offset,
            data: Rc::clone(&data),
        },
    );
    world.note("write", file.0.number, offset);
    let pending = Pending::new();
    let (answer, inode) = (Rc::clone(&pending), Rc::clone(&file.0));
    // A page cache would show the bytes at once, O_DIRECT at the end.
    if world.random.coin() && inode.show(offset, &data).is_err() {
        return (block, Err(errno(Errno::EIO)));
    }
    world.schedule(
        world.now().after(draw_latency(world, &faults)),
        move |world| {
            let write = inode.under_way.borrow_mut().remove(&number);
            // A crash has decided about it already.
            let Some(write) = write else { return };
            answer.end(finish_write(world, &inode, &write, fate));
        },
    );
    let result = pending.ended().await;
    (block, result)
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lasts,
    Fails,
    Lies,
}

fn finish_write(world: &World, inode: &Inode, write: &Write, fate: Fate) -> io::Result<()> {
    world.note("write ends", inode.number, u64::from(fate == Fate::Fails));
    if fate == Fate::Lasts {
        inode.durable.borrow_mut().write(write.offset, &write.data);
    }
    if fate != Fate::Fails {
        return inode.show(write.offset, &write.data);
    }
    for (number, part) in write.data.chunks(SECTOR).enumerate() {
        let offset = write.offset + (number * SECTOR) as u64;
        if world.random.coin() {
            inode.durable.borrow_mut().write(offset, part);
        }
        if world.random.coin() {
            inode.show(offset, part)?;
        }
    }
    Err(errno(Errno::EIO))
}

/// Whether a file may grow to `len` bytes.
pub(super) fn has_room(world: &Rc<World>, disk: &Disk, file: &SimFile, len: u64) -> io::Result<()> {
    let inode = &file.0;
    if len.saturating_sub(inode.len.get()) > disk.free() {
        world.note("no space", inode.number, len);
        return Err(errno(Errno::ENOSPC));
    }
    Ok(())
}

/// Writes the first portion of a range with zeros, and says where it ends.
pub(super) async fn zero(
    world: &Rc<World>,
    (disk, process): (&Disk, &Rc<Process>),
    file: &SimFile,
    range: Range<u64>,
) -> io::Result<u64> {
    let part = range.start..range.end.min(range.start + PREWRITE);
    let end = part.end;
    let faults = disk.faults.borrow().clone();
    let fails = world.random.chance(faults.write_error);
    let pending = Pending::new();
    let (answer, inode, process) = (Rc::clone(&pending), Rc::clone(&file.0), Rc::clone(process));
    world.schedule(
        world.now().after(draw_latency(world, &faults)),
        move |world| {
            if process.dead.get() {
                return;
            }
            world.note("prewrite", inode.number, part.start);
            if fails {
                answer.end(Err(errno(Errno::EIO)));
                return;
            }
            // Synced part by part: earlier than a disk must, and a crash in between is drawn
            // anyway.
            inode.durable.borrow_mut().zero(part.clone());
            answer.end(inode.show_zeros(&part));
        },
    );
    pending.ended().await?;
    Ok(end)
}

/// The time that an operation on a name, or on a map as a whole, takes.
pub(super) async fn pause(world: &Rc<World>, disk: &Disk) {
    let pending = Pending::new();
    let answer = Rc::clone(&pending);
    let faults = disk.faults.borrow().clone();
    let at = world.now().after(draw_latency(world, &faults));
    world.schedule(at, move |_| answer.end(Ok(())));
    // A process that is gone waits for nothing any more.
    drop(pending.ended().await);
}

pub(super) fn map(file: &SimFile) -> io::Result<Arc<SimMap>> {
    let live = Rc::clone(&file.0.live.borrow());
    Ok(Arc::new(SimMap {
        map: FileMap::new(live.as_fd())?,
        inode: file.0.number,
    }))
}

/// Reads what the file has at an offset.
pub(super) async fn read(
    world: &Rc<World>,
    disk: &Disk,
    file: &SimFile,
    offset: u64,
    mut block: Block,
) -> (Block, io::Result<usize>) {
    let len = file.0.len.get();
    let bytes = len.saturating_sub(offset).min(block.len() as u64) as usize;
    if !offset.is_multiple_of(PAGE as u64) {
        return (block, Err(errno(Errno::EINVAL)));
    }
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    if let Err(error) = fetch(world, disk, file.0.number, at..at.saturating_add(bytes)).await {
        return (block, Err(error));
    }
    let live = Rc::clone(&file.0.live.borrow());
    let read = live.read_exact_at(&mut block[..bytes], offset);
    (block, read.map(|()| bytes))
}

pub(super) async fn prefetch(
    world: &Rc<World>,
    disk: &Disk,
    map: &Arc<SimMap>,
    range: Range<usize>,
) -> io::Result<()> {
    if range.start > range.end || range.end > map.bytes().len() {
        return Err(errno(Errno::EINVAL));
    }
    // Often in memory already: then the real engine does not wait either.
    if !is_out(world, disk, map.inode, &range) && world.random.coin() {
        return Ok(());
    }
    fetch(world, disk, map.inode, range).await
}

/// The page of a file that holds a byte.
fn page(inode: u64, at: usize) -> (u64, u64) {
    (inode, (at / PAGE) as u64)
}

/// Whether the disk does not give some of a range for the time being.
fn is_out(world: &World, disk: &Disk, inode: u64, range: &Range<usize>) -> bool {
    let outages = disk.outages.borrow();
    let last = range.end.max(range.start + 1) - 1;
    let mut near = outages.range(page(inode, range.start)..=page(inode, last));
    disk.faults.borrow().outage > 0 && near.any(|(_, until)| *until > world.now())
}

/// The disk's answer to somebody who wants a range of a file.
async fn fetch(world: &Rc<World>, disk: &Disk, inode: u64, range: Range<usize>) -> io::Result<()> {
    let faults = disk.faults.borrow().clone();
    let out = is_out(world, disk, inode, &range);
    let fails = out || world.random.chance(faults.read_error);
    if fails && !out && world.random.chance(faults.outage) {
        let until = Duration::from_nanos(world.random.within(&faults.outage_time));
        let mut outages = disk.outages.borrow_mut();
        let first = page(inode, range.start);
        outages
            .entry(first)
            .or_insert_with(|| world.now().after(until));
    }
    let pending = Pending::new();
    let answer = Rc::clone(&pending);
    world.schedule(
        world.now().after(draw_latency(world, &faults)),
        move |world| {
            world.note("prefetch", range.start as u64, u64::from(fails));
            answer.end(if fails {
                Err(errno(Errno::EIO))
            } else {
                Ok(())
            });
        },
    );
    pending.ended().await
}
