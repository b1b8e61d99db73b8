//! The instruction set of the CPU kernels.
#![expect(unsafe_code, reason = "asks Linux for the permission to use AMX")]

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use candle_core::{Error, Result, bail};
use pulp::Arch;

/// A limit on the instructions that operations use on the CPU.
///
/// Results of different sets agree to rounding. Without a limit the widest set of the machine is used, chosen at run
/// time; a limit serves tests, comparisons of machines, and equal bits on different ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InstructionSet {
    /// All instructions of the machine: AMX multiplies matrices of bf16 where the processor and Linux have it.
    #[default]
    Widest,
    /// AVX-512 with its instruction for pairs of bf16.
    Avx512Bf16,
    /// AVX-512; bf16 is computed in f32.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// The baseline of the target.
    Portable,
}

/// The instructions that kernels use.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "bf16 is always widened there"))]
pub(crate) struct Instructions {
    arch: Arch,
    bf16: Bf16Products,
}

/// The instructions that multiply bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "bf16 is always widened there"))]
pub(crate) enum Bf16Products {
    /// Multiply-adds of f32.
    Widened,
    /// AVX-512's instruction for pairs.
    Pairs,
    /// AMX, with AVX-512's instruction for pairs beside it.
    Tiles,
}

impl Instructions {
    /// The set as pulp knows it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn arch(self) -> Arch {
        self.arch
    }

    /// The instructions that multiply bf16. The processor has them, and the system permits this process to use them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bf16(self) -> Bf16Products {
        self.bf16
    }

    /// Runs `op` with these instructions.
    pub(crate) fn dispatch<Op: pulp::WithSimd>(self, op: Op) -> Op::Output {
        self.arch.dispatch(op)
    }
}

static CHOSEN: OnceLock<(InstructionSet, Instructions)> = OnceLock::new();

impl InstructionSet {
    /// All of them, the widest first.
    pub const ALL: [Self; 5] = [Self::Widest, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The limit of this process, which is settled by the first operation.
    pub fn current() -> Self {
        chosen().0
    }

    /// Whether AMX multiplies bf16 without a limit.
    pub fn has_amx() -> bool {
        widest_products(Arch::new()) == Bf16Products::Tiles
    }

    /// Makes this the limit of this process.
    ///
    /// # Errors
    /// If the machine lacks these instructions, or if an operation has run, or weights have been packed, under
    /// another limit.
    pub fn limit(self) -> Result<()> {
        let Some(instructions) = self.instructions() else {
            bail!("instruction set: expected one that this machine has, got {self}");
        };
        let settled = CHOSEN.get_or_init(|| (self, instructions)).0;
        if settled != self {
            bail!("instruction set: expected {self} before any operation has run, got {settled} in use");
        }
        Ok(())
    }

    /// The instructions of kernels under this limit; none if the machine lacks it.
    fn instructions(self) -> Option<Instructions> {
        let arch = match self {
            Self::Widest => Arch::new(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 | Self::Avx512 => pulp::x86::V4::try_new().map(Arch::V4)?,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map(Arch::V3)?,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => return None,
            Self::Portable => Arch::Scalar,
        };
        let bf16 = match (self, widest_products(arch)) {
            (Self::Avx512Bf16, Bf16Products::Widened) => return None,
            (Self::Avx512Bf16, _) => Bf16Products::Pairs,
            (Self::Widest, widest) => widest,
            _ => Bf16Products::Widened,
        };
        Some(Instructions { arch, bf16 })
    }
}

/// The best products of bf16 that this machine has beside `arch`.
#[cfg(target_arch = "x86_64")]
fn widest_products(arch: Arch) -> Bf16Products {
    if !matches!(arch, Arch::V4(_)) || !std::arch::is_x86_feature_detected!("avx512bf16") {
        Bf16Products::Widened
    } else if amx_permitted() {
        Bf16Products::Tiles
    } else {
        Bf16Products::Pairs
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn widest_products(_: Arch) -> Bf16Products {
    Bf16Products::Widened
}

/// Whether the processor multiplies tiles of bf16 and Linux lets this process use them, which it must ask for.
#[cfg(target_arch = "x86_64")]
fn amx_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};

        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;

        let has_amx = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES;
        // SAFETY: asks for the process's permission to keep one more kind of registers; it reads and writes no memory.
        has_amx
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

fn chosen() -> (InstructionSet, Instructions) {
    *CHOSEN.get_or_init(|| {
        let widest = InstructionSet::Widest;
        let instructions = widest.instructions();
        (widest, instructions.unwrap_or(Instructions { arch: Arch::new(), bf16: Bf16Products::Widened }))
    })
}

/// The instructions in use.
pub(crate) fn instructions() -> Instructions {
    chosen().1
}

/// Runs `op` with the instructions in use.
pub(crate) fn dispatch<Op: pulp::WithSimd>(op: Op) -> Op::Output {
    instructions().dispatch(op)
}

/// Those of every instruction set that this machine can run.
#[cfg(test)]
pub(crate) fn instruction_sets() -> Vec<Instructions> {
    InstructionSet::ALL.into_iter().filter_map(InstructionSet::instructions).collect()
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Widest => "widest",
            Self::Avx512Bf16 => "avx512bf16",
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
            Error::Msg(format!(
                "instruction set: expected widest, avx512bf16, avx512, avx2 or portable, got {name:?}"
            ))
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
