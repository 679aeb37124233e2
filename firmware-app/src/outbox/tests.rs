//! Power is lost at every operation, and whatever was committed is there afterwards.

mod weeks;

use super::*;
use nix::errno::Errno;
use omnilabel_keypoints::wire::VERSION;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A file as the system sees it and as the disk has it.
#[derive(Clone, Debug, Default)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Whether the name itself is durable.
    named: bool,
    /// Bytes that the disk does not give.
    bad: Range<usize>,
    /// Blocks that it does not give, either.
    holes: BTreeSet<usize>,
    /// What it says then.
    errno: Option<Errno>,
    /// The file whose bytes it shares.
    linked: Option<String>,
}

impl File {
    fn is_bad(&self, range: &Range<usize>) -> bool {
        let block = salvage::BLOCK as usize;
        let is_hole = self.holes.range(range.start / block..range.end.div_ceil(block)).next().is_some();
        is_hole || self.bad.start < range.end && range.start < self.bad.end
    }
}

/// What happens to the operation that the fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Power is lost: nothing works from here on.
    PowerLoss,
    /// The disk is full this once.
    Full,
    /// This once, the system reports an error, and half of the bytes are written.
    Error,
}

#[derive(Debug, Default)]
struct Machine {
    files: BTreeMap<String, File>,
    operations: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
    /// Bytes that fit, all files together.
    capacity: Option<usize>,
    /// Reads that failed.
    refused: usize,
    /// After so many of them every read succeeds.
    heals_after: Option<usize>,
    no_links: bool,
}

impl Machine {
    /// Counts a mutating operation: what is to be done with it.
    fn step(&mut self) -> Result<(), Fault> {
        if self.dead {
            return Err(Fault::PowerLoss);
        }
        let index = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == index => {
                self.dead = fault == Fault::PowerLoss;
                Err(fault)
            }
            _ => Ok(()),
        }
    }

    fn used(&self) -> usize {
        self.files.values().filter(|file| file.linked.is_none()).map(|file| file.seen.len()).sum()
    }

    /// Bytes that are free.
    fn room(&self) -> usize {
        self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    /// A file's bytes are no longer those of this name.
    fn unlink(&mut self, name: &str) {
        for file in self.files.values_mut().filter(|file| file.linked.as_deref() == Some(name)) {
            file.linked = None;
        }
    }

    /// All of the file without a range.
    fn read(&mut self, name: &str, range: Option<Range<usize>>) -> io::Result<Vec<u8>> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let range = range.unwrap_or(0..file.seen.len());
        if file.is_bad(&range) && self.heals_after.is_none_or(|reads| self.refused < reads) {
            self.refused += 1;
            return Err(io::Error::from_raw_os_error(file.errno.unwrap_or(Errno::EIO) as i32));
        }
        Ok(file.seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }

    /// After a power cut: durable bytes, and of what was written but not synced the share `kept` (0 to 1).
    fn reboot(&mut self, kept: f64) {
        self.files.retain(|_, file| file.named || kept > 0.0);
        for file in self.files.values_mut() {
            if file.seen.starts_with(&file.durable) {
                let extra = ((file.seen.len() - file.durable.len()) as f64 * kept) as usize;
                file.seen.truncate(file.durable.len() + extra);
            } else {
                file.seen = file.durable.clone();
            }
            file.durable = file.seen.clone();
            file.named = true;
        }
        self.dead = false;
        self.fault = None;
    }
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Machine>>);

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Full => io::Error::from(io::ErrorKind::StorageFull),
        Fault::PowerLoss | Fault::Error => io::Error::other("power"),
    }
}

impl Storage for Memory {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().read(name, None)
    }
    fn read_at(&mut self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().read(name, Some(offset as usize..offset as usize + length))
    }
    fn length(&mut self, name: &str) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().files.get(name).ok_or(io::ErrorKind::NotFound)?.seen.len() as u64)
    }
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        let room = machine.room();
        let result = if room < bytes.len() { Err(Fault::Full) } else { machine.step() };
        let written = match result {
            Ok(()) => bytes.len(),
            Err(Fault::Full) if room < bytes.len() => room,
            Err(Fault::Full) => 0,
            Err(_) if machine.dead && machine.fault.is_none_or(|(at, _)| at + 1 != machine.operations) => 0,
            Err(_) => bytes.len() / 2,
        };
        machine.files.entry(name.to_owned()).or_default().seen.extend_from_slice(&bytes[..written]);
        result.map_err(error)
    }
    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        let result = machine.step();
        let file = machine.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        match result {
            Ok(()) => {
                // A system that reported a failed sync forgets what was dirty: only bytes written since count.
                file.durable = file.seen.clone();
                file.named = true;
            }
            Err(Fault::Error | Fault::Full) => file.seen = file.durable.clone(),
            Err(Fault::PowerLoss) => {}
        }
        result.map_err(error)
    }
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        machine.step().map_err(error)?;
        let file = machine.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file.seen.resize(length as usize, 0);
        file.durable.truncate(length as usize);
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        machine.step().map_err(error)?;
        machine.unlink(name);
        machine.files.remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        machine.step().map_err(error)?;
        machine.unlink(from);
        let file = machine.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        machine.files.insert(to.to_owned(), File { named: true, ..file });
        Ok(())
    }
    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        machine.step().map_err(error)?;
        if machine.no_links {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = machine.files.get(from).cloned().ok_or(io::ErrorKind::NotFound)?;
        assert!(!machine.files.contains_key(to), "{to} is there");
        machine.files.insert(to.to_owned(), File { named: true, linked: Some(from.to_owned()), ..file });
        Ok(())
    }
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        machine.step().map_err(error)?;
        // The old file goes when the new one is whole.
        if machine.room() < bytes.len() {
            return Err(error(Fault::Full));
        }
        machine.unlink(name);
        let file = File { seen: bytes.to_vec(), durable: bytes.to_vec(), named: true, ..File::default() };
        machine.files.insert(name.to_owned(), file);
        Ok(())
    }
}

const SMALL: Limits = Limits { max_bytes: 4000, segment_bytes: 600 };
/// Frames alone are not enough.
const TINY: Limits = Limits { max_bytes: 1500, segment_bytes: 400 };
const ROOMY: Limits = Limits { max_bytes: 1 << 30, segment_bytes: 600 };

fn payload(sequence: u64) -> (Vec<u8>, Vec<u8>) {
    let label = format!("label {sequence} {}", "x".repeat(sequence as usize % 40)).into_bytes();
    let jpeg = if sequence.is_multiple_of(3) { vec![sequence as u8; 90] } else { Vec::new() };
    (label, jpeg)
}

fn append<S: Storage>(outbox: &mut Outbox<S>) -> Result<u64, OutboxError> {
    let sequence = outbox.next_key().sequence;
    let (label, jpeg) = payload(sequence);
    outbox.append(sequence * 10, label, jpeg).map(|key| key.sequence)
}

fn ack<S: Storage>(outbox: &Outbox<S>, watermark: u64, stored: &[(u64, u64)]) -> AckMsg {
    AckMsg { version: VERSION, collector: 5, epoch: outbox.next_key().epoch, watermark, stored: heapless::Vec::from_slice(stored).unwrap() }
}

fn pending<S: Storage>(outbox: &mut Outbox<S>) -> Vec<u64> {
    let (mut list, mut after) = (Vec::new(), 0);
    while let Some(sequence) = outbox.next_pending(after) {
        let entry = outbox.read(sequence).unwrap().unwrap();
        let (label, mut jpeg) = payload(sequence);
        if outbox.is_frame_evicted(sequence) {
            jpeg.clear();
        }
        assert_eq!(entry, Entry { sequence, frame: sequence * 10, label, jpeg });
        list.push(sequence);
        after = sequence;
    }
    assert_eq!(list.len() as u64, outbox.pending());
    list
}

/// What a run with a fault must keep: committed and not acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    committed: BTreeSet<u64>,
    acknowledged: BTreeSet<u64>,
    epoch: u64,
    /// The last acknowledgement, which the broker retains.
    retained: Option<AckMsg>,
}

/// How much the collector acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collector {
    /// At times, with gaps.
    Slow,
    /// Everything at once.
    Prompt,
}

/// The limits and the collector of every fault test.
const RUNS: [(Limits, Collector); 4] =
    [(ROOMY, Collector::Slow), (SMALL, Collector::Slow), (TINY, Collector::Slow), (ROOMY, Collector::Prompt)];

/// Appends, commits, acknowledges; stops at the first power loss, goes on after other faults.
fn scenario(memory: &Memory, (limits, collector): (Limits, Collector), ledger: &mut Ledger) {
    let dead = || memory.0.lock().unwrap().dead;
    let Ok((mut outbox, _)) = Outbox::open(memory.clone(), limits) else { return };
    ledger.epoch = outbox.next_key().epoch;
    let mut open = BTreeSet::new();
    for round in 1..=60_u64 {
        if let Ok(sequence) = append(&mut outbox) {
            assert!(open.insert(sequence) && !ledger.committed.contains(&sequence), "sequence {sequence} was given twice");
        }
        if round % 4 == 0 && outbox.commit().is_ok() {
            ledger.committed.append(&mut open);
        }
        // Beginning a segment commits the one before.
        while open.len() > outbox.uncommitted() {
            ledger.committed.extend(open.pop_first());
        }
        if collector == Collector::Prompt || round % 10 == 0 {
            let until = outbox.committed().saturating_sub(if collector == Collector::Prompt { 0 } else { 5 });
            let named: BTreeSet<u64> = ledger.committed.iter().copied().filter(|&s| s <= until || s == until + 2).collect();
            // The message is out; whether or not the device can act on it, the collector has the labels.
            let gap = named.contains(&(until + 2)).then_some((until + 2, until + 2));
            let message = ack(&outbox, until, gap.as_slice());
            ledger.acknowledged.extend(named);
            let _ = outbox.ack(&message);
            ledger.retained = Some(message);
        }
        if dead() {
            return;
        }
    }
}

fn check_after(memory: &Memory, limits: Limits, ledger: &Ledger, what: &str) {
    let (mut outbox, recovery) = Outbox::open(memory.clone(), limits).unwrap();
    assert!(recovery.set_aside.is_empty() && recovery.lost == 0, "{what}: {recovery:?}");
    let have: BTreeSet<u64> = pending(&mut outbox).into_iter().collect();
    let missing: Vec<_> = ledger.committed.difference(&ledger.acknowledged).filter(|s| !have.contains(s)).collect();
    assert!(missing.len() as u64 <= outbox.evicted(), "{what}: lost {missing:?}, evicted {}", outbox.evicted());
    // Of what is here, at most as many frames are gone as were counted.
    let gone = have.iter().filter(|&&s| !payload(s).1.is_empty() && outbox.is_frame_evicted(s)).count() as u64;
    assert!(gone <= outbox.frames_evicted(), "{what}: {gone} frames gone, {} evicted", outbox.frames_evicted());
    if let Some(last) = ledger.committed.last() {
        assert_eq!(outbox.next_key().epoch, ledger.epoch, "{what}");
        assert!(outbox.next_key().sequence > *last, "{what}: a committed sequence would be given again");
    }
    let fresh = append(&mut outbox).unwrap();
    outbox.commit().unwrap();
    if let Some(message) = &ledger.retained {
        outbox.ack(message).unwrap();
    }
    assert!(pending(&mut outbox).contains(&fresh), "{what}");
}

fn operations(run: (Limits, Collector)) -> usize {
    let memory = Memory::default();
    scenario(&memory, run, &mut Ledger::default());
    memory.0.lock().unwrap().operations
}

#[test]
fn power_loss_at_every_operation_loses_nothing_that_was_committed() {
    for run in RUNS {
        let count = operations(run);
        assert!(count > 50, "the scenario has only {count} operations");
        for at in 0..count {
            for kept in [0.0, 0.3, 0.9, 1.0] {
                let memory = Memory::default();
                memory.0.lock().unwrap().fault = Some((at, Fault::PowerLoss));
                let mut ledger = Ledger::default();
                scenario(&memory, run, &mut ledger);
                memory.0.lock().unwrap().reboot(kept);
                check_after(&memory, run.0, &ledger, &format!("{run:?}: power lost at operation {at}, {kept} of the rest kept"));
            }
        }
    }
}

#[test]
fn an_error_or_a_full_disk_at_every_operation_is_survived_without_loss() {
    for run in RUNS {
        for fault in [Fault::Error, Fault::Full] {
            for at in 0..operations(run) {
                let memory = Memory::default();
                memory.0.lock().unwrap().fault = Some((at, fault));
                let mut ledger = Ledger::default();
                scenario(&memory, run, &mut ledger);
                let what = format!("{run:?}: {fault:?} at operation {at}");
                memory.0.lock().unwrap().reboot(0.0);
                check_after(&memory, run.0, &ledger, &what);
            }
        }
    }
}

#[test]
fn an_outbox_that_is_made_anew_draws_another_epoch() {
    let (first, recovery) = Outbox::open(Memory::default(), ROOMY).unwrap();
    assert!(recovery.created);
    let (second, _) = Outbox::open(Memory::default(), ROOMY).unwrap();
    assert_ne!(first.next_key().epoch, second.next_key().epoch);
    assert_eq!(first.next_key().sequence, 1);
}

#[test]
fn acknowledgements_of_another_epoch_or_beyond_what_was_sent_change_nothing_that_is_not_theirs() {
    let (mut outbox, _) = Outbox::open(Memory::default(), ROOMY).unwrap();
    for _ in 0..5 {
        append(&mut outbox).unwrap();
    }
    outbox.commit().unwrap();
    append(&mut outbox).unwrap();
    let other = AckMsg { epoch: 1, ..ack(&outbox, 5, &[]) };
    assert_eq!(outbox.ack(&other).unwrap(), 0);
    let backwards = ack(&outbox, 0, &[(4, 2)]);
    assert_eq!(outbox.ack(&backwards).unwrap(), 0);
    let everything = ack(&outbox, u64::MAX, &[(0, u64::MAX)]);
    assert_eq!(outbox.ack(&everything).unwrap(), 5);
    outbox.commit().unwrap();
    assert_eq!(pending(&mut outbox), [6], "what was not committed when the acknowledgement came is still to be sent");
}

#[test]
fn a_collector_restored_from_a_backup_gets_again_what_is_still_here() {
    let (mut outbox, _) = Outbox::open(Memory::default(), ROOMY).unwrap();
    for _ in 0..5 {
        append(&mut outbox).unwrap();
    }
    outbox.commit().unwrap();
    let message = ack(&outbox, 5, &[]);
    outbox.ack(&message).unwrap();
    assert!(pending(&mut outbox).is_empty());
    let restored = AckMsg { collector: 6, watermark: 2, ..message };
    outbox.ack(&restored).unwrap();
    assert_eq!(pending(&mut outbox), [3, 4, 5]);
}

#[test]
fn frames_are_evicted_before_labels_and_both_are_counted() {
    let memory = Memory::default();
    let limits = Limits { max_bytes: 3000, segment_bytes: 600 };
    let (mut outbox, _) = Outbox::open(memory.clone(), limits).unwrap();
    let framed = |left: &[u64], outbox: &Outbox<Memory>| left.iter().filter(|&&s| s % 3 == 0 && !outbox.is_frame_evicted(s)).count() as u64;
    let mut alone = 0;
    for sequence in 1..=200_u64 {
        let before = outbox.evicted();
        append(&mut outbox).unwrap();
        outbox.commit().unwrap();
        assert!(outbox.bytes() <= limits.max_bytes + limits.segment_bytes);
        let left = pending(&mut outbox);
        // Every frame that was ever made is here, was evicted alone, or went before its label did.
        assert_eq!(framed(&left, &outbox) + outbox.frames_evicted(), sequence / 3, "{sequence}");
        alone += u64::from(outbox.frames_evicted() > 0 && outbox.evicted() == 0);
        if outbox.evicted() > before {
            let open = outbox.segments.back().unwrap().first;
            let closed = left.iter().filter(|&&sequence| sequence < open);
            assert!(closed.into_iter().all(|&s| outbox.is_frame_evicted(s)), "labels go when all closed segments are without frames");
        }
    }
    assert!(alone > 10 && outbox.evicted() > 0, "{alone}");
    let (left, evicted) = (pending(&mut outbox), outbox.frames_evicted());
    drop(outbox);
    let (mut outbox, recovery) = Outbox::open(memory, limits).unwrap();
    assert_eq!((pending(&mut outbox), outbox.frames_evicted(), recovery), (left, evicted, Recovery::default()));
}

#[test]
fn a_segment_with_a_damaged_record_keeps_its_place_and_others_lose_their_frames() {
    let memory = thirty();
    let name = segments(&memory).remove(0).0;
    let (mut outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
    memory.0.lock().unwrap().files.get_mut(&name).unwrap().seen[60] ^= 1;
    outbox.limits.max_bytes = outbox.bytes() - 150;
    append(&mut outbox).unwrap();
    outbox.commit().unwrap();
    assert!(outbox.evicted() == 0 && outbox.frames_evicted() > 0 && outbox.bytes() <= outbox.limits.max_bytes);
    outbox.limits.max_bytes = 1200;
    outbox.commit().unwrap();
    assert!(outbox.evicted() > 0 && outbox.bytes() <= 1200, "{} of {} bytes", outbox.evicted(), outbox.bytes());
    assert_eq!(outbox.evicted() + outbox.pending(), 31);
}

#[test]
fn a_disk_that_stays_full_takes_frames_then_labels_and_new_ones_still_get_in() {
    let memory = Memory::default();
    memory.0.lock().unwrap().capacity = Some(9000);
    let (mut outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
    let (mut refused, mut frames_alone) = (0, false);
    for _ in 0..400 {
        refused += u64::from(append(&mut outbox).is_err());
        let _ = outbox.commit();
        frames_alone |= outbox.frames_evicted() > 0 && outbox.evicted() == 0;
    }
    assert!(frames_alone && outbox.evicted() > 0 && refused < 100, "{refused} refused, {} evicted", outbox.evicted());
    assert_eq!(outbox.committed() + refused, 400);
    let left = pending(&mut outbox);
    assert_eq!(left.len() as u64 + outbox.evicted(), outbox.committed());
    // It opens again, on the full disk, too.
    drop(outbox);
    let (mut outbox, recovery) = Outbox::open(memory, ROOMY).unwrap();
    assert_eq!((pending(&mut outbox), recovery.lost), (left, 0));
}

#[test]
fn the_byte_budget_evicts_the_oldest_and_counts_them() {
    let memory = Memory::default();
    let (mut outbox, _) = Outbox::open(memory.clone(), TINY).unwrap();
    for _ in 0..200 {
        append(&mut outbox).unwrap();
        outbox.commit().unwrap();
        assert!(outbox.bytes() <= TINY.max_bytes + TINY.segment_bytes);
    }
    let left = pending(&mut outbox);
    assert_eq!(outbox.evicted() + outbox.pending(), 200);
    assert_eq!(*left.last().unwrap(), 200);
    drop(outbox);
    let (mut outbox, _) = Outbox::open(memory, TINY).unwrap();
    assert_eq!(pending(&mut outbox), left);
    assert_eq!((outbox.committed(), outbox.evicted()), (200, 200 - left.len() as u64));
}

/// Thirty labels in several segments, closed cleanly.
fn thirty() -> Memory {
    filled(30, ROOMY)
}

/// Labels in several segments, closed cleanly.
fn filled(labels: u64, limits: Limits) -> Memory {
    let memory = Memory::default();
    let (mut outbox, _) = Outbox::open(memory.clone(), limits).unwrap();
    for _ in 0..labels {
        append(&mut outbox).unwrap();
    }
    outbox.close().unwrap();
    assert!(outbox.segments.len() > 2);
    memory
}

fn segments(memory: &Memory) -> Vec<(String, Vec<u8>)> {
    let machine = memory.0.lock().unwrap();
    machine.files.iter().filter(|(name, _)| name.ends_with(".seg")).map(|(name, file)| (name.clone(), file.seen.clone())).collect()
}

#[test]
fn a_flipped_bit_anywhere_costs_only_its_own_label() {
    let whole = thirty();
    for (name, good) in segments(&whole) {
        let first = segment::read_header(&good).unwrap().1;
        let extents = segment::scan(&good, first).0;
        for index in 0..good.len() {
            let memory = Memory::default();
            memory.0.lock().unwrap().files = whole.0.lock().unwrap().files.clone();
            let mut bytes = good.clone();
            bytes[index] ^= 1 << (index % 8);
            memory.0.lock().unwrap().files.get_mut(&name).unwrap().seen = bytes.clone();
            let hit = extents.iter().find(|e| (e.offset..e.offset + u64::from(e.length)).contains(&(index as u64))).map(|e| e.sequence);
            let (mut outbox, recovery) = Outbox::open(memory.clone(), ROOMY).unwrap();
            assert_eq!(recovery.set_aside, [format!("{name}.aside")], "byte {index}");
            assert_eq!(memory.0.lock().unwrap().files[&recovery.set_aside[0]].seen, bytes);
            assert_eq!((recovery.lost, recovery.torn_bytes), (u64::from(hit.is_some()), 0), "byte {index}");
            assert_eq!(outbox.next_key().sequence, 31, "byte {index}");
            assert_eq!(pending(&mut outbox), (1..=30).filter(|&s| Some(s) != hit).collect::<Vec<_>>(), "byte {index}");
            // It is told once, and the outbox goes on.
            append(&mut outbox).unwrap();
            outbox.commit().unwrap();
            drop(outbox);
            let (mut outbox, recovery) = Outbox::open(memory, ROOMY).unwrap();
            assert_eq!(recovery, Recovery::default());
            assert_eq!(pending(&mut outbox).len(), 31 - usize::from(hit.is_some()));
        }
    }
}

/// Segments of several sectors.
const SECTORS: Limits = Limits { max_bytes: 1 << 30, segment_bytes: 20_000 };

/// The same files, of one of which the disk does not give a part.
fn with_bad(whole: &Memory, name: &str, bad: Range<usize>) -> Memory {
    let memory = Memory::default();
    memory.0.lock().unwrap().files = whole.0.lock().unwrap().files.clone();
    memory.0.lock().unwrap().files.get_mut(name).unwrap().bad = bad;
    memory
}

/// The labels of a segment that lie in the blocks of `bad`.
fn labels_in(good: &[u8], bad: &Range<usize>) -> BTreeSet<u64> {
    let (from, to) = (bad.start as u64 / salvage::BLOCK * salvage::BLOCK, (bad.end as u64).next_multiple_of(salvage::BLOCK));
    let first = segment::read_header(good).unwrap().1;
    let extents = segment::scan(good, first).0.into_iter();
    extents.filter(|e| e.offset < to && from < e.offset + u64::from(e.length)).map(|e| e.sequence).collect()
}

/// The sequences up to `last` but those.
fn all_but(gone: &BTreeSet<u64>, last: u64) -> Vec<u64> {
    (1..=last).filter(|sequence| !gone.contains(sequence)).collect()
}

#[test]
fn a_sector_that_cannot_be_read_costs_only_the_labels_in_its_block() {
    let whole = filled(1000, SECTORS);
    let all = segments(&whole);
    for (name, good) in &all {
        for sector in (0..good.len()).step_by(salvage::BLOCK as usize) {
            let bad = sector..(sector + 512).min(good.len());
            let what = format!("{name}, byte {sector}");
            let (memory, gone) = (with_bad(&whole, name, bad.clone()), labels_in(good, &bad));
            let (mut outbox, recovery) = Outbox::open(memory.clone(), SECTORS).unwrap();
            assert_eq!(recovery.set_aside, [format!("{name}.aside")], "{what}");
            // How many labels the end of the last segment had, nobody knows.
            let is_end = gone.contains(&1000);
            let (lost, next) = (recovery.lost as usize, outbox.next_key().sequence);
            assert!(if is_end { lost >= gone.len() && next > 1000 } else { lost == gone.len() && next == 1001 }, "{what}: {lost}, {next}");
            let mut left = all_but(&gone, 1000);
            assert_eq!(pending(&mut outbox), left, "{what}");
            // It is told once, and the outbox goes on.
            left.push(append(&mut outbox).unwrap());
            outbox.commit().unwrap();
            drop(outbox);
            let (mut outbox, recovery) = Outbox::open(memory, SECTORS).unwrap();
            assert_eq!((pending(&mut outbox), recovery), (left, Recovery::default()), "{what}");
        }
    }
}

/// What is read of a file with bad parts, and how many reads failed.
fn salvaged(good: &[u8], bad: Range<usize>, holes: BTreeSet<usize>) -> (Salvage, usize) {
    let mut memory = Memory::default();
    memory.0.lock().unwrap().files.insert("a".to_owned(), File { seen: good.to_vec(), bad, holes, ..File::default() });
    let salvage = salvage::read(&mut memory, "a", 0).unwrap();
    let refused = memory.0.lock().unwrap().refused;
    (salvage, refused)
}

/// A file in which no two neighbouring blocks are the same, none is zero, and the last one is short.
fn blocks() -> Vec<u8> {
    (0..(12 << 20) - 100).map(|at| (at / salvage::BLOCK as usize % 251 + 1) as u8).collect()
}

#[test]
fn behind_a_bad_stretch_however_long_everything_is_found() {
    let (block, good) = (salvage::BLOCK as usize, blocks());
    for bad in [0..1, 5 * block..600 * block, 100..3 << 20, block..good.len() - 3 * block, 9..good.len() - 5000, 0..good.len()] {
        let (salvage, refused) = salvaged(&good, bad.clone(), BTreeSet::new());
        let (from, to) = (bad.start / block * block, bad.end.next_multiple_of(block).min(good.len()));
        let mut left = good.clone();
        left[from..to].fill(0);
        assert!(salvage.bytes == left && salvage.unread == to as u64, "{bad:?}: unread up to {}", salvage.unread);
        // 128 blocks, 8 strides, and one for each of the 12 MiB, each of them twice.
        assert!(refused < 2 * 160, "{bad:?}: {refused} reads failed");
    }
}

#[test]
fn many_bad_blocks_cost_a_bounded_number_of_reads_and_what_is_behind_them_is_found() {
    let (block, good) = (salvage::BLOCK as usize, blocks());
    let (salvage, refused) = salvaged(&good, 0..0, (0..1024).step_by(2).collect());
    assert!(refused < 2 * 300, "{refused} reads failed");
    for at in (1..512).step_by(2) {
        assert!(salvage.bytes[at * block..(at + 1) * block] == good[at * block..(at + 1) * block], "block {at}");
    }
    assert!(salvage.bytes.len() == good.len() && salvage.bytes[1023 * block..] == good[1023 * block..]);
}

#[test]
fn a_block_that_is_given_at_the_second_try_is_no_damage() {
    let whole = thirty();
    let memory = with_bad(&whole, &segments(&whole)[0].0, 60..61);
    // All of it, then its block.
    memory.0.lock().unwrap().heals_after = Some(2);
    let (mut outbox, recovery) = Outbox::open(memory.clone(), ROOMY).unwrap();
    assert_eq!((recovery, memory.0.lock().unwrap().refused), (Recovery::default(), 2));
    assert_eq!(pending(&mut outbox), all_but(&BTreeSet::new(), 30));
}

#[test]
fn what_is_set_aside_keeps_its_bytes_and_its_name() {
    let whole = filled(1000, SECTORS);
    let (name, good) = segments(&whole).remove(0);
    for no_links in [false, true] {
        let memory = with_bad(&whole, &name, 5000..5512);
        memory.0.lock().unwrap().no_links = no_links;
        let bytes = |name: &str| memory.0.lock().unwrap().files[name].seen.clone();
        let (_, recovery) = Outbox::open(memory.clone(), SECTORS).unwrap();
        let (first, second) = (format!("{name}.aside"), format!("{name}.2.aside"));
        assert_eq!(recovery.set_aside, [first.as_str()]);
        let mut kept = good.clone();
        if no_links {
            kept[4096..8192].fill(0);
        }
        assert!(bytes(&first) == kept);
        // What took its place is damaged, too.
        memory.0.lock().unwrap().files.get_mut(&name).unwrap().seen[60] ^= 1;
        let damaged = bytes(&name);
        let (outbox, recovery) = Outbox::open(memory.clone(), SECTORS).unwrap();
        assert_eq!(recovery.set_aside, [second.as_str()]);
        assert!(bytes(&first) == kept && bytes(&second) == damaged);
        assert_eq!(outbox.asides.len(), 2);
    }
}

#[test]
fn a_damaged_segment_on_a_full_disk_is_mended_in_the_room_of_what_was_set_aside_or_reserved() {
    let whole = thirty();
    let (name, good) = segments(&whole).remove(0);
    let damaged = || {
        let memory = with_bad(&whole, &name, 0..0);
        memory.0.lock().unwrap().files.get_mut(&name).unwrap().seen[60] ^= 1;
        memory
    };
    let fill = |memory: &Memory| {
        let mut machine = memory.0.lock().unwrap();
        machine.capacity = Some(machine.used());
    };
    let is_there = |memory: &Memory, name: &str| memory.0.lock().unwrap().files.contains_key(name);
    let left = all_but(&BTreeSet::from([1]), 30);
    let (old, aside) = ("0.seg.aside", format!("{name}.aside"));
    for (has_old, no_links) in [(true, false), (true, true), (false, false), (false, true)] {
        let what = format!("set aside before: {has_old}, without links: {no_links}");
        let memory = damaged();
        memory.0.lock().unwrap().no_links = no_links;
        if has_old {
            let file = File { seen: vec![7; 2 * good.len()], named: true, ..File::default() };
            memory.0.lock().unwrap().files.insert(old.to_owned(), file);
        }
        fill(&memory);
        let (mut outbox, recovery) = Outbox::open(memory.clone(), ROOMY).unwrap();
        assert_eq!((pending(&mut outbox), recovery.lost), (left.clone(), 1), "{what}");
        // There is no room for a copy without the one before, and the reserve is for labels.
        let is_kept = has_old || !no_links;
        assert_eq!((recovery.set_aside.contains(&aside), is_there(&memory, &aside)), (is_kept, is_kept), "{what}");
        assert!(!is_there(&memory, old) && (!has_old || is_there(&memory, RESERVE)), "{what}");
    }
    // With nothing that could go, everything stays as it is, until there is room.
    let memory = damaged();
    memory.0.lock().unwrap().files.remove(RESERVE);
    fill(&memory);
    for _ in 0..2 {
        assert!(Outbox::open(memory.clone(), ROOMY).is_err());
        assert!(is_there(&memory, &name) && !is_there(&memory, &aside));
    }
    memory.0.lock().unwrap().capacity = None;
    let (mut outbox, recovery) = Outbox::open(memory, ROOMY).unwrap();
    assert_eq!((pending(&mut outbox), recovery.set_aside), (left, vec![aside]));
}

#[test]
fn power_loss_beside_a_bad_sector_costs_nothing_else_and_no_sequence_is_given_again() {
    let whole = filled(1000, SECTORS);
    // Only the segments tell which sequences were used.
    whole.0.lock().unwrap().files.remove(META);
    let all = segments(&whole);
    let ((first, begun), (last, ended)) = (all[0].clone(), all[all.len() - 1].clone());
    for (name, good, bad) in [(&first, &begun, 5000..5512), (&last, &ended, ended.len() - 1..ended.len()), (&last, &ended, 0..ended.len())]
    {
        let fresh = || with_bad(&whole, name, bad.clone());
        let counted = fresh();
        drop(Outbox::open(counted.clone(), SECTORS).unwrap());
        let count = counted.0.lock().unwrap().operations;
        let left = all_but(&labels_in(good, &bad), 1000);
        for at in 0..count {
            for kept in [0.0, 1.0] {
                let memory = fresh();
                memory.0.lock().unwrap().fault = Some((at, Fault::PowerLoss));
                drop(Outbox::open(memory.clone(), SECTORS));
                memory.0.lock().unwrap().reboot(kept);
                let (mut outbox, _) = Outbox::open(memory, SECTORS).unwrap();
                assert_eq!(pending(&mut outbox), left, "{bad:?} of {name}, power lost at operation {at}");
                assert!(outbox.next_key().sequence > 1000, "{bad:?} of {name}, power lost at operation {at}");
            }
        }
    }
}

#[test]
fn a_segment_that_cannot_be_read_at_all_is_set_aside_as_it_is() {
    let whole = thirty();
    let all = segments(&whole);
    for (place, (name, good)) in all.iter().enumerate() {
        let (memory, gone) = (with_bad(&whole, name, 0..good.len()), labels_in(good, &(0..good.len())));
        let (mut outbox, recovery) = Outbox::open(memory.clone(), ROOMY).unwrap();
        assert_eq!(recovery.set_aside, [format!("{name}.aside")]);
        assert_eq!(memory.0.lock().unwrap().files[&recovery.set_aside[0]].seen, *good);
        let (lost, is_last) = (recovery.lost as usize, place + 1 == all.len());
        assert!(if is_last { lost >= gone.len() } else { lost == gone.len() }, "{lost} of {}", gone.len());
        let mut left = all_but(&gone, 30);
        assert_eq!(pending(&mut outbox), left);
        let fresh = append(&mut outbox).unwrap();
        assert!(fresh > 30, "{fresh} was given before");
        left.push(fresh);
        outbox.commit().unwrap();
        drop(outbox);
        let (mut outbox, recovery) = Outbox::open(memory, ROOMY).unwrap();
        assert_eq!((pending(&mut outbox), recovery), (left, Recovery::default()));
    }
}

#[test]
fn without_its_counts_no_sequence_is_guessed() {
    let memory = thirty();
    let (mut outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
    let stored = ack(&outbox, 0, &[(2, 30)]);
    outbox.ack(&stored).unwrap();
    outbox.close().unwrap();
    drop(outbox);
    // The one that was appended to is lost with the power, and the first alone stays: that 30 was used, only the counts tell.
    let (last, _) = segments(&memory).pop().unwrap();
    memory.0.lock().unwrap().files.remove(&last).unwrap();
    let (outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
    assert_eq!(outbox.next_key().sequence, 31);
    assert!(outbox.next_pending(0) == Some(1) && outbox.next_pending(20).is_none());
    drop(outbox);
    let Err(error) = Outbox::open(with_bad(&memory, META, 0..1), ROOMY) else { panic!("it goes on without its counts") };
    assert!(error.to_string().contains(META), "{error}");
}

#[test]
fn only_what_is_wrong_with_a_file_sets_it_aside() {
    let is_of_the_file = |errno: Errno| salvage::is_of_the_file(&io::Error::from_raw_os_error(errno as i32));
    assert!([Errno::EIO, Errno::EUCLEAN, Errno::EBADMSG].into_iter().all(is_of_the_file));
    let elsewhere = [Errno::ENOMEM, Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::EMFILE, Errno::ENFILE];
    assert!(!elsewhere.into_iter().any(is_of_the_file));
}

#[test]
fn a_restored_collector_gets_again_what_can_be_read() {
    let memory = thirty();
    let (mut outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
    // Of each segment one label stays, and with it the file.
    let kept: Vec<u64> = outbox.segments.iter().map(|segment| segment.first).collect();
    let stored: Vec<(u64, u64)> = outbox.segments.iter().map(|segment| (segment.first + 1, segment.end - 1)).collect();
    let message = ack(&outbox, 0, &stored);
    outbox.ack(&message).unwrap();
    assert_eq!(pending(&mut outbox), kept);
    let (name, good) = segments(&memory).remove(1);
    memory.0.lock().unwrap().files.get_mut(&name).unwrap().bad = 0..good.len();
    let mut gone = labels_in(&good, &(0..good.len()));
    outbox.ack(&AckMsg { collector: 6, stored: heapless::Vec::new(), ..message }).unwrap();
    assert_eq!(outbox.collector(), 6);
    // It is not known that nobody has it.
    assert!(gone.remove(&kept[1]) && outbox.read(kept[1]).is_err());
    let left: Vec<u64> = (1..=30).filter(|&sequence| outbox.is_pending(sequence)).collect();
    assert_eq!(left, all_but(&gone, 30));
}

#[test]
fn a_restored_collector_waits_while_descriptors_are_short() {
    let memory = thirty();
    let (mut outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
    let message = ack(&outbox, 10, &[]);
    outbox.ack(&message).unwrap();
    let restored = AckMsg { collector: 6, watermark: 2, ..message };
    let (name, good) = segments(&memory).pop().unwrap();
    let without = |bad: Range<usize>| {
        let mut machine = memory.0.lock().unwrap();
        let file = machine.files.get_mut(&name).unwrap();
        (file.bad, file.errno) = (bad, Some(Errno::EMFILE));
    };
    without(0..good.len());
    for _ in 0..2 {
        assert!(outbox.ack(&restored).is_err());
        assert_eq!(outbox.collector(), 5, "it is told again");
    }
    without(0..0);
    outbox.ack(&restored).unwrap();
    let first = outbox.segments[0].first;
    assert!(first <= 10, "nothing that was acknowledged is still here");
    assert_eq!((outbox.collector(), pending(&mut outbox)), (6, (first.max(3)..=30).collect::<Vec<_>>()));
}

#[test]
fn what_was_set_aside_goes_before_frames_and_labels() {
    let whole = thirty();
    let name = segments(&whole).remove(0).0;
    for is_full in [false, true] {
        let memory = with_bad(&whole, &name, 0..0);
        memory.0.lock().unwrap().files.get_mut(&name).unwrap().seen[60] ^= 1;
        let (mut outbox, recovery) = Outbox::open(memory.clone(), ROOMY).unwrap();
        let is_there = || memory.0.lock().unwrap().files.contains_key(&recovery.set_aside[0]);
        append(&mut outbox).unwrap();
        outbox.commit().unwrap();
        assert!(is_there(), "there is room");
        if is_full {
            let used = memory.0.lock().unwrap().files.values().map(|file| file.seen.len()).sum();
            memory.0.lock().unwrap().capacity = Some(used);
        } else {
            outbox.limits.max_bytes = outbox.bytes() + 200;
        }
        append(&mut outbox).unwrap();
        outbox.commit().unwrap();
        assert!(!is_there());
        assert_eq!((outbox.evicted(), outbox.frames_evicted(), outbox.pending()), (0, 0, 31));
    }
}

#[test]
fn on_a_real_disk_a_segment_that_cannot_be_read_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Outbox::open(Disk::open(folder.path()).unwrap(), ROOMY).unwrap();
    let (mut outbox, _) = open();
    for _ in 0..30 {
        append(&mut outbox).unwrap();
    }
    outbox.close().unwrap();
    let name = segment::name(outbox.next_key().epoch, 31);
    drop(outbox);
    // A folder opens, and gives no byte.
    std::fs::create_dir(folder.path().join(&name)).unwrap();
    let (mut outbox, recovery) = open();
    assert_eq!(recovery.set_aside, [format!("{name}.aside")]);
    assert_eq!(pending(&mut outbox), all_but(&BTreeSet::new(), 30));
    append(&mut outbox).unwrap();
    outbox.close().unwrap();
    drop(outbox);
    let (outbox, recovery) = open();
    assert_eq!((outbox.pending(), recovery), (31, Recovery::default()));
}

#[test]
fn on_a_real_disk_a_damaged_segment_is_kept_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Outbox::open(Disk::open(folder.path()).unwrap(), ROOMY).unwrap();
    let (mut outbox, _) = open();
    for _ in 0..30 {
        append(&mut outbox).unwrap();
    }
    outbox.close().unwrap();
    let name = segment::name(outbox.next_key().epoch, 1);
    drop(outbox);
    let path = folder.path().join(&name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (mut outbox, recovery) = open();
    assert_eq!(recovery.set_aside, [format!("{name}.aside")]);
    assert_eq!(pending(&mut outbox), all_but(&BTreeSet::from([1]), 30));
    assert!(std::fs::read(folder.path().join(&recovery.set_aside[0])).unwrap() == bytes);
    // A name that is taken stays whose it is.
    let mut disk = Disk::open(folder.path()).unwrap();
    assert_eq!(disk.link(&name, &recovery.set_aside[0]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert!(std::fs::read(folder.path().join(&recovery.set_aside[0])).unwrap() == bytes);
}

#[test]
fn on_a_real_disk_labels_survive_a_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Outbox::open(Disk::open(folder.path()).unwrap(), ROOMY).unwrap();
    let (mut outbox, _) = open();
    for _ in 0..50 {
        append(&mut outbox).unwrap();
    }
    outbox.commit().unwrap();
    append(&mut outbox).unwrap();
    let message = ack(&outbox, 20, &[(30, 35)]);
    outbox.ack(&message).unwrap();
    drop(outbox);
    let (mut outbox, recovery) = open();
    assert_eq!(recovery, Recovery::default());
    let left = pending(&mut outbox);
    assert!(left.ends_with(&[50, 51]) && left.contains(&21), "{left:?}");
    outbox.ack(&message).unwrap();
    assert_eq!(pending(&mut outbox), (21..30).chain(36..=51).collect::<Vec<_>>());
}

#[derive(Clone, Debug)]
enum Step {
    Append,
    Commit,
    Ack { watermark: u64, from: u64, to: u64 },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Append),
        3 => Just(Step::Commit),
        2 => (0..60_u64, 0..60_u64, 0..60_u64).prop_map(|(watermark, from, to)| Step::Ack { watermark, from, to }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Against the simplest model: a set of what was appended, minus what was acknowledged. A clean reopening keeps what the system
    /// has, and may bring acknowledged labels back until the next acknowledgement.
    #[test]
    fn behaves_like_a_set(steps in steps()) {
        let memory = Memory::default();
        let (mut outbox, _) = Outbox::open(memory.clone(), ROOMY).unwrap();
        let (mut model, mut open, mut stored, mut high) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), 0);
        for step in steps {
            match step {
                Step::Append => {
                    open.insert(append(&mut outbox).unwrap());
                    // A new segment commits the one before.
                    while open.len() > outbox.uncommitted() {
                        model.extend(open.pop_first());
                    }
                }
                Step::Commit => { outbox.commit().unwrap(); model.append(&mut open); }
                Step::Ack { watermark, from, to } => {
                    let message = ack(&outbox, watermark, &[(from, to)]);
                    outbox.ack(&message).unwrap();
                    high = high.max(watermark.min(outbox.committed()));
                    let gone: Vec<u64> = model.iter().copied().filter(|s| *s <= high || (from..=to).contains(s)).collect();
                    model.retain(|s| !gone.contains(s));
                    stored.extend(gone);
                }
                Step::Reopen => {
                    drop(outbox);
                    high = 0;
                    model.append(&mut open);
                    outbox = Outbox::open(memory.clone(), ROOMY).unwrap().0;
                    let have: BTreeSet<u64> = pending(&mut outbox).into_iter().collect();
                    prop_assert!(model.is_subset(&have));
                    prop_assert!(have.iter().all(|s| model.contains(s) || stored.contains(s)));
                    model = have;
                }
            }
            prop_assert_eq!(pending(&mut outbox), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(outbox.uncommitted(), open.len());
        }
    }
}

#[test]
fn the_sender_knows_how_long_nobody_has_answered() {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let mut sender = Sender::default();
    let next = |after: u64| (after < 3).then_some(after + 1);
    assert_eq!(sender.unanswered(at(9)), None, "nothing was sent");
    sender.next(at(10), next).unwrap();
    sender.next(at(20), next).unwrap();
    assert_eq!(sender.unanswered(at(70)), Some(Duration::from_secs(60)));
    sender.heard(at(80));
    assert_eq!(sender.unanswered(at(90)), None);
    sender.next(at(100), next).unwrap();
    assert_eq!(sender.unanswered(at(101)), Some(Duration::from_secs(1)));
    sender.restart();
    assert_eq!(sender.unanswered(at(200)), None, "another connection");
}

#[test]
fn the_sender_sends_in_order_keeps_its_window_and_repeats() {
    let start = Instant::now();
    let mut sender = Sender::default();
    let pending: BTreeSet<u64> = (1..=200).collect();
    let next = |pending: &BTreeSet<u64>, after: u64| pending.range(after + 1..).next().copied();
    let mut sent = Vec::new();
    while let Some(sequence) = sender.next(start, |after| next(&pending, after)) {
        sent.push(sequence);
    }
    assert_eq!(sent, (1..=SEND_WINDOW as u64).collect::<Vec<_>>());
    let mut left = pending.clone();
    left.retain(|&s| s == 3 || s > 10);
    sender.acknowledged(start, 10, |s| left.contains(&s));
    assert_eq!(sender.next(start, |after| next(&left, after)), Some(SEND_WINDOW as u64 + 1));
    let later = start + Duration::from_secs(4);
    assert_eq!(sender.next(later, |after| next(&left, after)), Some(3), "the gap is sent again before its full time");
    let much_later = start + Duration::from_secs(16);
    assert_eq!(sender.next(much_later, |after| next(&left, after)), Some(11));
    sender.restart();
    assert_eq!(sender.next(much_later, |after| next(&left, after)), Some(3));
    // A gap cut its wait off: the next one is as long as the first. One that ran out is doubled.
    let only = |after: u64| (after < 3).then_some(3);
    let mut sender = Sender::default();
    assert_eq!(sender.next(start, only), Some(3));
    sender.acknowledged(start, 9, |_| true);
    assert_eq!(sender.next(start + RESEND_GAP, only), Some(3));
    let again = start + RESEND_GAP + RESEND_FIRST;
    assert_eq!((sender.next(again - Duration::from_millis(1), only), sender.next(again, only)), (None, Some(3)));
    assert_eq!(sender.next(again + RESEND_FIRST, only), None);
    assert_eq!(sender.next(again + 2 * RESEND_FIRST, only), Some(3));
}

#[test]
fn a_collector_that_comes_back_gets_at_once_what_it_missed_and_a_slow_one_gets_nothing_twice() {
    use std::time::{Duration, Instant};
    let start = Instant::now();
    let at = |secs: u64| start + Duration::from_secs(secs);
    let pending: BTreeSet<u64> = (1..=10).collect();
    let next = |after: u64| pending.range(after + 1..).next().copied();
    let mut sender = Sender::default();
    let drain = |sender: &mut Sender, now: Instant| std::iter::from_fn(|| sender.next(now, next)).count();
    sender.heard(at(0));
    assert_eq!(drain(&mut sender, at(0)), 10);
    // It speaks every second, of other things: what is on its way stays on its way for its whole time.
    for second in 1..15 {
        sender.heard(at(second));
        assert_eq!(drain(&mut sender, at(second)), 0, "second {second}");
    }
    assert_eq!(drain(&mut sender, at(15)), 10, "then it is sent again, and waits for twice as long");
    // It was silent since second 14 and is back: whatever it acknowledges, the rest is due.
    assert_eq!(drain(&mut sender, at(40)), 0);
    sender.heard(at(40));
    assert_eq!(drain(&mut sender, at(40)), 10);
    assert_eq!(drain(&mut sender, at(41)), 0, "once");
}

#[test]
fn a_collector_behind_a_slow_link_was_away_when_it_said_nothing_for_twice_as_long() {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let mut pending: BTreeSet<u64> = (1..=10).collect();
    let drain = |sender: &mut Sender, pending: &BTreeSet<u64>, second| {
        std::iter::from_fn(|| sender.next(at(second), |after| pending.range(after + 1..).next().copied())).count()
    };
    let mut sender = Sender::default();
    assert_eq!(drain(&mut sender, &pending, 0), 10);
    assert_eq!(drain(&mut sender, &pending, 15), 10, "nobody knows yet how slow it is");
    for stored in 1..=3 {
        let second = stored * 16;
        pending.remove(&stored);
        sender.heard(at(second));
        sender.acknowledged(at(second), stored, |sequence| pending.contains(&sequence));
        for later in [0, 4, 15] {
            assert_eq!(drain(&mut sender, &pending, second + later), 0, "{later} s after label {stored}");
        }
    }
    assert_eq!(drain(&mut sender, &pending, 78), 7, "that wait was the doubled one");
    sender.heard(at(100));
    assert_eq!(drain(&mut sender, &pending, 100), 7, "it was away since second 48");
    assert_eq!(drain(&mut sender, &pending, 101), 0, "once");
}

#[test]
fn labels_after_a_quiet_scene_keep_their_time() {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let up_to = |last: u64| move |after: u64| Some(after + 1).filter(|&sequence| sequence <= last);
    let drain = |sender: &mut Sender, second| std::iter::from_fn(|| sender.next(at(second), up_to(46))).count();
    let mut sender = Sender::default();
    assert_eq!(sender.next(at(0), up_to(1)), Some(1));
    sender.heard(at(1));
    sender.acknowledged(at(1), 1, |_| false);
    // Nothing was to be said for a long time.
    assert_eq!(drain(&mut sender, 100), 45);
    sender.heard(at(110));
    sender.acknowledged(at(110), 2, |sequence| sequence > 2);
    assert_eq!((drain(&mut sender, 110), drain(&mut sender, 124)), (0, 0));
    assert_eq!(drain(&mut sender, 125), 44);
}

/// The pace of the slow link.
const LABEL_TAKES: Duration = Duration::from_millis(800);
/// How often something can happen beside it.
const TURN: Duration = Duration::from_millis(200);

/// Sends `labels` over a link that carries one after the other, each in the time that it `takes`, to a collector that acknowledges each, a
/// copy, too; the first copy of what is in `lost` goes astray. How often each was sent, and how long it all took.
fn over_a_slow_link(takes: Duration, labels: u64, mut lost: BTreeSet<u64>) -> (BTreeMap<u64, u32>, Duration) {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let mut pending: BTreeSet<u64> = (1..=labels).collect();
    let (mut now, mut queue, mut times, mut highest) = (start, VecDeque::new(), BTreeMap::<u64, u32>::new(), 0);
    let mut arrives = start;
    while !pending.is_empty() {
        assert!(now < start + takes * 4 * labels as u32, "{pending:?} do not arrive");
        while let Some(sequence) = sender.next(now, |after| pending.range(after + 1..).next().copied()) {
            *times.entry(sequence).or_default() += 1;
            if queue.is_empty() {
                arrives = now + takes;
            }
            queue.push_back(sequence);
        }
        now += TURN;
        if now < arrives {
            continue;
        }
        let arrived = queue.pop_front().filter(|sequence| !lost.remove(sequence));
        arrives = now + takes;
        if let Some(sequence) = arrived {
            pending.remove(&sequence);
            highest = sequence.max(highest);
            sender.heard(now);
            sender.acknowledged(now, highest, |sequence| pending.contains(&sequence));
        }
    }
    (times, now - start)
}

#[test]
fn a_slow_link_carries_each_label_once() {
    let (times, took) = over_a_slow_link(LABEL_TAKES, 500, BTreeSet::new());
    assert!(times.len() == 500 && times.values().all(|&times| times == 1), "{times:?}");
    assert_eq!(took, 500 * LABEL_TAKES);
}

#[test]
fn a_link_slower_than_the_first_wait_carries_each_label_twice_at_most() {
    // The first wait, 15 s, ends before the first word after 16. The second, 30 s, does not: every 16 s a label or a copy is acknowledged.
    // With more labels than places, new ones wait behind copies alone for a long time.
    let takes = Duration::from_secs(16);
    for labels in [45, 200] {
        let (times, took) = over_a_slow_link(takes, labels, BTreeSet::new());
        assert!(times.len() as u64 == labels && times.values().all(|&times| times <= 2), "{times:?}");
        assert!(took <= takes * 2 * labels as u32, "{took:?}");
    }
    // All were sent before the first copy was.
    assert_eq!(over_a_slow_link(takes, 45, BTreeSet::new()).1, takes * 45);
}

#[test]
fn what_a_slow_link_loses_is_sent_once_more() {
    for lost in [1, 30, 64, 65, 150, 199, 200] {
        let (times, took) = over_a_slow_link(LABEL_TAKES, 200, BTreeSet::from([lost]));
        assert!(times.iter().all(|(&sequence, &times)| times == 1 + u32::from(sequence == lost)), "{lost}: {times:?}");
        // The last one has nothing behind it that would tell.
        assert!(took < 201 * LABEL_TAKES + RESEND_FIRST + LABEL_TAKES, "{lost}: {took:?}");
    }
}

#[test]
fn a_collector_that_speaks_of_nothing_new_does_not_put_a_label_off() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let only = |after: u64| (after < 3).then_some(3);
    assert_eq!(sender.next(start, only), Some(3));
    for second in 1..15 {
        let now = start + Duration::from_secs(second);
        sender.heard(now);
        sender.acknowledged(now, 2, |_| true);
        assert_eq!(sender.next(now, only), None);
    }
    assert_eq!(sender.next(start + RESEND_FIRST, only), Some(3));
}

#[test]
fn labels_that_are_evicted_or_cannot_be_read_leave_their_places_to_others() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let above = |from: u64| move |after: u64| Some(from.max(after + 1)).filter(|&sequence| sequence <= 300);
    assert_eq!(std::iter::from_fn(|| sender.next(start, above(1))).count(), SEND_WINDOW);
    // Nobody answers, and the byte budget takes what was sent and more.
    let mut sent = Vec::new();
    while let Some(sequence) = sender.next(start + RESEND_FIRST, above(201)) {
        if sequence <= 200 {
            sender.forget(sequence);
        } else {
            sent.push(sequence);
        }
    }
    assert_eq!(sent, (201..=264).collect::<Vec<_>>());

    let (mut sender, mut sent) = (Sender::default(), Vec::new());
    while let Some(sequence) = sender.next(start, above(1)) {
        if sequence <= 260 {
            sender.put_off(start, sequence);
        } else {
            sent.push(sequence);
        }
    }
    assert_eq!((sent, sender.unread()), ((261..=300).collect::<Vec<_>>(), 260));
    // They are tried again, but not at once; and of what is acknowledged only the others are left.
    sender.acknowledged(start, 300, |sequence| sequence == 7 || sequence == 9);
    assert_eq!((sender.unread(), sender.unanswered(start)), (2, Some(Duration::ZERO)));
    assert_eq!(sender.next(start + RESEND_LAST - Duration::from_millis(1), above(1)), None);
    let again = start + RESEND_LAST;
    assert_eq!(sender.next(again, above(1)), Some(7));
    sender.put_off(again, 7);
    assert_eq!(sender.unanswered(again), None, "nothing is under way");
    // One that fails again says enough of the others for as long; one that does not, nothing.
    assert_eq!(sender.next(again + RESEND_LAST - Duration::from_millis(1), above(1)), None);
    let again = again + RESEND_LAST;
    assert_eq!((sender.next(again, above(1)), sender.next(again, above(1))), (Some(9), Some(7)));
    assert_eq!((sender.next(again, above(1)), sender.unread()), (None, 0));
}

#[test]
fn of_many_labels_that_cannot_be_read_one_is_tried_every_two_minutes() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let next = |after: u64| Some(after + 1).filter(|&sequence| sequence <= 500);
    for sequence in 1..=500 {
        assert_eq!(sender.next(start, next), Some(sequence));
        sender.put_off(start, sequence);
    }
    let mut tried = Vec::new();
    for second in 0..3600 {
        let now = start + Duration::from_secs(second);
        while let Some(sequence) = sender.next(now, next) {
            tried.push(sequence);
            sender.put_off(now, sequence);
        }
    }
    // Each time another one, so that one that cannot be read hides no other.
    assert_eq!(tried, (1..30).collect::<Vec<_>>());
    // The first one that can be read brings the others back.
    let now = start + Duration::from_secs(3600);
    assert_eq!(std::iter::from_fn(|| sender.next(now, next)).count(), SEND_WINDOW);
}
