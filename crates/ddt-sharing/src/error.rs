//! Everything that can be wrong with a similarity, a plan or a file that holds one.

use std::path::PathBuf;

use crate::{PlanGuidance, StepGrid};

/// Why a similarity, a plan or a file was refused.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum PlanError {
    /// The number of steps is zero or beyond what is supported.
    #[error("expected 1 to {max} steps, got {num_steps}")]
    NumSteps {
        /// Steps asked for.
        num_steps: usize,
        /// Most steps supported here.
        max: usize,
    },
    /// The number of recomputes is not in `1..=max`.
    #[error("cannot recompute {num_recompute} times: expected 1 to {max}")]
    Budget {
        /// Recomputes asked for.
        num_recompute: usize,
        /// Most recomputes possible here.
        max: usize,
    },
    /// A uniform plan was asked to recompute every zeroth step.
    #[error("a uniform plan recomputes every 1st, 2nd, ... step, got every 0th")]
    ZeroEvery,
    /// The first recompute step is not step 0.
    #[error("a plan must recompute at step 0 first, got {first:?}; nothing could be reused before it")]
    FirstStep {
        /// First step of the list, if it has one.
        first: Option<usize>,
    },
    /// Recompute steps are not strictly increasing.
    #[error("recompute steps must strictly increase: {step} follows {previous}")]
    NotIncreasing {
        /// The step before.
        previous: usize,
        /// The offending step.
        step: usize,
    },
    /// A recompute step lies beyond the last sampling step.
    #[error("recompute step {step} is outside 0 to {num_steps} (exclusive)")]
    StepOutOfRange {
        /// The offending step.
        step: usize,
        /// Number of sampling steps.
        num_steps: usize,
    },
    /// Two things that must have the same number of steps do not.
    #[error("{what} has {got} steps, expected {expected}")]
    StepCount {
        /// What was given.
        what: &'static str,
        /// Steps it should have.
        expected: usize,
        /// Steps it has.
        got: usize,
    },
    /// A similarity matrix has the wrong number of entries.
    #[error("a similarity of {num_steps} steps has {expected} entries, got {got}")]
    NotSquare {
        /// Number of steps.
        num_steps: usize,
        /// Entries it should have.
        expected: usize,
        /// Entries it has.
        got: usize,
    },
    /// A similarity entry is not a cosine: non-finite, or outside [-1, 1].
    #[error("similarity of steps {row} and {col} must lie in [-1, 1], got {value}")]
    NotACosine {
        /// One step.
        row: usize,
        /// The other step.
        col: usize,
        /// The entry.
        value: f64,
    },
    /// A similarity matrix is not symmetric.
    #[error("similarity must be symmetric: {lower} at ({row}, {col}) but {upper} at ({col}, {row})")]
    NotSymmetric {
        /// Row of the lower entry.
        row: usize,
        /// Column of the lower entry.
        col: usize,
        /// Entry below the diagonal.
        lower: f64,
        /// Entry above the diagonal.
        upper: f64,
    },
    /// A step is not similar to itself, as when a dissimilarity is passed for a similarity.
    #[error(
        "similarity of step {step} with itself must be 1, got {value}; pass a similarity, not 1 minus it"
    )]
    Diagonal {
        /// The step.
        step: usize,
        /// The diagonal entry.
        value: f64,
    },
    /// A state does not divide into tokens, or differs in size from the first step's.
    #[error("state of step {step} must have {expected} numbers in tokens of {channels}, got {got}")]
    StateSize {
        /// The step.
        step: usize,
        /// Numbers it should have.
        expected: usize,
        /// Channels of a token.
        channels: usize,
        /// Numbers it has.
        got: usize,
    },
    /// A state is empty, so there is no cosine to take.
    #[error(
        "states must have at least one token of at least one channel, got {len} numbers and {channels} channels"
    )]
    EmptyState {
        /// Numbers in the first state.
        len: usize,
        /// Channels of a token.
        channels: usize,
    },
    /// A state has a NaN or an infinity.
    #[error("state of step {step} has a non-finite value in token {token}")]
    StateNotFinite {
        /// The step.
        step: usize,
        /// The token, counted over all rows of the state.
        token: usize,
    },
    /// A mean was asked of no images.
    #[error("no states were added: a similarity needs at least one image")]
    NoStates,
    /// A bound on the similarity is not usable.
    #[error("a bound on the similarity must lie in [-1, 1], got {bound}")]
    Bound {
        /// The bound.
        bound: f64,
    },
    /// Operation counts that no network has.
    #[error("{what}, got encoder {encoder}, decoder {decoder}, decoder with kept modulations {decoder_kept}")]
    OperationCounts {
        /// What was expected.
        what: &'static str,
        /// FLOP of the condition encoder.
        encoder: f64,
        /// FLOP of the velocity decoder.
        decoder: f64,
        /// FLOP of the velocity decoder without modulations.
        decoder_kept: f64,
    },
    /// A field holds a value that it cannot have.
    #[error("{field} must be {expected}, got {got}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was got.
        got: String,
    },
    /// A plan says nothing about its grid, so it cannot be matched with one.
    #[error("the plan names no step grid, wanted {wanted}; attach one with `on_grid`")]
    NoGrid {
        /// Grid of the sampler.
        wanted: StepGrid,
    },
    /// A plan was made for another step grid.
    #[error("the plan is for {plan}, wanted {wanted}; plan again for this grid")]
    WrongGrid {
        /// Grid of the plan.
        plan: StepGrid,
        /// Grid of the sampler.
        wanted: StepGrid,
    },
    /// A plan was made for another model.
    #[error("the plan is for model {plan:?}, wanted {wanted:?}; plan again for this model")]
    WrongModel {
        /// Model of the plan.
        plan: String,
        /// Model of the sampler.
        wanted: String,
    },
    /// A plan was made with other guidance.
    #[error("the plan is for {plan}, wanted {wanted}; plan again with this guidance")]
    WrongGuidance {
        /// Guidance of the plan.
        plan: PlanGuidance,
        /// Guidance of the sampler.
        wanted: PlanGuidance,
    },
    /// A plan was made with another solver.
    #[error("the plan is for solver {plan:?}, wanted {wanted:?}; plan again with this solver")]
    WrongSolver {
        /// Solver of the plan.
        plan: String,
        /// Solver of the sampler.
        wanted: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("{} is not a plain file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file is larger than any of its kind.
    #[error("{} is larger than the {max_bytes} bytes such a file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Largest size that is read or written.
        max_bytes: u64,
    },
    /// A file is some other kind of JSON.
    #[error("{} holds {got:?}, expected {expected:?}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Format that was expected.
        expected: &'static str,
        /// Format that the file names.
        got: String,
    },
    /// A file was written by another version of the format.
    #[error("{} has version {got}, expected {expected}; make it again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version that is understood.
        expected: u32,
        /// Version that the file names.
        got: u32,
    },
    /// A file is not JSON of the expected structure.
    #[error("{} is malformed", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file is well formed, and its contents contradict themselves.
    #[error("{} has unusable contents", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<PlanError>,
    },
}
