//! The pickle machine: runs the instructions of protocols 2 to 5 and calls nothing.
//!
//! Every instruction takes constant time apart from the values it moves, and creates at most one value, so
//! time and memory are proportional to the pickle. Calls and object states become values that say so; the
//! only class that is understood is `OrderedDict`, whose empty call is a dictionary.

use std::collections::HashMap;
use std::path::Path;

use crate::FileError;
use crate::limits::{MAX_MARKS, MAX_MEMO, MAX_OBJECTS, MAX_STACK};
use crate::torch::pickle::{Cursor, Id, Pickle, Text, Value};

/// Runs the pickle that `bytes` begin with; ignores what follows.
pub(crate) fn run<'a>(path: &'a Path, bytes: &'a [u8]) -> Result<Pickle<'a>, FileError> {
    let mut machine = Machine {
        cursor: Cursor::new(path, bytes),
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let top = loop {
        if let Some(top) = machine.step()? {
            break top;
        }
    };
    Ok(Pickle { bytes, values: machine.values, top, len: machine.cursor.at })
}

struct Machine<'a> {
    cursor: Cursor<'a>,
    values: Vec<Value>,
    stack: Vec<Id>,
    // Heights of the stack at which marks were set.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

type Step<T> = Result<T, FileError>;

impl Machine<'_> {
    /// Runs one instruction; returns the result at the end.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.cursor.instruction()? {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            // A frame is a hint about reading ahead.
            0x95 => drop(self.cursor.take(8)?),
            b'(' => self.mark()?,
            b'0' => self.pop_any()?,
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.pop()?;
                self.push(top)?;
                self.push(top)?;
            }
            b'N' => self.create(Value::Plain("None"))?,
            0x88 => self.create(Value::Bool(true))?,
            0x89 => self.create(Value::Bool(false))?,
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let value = self.cursor.number(4)? as u32 as i32;
                self.create(Value::Int(value.into()))?;
            }
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                self.cursor.take(8)?;
                self.create(Value::Plain("a float"))?;
            }
            // Python 2 wrote its strings with U and T.
            0x8c | b'U' => self.string(1)?,
            b'X' | b'T' => self.string(4)?,
            0x8d => self.string(8)?,
            b'C' => self.raw(1)?,
            b'B' => self.raw(4)?,
            0x8e | 0x96 => self.raw(8)?,
            b')' => self.create(Value::Tuple(Box::default()))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.pop_mark()?;
                self.create(Value::Tuple(items.into()))?;
            }
            b']' => self.create(Value::List(Vec::new()))?,
            b'}' => self.create(Value::Dict(Vec::new()))?,
            0x8f => self.create(Value::Plain("a set"))?,
            0x91 => {
                self.pop_mark()?;
                self.create(Value::Plain("a set"))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.insert(&items)?;
            }
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            0x94 => self.remember_as(self.memo.len() as u64)?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => self.global()?,
            0x93 => self.stack_global()?,
            b'R' | 0x81 => {
                let args = self.pop()?;
                self.call(args)?;
            }
            0x92 => {
                let _keywords = self.pop()?;
                let args = self.pop()?;
                self.call(args)?;
            }
            // An object's state: attributes, which no tensor is made of.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let reference = self.pop()?;
                self.create(Value::Persistent(reference))?;
            }
            other => return Err(self.cursor.fault(format!("unsupported instruction {other:#04x}"))),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Step<()> {
        match self.cursor.number(1)? {
            2..=5 => Ok(()),
            other => Err(self.cursor.fault(format!("protocol {other}, expected 2 to 5"))),
        }
    }

    // The stack.

    fn create(&mut self, value: Value) -> Step<()> {
        self.cursor.limit("the number of values in the pickle", MAX_OBJECTS, self.values.len() + 1)?;
        let id = Id(self.values.len() as u32);
        self.values.push(value);
        self.push(id)
    }

    fn push(&mut self, id: Id) -> Step<()> {
        self.cursor.limit("the pickle's stack", MAX_STACK, self.stack.len() + 1)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err(self.cursor.fault("the stack is empty")),
        }
    }

    fn mark(&mut self) -> Step<()> {
        self.cursor.limit("the nesting of the pickle", MAX_MARKS, self.marks.len() + 1)?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => Err(self.cursor.fault("there is no mark")),
        }
    }

    /// Removes the topmost value, or the mark if that is topmost.
    fn pop_any(&mut self) -> Step<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn target(&mut self) -> Step<&mut Value> {
        let id = self.pop()?;
        self.push(id)?;
        // Numbers on the stack are those of values.
        Ok(&mut self.values[id.0 as usize])
    }

    // Building values.

    fn integer(&mut self, len: usize) -> Step<()> {
        let value = self.cursor.number(len)?;
        self.create(Value::Int(value as i64))
    }

    fn long(&mut self, len_bytes: usize) -> Step<()> {
        let len = self.cursor.number(len_bytes)?;
        let digits = self.cursor.range(len)?;
        if len > 8 {
            return self.create(Value::Plain("a large integer"));
        }
        let digits = &self.cursor.bytes[digits];
        let negative = digits.last().is_some_and(|&byte| byte >= 0x80);
        let sign = if negative { -1 } else { 0 };
        let value = digits.iter().rev().fold(sign, |sum: i64, &byte| sum << 8 | i64::from(byte));
        self.create(Value::Int(value))
    }

    fn string(&mut self, len_bytes: usize) -> Step<()> {
        let len = self.cursor.number(len_bytes)?;
        let text = self.cursor.text(len)?;
        self.create(text.map_or(Value::Plain("a string that is not UTF-8"), Value::Text))
    }

    fn raw(&mut self, len_bytes: usize) -> Step<()> {
        let len = self.cursor.number(len_bytes)?;
        self.cursor.range(len)?;
        self.create(Value::Plain("bytes"))
    }

    fn tuple(&mut self, len: usize) -> Step<()> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.create(Value::Tuple(items.into()))
    }

    fn extend(&mut self, items: &[Id]) -> Step<()> {
        match self.target()? {
            Value::List(list) => {
                list.extend(items);
                Ok(())
            }
            Value::Call { .. } | Value::Plain("a set") => Ok(()),
            other => {
                let kind = other.kind();
                Err(self.cursor.fault(format!("items cannot be added to {kind}")))
            }
        }
    }

    fn insert(&mut self, items: &[Id]) -> Step<()> {
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(self.cursor.fault("a key without a value"));
        }
        match self.target()? {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Value::Call { .. } => {}
            other => {
                let kind = other.kind();
                return Err(self.cursor.fault(format!("keys cannot be set on {kind}")));
            }
        }
        Ok(())
    }

    fn global(&mut self) -> Step<()> {
        let module = self.cursor.line()?;
        let name = self.cursor.line()?;
        self.create(Value::Global { module, name })
    }

    fn stack_global(&mut self) -> Step<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        let text = |id: Id| match self.values.get(id.0 as usize) {
            Some(Value::Text(text)) => Some(*text),
            _ => None,
        };
        match (text(module), text(name)) {
            (Some(module), Some(name)) => self.create(Value::Global { module, name }),
            _ => Err(self.cursor.fault("a Python object must be named by strings")),
        }
    }

    fn call(&mut self, args: Id) -> Step<()> {
        let callee = self.pop()?;
        let is_empty =
            matches!(self.values.get(args.0 as usize), Some(Value::Tuple(items)) if items.is_empty());
        if is_empty && self.is_ordered_dict(callee) {
            return self.create(Value::Dict(Vec::new()));
        }
        self.create(Value::Call { callee, args })
    }

    fn is_ordered_dict(&self, id: Id) -> bool {
        let Some(Value::Global { module, name }) = self.values.get(id.0 as usize) else { return false };
        let bytes = |text: &Text| &self.cursor.bytes[text.start as usize..text.end as usize];
        bytes(module) == b"collections" && bytes(name) == b"OrderedDict"
    }

    // The memo.

    fn remember(&mut self, len: usize) -> Step<()> {
        let key = self.cursor.number(len)?;
        self.remember_as(key)
    }

    fn remember_as(&mut self, key: u64) -> Step<()> {
        let top = self.pop()?;
        self.push(top)?;
        self.memo.insert(key, top);
        self.cursor.limit("the pickle's memo", MAX_MEMO, self.memo.len())
    }

    fn recall(&mut self, len: usize) -> Step<()> {
        let key = self.cursor.number(len)?;
        match self.memo.get(&key) {
            Some(&id) => self.push(id),
            None => Err(self.cursor.fault(format!("nothing is remembered as {key}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pickle(bytes: &[u8]) -> Result<Pickle<'_>, FileError> {
        run(Path::new("test"), bytes)
    }

    fn top(bytes: &[u8]) -> Value {
        let mut pickle = pickle(bytes).unwrap();
        pickle.values.swap_remove(pickle.top.0 as usize)
    }

    fn problem(bytes: &[u8]) -> String {
        pickle(bytes).unwrap_err().to_string()
    }

    #[test]
    fn integers_of_every_width() {
        let int = |bytes: &[u8]| match top(bytes) {
            Value::Int(value) => value,
            other => panic!("{other:?}"),
        };
        assert_eq!(int(b"K\xff."), 255);
        assert_eq!(int(b"M\x00\x01."), 256);
        assert_eq!(int(b"J\xfe\xff\xff\xff."), -2);
        assert_eq!(int(b"\x8a\x00."), 0);
        assert_eq!(int(b"\x8a\x02\x00\xff."), -256);
        assert_eq!(int(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f."), i64::MAX);
        assert_eq!(int(b"\x8b\x01\x00\x00\x00\x05."), 5);
        assert!(matches!(top(b"\x8a\x09\0\0\0\0\0\0\0\0\x01."), Value::Plain("a large integer")));
    }

    #[test]
    fn containers_and_memo() {
        assert!(matches!(top(b"\x80\x02}q\x00(K\x01K\x02K\x03K\x04u."), Value::Dict(it) if it.len() == 2));
        assert!(
            matches!(top(b"ccollections\nOrderedDict\n)R\x94K\x01K\x02sh\x00."), Value::Dict(it) if it.len() == 1)
        );
        assert!(matches!(top(b"(K\x01(K\x02K\x031t."), Value::Tuple(it) if it.len() == 1));
        assert!(matches!(top(b"K\x01(00K\x01K\x02\x86."), Value::Tuple(it) if it.len() == 2));
        assert!(matches!(top(b"]K\x01a(K\x02K\x03e."), Value::List(it) if it.len() == 3));
        for string in [b"\x8c\x02os.".as_slice(), b"U\x02os.", b"T\x02\0\0\0os."] {
            assert!(matches!(top(string), Value::Text(_)));
        }
        assert!(matches!(top(b"\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R."), Value::Call { .. }));
    }

    #[test]
    fn what_is_unknown_passes_as_a_value() {
        // A set, a frozen set, bytes, an object with arguments, keywords, items and a state.
        assert!(matches!(top(b"\x8f(K\x01\x90."), Value::Plain("a set")));
        assert!(matches!(top(b"(K\x01\x91."), Value::Plain("a set")));
        assert!(matches!(top(b"cm\nC\n)}\x92(K\x01K\x02uK\x01a}b."), Value::Call { .. }));
        assert!(matches!(top(b"X\x01\x00\x00\x00\xff."), Value::Plain("a string that is not UTF-8")));
    }

    #[test]
    fn malformed_pickles_are_named() {
        assert!(problem(b"").contains("1 bytes are needed, 0 are left"));
        assert!(problem(b".").contains("the stack is empty"));
        assert!(problem(b"(.").contains("the stack is empty"));
        assert!(problem(b"K\x01(.").contains("the stack is empty"));
        assert!(problem(b"t").contains("no mark"));
        assert!(problem(b"\x80\x06").contains("protocol 6"));
        assert!(problem(b"\x80\x01").contains("protocol 1"));
        assert!(problem(b"h\x05").contains("remembered as 5"));
        assert!(problem(b"}K\x01K\x02e").contains("no mark"));
        assert!(problem(b"}(K\x01u").contains("key without a value"));
        assert!(problem(b"K\x01K\x02a").contains("cannot be added to an integer"));
        assert!(problem(b"]K\x01K\x02s").contains("cannot be set on a list"));
        assert!(problem(b"K\x01K\x02\x93").contains("named by strings"));
        assert!(problem(b"cmodule").contains("does not end"));
        assert!(problem(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff").contains("are left"));
        assert!(problem(b"I1\n").contains("unsupported instruction 0x49"));
    }

    #[test]
    fn endless_growth_meets_a_limit() {
        let limit = |bytes: Vec<u8>, expected: &str| {
            let problem = problem(&bytes);
            assert!(problem.contains(expected) && problem.contains("the limit is"), "{problem}");
        };
        limit(vec![b'('; MAX_MARKS + 1], "the nesting of the pickle");
        limit(vec![b']'; MAX_STACK + 1], "the pickle's stack");
        limit([b"]".as_slice(), &b"2".repeat(MAX_STACK)].concat(), "the pickle's stack");
        limit(b"]0".repeat(MAX_OBJECTS + 1), "the number of values in the pickle");
        limit([b"]".as_slice(), &b"\x94".repeat(MAX_MEMO + 1)].concat(), "the pickle's memo");
    }
}
