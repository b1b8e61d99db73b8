//! The header of an npy array: what type of numbers, how many, in which order.

use candle_core::DType;
use serde_json::Value;

use crate::limits::MAX_RANK;

const MARK: &[u8] = b"\x93NUMPY";
/// Headers are padded so that the numbers begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// The types that are read and written, all little-endian, and their names in numpy's files.
const TYPES: [(DType, &str); 6] = [
    (DType::U8, "|u1"),
    (DType::I32, "<i4"),
    (DType::I64, "<i8"),
    (DType::F16, "<f2"),
    (DType::F32, "<f4"),
    (DType::F64, "<f8"),
];

/// The name of a type in numpy's files; for one that has none here, candle's.
pub(crate) fn descr(dtype: DType) -> &'static str {
    TYPES.iter().find(|it| it.0 == dtype).map_or(dtype.as_str(), |it| it.1)
}

/// Type and shape of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// Type of its numbers.
    pub dtype: DType,
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
        usize::try_from(values.checked_mul(self.dtype.size_in_bytes() as u64)?).ok()
    }

    /// Number of rows; a single number is one row.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Size of all values in bytes; `None` if it does not fit.
    pub(crate) fn data_bytes(&self) -> Option<u64> {
        self.num_values()?.checked_mul(self.dtype.size_in_bytes() as u64)
    }

    /// The bytes before the numbers, as numpy writes them (version 1).
    pub(crate) fn encode(&self) -> Vec<u8> {
        let sizes: String = match self.shape.as_slice() {
            [] => "()".to_owned(),
            [only] => format!("({only},)"),
            sizes => format!("({})", sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let order = if self.fortran_order { "True" } else { "False" };
        let descr = descr(self.dtype);
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
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            descr: Value,
            fortran_order: bool,
            shape: Vec<usize>,
        }
        let text = std::str::from_utf8(text).map_err(|_| "its header is not UTF-8")?;
        let fields: Option<Fields> = to_json(text).and_then(|it| serde_json::from_str(&it).ok());
        let Some(Fields { descr, fortran_order, shape }) = fields.filter(|it| it.shape.len() <= MAX_RANK)
        else {
            let start: String = text.trim_end().chars().take(120).collect();
            return Err(format!("its header is malformed: {start:?}"));
        };
        let Some((dtype, _)) = TYPES.into_iter().find(|it| descr == it.1) else {
            let descr: String =
                descr.as_str().map_or_else(|| descr.to_string(), str::to_owned).chars().take(40).collect();
            let expected = TYPES.map(|it| it.1).join(", ");
            return Err(format!(
                "its type is {descr}, expected one of {expected}; save it anew with .astype"
            ));
        };
        Ok(Self { dtype, shape, fortran_order })
    }
}

/// Python's literal as JSON: other quotes, brackets and booleans, and no comma after the last item; `None` for a
/// number in parentheses, which is no tuple.
fn to_json(text: &str) -> Option<String> {
    let text = text.replace('\'', "\"").replace("True", "true").replace("False", "false");
    let mut json = String::with_capacity(text.len());
    for it in text.chars() {
        match it {
            '(' => json.push('['),
            ')' | ']' | '}' => {
                let before = json.trim_end();
                let comma = before.strip_suffix(',').map(str::len);
                let tuple = comma.is_some() || before.ends_with('[') || before.rfind('[') < before.rfind(',');
                if it == ')' && !tuple {
                    return None;
                }
                json.truncate(comma.unwrap_or(json.len()));
                json.push(if it == ')' { ']' } else { it });
            }
            // Python 2 wrote long numbers with an L.
            'L' if json.ends_with(|it: char| it.is_ascii_digit()) => {}
            other => json.push(other),
        }
    }
    Some(json)
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
                of(DType::F64, &[3, 4], false),
            ),
            ("{'descr':'|u1','fortran_order':True,'shape':()}", of(DType::U8, &[], true)),
            ("{\"shape\": (7L,), \"descr\": \"<i8\", \"fortran_order\": False}", of(DType::I64, &[7], false)),
            (
                " { 'shape' : ( 0 , 5 , ) , 'fortran_order':False, 'descr':'<f2' } ",
                of(DType::F16, &[0, 5], false),
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
        assert!(parse(records).unwrap_err().starts_with("its type is [[\"a\",\"<f8\"]"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_none() {
        let header = NpyHeader { dtype: DType::F64, shape: vec![2, 1 << 60, 1 << 60], fortran_order: false };
        assert_eq!((header.num_values(), header.row_bytes(), header.data_bytes()), (None, None, None));
        let header = NpyHeader { shape: vec![0, 1 << 60, 1 << 60], ..header };
        assert_eq!((header.num_values(), header.row_bytes()), (Some(0), None));
    }

    proptest! {
        #[test]
        fn headers_survive_the_round_trip(
            dtype in proptest::sample::select(&TYPES[..]),
            shape in proptest::collection::vec(0usize..=usize::MAX, 0..9),
            fortran_order: bool,
        ) {
            let header = NpyHeader { dtype: dtype.0, shape, fortran_order };
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
