//! What the kernels should compute, in f64.
