//! What device memory holds.

use half::bf16;

/// What device memory may hold: types for which any bits are a value.
pub trait Element: Copy + Send + Sync + std::fmt::Debug + 'static + private::Sealed {
    /// Zero.
    const ZERO: Self;
}

/// What the kernels compute on: bf16 or f32. Arithmetic is f32 in both.
pub trait Float: Element {
    /// How the type is called in the name of a kernel.
    const NAME: &'static str;
    /// 0 for bf16, 1 for f32: the place in a pair of kernels.
    const INDEX: usize;
    /// Elements in the 16 bytes that one thread moves at once.
    const LANES: usize = 16 / size_of::<Self>();
    /// The nearest value.
    fn from_f32(value: f32) -> Self;
    /// The value.
    fn to_f32(self) -> f32;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($element:ty: $zero:expr),*) => {
        $(impl private::Sealed for $element {}
        impl Element for $element {
            const ZERO: Self = $zero;
        })*
    };
}

elements!(bf16: bf16::ZERO, f32: 0.0, u32: 0, u8: 0);

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    const INDEX: usize = 0;

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Float for f32 {
    const NAME: &'static str = "f32";
    const INDEX: usize = 1;

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self
    }
}
