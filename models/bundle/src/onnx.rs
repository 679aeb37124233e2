//! Where an ONNX file's external data lies. A minimal protobuf scan (onnx.proto3's field numbers), so that a bundle can be checked
//! without a graph library. Weights inside the file are skipped, not read: it may be as large as a wrapped model is.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};

/// One tensor that is stored outside of its ONNX file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalData {
    /// Name of the tensor.
    pub tensor: String,
    /// The file, as the ONNX file writes it.
    pub location: String,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes, when stated.
    pub length: Option<u64>,
}

/// The deepest nesting of messages: graphs within attributes within nodes.
const MAX_DEPTH: usize = 32;
/// The longest name of a tensor or entry of its external data, bytes.
const MAX_TEXT: u64 = 1 << 16;
/// The most tensors outside of one file.
const MAX_TENSORS: usize = 1 << 17;

#[derive(Clone, Copy, PartialEq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    Training,
    SparseTensor,
    Tensor,
}

impl Message {
    /// The messages below this one that can hold a tensor.
    fn child(self, field: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, field) {
            (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
            (Node, 5) | (Function, 11) => Attribute,
            _ => return None,
        })
    }
}

/// Every external tensor of an ONNX file. Wrap a file in a [`std::io::BufReader`].
///
/// # Errors
/// What is wrong, when the bytes are not a protobuf message.
pub fn external_data(mut reader: impl Read + Seek) -> Result<Vec<ExternalData>, String> {
    let end = reader.seek(SeekFrom::End(0)).and_then(|end| reader.rewind().map(|()| end)).map_err(|e| e.to_string())?;
    let mut scan = Scan { reader, at: 0, found: Vec::new() };
    scan.message(end, Message::Model, 0)?;
    Ok(scan.found)
}

enum Value {
    Varint(u64),
    /// Ends before this byte of the file.
    Bytes(u64),
    Fixed,
}

struct Scan<R> {
    reader: R,
    at: u64,
    found: Vec<ExternalData>,
}

impl<R: Read + Seek> Scan<R> {
    fn message(&mut self, end: u64, message: Message, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("messages are nested deeper than {MAX_DEPTH}"));
        }
        if message == Message::Tensor {
            return self.tensor(end);
        }
        while let Some((number, value)) = self.field(end)? {
            if let Value::Bytes(inner) = value {
                match message.child(number) {
                    Some(child) => self.message(inner, child, depth + 1)?,
                    None => self.skip_to(inner)?,
                }
            }
        }
        Ok(())
    }

    /// TensorProto: name = 8, external_data = 13, data_location = 14 (1: external).
    fn tensor(&mut self, end: u64) -> Result<(), String> {
        let mut data = ExternalData::default();
        let mut external = false;
        let mut keys = BTreeSet::new();
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (8, Value::Bytes(end)) => data.tensor = self.text(end)?,
                (13, Value::Bytes(end)) => {
                    external = true;
                    let (key, value) = self.entry(end)?;
                    // Readers differ in which of two they take: what is checked would not be what is read.
                    if !keys.insert(key.clone()) {
                        return Err(format!("external data of {:?}: {key} stands there twice", data.tensor));
                    }
                    let number = || value.parse::<u64>().map_err(|_| format!("external data of {:?}: {key} is {value:?}", data.tensor));
                    match key.as_str() {
                        "location" => data.location = value,
                        "offset" => data.offset = number()?,
                        "length" => data.length = Some(number()?),
                        _ => {}
                    }
                }
                (14, Value::Varint(location)) => external |= location != 0,
                (_, Value::Bytes(end)) => self.skip_to(end)?,
                _ => {}
            }
        }
        if external {
            if self.found.len() >= MAX_TENSORS {
                return Err(format!("more than {MAX_TENSORS} tensors lie outside"));
            }
            self.found.push(data);
        }
        Ok(())
    }

    /// StringStringEntryProto: key = 1, value = 2.
    fn entry(&mut self, end: u64) -> Result<(String, String), String> {
        let (mut key, mut value) = (String::new(), String::new());
        while let Some((number, field)) = self.field(end)? {
            match (number, field) {
                (1, Value::Bytes(end)) => key = self.text(end)?,
                (2, Value::Bytes(end)) => value = self.text(end)?,
                (_, Value::Bytes(end)) => self.skip_to(end)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    /// The next field's number; its bytes, if it has any, are yet to be read or skipped.
    fn field(&mut self, end: u64) -> Result<Option<(u64, Value)>, String> {
        if self.at >= end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint(end)?),
            1 => self.fixed(8, end)?,
            2 => {
                let length = self.varint(end)?;
                Value::Bytes(self.at.checked_add(length).filter(|&inner| inner <= end).ok_or_else(malformed)?)
            }
            5 => self.fixed(4, end)?,
            _ => return Err(malformed()),
        };
        if key >> 3 == 0 { Err(malformed()) } else { Ok(Some((key >> 3, value))) }
    }

    fn fixed(&mut self, bytes: u64, end: u64) -> Result<Value, String> {
        let to = Some(self.at + bytes).filter(|&to| to <= end).ok_or_else(malformed)?;
        self.skip_to(to)?;
        Ok(Value::Fixed)
    }

    fn varint(&mut self, end: u64) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(malformed());
            }
            let mut byte = [0];
            self.reader.read_exact(&mut byte).map_err(|e| e.to_string())?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed())
    }

    fn text(&mut self, end: u64) -> Result<String, String> {
        let length = end - self.at;
        if length > MAX_TEXT {
            return Err(format!("a name of {length} bytes, at most {MAX_TEXT}"));
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        self.at = end;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip_to(&mut self, to: u64) -> Result<(), String> {
        let by = i64::try_from(to - self.at).map_err(|_| malformed())?;
        self.reader.seek_relative(by).map_err(|e| e.to_string())?;
        self.at = to;
        Ok(())
    }
}

fn malformed() -> String {
    "not an ONNX file: the protobuf message is cut short or malformed".to_owned()
}
