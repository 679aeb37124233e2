//! Four weeks of a device in simulated seconds: labels every ten, a network that delays, repeats, reorders and is away for up to three
//! days, power cuts and disk errors, a collector that is restored from a backup.

use super::*;
use std::time::{Duration, Instant};

const SECONDS: u64 = 4 * 7 * 24 * 3600;
/// Everything is well in the last hours, so that what can arrive has arrived.
const CALM: u64 = 6 * 3600;
/// No label is made in the last minutes: all are acknowledged then.
const DRAIN: u64 = 300;
const LABEL_EVERY: u64 = 10;
/// Messages a second that the link carries.
const RATE: usize = 40;

impl Outbox<Memory> {
    /// Pending labels of the oldest segments.
    fn of_the_oldest(&self, segments: usize) -> Vec<u64> {
        let end = self.segments.iter().take(segments).next_back().map_or(0, |segment| segment.end);
        self.index.range(..end).map(|(&sequence, _)| sequence).collect()
    }
}

impl Machine {
    /// Whether an error or a full disk has struck since the last question.
    fn struck(&mut self) -> bool {
        let struck = self.fault.is_some_and(|(at, fault)| fault != Fault::PowerLoss && self.operations > at);
        if struck {
            self.fault = None;
        }
        struck
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

type Key = (u64, u64);

#[derive(Clone, Debug)]
enum Packet {
    /// Whether with its JPEG.
    Frame(Key, bool),
    Label(Key, Vec<u8>),
    Ack(Box<AckMsg>),
}

/// What is under way, by the second and place in which it arrives.
#[derive(Default)]
struct Network {
    packets: BTreeMap<(u64, u64), Packet>,
    sent: u64,
    /// Away until this second.
    away: u64,
    repeated: u64,
}

impl Network {
    fn send(&mut self, now: u64, packet: &Packet, random: &mut Random) {
        let copies = 1 + u64::from(random.one_in(50));
        self.repeated += copies - 1;
        for _ in 0..copies {
            self.sent += 1;
            // One in eight is overtaken by others.
            let delay = if random.one_in(8) { random.below(12) } else { 0 };
            self.packets.insert((now + 1 + delay, self.sent), packet.clone());
        }
    }

    fn arrived(&mut self, now: u64) -> Vec<Packet> {
        let later = self.packets.split_off(&(now + 1, 0));
        std::mem::replace(&mut self.packets, later).into_values().collect()
    }
}

#[derive(Clone, Default)]
struct Collector {
    labels: BTreeMap<Key, Vec<u8>>,
    frames: BTreeMap<Key, bool>,
    settled: BTreeSet<Key>,
    touched: BTreeSet<Key>,
    arrived_again: u64,
    id: u64,
}

fn announces_frame(label: &[u8]) -> bool {
    label.starts_with(b"with frame")
}

impl Collector {
    fn take(&mut self, packet: Packet) {
        let key = match packet {
            Packet::Frame(key, whole) => {
                self.frames.entry(key).or_insert(whole);
                key
            }
            Packet::Label(key, label) => {
                if let Some(before) = self.labels.insert(key, label.clone()) {
                    assert_eq!(before, label, "{key:?} came with other bytes");
                    self.arrived_again += 1;
                }
                key
            }
            Packet::Ack(_) => unreachable!("the device acknowledges nothing"),
        };
        if self.labels.get(&key).is_some_and(|label| !announces_frame(label) || self.frames.contains_key(&key)) {
            self.settled.insert(key);
        }
        self.touched.insert(key);
    }

    /// What the collector has of `epoch`: everything up to the watermark, and the runs around what came since the last answer.
    fn answer(&mut self, epoch: u64, watermark: &mut u64) -> AckMsg {
        while self.settled.contains(&(epoch, *watermark + 1)) {
            *watermark += 1;
        }
        let mut stored: heapless::Vec<(u64, u64), 16> = heapless::Vec::new();
        for (_, sequence) in std::mem::take(&mut self.touched) {
            let known = |sequence: u64| self.settled.contains(&(epoch, sequence));
            if sequence <= *watermark || !known(sequence) || stored.last().is_some_and(|run| run.1 >= sequence) {
                continue;
            }
            let end = (sequence..).take_while(|&next| known(next)).last().unwrap_or(sequence);
            if stored.push((sequence, end)).is_err() {
                break;
            }
        }
        AckMsg { version: VERSION, collector: self.id, epoch, watermark: *watermark, stored }
    }
}

#[derive(Debug, Default)]
struct Figures {
    made: usize,
    power_cuts: u64,
    disk_faults: u64,
    outages: u64,
    repeated: u64,
    arrived_again: u64,
    evicted: u64,
    frames_evicted: u64,
    missing: u64,
}

fn live(limits: Limits, seed: u64) -> Figures {
    let (memory, start, mut random) = (Memory::default(), Instant::now(), Random(seed));
    let (mut figures, mut network) = (Figures::default(), Network::default());
    let (mut outbox, mut sender) = (Outbox::open(memory.clone(), limits).unwrap().0, Sender::default());
    let mut collector = Collector { id: 1, ..Collector::default() };
    // What a restored backup of the collector forgot after the device had let go of it; what the byte budget took.
    let (mut forgotten, mut evicted) = (BTreeSet::<Key>::new(), BTreeSet::<Key>::new());
    let (mut backup, mut watermark, mut retained) = (collector.clone(), 0, None::<AckMsg>);
    // Committed, by key; and appended, but not known to be committed.
    let (mut committed, mut open) = (BTreeMap::<Key, Vec<u8>>::new(), BTreeMap::<Key, Vec<u8>>::new());
    let (mut nonce, mut off_until, mut connected, mut waiting) = (0_u64, None::<u64>, false, false);
    for second in 0..SECONDS {
        let now = start + Duration::from_secs(second);
        let calm = second + CALM > SECONDS;

        // The weather.
        if !calm && off_until.is_none() && random.one_in(3 * 3600) {
            let at = memory.0.lock().unwrap().operations + random.below(12) as usize;
            let fault = [Fault::PowerLoss, Fault::Error, Fault::Full][random.below(3) as usize];
            memory.0.lock().unwrap().fault = Some((at, fault));
        }
        if !calm && second >= network.away && random.one_in(2 * 3600) {
            let length = match random.below(100) {
                0 => 3 * 24 * 3600,
                1..10 => 600 + random.below(20_000),
                _ => 1 + random.below(120),
            };
            network.away = (second + length).min(SECONDS - CALM);
            figures.outages += 1;
        }
        if !calm && random.one_in(12 * 3600) {
            backup = collector.clone();
        }
        if !calm && random.one_in(9 * 24 * 3600) {
            // With its connection goes what was under way.
            network.packets.clear();
            connected = false;
            forgotten.extend(collector.settled.iter().filter(|key| !outbox.is_pending(key.1)));
            collector = Collector { id: collector.id + 1, ..backup.clone() };
            watermark = 0;
            retained = None;
        }

        // What has struck, not what was drawn.
        let struck = memory.0.lock().unwrap().struck();
        figures.disk_faults += u64::from(struck);

        // Off, or on again.
        if memory.0.lock().unwrap().dead && off_until.is_none() {
            figures.power_cuts += 1;
            off_until = Some(second + 20 + random.below(600));
            connected = false;
            network.packets.clear();
            open.clear();
        }
        if let Some(until) = off_until {
            if second < until {
                continue;
            }
            off_until = None;
            memory.0.lock().unwrap().reboot([0.0, 0.3, 0.9, 1.0][random.below(4) as usize]);
            let (reopened, recovery) = Outbox::open(memory.clone(), limits).unwrap();
            assert!(recovery.lost == 0 && recovery.set_aside.is_empty(), "{recovery:?}");
            (outbox, sender) = (reopened, Sender::default());
        }

        // A label, which waits while there is no room for it; the camera waits with it.
        let (before, oldest) = (outbox.evicted(), outbox.of_the_oldest(2));
        waiting |= second.is_multiple_of(LABEL_EVERY) && second + DRAIN < SECONDS;
        if waiting {
            let key = outbox.next_key();
            nonce += 1;
            let frame = nonce.is_multiple_of(3);
            let label = format!("{} {nonce} {}", if frame { "with frame" } else { "alone" }, "x".repeat(nonce as usize % 60)).into_bytes();
            if outbox.append(nonce, label.clone(), if frame { vec![7; 150] } else { Vec::new() }).is_ok() {
                waiting = false;
                let key = (key.epoch, key.sequence);
                assert!(!committed.contains_key(&key), "{key:?} was given twice");
                open.insert(key, label);
            }
        }
        let done = outbox.uncommitted() == 0 || outbox.commit().is_ok();
        while open.len() > if done { 0 } else { outbox.uncommitted() } {
            committed.extend(open.pop_first());
        }
        if outbox.evicted() > before {
            let epoch = outbox.next_key().epoch;
            let gone: Vec<Key> = oldest.into_iter().filter(|&sequence| !outbox.is_pending(sequence)).map(|s| (epoch, s)).collect();
            assert_eq!(gone.len() as u64, outbox.evicted() - before, "what is counted is what went");
            evicted.extend(gone);
        }

        // The link.
        if second < network.away {
            if connected {
                network.packets.clear();
            }
            connected = false;
            continue;
        }
        if !connected {
            connected = true;
            sender.restart();
            if let Some(ack) = &retained {
                network.send(second, &Packet::Ack(Box::new(ack.clone())), &mut random);
            }
        }
        for _ in 0..RATE {
            let Some(sequence) = sender.next(now, |after| outbox.next_pending(after)) else { break };
            let Some(entry) = outbox.read(sequence).unwrap() else {
                sender.forget(sequence);
                continue;
            };
            let key = (outbox.next_key().epoch, sequence);
            if announces_frame(&entry.label) {
                assert!(!entry.jpeg.is_empty() || outbox.is_frame_evicted(sequence), "{key:?} lost its frame");
                network.send(second, &Packet::Frame(key, !entry.jpeg.is_empty()), &mut random);
            }
            network.send(second, &Packet::Label(key, entry.label), &mut random);
        }
        for packet in network.arrived(second) {
            let Packet::Ack(ack) = packet else {
                collector.take(packet);
                continue;
            };
            let before = outbox.collector();
            let _ = outbox.ack(&ack);
            sender.heard(now);
            if before != 0 && before != ack.collector {
                sender.restart();
            }
            let highest = ack.stored.iter().map(|run| run.1).fold(ack.watermark, u64::max);
            sender.acknowledged(now, highest, |sequence| outbox.is_pending(sequence));
        }
        if !collector.touched.is_empty() {
            let ack = collector.answer(outbox.next_key().epoch, &mut watermark);
            network.send(second, &Packet::Ack(Box::new(ack.clone())), &mut random);
            retained = Some(ack);
        }
    }
    assert_eq!(outbox.pending(), 0, "everything is acknowledged in the end");
    for (key, label) in &committed {
        if let Some(arrived) = collector.labels.get(key) {
            assert_eq!(arrived, label, "{key:?}");
        }
        if !collector.settled.contains(key) && !forgotten.contains(key) {
            assert!(evicted.contains(key), "{key:?} is lost");
            figures.missing += 1;
        }
    }
    let bare = |(key, label): (&Key, &Vec<u8>)| announces_frame(label) && collector.frames.get(key) == Some(&false);
    let without_frame = collector.labels.iter().filter(|entry| bare(*entry)).count() as u64;
    assert!(without_frame <= outbox.frames_evicted(), "{without_frame} of {}", outbox.frames_evicted());
    let (evicted, frames_evicted) = (outbox.evicted(), outbox.frames_evicted());
    Figures {
        made: committed.len(),
        repeated: network.repeated,
        arrived_again: collector.arrived_again,
        evicted,
        frames_evicted,
        ..figures
    }
}

#[test]
fn four_weeks_lose_nothing_but_what_the_byte_budget_takes() {
    let roomy = Limits { max_bytes: 1 << 30, segment_bytes: 64 << 10 };
    // Three days of labels, but not of frames; and less than either.
    let frames = Limits { max_bytes: 3 << 20, segment_bytes: 64 << 10 };
    let labels = Limits { max_bytes: 1 << 20, segment_bytes: 64 << 10 };
    let lives = std::thread::scope(|scope| {
        [(roomy, 1), (frames, 2), (labels, 3)]
            .map(|(limits, seed)| scope.spawn(move || live(limits, seed)))
            .map(|life| life.join().unwrap())
    });
    for life in &lives {
        println!("{life:?}");
        assert!(life.made > 200_000 && life.power_cuts > 20 && life.disk_faults > 50 && life.outages > 100, "{life:?}");
        assert!(life.repeated > 1000 && life.arrived_again > 1000, "{life:?}");
    }
    let [all, no_frames, fewer] = lives;
    // A disk that is full at times takes frames even there.
    assert_eq!((all.missing, all.evicted), (0, 0));
    assert!(no_frames.missing == 0 && no_frames.evicted == 0 && no_frames.frames_evicted > 0, "{no_frames:?}");
    // Each of them was seen to be evicted.
    assert!(fewer.missing > 0, "{fewer:?}");
}
