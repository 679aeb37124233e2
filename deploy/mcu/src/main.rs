//! A label subscriber without an operating system and without a heap: a relay beside a camera that counts the people of each
//! frame and notices a raised hand, from what the labelling device publishes.
//!
//! Packets come from the host file `mqtt.bin` and what happens is told by semihosting; on a board both are a modem or a network
//! stack and a pin.
#![no_std]
#![no_main]

mod mqtt;

use cortex_m_rt::entry;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{LabelMsg, MAX_TOPIC, Message, WireInstance};
use semihosting::fs::File;
use semihosting::{println, process};

const PREFIX: &str = "omnilabel/v1";
const SITE: &str = "yard";
/// Room for any label with its topic; the rest of a PUBLISH is 2 + 2 + 1 bytes, and properties that nobody here asks for.
const MAX_PACKET: usize = LabelMsg::MAX_BYTES + MAX_TOPIC + 64;
/// The least probability, in 1/255, at which a keypoint is believed.
const SEEN: u8 = 128;

/// The documented example (`docs/WIRE.md`), compiled in: what the firmware says without any link.
const EXAMPLES: [(&str, &[u8]); 2] = [
    ("omnilabel/v1/yard/example-cbor/labels", include_bytes!("../../../docs/examples/label.cbor")),
    ("omnilabel/v1/yard/example-json/labels", include_bytes!("../../../docs/examples/label.json")),
];

/// Where a label's keypoint arrays hold what a raised hand is judged by.
struct Joints {
    nose: usize,
    wrists: [(&'static str, usize); 2],
}

impl Joints {
    /// `None` when the skeleton lacks one of them.
    fn of(skeleton: &Skeleton) -> Option<Self> {
        let place = |name| skeleton.names().position(|n| n == name);
        Some(Self { nose: place("nose")?, wrists: [("left", place("left_wrist")?), ("right", place("right_wrist")?)] })
    }

    /// The sides on which `person` holds the wrist above the nose, as far as both are seen. y grows downwards.
    fn raised(&self, person: &WireInstance) -> impl Iterator<Item = &'static str> {
        let height = |index: usize| person.keypoints.get(index).filter(|k| k.2 >= SEEN).map(|k| k.1);
        let nose = height(self.nose);
        self.wrists
            .iter()
            .filter(move |(_, wrist)| height(*wrist).zip(nose).is_some_and(|(wrist, nose)| wrist < nose))
            .map(|&(side, _)| side)
    }
}

/// Tells of one message. It speaks of its own frame alone, so a label that arrives twice (QoS 1) does no harm.
fn on_publish(joints: &Joints, topic: &str, payload: &[u8]) {
    let Some((device, Kind::Labels)) = topic::parse_device(PREFIX, SITE, topic) else {
        return println!("{topic}: not a label");
    };
    let label = match LabelMsg::decode(payload) {
        Ok(label) => label,
        Err(error) => return println!("{device}: refused {} bytes: {error}", payload.len()),
    };
    let kept = || label.instances.iter().enumerate().filter(|(_, person)| person.kept);
    println!("{device}: frame {}: {} of {} people kept", label.frame, kept().count(), label.instances.len());
    for (index, person) in kept() {
        for side in joints.raised(person) {
            println!("{device}: frame {}: person {index} raises the {side} hand", label.frame);
        }
    }
}

#[entry]
fn main() -> ! {
    static mut PACKET: [u8; MAX_PACKET] = [0; MAX_PACKET];

    let Some(joints) = Joints::of(&Skeleton::coco17()) else {
        println!("the skeleton has no nose or no wrists");
        process::exit(1)
    };
    for (topic, payload) in EXAMPLES {
        on_publish(&joints, topic, payload);
    }
    if let Ok(mut link) = File::open(c"mqtt.bin") {
        let end = loop {
            match mqtt::receive(&mut link, PACKET) {
                Ok(Some((topic, payload))) => on_publish(&joints, topic, payload),
                Ok(None) => {}
                Err(end) => break end,
            }
        };
        println!("link: {end}");
    }
    process::exit(0)
}
