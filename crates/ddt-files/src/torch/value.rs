//! What running a pickle builds: values that refer to each other by number.
//!
//! Numbers instead of pointers make cycles harmless and nesting free: nothing here is walked recursively,
//! cloned or dropped in depth. Text stays in the pickle, so memory is proportional to the pickle's size.

/// The number of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u32);

/// A piece of UTF-8 in the pickle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// A value of a pickle, as far as reading tensors needs it.
#[derive(Debug)]
pub(crate) enum Value {
    /// Something whose content does not matter here, and what to call it.
    Plain(&'static str),
    /// An integer of at most eight bytes.
    Int(i64),
    /// A string.
    Text(Text),
    /// A tuple.
    Tuple(Box<[Id]>),
    /// A list; its items are not kept.
    List,
    /// A dictionary, in order of insertion, keys unchecked.
    Dict(Vec<(Id, Id)>),
    /// A Python object by name. Nothing is looked up.
    Global {
        /// The module.
        module: Text,
        /// The name inside it.
        name: Text,
    },
    /// What a call would return. Nothing is called.
    Call {
        /// The function or class.
        callee: Id,
        /// Its arguments, a tuple.
        args: Id,
    },
    /// A reference to something outside the pickle, such as a storage.
    Persistent(Id),
}

impl Value {
    /// What to call the value in a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Plain(kind) => kind,
            Self::Int(_) => "an integer",
            Self::Text(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global { .. } => "a Python object",
            Self::Call { .. } => "the result of a call",
            Self::Persistent(_) => "a storage",
        }
    }
}

/// A pickle that has been run.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<Value>,
    pub(crate) top: Id,
}

impl Pickle {
    pub(crate) fn value(&self, id: Id) -> &Value {
        // The machine gives out no other numbers; the fallback spares a panic.
        self.values.get(id.0 as usize).unwrap_or(&Value::Plain("nothing"))
    }

    pub(crate) fn text(&self, text: Text) -> &str {
        let bytes = self.bytes.get(text.start as usize..text.end as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The string that a value is, if it is one.
    pub(crate) fn str(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(self.text(*text)),
            _ => None,
        }
    }

    /// The module and name of a Python object.
    pub(crate) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.value(id) {
            Value::Global { module, name } => Some((self.text(*module), self.text(*name))),
            _ => None,
        }
    }
}
