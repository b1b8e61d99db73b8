//! The header of an npy array: what type of numbers, how many, in which order.

use crate::limits::MAX_RANK;

const MARK: &[u8] = b"\x93NUMPY";
/// Headers are padded so that the numbers begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// Type of the numbers of an array, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// `|u1`.
    U8,
    /// `<i4`.
    I32,
    /// `<i8`.
    I64,
    /// `<f2`.
    F16,
    /// `<f4`.
    F32,
    /// `<f8`.
    F64,
}

impl Dtype {
    const ALL: [Self; 6] = [Self::U8, Self::I32, Self::I64, Self::F16, Self::F32, Self::F64];

    /// Size of one number, in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Its name in numpy's files.
    #[must_use]
    pub fn descr(self) -> &'static str {
        match self {
            Self::U8 => "|u1",
            Self::I32 => "<i4",
            Self::I64 => "<i8",
            Self::F16 => "<f2",
            Self::F32 => "<f4",
            Self::F64 => "<f8",
        }
    }

    fn from_descr(descr: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.descr() == descr)
    }
}

/// Type and shape of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Sizes, the slowest first; empty for a single number.
    pub shape: Vec<usize>,
    /// Whether the first index is the fastest; without meaning for fewer than two dimensions.
    pub fortran_order: bool,
}

impl NpyHeader {
    /// Number of values; `None` if it does not fit.
    #[must_use]
    pub fn num_values(&self) -> Option<u64> {
        product(&self.shape)
    }

    /// Size of one row (what is at one first index) in bytes; `None` if it does not fit.
    #[must_use]
    pub fn row_bytes(&self) -> Option<usize> {
        let values = product(self.shape.get(1..).unwrap_or_default())?;
        usize::try_from(values.checked_mul(self.dtype.bytes() as u64)?).ok()
    }

    /// Number of rows; a single number is one row.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Size of all values in bytes; `None` if it does not fit.
    pub(crate) fn data_bytes(&self) -> Option<u64> {
        self.num_values()?.checked_mul(self.dtype.bytes() as u64)
    }

    /// The bytes before the numbers, as numpy writes them (version 1).
    pub(crate) fn encode(&self) -> Vec<u8> {
        let sizes: String = match self.shape.as_slice() {
            [] => "()".to_owned(),
            [only] => format!("({only},)"),
            sizes => format!("({})", sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let order = if self.fortran_order { "True" } else { "False" };
        let descr = self.dtype.descr();
        let mut text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {sizes}, }}");
        let before = MARK.len() + 4;
        let padded = (before + text.len() + 1).next_multiple_of(ALIGNMENT);
        text.extend(std::iter::repeat_n(' ', padded - before - text.len() - 1));
        text.push('\n');
        let mut bytes = [MARK, &[1, 0], &(text.len() as u16).to_le_bytes()].concat();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    /// Size of the part that says how long the header is, and that length, from the first bytes of an array.
    pub(crate) fn lengths(start: &[u8]) -> Result<(u64, u64), String> {
        let rest = start.strip_prefix(MARK).ok_or("it does not begin as npy does")?;
        match *rest {
            [1, 0, a, b, ..] => Ok((10, u16::from_le_bytes([a, b]).into())),
            [2 | 3, 0, a, b, c, d, ..] => Ok((12, u32::from_le_bytes([a, b, c, d]).into())),
            [major, minor, _, _, ..] => Err(format!("npy version {major}.{minor}, expected 1.0, 2.0 or 3.0")),
            _ => Err("it is cut short".to_owned()),
        }
    }

    /// Reads the text of a header.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "its header is not UTF-8")?;
        let mut words = Words { rest: text };
        let fields = words.dictionary().filter(|_| words.rest.trim().is_empty());
        let malformed = || {
            let start: String = text.trim_end().chars().take(120).collect();
            format!("its header is malformed: {start:?}")
        };
        let Fields { descr: Some(descr), order: Some(fortran_order), shape: Some(shape) } =
            fields.ok_or_else(malformed)?
        else {
            return Err(malformed());
        };
        let dtype = descr.and_then(|it| Dtype::from_descr(it).ok_or(it.chars().take(40).collect()));
        let dtype = dtype.map_err(|descr| {
            let expected = Dtype::ALL.map(Dtype::descr).join(", ");
            format!("its type is {descr}, expected one of {expected}; save it anew with .astype")
        })?;
        Ok(Self { dtype, shape, fortran_order })
    }
}

/// Fields of a header's dictionary; a `descr` of several fields is an error with its beginning.
#[derive(Default)]
struct Fields<'a> {
    descr: Option<Result<&'a str, String>>,
    order: Option<bool>,
    shape: Option<Vec<usize>>,
}

/// The part of Python's literals that headers use.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn dictionary(&mut self) -> Option<Fields<'a>> {
        let mut fields = Fields::default();
        self.take("{")?;
        while self.take("}").is_none() {
            let key = self.string()?;
            self.take(":")?;
            let again = match key {
                "descr" => fields.descr.replace(self.descr()?).is_some(),
                "fortran_order" => fields.order.replace(self.boolean()?).is_some(),
                "shape" => fields.shape.replace(self.sizes()?).is_some(),
                _ => true,
            };
            if again || (self.take(",").is_none() && !self.rest.trim_start().starts_with('}')) {
                return None;
            }
        }
        Some(fields)
    }

    fn take(&mut self, word: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(word)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let trimmed = self.rest.trim_start();
        let quote = trimmed.chars().next().filter(|it| matches!(it, '\'' | '"'))?;
        let (content, rest) = trimmed[1..].split_once(quote)?;
        self.rest = rest;
        (!content.contains('\\')).then_some(content)
    }

    fn descr(&mut self) -> Option<Result<&'a str, String>> {
        if !self.rest.trim_start().starts_with('[') {
            return self.string().map(Ok);
        }
        // Records: a list of names and types. What follows its last bracket is the rest of the dictionary.
        let trimmed = self.rest.trim_start();
        let (list, rest) = trimmed.split_at_checked(trimmed.rfind(']')? + 1)?;
        self.rest = rest;
        Some(Err(list.chars().take(40).collect()))
    }

    fn boolean(&mut self) -> Option<bool> {
        match (self.take("True"), self.take("False")) {
            (Some(()), None) => Some(true),
            (None, Some(())) => Some(false),
            _ => None,
        }
    }

    fn sizes(&mut self) -> Option<Vec<usize>> {
        let mut sizes = Vec::new();
        self.take("(")?;
        while self.take(")").is_none() {
            let trimmed = self.rest.trim_start();
            let end = trimmed.find(|it: char| !it.is_ascii_digit()).unwrap_or(trimmed.len());
            let size = trimmed[..end].parse().ok().filter(|_| sizes.len() < MAX_RANK)?;
            sizes.push(size);
            // Python 2 wrote long numbers with an L.
            self.rest = trimmed[end..].strip_prefix('L').unwrap_or(&trimmed[end..]);
            let comma = self.take(",").is_some();
            if !comma && (sizes.len() == 1 || !self.rest.trim_start().starts_with(')')) {
                return None;
            }
        }
        Some(sizes)
    }
}

fn product(sizes: &[usize]) -> Option<u64> {
    // Nothing times too much is nothing.
    if sizes.contains(&0) {
        return Some(0);
    }
    sizes.iter().try_fold(1u64, |all, &size| all.checked_mul(size as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<NpyHeader, String> {
        NpyHeader::parse(text.as_bytes())
    }

    #[test]
    fn headers_of_several_writers_are_read() {
        let of =
            |dtype, shape: &[usize], fortran_order| NpyHeader { dtype, shape: shape.to_vec(), fortran_order };
        for (text, expected) in [
            (
                "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }   \n",
                of(Dtype::F64, &[3, 4], false),
            ),
            ("{'descr':'|u1','fortran_order':True,'shape':()}", of(Dtype::U8, &[], true)),
            ("{\"shape\": (7L,), \"descr\": \"<i8\", \"fortran_order\": False}", of(Dtype::I64, &[7], false)),
            (
                " { 'shape' : ( 0 , 5 , ) , 'fortran_order':False, 'descr':'<f2' } ",
                of(Dtype::F16, &[0, 5], false),
            ),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_header_is_an_error() {
        for text in [
            "",
            "{}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3)}",
            "{'descr': '<f8', 'fortran_order': False}",
            "{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3,,)}",
            "{'descr': '<f8', 'fortran_order': 0, 'shape': ()}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': ()} and more",
            "{'descr': '<f8' 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (), 'more': 1}",
            "{'descr': ['x', 'fortran_order': False, 'shape': ()}",
        ] {
            assert!(parse(text).unwrap_err().contains("malformed"), "{text}");
        }
        let many = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({})}}", "1,".repeat(65));
        assert!(parse(&many).unwrap_err().contains("malformed"));
    }

    #[test]
    fn other_types_are_named() {
        for descr in ["|O", "<U5", ">f8", "<c16", "|b1", "<u2"] {
            let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ()}}");
            assert!(
                parse(&text).unwrap_err().starts_with(&format!("its type is {descr}, expected one of |u1, "))
            );
        }
        let records = "{'descr': [('a', '<f8'), ('b', '<i4')], 'fortran_order': False, 'shape': (2,)}";
        assert!(parse(records).unwrap_err().starts_with("its type is [('a'"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_none() {
        let header = NpyHeader { dtype: Dtype::F64, shape: vec![2, 1 << 60, 1 << 60], fortran_order: false };
        assert_eq!((header.num_values(), header.row_bytes(), header.data_bytes()), (None, None, None));
        let header = NpyHeader { shape: vec![0, 1 << 60, 1 << 60], ..header };
        assert_eq!((header.num_values(), header.row_bytes()), (Some(0), None));
    }

    proptest! {
        #[test]
        fn headers_survive_the_round_trip(
            dtype in proptest::sample::select(&Dtype::ALL[..]),
            shape in proptest::collection::vec(0usize..=usize::MAX, 0..9),
            fortran_order: bool,
        ) {
            let header = NpyHeader { dtype, shape, fortran_order };
            let bytes = header.encode();
            prop_assert_eq!(bytes.len() % ALIGNMENT, 0);
            let (before, text) = NpyHeader::lengths(&bytes).unwrap();
            prop_assert_eq!(before + text, bytes.len() as u64);
            prop_assert_eq!(NpyHeader::parse(&bytes[before as usize..]).unwrap(), header);
        }

        #[test]
        fn any_text_is_a_header_or_an_error(text in "[ -~]{0,80}", bytes: Vec<u8>) {
            drop(parse(&text));
            drop(NpyHeader::parse(&bytes));
            drop(NpyHeader::lengths(&bytes));
        }

        #[test]
        fn torn_headers_are_errors(cut in 0usize..70) {
            let whole = "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }";
            prop_assert!(cut >= whole.len() || parse(&whole[..cut]).is_err());
        }
    }
}
