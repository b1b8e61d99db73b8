//! Inputs made of parts: what is read from one byte string, and written as a seed.

/// Takes parts from the front of an input; what is missing is empty or zero.
#[derive(Debug, Clone)]
pub struct Parts<'a>(pub &'a [u8]);

impl<'a> Parts<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// A little-endian number of `len` bytes.
    pub fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    /// The next `len` bytes, or as many as there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A part that states its length in two bytes.
    pub fn part(&mut self) -> &'a [u8] {
        let len = self.number(2) as usize;
        self.take(len)
    }

    /// Whether all was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A part that states its length, as [`Parts::part`] reads it.
pub fn part(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}
