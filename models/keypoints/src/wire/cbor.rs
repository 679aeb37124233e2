//! CBOR (RFC 8949) of a message: the form is checked once, iteratively, before serde sees it.

use super::MAX_DEPTH;
use minicbor::data::Type;
use minicbor::decode::Decoder;
use serde::Deserialize;

/// Reads one message that fills `bytes`; the error is the byte near which it is wrong.
pub(super) fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, usize> {
    check(bytes)?;
    let mut deserializer = minicbor_serde::Deserializer::new(bytes);
    T::deserialize(&mut deserializer).map_err(|_| deserializer.decoder().position())
}

/// One item of definite lengths, nested at most [`MAX_DEPTH`] deep, and nothing after it.
fn check(bytes: &[u8]) -> Result<(), usize> {
    let mut decoder = Decoder::new(bytes);
    // Items still to come in each open array or map.
    let mut open = heapless::Vec::<u64, MAX_DEPTH>::new();
    loop {
        let at = decoder.position();
        let inner = item(&mut decoder).map_err(|()| at)?;
        if inner > 0 {
            open.push(inner).map_err(|_| at)?;
            continue;
        }
        loop {
            match open.last_mut() {
                None if decoder.position() == bytes.len() => return Ok(()),
                None => return Err(decoder.position()),
                Some(1) => {
                    open.pop();
                }
                Some(left) => {
                    *left -= 1;
                    break;
                }
            }
        }
    }
}

/// Reads one scalar, or the head of an array, map or tag; returns how many items it encloses.
fn item(decoder: &mut Decoder<'_>) -> Result<u64, ()> {
    match decoder.datatype().map_err(drop)? {
        Type::Array => decoder.array().map_err(drop)?.ok_or(()),
        Type::Map => decoder.map().map_err(drop)?.and_then(|pairs| pairs.checked_mul(2)).ok_or(()),
        Type::Tag => decoder.tag().map_err(drop).map(|_| 1),
        Type::ArrayIndef | Type::MapIndef | Type::BytesIndef | Type::StringIndef | Type::Break | Type::Unknown(_) => Err(()),
        _ => decoder.skip().map_err(drop).map(|()| 0),
    }
}
