//! A JSON (RFC 8259) reader without allocation: strict grammar, unknown values skipped to a bounded depth, numbers exact
//! (decimal fractions through `core`'s correctly rounded parser).

use super::MAX_DEPTH;
use core::fmt;
use heapless::Vec;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

/// The longest string with escapes, unescaped, in bytes. Strings without escapes may have any length.
pub const MAX_ESCAPED: usize = 512;

/// Reads one value that fills `bytes`, white space apart; the error is the byte near which it is wrong.
///
/// # Errors
/// The byte offset.
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, usize> {
    let mut reader = Reader { input: bytes, at: 0, depth: 0 };
    let value = T::deserialize(&mut reader).map_err(|_| reader.at)?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.at),
    }
}

/// Something is wrong near the reader's position.
#[derive(Debug)]
struct Wrong;

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the expected JSON")
    }
}

impl core::error::Error for Wrong {}

impl serde::de::Error for Wrong {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Reader<'de> {
    input: &'de [u8],
    at: usize,
    depth: usize,
}

impl<'de> Reader<'de> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.input.get(self.at) {
            self.at += 1;
        }
        self.input.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> Result<(), Wrong> {
        if self.peek() != Some(byte) {
            return Err(Wrong);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), Wrong> {
        let rest = self.input.get(self.at..).ok_or(Wrong)?;
        if !rest.starts_with(word.as_bytes()) {
            return Err(Wrong);
        }
        self.at += word.len();
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Wrong> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Wrong) } else { Ok(()) }
    }

    /// Whether another element follows before `close`; eats the separator, or `close`.
    fn next(&mut self, first: &mut bool, close: u8) -> Result<bool, Wrong> {
        let found = self.peek().ok_or(Wrong)?;
        if found == close {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        if !core::mem::take(first) {
            self.eat(b',')?;
        }
        Ok(true)
    }

    /// The raw text between the quotes, and whether it has escapes.
    fn raw_string(&mut self) -> Result<(&'de str, bool), Wrong> {
        self.eat(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.input.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(Wrong),
            }
        }
        let text = core::str::from_utf8(&self.input[start..self.at]).map_err(|_| Wrong)?;
        self.at += 1;
        Ok((text, escaped))
    }

    fn string<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Wrong> {
        let (text, escaped) = self.raw_string()?;
        if !escaped {
            return visitor.visit_borrowed_str(text);
        }
        let mut buffer = Vec::<u8, MAX_ESCAPED>::new();
        unescape(text, |c| buffer.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()).map_err(|_| Wrong))?;
        visitor.visit_str(core::str::from_utf8(&buffer).map_err(|_| Wrong)?)
    }

    /// The text of a number of RFC 8259's grammar, and whether it is an integer.
    fn raw_number(&mut self) -> Result<(&'de str, bool), Wrong> {
        let start = self.at;
        if self.input.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.input.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(Wrong),
        }
        let mut integer = true;
        if self.input.get(self.at) == Some(&b'.') {
            integer = false;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.input.get(self.at) {
            integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.input.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = core::str::from_utf8(&self.input[start..self.at]).map_err(|_| Wrong)?;
        Ok((text, integer))
    }

    fn digits(&mut self) -> Result<(), Wrong> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.input.get(self.at) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Wrong) }
    }

    fn number<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Wrong> {
        let (text, integer) = self.raw_number()?;
        if integer && text != "-0" {
            if let Ok(value) = text.parse::<u64>() {
                return visitor.visit_u64(value);
            }
            if let Ok(value) = text.parse::<i64>() {
                return visitor.visit_i64(value);
            }
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => visitor.visit_f64(value),
            _ => Err(Wrong),
        }
    }

    /// Skips one value of any kind; recursion ends at [`MAX_DEPTH`].
    fn skip(&mut self) -> Result<(), Wrong> {
        match self.peek().ok_or(Wrong)? {
            b'"' => {
                let (text, escaped) = self.raw_string()?;
                if escaped { unescape(text, |_| Ok(())) } else { Ok(()) }
            }
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            open @ (b'[' | b'{') => {
                self.at += 1;
                self.enter()?;
                let mut first = true;
                while self.next(&mut first, if open == b'[' { b']' } else { b'}' })? {
                    if open == b'{' {
                        self.skip_key()?;
                    }
                    self.skip()?;
                }
                Ok(())
            }
            _ => self.raw_number().map(drop),
        }
    }

    fn skip_key(&mut self) -> Result<(), Wrong> {
        let (text, _) = self.raw_string()?;
        unescape(text, |_| Ok(()))?;
        self.eat(b':')
    }
}

/// Calls `push` with each character of a raw JSON string.
fn unescape(text: &str, mut push: impl FnMut(char) -> Result<(), Wrong>) -> Result<(), Wrong> {
    fn unit(chars: &mut core::str::Chars<'_>) -> Result<u32, Wrong> {
        let mut value = 0;
        for _ in 0..4 {
            value = value << 4 | chars.next().and_then(|c| c.to_digit(16)).ok_or(Wrong)?;
        }
        Ok(value)
    }
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(c)?;
            continue;
        }
        let c = match chars.next().ok_or(Wrong)? {
            c @ ('"' | '\\' | '/') => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => match unit(&mut chars)? {
                high @ 0xD800..0xDC00 => {
                    if (chars.next(), chars.next()) != (Some('\\'), Some('u')) {
                        return Err(Wrong);
                    }
                    let low = unit(&mut chars)?.checked_sub(0xDC00).filter(|&low| low < 0x400).ok_or(Wrong)?;
                    char::from_u32(0x10000 + ((high - 0xD800) << 10) + low).ok_or(Wrong)?
                }
                code => char::from_u32(code).ok_or(Wrong)?,
            },
            _ => return Err(Wrong),
        };
        push(c)?;
    }
    Ok(())
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.peek().ok_or(Wrong)? {
            b'"' => self.string(visitor),
            b't' => self.word("true").and_then(|()| visitor.visit_bool(true)),
            b'f' => self.word("false").and_then(|()| visitor.visit_bool(false)),
            b'n' => self.word("null").and_then(|()| visitor.visit_unit()),
            b'[' => {
                self.at += 1;
                self.enter()?;
                let mut elements = Elements { reader: self, first: true, open: true };
                let value = visitor.visit_seq(&mut elements)?;
                if elements.open && elements.reader.next(&mut elements.first, b']')? { Err(Wrong) } else { Ok(value) }
            }
            b'{' => {
                self.at += 1;
                self.enter()?;
                visitor.visit_map(Elements { reader: self, first: true, open: true })
            }
            _ => self.number(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if self.peek() == Some(b'n') { self.word("null").and_then(|()| visitor.visit_none()) } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &str, _: &[&str], visitor: V) -> Result<V::Value, Wrong> {
        // A struct is an object; derived visitors would take an array too.
        if self.peek() == Some(b'{') { self.deserialize_any(visitor) } else { Err(Wrong) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.skip().and_then(|()| visitor.visit_unit())
    }

    /// No type of this workspace's messages is an enum.
    fn deserialize_enum<V: Visitor<'de>>(self, _: &str, _: &[&str], _: V) -> Result<V::Value, Wrong> {
        Err(Wrong)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map identifier
    }
}

/// The elements of an array, or the members of an object.
struct Elements<'r, 'de> {
    reader: &'r mut Reader<'de>,
    first: bool,
    open: bool,
}

impl<'de> SeqAccess<'de> for &mut Elements<'_, 'de> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        self.open = self.open && self.reader.next(&mut self.first, b']')?;
        if self.open { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        self.open = self.open && self.reader.next(&mut self.first, b'}')?;
        if !self.open {
            return Ok(None);
        }
        if self.reader.peek() != Some(b'"') {
            return Err(Wrong);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        self.reader.eat(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}
