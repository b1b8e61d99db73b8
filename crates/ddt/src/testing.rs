//! Helpers of the tests.

/// An error and its causes, from the outside in.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |it| it.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
