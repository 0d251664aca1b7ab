//! The header of an npy file: a magic number, a version, and a Python dictionary of three known keys.

use std::fmt;
use std::io::Read;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Most bytes of the dictionary, the limit NumPy itself has.
const MAX_DICTIONARY: usize = 10_000;
/// Headers are padded so that the data starts at a multiple of this.
const ALIGNMENT: usize = 64;

/// The type of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dtype {
    /// `f`, `i`, `u` or `b`; anything else as it was.
    pub(super) kind: char,
    /// Bytes a value.
    pub(super) width: usize,
    pub(super) big_endian: bool,
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            'f' => "float",
            'i' => "int",
            'u' => "uint",
            'c' => "complex",
            'b' => return formatter.write_str("bool"),
            other => return write!(formatter, "dtype {other}{}", self.width),
        };
        write!(formatter, "{kind}{}", self.width * 8)
    }
}

/// What an npy file says about its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) dtype: Dtype,
    pub(super) fortran_order: bool,
    pub(super) shape: Vec<usize>,
}

impl Header {
    /// Where the value that is stored at `position` belongs in row-major order.
    pub(super) fn row_major(&self, position: usize) -> usize {
        match *self.shape {
            [rows, columns] if self.fortran_order => position % rows * columns + position / rows,
            _ => position,
        }
    }
}

/// Reads the header and tells its length in bytes.
pub(super) fn read(reader: &mut impl Read) -> Result<(Header, u64), String> {
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(|_| "it ends within its magic number".to_owned())?;
    if !start.starts_with(MAGIC) {
        return Err("it does not start with the magic number".to_owned());
    }
    let cut = |_| "it ends within its header".to_owned();
    let (length, prefix) = match start[6] {
        1 => {
            let mut length = [0u8; 2];
            reader.read_exact(&mut length).map_err(cut)?;
            (usize::from(u16::from_le_bytes(length)), 10)
        }
        2 | 3 => {
            let mut length = [0u8; 4];
            reader.read_exact(&mut length).map_err(cut)?;
            (u32::from_le_bytes(length) as usize, 12)
        }
        version => return Err(format!("version {version} is not known, 1 to 3 are")),
    };
    if length > MAX_DICTIONARY {
        return Err(format!("its header has {length} bytes, the limit is {MAX_DICTIONARY}"));
    }
    let mut dictionary = vec![0u8; length];
    reader.read_exact(&mut dictionary).map_err(cut)?;
    let text = std::str::from_utf8(&dictionary).map_err(|_| "its header is not text".to_owned())?;
    let header = Parser { rest: text }.dictionary()?;
    Ok((header, (prefix + length) as u64))
}

/// A version 1.0 header for C order.
pub(super) fn write(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sides.trim_end());
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.into_bytes());
    bytes
}

/// Reads the one kind of dictionary that NumPy writes; not Python.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn dictionary(mut self) -> Result<Header, String> {
        let (mut dtype, mut fortran_order, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.takes('}') {
            match self.quoted()? {
                "descr" => {
                    self.expect(':')?;
                    dtype = Some(self.dtype()?);
                }
                "fortran_order" => {
                    self.expect(':')?;
                    fortran_order = Some(self.boolean()?);
                }
                "shape" => {
                    self.expect(':')?;
                    shape = Some(self.shape()?);
                }
                key => return Err(format!("its header has the unknown key {key:?}")),
            }
            if !self.takes(',') {
                self.expect('}')?;
                break;
            }
        }
        let missing = |key: &str| format!("its header lacks {key:?}");
        Ok(Header {
            dtype: dtype.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }

    fn dtype(&mut self) -> Result<Dtype, String> {
        self.skip_space();
        if self.rest.starts_with('[') {
            return Err("it holds records, plain numbers expected".to_owned());
        }
        let text = self.quoted()?;
        let unknown = || format!("its dtype {text:?} is not known");
        let mut characters = text.chars();
        let order = characters.next().ok_or_else(unknown)?;
        let kind = characters.next().ok_or_else(unknown)?;
        let width: usize = characters.as_str().parse().map_err(|_| unknown())?;
        if !"<>|=".contains(order) {
            return Err(unknown());
        }
        Ok(Dtype { kind, width, big_endian: order == '>' })
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.skip_space();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("its fortran_order is neither True nor False".to_owned())
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        let mut sides = Vec::new();
        self.expect('(')?;
        while !self.takes(')') {
            self.skip_space();
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (side, rest) = self.rest.split_at(digits);
            sides.push(side.parse().map_err(|_| "its shape is not a tuple of numbers".to_owned())?);
            self.rest = rest;
            if !self.takes(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sides)
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        self.skip_space();
        let quote = self.rest.chars().next().filter(|c| "'\"".contains(*c));
        let quote = quote.ok_or_else(|| "its header is not a dictionary of strings".to_owned())?;
        let (text, rest) = self.rest[1..].split_once(quote).ok_or("a string in its header has no end")?;
        self.rest = rest;
        Ok(text)
    }

    fn takes(&mut self, wanted: char) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.takes(wanted) { Ok(()) } else { Err(format!("its header lacks a {wanted:?}")) }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }
}
