//! Part 1 of 3 of the demo network's file: a package of the registry holds at most 10 MB. Use `ddt-demo`.

#![forbid(unsafe_code)]

/// Bytes of the file.
pub const PART: &[u8] = include_bytes!("network.part");
