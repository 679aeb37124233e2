//! Python's pickles as plain data: nothing is imported, called or executed, so that a checkpoint from anywhere can be looked at.
//!
//! Protocols 0 to 5 as `torch.save`, `pickle.dump` and Python 2 write them, but for opcodes that only code objects need. An unknown
//! callable becomes [`Node::Object`], which remembers its arguments.

mod machine;

/// Index of a node in a [`Pickle`].
pub(super) type Id = usize;

/// The most nodes of a pickle: a checkpoint has some tens per tensor.
const MAX_NODES: usize = 1 << 24;

/// A value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Bytes, and the strings of Python 2.
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `module.name`.
    Global(String),
    /// What a callable made of its arguments, and what was built into it later.
    Object {
        callable: Id,
        args: Id,
        state: Option<Id>,
        /// Items that were set or appended on it, such as those of an `OrderedDict`.
        items: Vec<(Id, Id)>,
    },
    /// A reference to something outside of the pickle: torch's storages.
    Persistent(Id),
}

impl Node {
    /// For messages.
    const fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) | Self::Bytes(_) => "a text",
            Self::List(_) | Self::Tuple(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a name",
            Self::Object { .. } => "an object",
            Self::Persistent(_) => "a reference",
        }
    }
}

/// A value and everything it consists of.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

/// Why a pickle could not be read.
pub(super) type Refusal = String;

impl Pickle {
    /// Reads one pickle from the front of `bytes` and returns it with the number of bytes read.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), Refusal> {
        machine::run(bytes)
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// Every node, in the order in which they were made.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Key and value of each entry of a dictionary, an `OrderedDict` among others.
    pub(super) fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            Node::Object { callable, items, .. } if self.global(*callable).is_some_and(|name| name.ends_with(".OrderedDict")) => {
                Some(items)
            }
            _ => None,
        }
    }

    /// The value under a key.
    pub(super) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        self.entries(dict)?.iter().find(|(k, _)| self.text(*k).as_deref() == Some(key)).map(|(_, value)| *value)
    }

    /// A tuple's or list's elements.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            Node::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// Text, or a string of Python 2.
    pub(super) fn text(&self, id: Id) -> Option<std::borrow::Cow<'_, str>> {
        match self.node(id) {
            Node::Text(text) => Some(text.into()),
            Node::Bytes(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        }
    }

    pub(super) fn global(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Global(name) => Some(name),
            _ => None,
        }
    }

    /// A list of whole numbers that are not negative, such as a shape.
    pub(super) fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.items(id)?.iter().map(|&item| usize::try_from(self.int(item)?).ok()).collect()
    }

    /// Callable and arguments of an object.
    pub(super) fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        match self.node(id) {
            Node::Object { callable, args, .. } => Some((self.global(*callable)?, self.items(*args)?)),
            _ => None,
        }
    }
}
