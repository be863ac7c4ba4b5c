//! Valgrind's client requests: instructions that do nothing on a processor and that valgrind, which
//! interprets them, takes as a message. See `valgrind.h` and `memcheck.h` of valgrind, and
//! <https://valgrind.org/docs/manual/manual-core-adv.html#manual-core-adv.clientreq>.

use std::arch::asm;

const RUNNING_ON_VALGRIND: usize = 0x1001;
/// The requests of memcheck begin at the letters M and C.
const MAKE_MEM_UNDEFINED: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16 | 1;
const MAKE_MEM_DEFINED: usize = MAKE_MEM_UNDEFINED + 1;

/// Whether valgrind runs this program.
pub fn is_running() -> bool {
    request(RUNNING_ON_VALGRIND, 0, 0) != 0
}

/// Marks `count` values as unknown: whatever is computed from them is unknown as well.
pub fn assume_undefined<T>(values: *const T, count: usize) {
    request(MAKE_MEM_UNDEFINED, values as usize, count * size_of::<T>());
}

/// Marks a value as known: from here on the program may decide over it.
pub fn assume_defined<T>(value: &T) {
    request(MAKE_MEM_DEFINED, value as *const T as usize, size_of::<T>());
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the request is written for x86-64; see valgrind.h for other processors");

#[inline(never)]
fn request(number: usize, first: usize, second: usize) -> usize {
    let arguments = [number, first, second, 0, 0, 0];
    let mut answer = 0_usize;
    // SAFETY: the rotations add up to two full turns and leave rdi as it was, and the exchange does
    // nothing; valgrind writes to rdx alone.
    unsafe {
        asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &arguments,
            inout("rdx") answer,
        );
    }
    answer
}
