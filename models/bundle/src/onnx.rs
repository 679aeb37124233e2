//! Where an ONNX file's external data lies. A minimal protobuf scan (onnx.proto3's field numbers), so that a bundle can be checked
//! without a graph library.

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

/// Every external tensor of the ONNX file `bytes`.
///
/// # Errors
/// What is wrong, when `bytes` is not a protobuf message.
pub fn external_data(bytes: &[u8]) -> Result<Vec<ExternalData>, String> {
    let mut found = Vec::new();
    scan(bytes, Message::Model, 0, &mut found)?;
    Ok(found)
}

fn scan(bytes: &[u8], message: Message, depth: usize, found: &mut Vec<ExternalData>) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("messages are nested deeper than {MAX_DEPTH}"));
    }
    if message == Message::Tensor {
        found.extend(tensor(bytes)?);
        return Ok(());
    }
    for field in fields(bytes) {
        let (number, value) = field?;
        if let (Some(child), Value::Bytes(inner)) = (message.child(number), value) {
            scan(inner, child, depth + 1, found)?;
        }
    }
    Ok(())
}

/// TensorProto: name = 8, external_data = 13, data_location = 14 (1: external).
fn tensor(bytes: &[u8]) -> Result<Option<ExternalData>, String> {
    let mut data = ExternalData::default();
    let mut external = false;
    for field in fields(bytes) {
        match field? {
            (8, Value::Bytes(name)) => data.tensor = String::from_utf8_lossy(name).into_owned(),
            (13, Value::Bytes(entry)) => {
                external = true;
                let (key, value) = entry_of(entry)?;
                let number = || value.parse::<u64>().map_err(|_| format!("external data of {:?}: {key} is {value:?}", data.tensor));
                match key.as_str() {
                    "location" => data.location = value,
                    "offset" => data.offset = number()?,
                    "length" => data.length = Some(number()?),
                    _ => {}
                }
            }
            (14, Value::Varint(location)) => external |= location != 0,
            _ => {}
        }
    }
    Ok(external.then_some(data))
}

/// StringStringEntryProto: key = 1, value = 2.
fn entry_of(bytes: &[u8]) -> Result<(String, String), String> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
            (2, Value::Bytes(text)) => value = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    Ok((key, value))
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), String>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next_field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or_else(|| "not an ONNX file: the protobuf message is cut short or malformed".to_owned()))
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Fixed)?,
        2 => {
            let length = varint(rest)?;
            Value::Bytes(take(rest, usize::try_from(length).ok()?)?)
        }
        5 => take(rest, 4).map(|_| Value::Fixed)?,
        _ => return None,
    };
    (key >> 3 != 0).then_some((key >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(n)?;
    *rest = tail;
    Some(head)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
