//! The instruction set of the CPU kernels.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use candle_core::{Error, Result, bail};
use pulp::Arch;

/// A limit on the instructions that operations use on the CPU.
///
/// Results of different sets agree to rounding. Without a limit the widest set of the machine is used, chosen at run
/// time; a limit serves tests, and comparisons of machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InstructionSet {
    /// All instructions of the machine, AVX-512 BF16 among them.
    #[default]
    Widest,
    /// AVX-512 without its bf16 instructions, which are computed in f32.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// The baseline of the target.
    Portable,
}

static CHOSEN: OnceLock<(InstructionSet, Arch)> = OnceLock::new();

impl InstructionSet {
    /// All of them, the widest first.
    pub const ALL: [Self; 4] = [Self::Widest, Self::Avx512, Self::Avx2, Self::Portable];

    /// The limit of this process, which is settled by the first operation.
    pub fn current() -> Self {
        chosen().0
    }

    /// Makes this the limit of this process.
    ///
    /// # Errors
    ///
    /// If the machine lacks these instructions, or if an operation has run, or weights have been packed, under
    /// another limit.
    pub fn limit(self) -> Result<()> {
        let Some(arch) = self.arch() else {
            bail!("instruction set: expected one that this machine has, got {self}");
        };
        let settled = CHOSEN.get_or_init(|| (self, arch)).0;
        if settled != self {
            bail!("instruction set: expected {self} before any operation has run, got {settled} in use");
        }
        Ok(())
    }

    /// The set as pulp knows it, if the machine has it.
    pub(crate) fn arch(self) -> Option<Arch> {
        match self {
            Self::Widest => Some(Arch::new()),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => pulp::x86::V4::try_new().map(Arch::V4),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map(Arch::V3),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => None,
            Self::Portable => Some(Arch::Scalar),
        }
    }
}

fn chosen() -> (InstructionSet, Arch) {
    *CHOSEN.get_or_init(|| (InstructionSet::Widest, Arch::new()))
}

/// The instruction set in use.
pub(crate) fn arch() -> Arch {
    chosen().1
}

/// Runs `op` with the instruction set in use.
pub(crate) fn dispatch<Op: pulp::WithSimd>(op: Op) -> Op::Output {
    arch().dispatch(op)
}

/// Every instruction set that this machine can run.
#[cfg(test)]
pub(crate) fn instruction_sets() -> Vec<Arch> {
    InstructionSet::ALL.into_iter().filter_map(InstructionSet::arch).collect()
}

/// Whether pairs of bf16 may be multiplied by their own instruction, where `arch` is AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_bf16() -> bool {
    chosen().0 == InstructionSet::Widest && std::arch::is_x86_feature_detected!("avx512bf16")
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Widest => "widest",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for InstructionSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|it| it.to_string() == name);
        found.ok_or_else(|| {
            Error::Msg(format!("instruction set: expected widest, avx512, avx2 or portable, got {name:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_the_limit_is_settled_once() {
        for it in InstructionSet::ALL {
            assert_eq!(it.to_string().parse::<InstructionSet>().unwrap(), it);
        }
        assert!("sse".parse::<InstructionSet>().unwrap_err().to_string().contains("sse"));
        assert_eq!(InstructionSet::current(), InstructionSet::Widest);
        InstructionSet::Widest.limit().unwrap();
        assert!(InstructionSet::Portable.limit().unwrap_err().to_string().contains("widest in use"));
    }
}
