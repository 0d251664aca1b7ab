//! Whether this CPU has what the binary was compiled for.
//!
//! The standard library's feature detection cannot tell: in a build for x86-64-v3 it answers "yes" at compile time. So
//! the CPU is asked directly, with plain integer code that runs anywhere.

/// The first feature of x86-64-v3 that this CPU lacks, `None` where it has them all.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
pub fn missing_feature() -> Option<&'static str> {
    use core::arch::x86_64::__cpuid;

    const EXTENDED: u32 = 0x8000_0000;
    if __cpuid(0).eax < 7 {
        return Some("AVX2");
    }
    let (basic, structured) = (__cpuid(1).ecx, __cpuid(7).ebx);
    let extended = if __cpuid(EXTENDED).eax > EXTENDED { __cpuid(EXTENDED + 1).ecx } else { 0 };
    let has = |register: u32, bit: u32| register >> bit & 1 == 1;
    // `if` by `if`: a table would be copied to the stack with the very instructions in question.
    if !has(basic, 27) || !has(basic, 28) {
        Some("AVX")
    } else if !has(structured, 5) {
        Some("AVX2")
    } else if !has(basic, 12) {
        Some("FMA")
    } else if !has(basic, 29) {
        Some("F16C")
    } else if !has(structured, 3) || !has(structured, 8) {
        Some("BMI1 and BMI2")
    } else if !has(extended, 5) {
        Some("LZCNT")
    } else if !has(basic, 22) {
        Some("MOVBE")
    } else {
        None
    }
}

/// Nothing is asked of other architectures.
#[cfg(not(target_arch = "x86_64"))]
pub fn missing_feature() -> Option<&'static str> {
    None
}
