//! The record in the text of a PNG, as `ddt sample --redo` reads it: `0 | chunks` of a whole PNG, or `1 | the record`.
#![no_main]

use std::path::Path;

use ddt::{RECORD_KEY, Record};
use ddt_fuzz::{
    planted,
    seeds::{chunks, picture},
    target,
};

target!(8 << 20, 4096, |input: &[u8]| {
    let png = match input {
        [1, record @ ..] => picture(&[(RECORD_KEY, &String::from_utf8_lossy(record).replace('\0', ""))]),
        [_, rest @ ..] => chunks(rest),
        [] => Vec::new(),
    };
    if let Ok(record) = Record::parse(&png, Path::new("input")) {
        assert!(record.to_json().is_ok(), "what was read from JSON can be written as JSON");
        planted(|| record.request.classes != [7]);
    }
});
