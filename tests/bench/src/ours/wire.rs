//! Labels to bytes and back: our CBOR, or `serde_json` on the same types.

use crate::fixture;
use crate::side::{Kind, Task, Work};
use anyhow::Result;
use omnilabel_keypoints::wire::{Encoding, LabelMsg, Message};
use serde_json::{Value, json};

pub(crate) struct Wire {
    json: bool,
    decode: bool,
    labels: Vec<LabelMsg>,
    bytes: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(task: &Task, json: bool) -> Result<Self> {
        let labels = fixture::read_json(&task.folder.join("labels.json"))?;
        let mut wire = Self { json, decode: task.kind == Kind::Decode, labels, bytes: Vec::new(), buffer: vec![0; LabelMsg::MAX_BYTES] };
        wire.bytes = (0..wire.labels.len()).map(|index| wire.encode(index)).collect::<Result<_>>()?;
        Ok(wire)
    }

    fn encode(&mut self, index: usize) -> Result<Vec<u8>> {
        if self.json {
            return Ok(serde_json::to_vec(&self.labels[index])?);
        }
        let length = self.labels[index].encode(Encoding::Cbor, &mut self.buffer)?;
        Ok(self.buffer[..length].to_vec())
    }

    fn decoded(&self, bytes: &[u8]) -> Result<LabelMsg> {
        Ok(if self.json { serde_json::from_slice(bytes)? } else { LabelMsg::decode(bytes)? })
    }
}

impl Work for Wire {
    /// The sum of all measurements in the decoded labels.
    fn check(&mut self) -> Result<Value> {
        let mut sum = 0i64;
        for bytes in &self.bytes {
            for instance in &self.decoded(bytes)?.instances {
                sum += i64::from(instance.score) + instance.rect.iter().map(|&v| i64::from(v)).sum::<i64>();
                let of = |k: &omnilabel_keypoints::wire::WireKeypoint| {
                    i64::from(k.0) + i64::from(k.1) + i64::from(k.2) + i64::from(k.3) + i64::from(k.4)
                };
                sum += instance.keypoints.iter().map(of).sum::<i64>();
            }
        }
        Ok(json!({"labels": self.labels.len(), "sum": sum, "bytes": self.bytes.iter().map(Vec::len).sum::<usize>()}))
    }

    fn run(&mut self) -> Result<()> {
        for index in 0..self.labels.len() {
            if self.decode {
                std::hint::black_box(self.decoded(&self.bytes[index])?);
            } else {
                std::hint::black_box(self.encode(index)?);
            }
        }
        Ok(())
    }
}
