//! A reader of just so much of Python's pickle format as PyTorch's state dictionaries use.
//!
//! It runs no code: the only callables it knows are `OrderedDict` and `_rebuild_tensor_v2`, and it gives descriptions of
//! tensors. Every size is bounded; anything unknown is an error that names it.

use std::rc::Rc;

/// A tensor as the pickle describes it: a strided view on a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    /// Key of the storage: the file `data/KEY` in the archive.
    pub storage: Rc<str>,
    /// Type of the storage, e.g. `FloatStorage`.
    pub storage_type: Rc<str>,
    /// First element, in elements.
    pub offset: usize,
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// Step of each axis, in elements.
    pub stride: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Str(Rc<str>),
    Global(Rc<str>, Rc<str>),
    /// Items and depth: nesting is bounded, or dropping the value would exhaust the stack.
    Tuple(Rc<Vec<Value>>, u8),
    /// Index into the machine's dictionaries.
    Dict(usize),
    Storage(Rc<str>, Rc<str>),
    Tensor(Rc<TensorRef>),
}

const MAX_ITEMS: usize = 200_000;
const MAX_DEPTH: u8 = 16;
const MAX_AXES: usize = 8;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    entries: usize,
}

/// Reads a state dictionary: names and tensors, in the file's order. Entries that are no tensors are left out.
pub(super) fn state_dict(bytes: &[u8]) -> Result<Vec<(String, TensorRef)>, String> {
    let mut machine =
        Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: Vec::new(), dicts: Vec::new(), entries: 0 };
    let Value::Dict(index) = machine.run()? else {
        return Err("the pickle holds no dictionary".into());
    };
    let mut tensors = Vec::new();
    for (key, value) in machine.dicts.get(index).into_iter().flatten() {
        if let (Value::Str(name), Value::Tensor(tensor)) = (key, value) {
            tensors.push((name.to_string(), (**tensor).clone()));
        }
    }
    Ok(tensors)
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            let start = self.at;
            let [op] = self.take::<1>()?;
            match op {
                // PROTO
                0x80 => {
                    let [version] = self.take::<1>()?;
                    if version > 4 {
                        return Err(format!("pickle protocol {version}"));
                    }
                }
                b'.' => return self.pop(),
                b'(' => {
                    if self.marks.len() >= MAX_ITEMS {
                        return Err("too many marks".into());
                    }
                    self.marks.push(self.stack.len());
                }
                b'N' => self.push(Value::None)?,
                // NEWTRUE, NEWFALSE
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'K' => {
                    let [v] = self.take::<1>()?;
                    self.push(Value::Int(v.into()))?;
                }
                b'M' => {
                    let v = u16::from_le_bytes(self.take()?);
                    self.push(Value::Int(v.into()))?;
                }
                b'J' => {
                    let v = i32::from_le_bytes(self.take()?);
                    self.push(Value::Int(v.into()))?;
                }
                // LONG1
                0x8a => {
                    let [n] = self.take::<1>()?;
                    let raw = self.slice(n.into())?;
                    if raw.len() > 8 {
                        return Err("an integer over 64 bits".into());
                    }
                    let negative = raw.last().is_some_and(|b| b & 0x80 != 0);
                    let mut wide = [if negative { 0xff } else { 0 }; 8];
                    for (to, from) in wide.iter_mut().zip(raw) {
                        *to = *from;
                    }
                    self.push(Value::Int(i64::from_le_bytes(wide)))?;
                }
                // BINUNICODE
                b'X' => {
                    let n = u32::from_le_bytes(self.take()?);
                    let text = self.slice(n as usize)?;
                    let text = std::str::from_utf8(text).map_err(|_| "a string is not UTF-8")?;
                    if text.len() > 4096 {
                        return Err("a string over 4096 bytes".into());
                    }
                    let text: Rc<str> = text.into();
                    self.push(Value::Str(text))?;
                }
                // GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(module, name))?;
                }
                b')' => self.push(Value::Tuple(Rc::new(Vec::new()), 1))?,
                b't' => {
                    let items = self.since_mark()?;
                    self.push_tuple(items)?;
                }
                // TUPLE1..3
                0x85..=0x87 => {
                    let n = usize::from(op - 0x84);
                    let from = self.stack.len().checked_sub(n).ok_or("stack underflow")?;
                    let items = self.stack.split_off(from);
                    self.push_tuple(items)?;
                }
                b'}' => {
                    let dict = self.new_dict()?;
                    self.push(dict)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(items)?;
                }
                b'q' => {
                    let [i] = self.take::<1>()?;
                    self.store(i.into())?;
                }
                b'r' => {
                    let i = u32::from_le_bytes(self.take()?);
                    self.store(i as usize)?;
                }
                b'h' => {
                    let [i] = self.take::<1>()?;
                    self.recall(i.into())?;
                }
                b'j' => {
                    let i = u32::from_le_bytes(self.take()?);
                    self.recall(i as usize)?;
                }
                // BINPERSID
                b'Q' => {
                    let storage = storage(&self.pop()?)?;
                    self.push(storage)?;
                }
                b'R' => {
                    let (args, callable) = (self.pop()?, self.pop()?);
                    let value = self.call(&callable, &args)?;
                    self.push(value)?;
                }
                // BUILD: attributes of the dictionary (`_metadata`), of no use here.
                b'b' => {
                    self.pop()?;
                }
                other => return Err(format!("pickle opcode 0x{other:02x} at byte {start}")),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let raw = self.slice(N)?;
        raw.try_into().map_err(|_| "the pickle ends early".to_string())
    }
    fn slice(&mut self, n: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n).ok_or("the pickle ends early")?;
        let raw = self.bytes.get(self.at..end).ok_or("the pickle ends early")?;
        self.at = end;
        Ok(raw)
    }
    fn line(&mut self) -> Result<Rc<str>, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().take(256).position(|&b| b == b'\n').ok_or("an endless name")?;
        let text: Rc<str> = std::str::from_utf8(&rest[..n]).map_err(|_| "a name is not UTF-8")?.into();
        self.at += n + 1;
        Ok(text)
    }
    fn push(&mut self, v: Value) -> Result<(), String> {
        if self.stack.len() >= MAX_ITEMS {
            return Err("the stack grows too deep".into());
        }
        self.stack.push(v);
        Ok(())
    }
    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "stack underflow".into())
    }
    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("no mark")?;
        if mark > self.stack.len() {
            return Err("stack underflow".into());
        }
        Ok(self.stack.split_off(mark))
    }
    fn push_tuple(&mut self, items: Vec<Value>) -> Result<(), String> {
        let inner = items.iter().map(|v| if let Value::Tuple(_, d) = v { *d } else { 0 }).max().unwrap_or(0);
        if inner >= MAX_DEPTH {
            return Err("tuples nested too deep".into());
        }
        self.push(Value::Tuple(Rc::new(items), inner + 1))
    }
    fn new_dict(&mut self) -> Result<Value, String> {
        if self.dicts.len() >= MAX_ITEMS {
            return Err("too many dictionaries".into());
        }
        self.dicts.push(Vec::new());
        Ok(Value::Dict(self.dicts.len() - 1))
    }
    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(index)) = self.stack.last() else {
            return Err("an item is set on something that is no dictionary".into());
        };
        self.entries += items.len();
        if !items.len().is_multiple_of(2) || self.entries > MAX_ITEMS {
            return Err("too many items, or a key without a value".into());
        }
        let dict = self.dicts.get_mut(*index).ok_or("no such dictionary")?;
        let mut items = items.into_iter();
        while let (Some(k), Some(v)) = (items.next(), items.next()) {
            dict.push((k, v));
        }
        Ok(())
    }
    fn store(&mut self, i: usize) -> Result<(), String> {
        if i >= MAX_ITEMS {
            return Err("a memo index out of bounds".into());
        }
        let top = self.stack.last().ok_or("stack underflow")?.clone();
        if self.memo.len() <= i {
            self.memo.resize(i + 1, None);
        }
        self.memo[i] = Some(top);
        Ok(())
    }
    fn recall(&mut self, i: usize) -> Result<(), String> {
        let v = self.memo.get(i).cloned().flatten().ok_or("an empty memo slot")?;
        self.push(v)
    }
    fn call(&mut self, callable: &Value, args: &Value) -> Result<Value, String> {
        let (Value::Global(module, name), Value::Tuple(args, _)) = (callable, args) else {
            return Err("a call of something that is no function".into());
        };
        match (&**module, &**name) {
            ("collections", "OrderedDict") if args.is_empty() => self.new_dict(),
            ("torch._utils", "_rebuild_tensor_v2") => rebuild(args),
            _ => Err(format!("the file calls {module}.{name}, which no state dictionary needs")),
        }
    }
}

/// `('storage', torch.FloatStorage, key, location, numel)`.
fn storage(id: &Value) -> Result<Value, String> {
    if let Value::Tuple(parts, _) = id
        && let [Value::Str(tag), Value::Global(module, kind), Value::Str(key), ..] = &parts[..]
        && &**tag == "storage"
        && &**module == "torch"
    {
        return Ok(Value::Storage(kind.clone(), key.clone()));
    }
    Err("a persistent id that is no torch storage".into())
}

/// `(storage, offset, size, stride, requires_grad, hooks)`.
fn rebuild(args: &[Value]) -> Result<Value, String> {
    let [Value::Storage(kind, key), Value::Int(offset), Value::Tuple(size, _), Value::Tuple(stride, _), ..] = args
    else {
        return Err("a tensor's description is malformed".into());
    };
    let ints = |t: &[Value]| -> Result<Vec<usize>, String> {
        if t.len() > MAX_AXES {
            return Err("a tensor of too many axes".into());
        }
        t.iter()
            .map(|v| match v {
                Value::Int(i) => usize::try_from(*i).map_err(|_| "a negative size".to_string()),
                _ => Err("a size that is no integer".into()),
            })
            .collect()
    };
    let tensor = TensorRef {
        storage: key.clone(),
        storage_type: kind.clone(),
        offset: usize::try_from(*offset).map_err(|_| "a negative offset")?,
        shape: ints(size)?,
        stride: ints(stride)?,
    };
    if tensor.shape.len() != tensor.stride.len() {
        return Err("a tensor whose sizes and strides differ in number".into());
    }
    Ok(Value::Tensor(Rc::new(tensor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn foreign_callables_are_refused_by_name() {
        // cos\nsystem\n(X....t R .
        let evil = b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.";
        assert!(state_dict(evil).unwrap_err().contains("os.system"));
    }

    #[test]
    fn nesting_is_bounded() {
        let mut deep = vec![0x80, 2, b')'];
        deep.extend(std::iter::repeat_n(0x85, 100_000));
        deep.push(b'.');
        assert!(state_dict(&deep).unwrap_err().contains("nested"));
        let mut marks = vec![0x80, 2];
        marks.extend(std::iter::repeat_n(b'(', 1_000_000));
        assert!(state_dict(&marks).is_err());
        // A memo index of four billion must not allocate.
        assert!(state_dict(b"\x80\x02)r\xff\xff\xff\xff.").unwrap_err().contains("memo"));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = state_dict(&bytes);
        }
        #[test]
        fn any_opcodes_end_in_an_answer(
            ops in proptest::collection::vec(proptest::sample::select(&b"().NKMJXct}suqrhjQRb\x85\x86\x87\x88\x8a\x01\n"[..]), 0..200)
        ) {
            let _ = state_dict(&ops);
        }
    }
}
