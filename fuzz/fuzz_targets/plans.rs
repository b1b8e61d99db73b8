//! Sharing plans and measured similarities, as JSON: what is read is written and read again as the same.
#![no_main]

use ddt_fuzz::{planted, target};
use ddt_sharing::{PlanFile, SimilarityFile};

target!(1 << 20, 256, |input: &[u8]| {
    if let Ok(plan) = PlanFile::from_json(input) {
        let text = plan.to_json();
        let read = text.as_ref().ok().and_then(|it| PlanFile::from_json(it.as_bytes()).ok());
        assert_eq!(read.as_ref(), Some(&plan), "{text:?}");
        planted(|| plan.images != 8);
    }
    if let Ok(measured) = SimilarityFile::from_json(input) {
        let text = measured.to_json();
        let read = text.as_ref().ok().and_then(|it| SimilarityFile::from_json(it.as_bytes()).ok());
        assert_eq!(read.as_ref(), Some(&measured), "{text:?}");
        planted(|| measured.images != 8);
    }
});
