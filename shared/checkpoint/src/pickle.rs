//! A look at the pickle of a `torch.save` archive before it is read.
//!
//! The reader never runs anything that a pickle names. This look refuses by name what is no part of a state dict all the
//! same, and bounds what a small file can make of itself: objects that are used again and again are counted as often.

use std::{collections::HashMap, fs::File, io::Read, path::Path};

use zip::ZipArchive;

use crate::CheckpointError;

/// Largest pickle that is read, in bytes; that of a model with a thousand tensors takes a fifth of a megabyte.
const MOST_BYTES: u64 = 64 << 20;
/// Most objects of a pickle, repetitions included.
const MOST_OBJECTS: u64 = 16 << 20;

/// What a state dict and the optimizer state beside it are made of: containers, numbers and tensors.
const KNOWN: [&str; 21] = [
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.dict",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "torch.Size",
    "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.storage.UntypedStorage",
    "__builtin__.dict",
    "__builtin__.set",
];

/// Fewest arguments of what the reader takes apart.
fn fewest_arguments(function: &str) -> usize {
    match function {
        "torch._utils._rebuild_tensor_v2" => 6,
        "torch._tensor._rebuild_from_type_v2" => 4,
        "torch._utils._rebuild_parameter" => 1,
        _ => 0,
    }
}

/// Members of the tuple that stands for a storage.
const STORAGE_MEMBERS: usize = 5;

fn is_known(name: &str) -> bool {
    let is_plain = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    KNOWN.contains(&name)
        // Storage and number types: torch.HalfStorage, torch.float16.
        || name.strip_prefix("torch.").is_some_and(|rest| {
            is_plain(rest)
                && (rest.ends_with("Storage")
                    || ["float", "int", "uint", "bfloat", "bool"].iter().any(|kind| rest.starts_with(kind)))
        })
}

/// Looks at every pickle of the archive at `path`.
///
/// # Errors
/// [`CheckpointError::Code`] for a name that is no part of a state dict, [`CheckpointError::Damaged`] for a file that is
/// no such archive.
pub(crate) fn inspect(path: &Path) -> Result<(), CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(|cause| CheckpointError::Unreadable {
        path: path.to_path_buf(),
        reason: cause.to_string(),
    })?;
    let mut archive =
        ZipArchive::new(std::io::BufReader::new(file)).map_err(|cause| damaged(cause.to_string()))?;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|cause| damaged(cause.to_string()))?;
        let name = entry.name().map_err(|cause| damaged(cause.to_string()))?.into_owned();
        if !name.ends_with("data.pkl") {
            continue;
        }
        let mut bytes = Vec::new();
        entry
            .take(MOST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|cause| damaged(format!("{name}: {cause}")))?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(damaged(format!("{name} has more than {MOST_BYTES} bytes")));
        }
        Scan::default().run(&bytes).map_err(|fault| match fault {
            Fault::Code(name) => CheckpointError::Code { path: path.to_path_buf(), name },
            Fault::Damaged(reason) => damaged(format!("{name}: {reason}")),
        })?;
    }
    Ok(())
}

enum Fault {
    Code(String),
    Damaged(String),
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(reason.into()))
}

#[derive(Debug, Clone)]
enum Kind {
    Mark,
    Name(String),
    /// A tuple of this many members.
    Tuple(usize),
    Other,
}

/// An object on the stack and how many it holds, itself included.
#[derive(Debug, Clone)]
struct Item {
    kind: Kind,
    objects: u64,
}

impl Item {
    fn one(kind: Kind) -> Self {
        Self { kind, objects: 1 }
    }
}

/// The stack machine of pickle, without the objects.
#[derive(Default)]
struct Scan {
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
    /// All that was made so far.
    made: u64,
}

impl Scan {
    fn run(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        loop {
            let operation = take::<1>(&mut rest)?[0];
            if operation == b'.' {
                return Ok(());
            }
            self.step(operation, &mut rest)?;
        }
    }

    fn step(&mut self, operation: u8, rest: &mut &[u8]) -> Result<(), Fault> {
        match operation {
            0x80 => drop(take::<1>(rest)?),
            b'c' => {
                let name = format!("{}.{}", line(rest)?, line(rest)?);
                if !is_known(&name) {
                    return Err(Fault::Code(name));
                }
                self.push(Item::one(Kind::Name(name)))?;
            }
            b'(' => self.push(Item::one(Kind::Mark))?,
            b'N' | 0x88 | 0x89 | b'}' | b']' => self.push(Item::one(Kind::Other))?,
            b')' => self.push(Item::one(Kind::Tuple(0)))?,
            b'K' => self.number::<1>(rest)?,
            b'M' => self.number::<2>(rest)?,
            b'J' => self.number::<4>(rest)?,
            b'G' => self.number::<8>(rest)?,
            0x8a => {
                let [length] = take::<1>(rest)?;
                if length > 8 {
                    return damaged(format!("an integer of {length} bytes, 8 are read"));
                }
                skip(rest, usize::from(length))?;
                self.push(Item::one(Kind::Other))?;
            }
            b'X' => {
                let length = u32::from_le_bytes(take::<4>(rest)?);
                skip(rest, length as usize)?;
                self.push(Item::one(Kind::Other))?;
            }
            b'q' => self.put(u32::from(take::<1>(rest)?[0]))?,
            b'r' => self.put(u32::from_le_bytes(take::<4>(rest)?))?,
            b'h' => self.get(u32::from(take::<1>(rest)?[0]))?,
            b'j' => self.get(u32::from_le_bytes(take::<4>(rest)?))?,
            0x85..=0x87 => self.tuple(usize::from(operation - 0x84))?,
            b't' => {
                let members = self.above_mark()?;
                let objects = total(&members);
                self.push(Item { kind: Kind::Tuple(members.len()), objects: objects.saturating_add(1) })?;
            }
            b'e' | b'u' => {
                let members = self.above_mark()?;
                self.join(total(&members))?;
            }
            b'a' => {
                let value = self.pop()?;
                self.join(value.objects)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.join(value.objects.saturating_add(key.objects))?;
            }
            b'b' => {
                let state = self.pop()?;
                self.join(state.objects)?;
            }
            b'Q' => {
                let storage = self.pop()?;
                match storage.kind {
                    Kind::Tuple(members) if members >= STORAGE_MEMBERS => {}
                    _ => return damaged("a storage is not described by a tuple of 5"),
                }
                self.push(Item { kind: Kind::Other, objects: storage.objects.saturating_add(1) })?;
            }
            b'R' | 0x81 => self.call()?,
            other => return damaged(format!("operation {other:#04x} is not one of a state dict")),
        }
        Ok(())
    }

    fn number<const N: usize>(&mut self, rest: &mut &[u8]) -> Result<(), Fault> {
        take::<N>(rest)?;
        self.push(Item::one(Kind::Other))
    }

    fn call(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        if let Kind::Name(name) = &function.kind {
            let fewest = fewest_arguments(name);
            match arguments.kind {
                Kind::Tuple(count) if count >= fewest => {}
                _ if fewest == 0 => {}
                _ => return damaged(format!("{name} with fewer than {fewest} arguments")),
            }
        }
        let objects = arguments.objects.saturating_add(function.objects).saturating_add(1);
        self.push(Item { kind: Kind::Other, objects })
    }

    fn tuple(&mut self, members: usize) -> Result<(), Fault> {
        let mut objects = 1_u64;
        for _ in 0..members {
            objects = objects.saturating_add(self.pop()?.objects);
        }
        self.push(Item { kind: Kind::Tuple(members), objects })
    }

    fn push(&mut self, item: Item) -> Result<(), Fault> {
        self.made = self.made.saturating_add(1);
        if self.made > MOST_OBJECTS || item.objects > MOST_OBJECTS {
            return damaged(format!("it makes more than {MOST_OBJECTS} objects"));
        }
        self.stack.push(item);
        Ok(())
    }

    fn pop(&mut self) -> Result<Item, Fault> {
        match self.stack.pop() {
            Some(item) => Ok(item),
            None => damaged("it takes from an empty stack"),
        }
    }

    /// Adds to the object on top.
    fn join(&mut self, objects: u64) -> Result<(), Fault> {
        let mut top = self.pop()?;
        top.objects = top.objects.saturating_add(objects);
        self.push(top)
    }

    fn above_mark(&mut self) -> Result<Vec<Item>, Fault> {
        let Some(mark) = self.stack.iter().rposition(|item| matches!(item.kind, Kind::Mark)) else {
            return damaged("a mark is missing");
        };
        let members = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(members)
    }

    /// The reader copies what it remembers, there and back.
    fn put(&mut self, place: u32) -> Result<(), Fault> {
        let Some(top) = self.stack.last().cloned() else { return damaged("nothing to remember") };
        self.count(top.objects)?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn get(&mut self, place: u32) -> Result<(), Fault> {
        let Some(item) = self.memo.get(&place).cloned() else {
            return damaged(format!("object {place} was never remembered"));
        };
        self.count(item.objects)?;
        self.push(item)
    }

    fn count(&mut self, objects: u64) -> Result<(), Fault> {
        self.made = self.made.saturating_add(objects);
        if self.made > MOST_OBJECTS {
            return damaged(format!("it makes more than {MOST_OBJECTS} objects"));
        }
        Ok(())
    }
}

fn total(items: &[Item]) -> u64 {
    items.iter().fold(0, |sum, item| sum.saturating_add(item.objects))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Fault> {
    match rest.split_first_chunk::<N>() {
        Some((taken, after)) => {
            *rest = after;
            Ok(*taken)
        }
        None => damaged("it ends early"),
    }
}

fn skip(rest: &mut &[u8], length: usize) -> Result<(), Fault> {
    match rest.get(length..) {
        Some(after) => {
            *rest = after;
            Ok(())
        }
        None => damaged("it ends early"),
    }
}

fn line(rest: &mut &[u8]) -> Result<String, Fault> {
    let Some(end) = rest.iter().position(|&byte| byte == b'\n') else { return damaged("it ends early") };
    let text = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').escape_default().to_string();
    *rest = &rest[end + 1..];
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> String {
        match Scan::default().run(bytes) {
            Ok(()) => "fine".to_owned(),
            Err(Fault::Code(name)) => format!("code {name}"),
            Err(Fault::Damaged(reason)) => reason,
        }
    }

    #[test]
    fn a_name_that_is_no_part_of_a_state_dict_is_found_wherever_it_stands() {
        assert_eq!(
            scan(b"\x80\x02}q\x00X\x01\x00\x00\x00acposix\nsystem\nX\x02\x00\x00\x00ls\x85Rs."),
            "code posix.system"
        );
        assert_eq!(scan(b"\x80\x02ccollections\nOrderedDict\ncbuiltins\neval\n\x85R."), "code builtins.eval");
        assert_eq!(scan(b"\x80\x02ctorch\nHalfStorage\n."), "fine");
        assert_eq!(scan(b"\x80\x02ctorch\nload\n."), "code torch.load");
        assert!(scan(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.").contains("operation 0x8c"));
    }

    #[test]
    fn a_pickle_that_would_grow_without_bound_is_refused() {
        // Each round makes a pair of what the last one made.
        let mut bomb = b"\x80\x02]q\x00".to_vec();
        for _ in 0..60 {
            bomb.extend(b"h\x00h\x00\x86q\x00");
        }
        bomb.push(b'.');
        assert!(scan(&bomb).contains("makes more than"), "{}", scan(&bomb));
    }

    #[test]
    fn what_the_reader_cannot_take_apart_is_refused() {
        assert!(scan(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.").contains("fewer than 6"));
        assert!(scan(b"\x80\x02)Q.").contains("tuple of 5"));
        assert!(scan(b"\x80\x02\x8a\xff.").contains("255 bytes"));
        for cut in [
            &b"\x80"[..],
            b"\x80\x02X\xff\xff\xff\xff",
            b"\x80\x02cposix",
            b"\x80\x02R.",
            b"\x80\x02h\x05.",
            b"t.",
        ] {
            assert_ne!(scan(cut), "fine", "{cut:?}");
        }
    }
}
