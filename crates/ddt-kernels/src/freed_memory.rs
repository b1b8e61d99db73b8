//! Memory that the process has freed.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "a setting of the C library's allocator")
)]

/// Makes the C library's allocator keep freed pages mapped for later allocations, in the whole process.
///
/// Each step of a network allocates and frees tensors of tens of megabytes. By default glibc returns such memory to the
/// system, which zeroes and maps it again; that costs up to a tenth of a step on a CPU. Programs that sample or train
/// call this once, at the start; libraries should leave the choice to their program.
/// Does nothing with other allocators.
pub fn retain_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The names and numbers of glibc's malloc.h.
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        // SAFETY: glibc's declaration; it takes two numbers, keeps nothing, and returns 0 for unknown settings.
        unsafe extern "C" {
            safe fn mallopt(param: i32, value: i32) -> i32;
        }
        for param in [M_MMAP_THRESHOLD, M_TRIM_THRESHOLD] {
            mallopt(param, i32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn allocations_work_after_it() {
        super::retain_freed_memory();
        assert_eq!(vec![1u8; 50 << 20].iter().map(|it| usize::from(*it)).sum::<usize>(), 50 << 20);
    }
}
