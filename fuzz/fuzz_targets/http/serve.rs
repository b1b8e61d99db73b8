//! The interface of `ddt serve` but for the network under it and the work behind it.
#![allow(dead_code, missing_docs, reason = "parts of a program whose other parts are not here")]

macro_rules! parts {
    ($($name:ident $file:literal)*) => {
        $(#[path = $file] pub(crate) mod $name;)*
    };
}

parts! {
    events "../../../crates/ddt-cli/src/serve/events.rs"
    guard "../../../crates/ddt-cli/src/serve/guard.rs"
    http "../../../crates/ddt-cli/src/serve/http.rs"
    job "../../../crates/ddt-cli/src/serve/job.rs"
    listener "../../../crates/ddt-cli/src/serve/listener.rs"
    queue "../../../crates/ddt-cli/src/serve/queue.rs"
    submission "../../../crates/ddt-cli/src/serve/submission.rs"
}
