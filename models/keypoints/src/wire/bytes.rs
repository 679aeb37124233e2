//! Byte strings: CBOR bytes, JSON base64 (RFC 4648 §4, padded).

use core::fmt::{self, Write};
use core::marker::PhantomData;
use heapless::Vec;
use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) fn serialize<S: Serializer, const N: usize>(value: &Vec<u8, N>, serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() { serializer.collect_str(&Base64(value)) } else { serializer.serialize_bytes(value) }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<Vec<u8, N>, D::Error> {
    let visitor = BytesVisitor(PhantomData);
    if deserializer.is_human_readable() { deserializer.deserialize_str(visitor) } else { deserializer.deserialize_bytes(visitor) }
}

/// Writes the bytes as base64.
struct Base64<'b>(&'b [u8]);

impl fmt::Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.chunks(3) {
            let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
            let group = byte(0) << 16 | byte(1) << 8 | byte(2);
            for digit in 0..4 {
                let sextet = (group >> (18 - 6 * digit)) & 63;
                f.write_char(if digit <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' })?;
            }
        }
        Ok(())
    }
}

struct BytesVisitor<const N: usize>(PhantomData<[u8; N]>);

impl<'de, const N: usize> Visitor<'de> for BytesVisitor<N> {
    type Value = Vec<u8, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {N} bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Vec::from_slice(bytes).map_err(|_| E::invalid_length(bytes.len(), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let wrong = || E::custom("not padded base64 of the right length");
        let mut bytes = Vec::new();
        let (groups, rest) = text.as_bytes().as_chunks::<4>();
        if !rest.is_empty() {
            return Err(wrong());
        }
        for (index, group) in groups.iter().enumerate() {
            let padding = if index + 1 == groups.len() { group.iter().rev().take_while(|&&c| c == b'=').count() } else { 0 };
            let mut value = 0u32;
            for &digit in &group[..4 - padding] {
                value = value << 6 | ALPHABET.iter().position(|&c| c == digit).ok_or_else(wrong)? as u32;
            }
            value <<= 6 * padding as u32;
            // At most two padding characters, and no bits below them: one encoding for each byte string.
            if padding > 2 || value & ((1 << (8 * padding)) - 1) != 0 {
                return Err(wrong());
            }
            bytes.extend_from_slice(&value.to_be_bytes()[1..4 - padding]).map_err(|_| wrong())?;
        }
        Ok(bytes)
    }
}
