//! Settings and results as text: `0 | TOML of a training run`, `1 | JSON of a sampler`, `2 | JSON of an evaluation`,
//! `3 | a class list`, `4 | part config | part classes | part latents`, the description in a file of weights.
#![no_main]

use std::path::Path;

use ddt::PipelineConfig;
use ddt_data::ClassList;
use ddt_fuzz::{parts::Parts, planted, seeds::described, target};
use ddt_metrics::{Report, explain};
use ddt_model::DdtFile;
use ddt_train::Settings;

fn read(input: &[u8]) {
    let mut parts = Parts(input);
    let kind = parts.byte();
    let text = String::from_utf8_lossy(parts.0);
    match kind {
        0 => {
            if let Ok(settings) = Settings::parse(&text) {
                settings.network.iter().for_each(|it| drop(it.config(4, 10)));
            }
        }
        1 => {
            if let Ok(config) = serde_json::from_str::<PipelineConfig>(&text) {
                let written = serde_json::to_string(&config).ok();
                let read = written.and_then(|it| serde_json::from_str::<PipelineConfig>(&it).ok());
                assert_eq!(read, Some(config));
            }
        }
        2 => {
            if let Ok(report) = Report::parse(parts.0, Path::new("input")) {
                drop(explain(&report, &report));
                assert!(report.to_json().is_ok());
            }
        }
        3 => {
            if let Ok(list) = ClassList::parse(&text, Path::new("input")) {
                assert!((0..list.len() as u32).all(|it| list.name(it).is_some()));
                planted(|| list.len() != 2);
            }
            ddt::ClassTable::from_names(text.lines()).ok().iter().for_each(|it| drop(it.parse(&text)));
        }
        _ => drop(DdtFile::from_bytes(described(parts.part(), parts.part(), parts.part()), "input")),
    }
}

target!(4 << 20, 512, read);
