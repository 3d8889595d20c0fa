//! How a service's memory is managed.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

/// The services' memory stays flat under load with it, and small allocations cost half.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2's `mimalloc.h`.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    fn mi_option_set_default(option: c_int, value: c_long);
}

/// Has memory that is given back kept for 30 instead of 10 milliseconds, unless `MIMALLOC_PURGE_DELAY` says
/// how long. For a service that takes as much again with the next batch.
pub fn keep() {
    // SAFETY: the allocator's own function, which only stores the number; any thread may call it at any time.
    unsafe { mi_option_set_default(PURGE_DELAY, 30) };
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn mi_option_get(option: c_int) -> c_long;
    }

    /// Should another version of the allocator number its options otherwise, its default is another one, too.
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: it only reads the number.
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            assert_eq!(delay(), 10);
            keep();
            assert_eq!(delay(), 30);
        }
    }
}
