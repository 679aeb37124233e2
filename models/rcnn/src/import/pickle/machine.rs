//! The stack machine that a pickle is a program for.

use super::{Id, MAX_NODES, Node, Pickle, Refusal};
use std::collections::HashMap;

/// Runs one pickle from the front of `bytes`; returns it with the number of bytes read.
pub(super) fn run(bytes: &[u8]) -> Result<(Pickle, usize), Refusal> {
    let mut machine = Machine::new(bytes);
    let root = machine.run().map_err(|message| format!("pickle, byte {}: {message}", machine.at))?;
    Ok((Pickle { nodes: machine.nodes, root }, machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Bytes that calls may still make of texts: all of them once.
    budget: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), budget: bytes.len() }
    }

    fn take(&mut self, count: u64) -> Result<&[u8], Refusal> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("{count} more bytes are expected, {} are left", self.bytes.len() - self.at))?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    /// A little-endian number of `width` bytes.
    fn number(&mut self, width: u64) -> Result<u64, Refusal> {
        Ok(self.take(width)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<String, Refusal> {
        let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n').ok_or("a line without an end")?;
        let line = String::from_utf8_lossy(self.take(length as u64)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn text(&mut self, length: u64) -> Result<Node, Refusal> {
        Ok(Node::Text(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }

    fn push(&mut self, node: Node) -> Result<(), Refusal> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} values"));
        }
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the stack is empty".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn top(&self) -> Result<Id, Refusal> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    /// What lies above the latest mark.
    fn marked(&mut self) -> Result<Vec<Id>, Refusal> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, count: usize) -> Result<(), Refusal> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Tuple(items))
    }

    fn append(&mut self, values: Vec<Id>) -> Result<(), Refusal> {
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::List(items) => items.extend(values),
            Node::Object { items, .. } => items.extend(values.into_iter().map(|value| (value, value))),
            other => return Err(format!("something is appended to {}", other.kind())),
        }
        Ok(())
    }

    fn set(&mut self, values: &[Id]) -> Result<(), Refusal> {
        let target = self.top()?;
        if !values.len().is_multiple_of(2) {
            return Err("a key without a value".to_owned());
        }
        let pairs = values.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        match &mut self.nodes[target] {
            Node::Dict(entries) | Node::Object { items: entries, .. } => entries.extend(pairs),
            other => return Err(format!("an item is set on {}", other.kind())),
        }
        Ok(())
    }

    fn call(&mut self, callable: Id, args: Id) -> Result<(), Refusal> {
        let args_of = |machine: &Self| match &machine.nodes[args] {
            Node::Tuple(items) => items.clone(),
            _ => Vec::new(),
        };
        // Python 3 writes bytes for old readers as text in Latin-1, or as a call where there are none.
        if let Node::Global(name) = &self.nodes[callable]
            && name == "_codecs.encode"
            && let Some(&text) = args_of(self).first()
            && let Node::Text(text) = &self.nodes[text]
        {
            let bytes = text.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<Vec<u8>, _>>();
            let bytes = bytes.map_err(|_| "text that is not Latin-1 stands for bytes")?;
            // A text that was remembered could be encoded again and again.
            let left = self.budget.checked_sub(bytes.len());
            self.budget = left.ok_or("more bytes are made of texts than there are")?;
            return self.push(Node::Bytes(bytes));
        }
        if matches!(&self.nodes[callable], Node::Global(name) if name == "__builtin__.bytes") && args_of(self).is_empty() {
            return self.push(Node::Bytes(Vec::new()));
        }
        self.push(Node::Object { callable, args, state: None, items: Vec::new() })
    }

    fn memoize(&mut self, key: u64) -> Result<(), Refusal> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Refusal> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("memo {key} is not set"))?;
        self.stack.push(id);
        if self.stack.len() > MAX_NODES {
            return Err(format!("more than {MAX_NODES} values"));
        }
        Ok(())
    }

    /// Runs to the end and returns the result. The opcodes are those of CPython's `pickletools`.
    fn run(&mut self) -> Result<Id, Refusal> {
        loop {
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                return self.pop();
            }
            let known =
                self.stack(opcode)? || self.scalar(opcode)? || self.string(opcode)? || self.container(opcode)? || self.object(opcode)?;
            if !known {
                return Err(format!("opcode {opcode:#04x} is not one that checkpoints use"));
            }
        }
    }

    /// Numbers, truth values, None. Whether `opcode` is one of these.
    fn scalar(&mut self, opcode: u8) -> Result<bool, Refusal> {
        match opcode {
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'J' => {
                let value = self.number(4)? as u32;
                self.push(Node::Int(i64::from(value.cast_signed())))?;
            }
            b'K' => {
                let value = self.number(1)?;
                self.push(Node::Int(value.cast_signed()))?;
            }
            b'M' => {
                let value = self.number(2)?;
                self.push(Node::Int(value.cast_signed()))?;
            }
            b'I' | b'L' => {
                let line = self.line()?;
                let node = match line.trim_end_matches('L') {
                    "01" if opcode == b'I' => Node::Bool(true),
                    "00" if opcode == b'I' => Node::Bool(false),
                    digits => Node::Int(digits.parse().map_err(|_| "a whole number is expected")?),
                };
                self.push(node)?;
            }
            0x8a | 0x8b => {
                let length = self.number(if opcode == 0x8a { 1 } else { 4 })?;
                let node = long(self.take(length)?);
                self.push(node)?;
            }
            b'F' => {
                let line = self.line()?;
                self.push(Node::Float(line.parse().map_err(|_| "a number is expected")?))?;
            }
            b'G' => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(self.take(8)?);
                self.push(Node::Float(f64::from_be_bytes(bytes)))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Texts and bytes. Whether `opcode` is one of these.
    fn string(&mut self, opcode: u8) -> Result<bool, Refusal> {
        match opcode {
            b'X' | 0x8c | 0x8d => {
                let length = self.number(match opcode {
                    b'X' => 4,
                    0x8c => 1,
                    _ => 8,
                })?;
                let node = self.text(length)?;
                self.push(node)?;
            }
            b'V' => {
                let line = self.line()?;
                self.push(Node::Text(line))?;
            }
            b'S' => {
                let line = self.line()?;
                let inner = line.trim_matches(|c| c == '\'' || c == '"');
                if inner.contains('\\') {
                    return Err("a string of protocol 0 with escapes: save it with a later protocol".to_owned());
                }
                self.push(Node::Bytes(inner.as_bytes().to_vec()))?;
            }
            b'B' | b'C' | 0x8e | 0x96 | b'T' | b'U' => {
                let length = self.number(match opcode {
                    b'C' | b'U' => 1,
                    b'B' | b'T' => 4,
                    _ => 8,
                })?;
                let bytes = self.take(length)?.to_vec();
                self.push(Node::Bytes(bytes))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Lists, tuples, dictionaries; sets are read as lists: nothing here looks at one. Whether `opcode` is one of these.
    fn container(&mut self, opcode: u8) -> Result<bool, Refusal> {
        match opcode {
            b')' => self.push(Node::Tuple(Vec::new()))?,
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
            b't' => {
                let items = self.marked()?;
                self.push(Node::Tuple(items))?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'l' => {
                let items = self.marked()?;
                self.push(Node::List(items))?;
            }
            0x8f => self.push(Node::List(Vec::new()))?,
            0x91 => {
                let items = self.marked()?;
                self.push(Node::List(items))?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'd' => {
                let items = self.marked()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set(&items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.marked()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.marked()?;
                self.set(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Names, calls, what is built into objects, references. Whether `opcode` is one of these.
    fn object(&mut self, opcode: u8) -> Result<bool, Refusal> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(name), Node::Text(module)) = (&self.nodes[name], &self.nodes[module]) else {
                    return Err("a global without a name".to_owned());
                };
                let name = format!("{module}.{name}");
                self.push(Node::Global(name))?;
            }
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            0x92 => {
                let (_keywords, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                // The state of anything else, such as a dictionary's attributes, says nothing about tensors.
                if let Node::Object { state: slot, .. } = &mut self.nodes[target] {
                    *slot = Some(state);
                }
            }
            b'P' => {
                let line = self.line()?;
                self.push(Node::Text(line))?;
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The stack itself, its marks, the memo, and what frames the pickle. Whether `opcode` is one of these.
    fn stack(&mut self, opcode: u8) -> Result<bool, Refusal> {
        match opcode {
            0x80 => {
                let protocol = self.number(1)?;
                if protocol > 5 {
                    return Err(format!("protocol {protocol}, at most 5 is known"));
                }
            }
            // FRAME only says how much follows.
            0x95 => drop(self.number(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'p' => {
                let line = self.line()?;
                self.memoize(line.parse().map_err(|_| "the number of a memo is expected")?)?;
            }
            b'q' | b'r' => {
                let key = self.number(if opcode == b'q' { 1 } else { 4 })?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'g' => {
                let line = self.line()?;
                self.recall(line.parse().map_err(|_| "the number of a memo is expected")?)?;
            }
            b'h' | b'j' => {
                let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A little-endian two's complement number of any length; one that does not fit becomes its bytes.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Bytes(bytes.to_vec());
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut padded = [if negative { 0xff } else { 0 }; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(padded))
}
