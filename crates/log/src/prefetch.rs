//! Asking the processor for a cache line ahead of its use.

#![allow(
    unsafe_code,
    reason = "prefetching has no safe form; this module is that safe form"
)]

/// Starts loading the cache line of `bytes[at]`. A hint: without it everything is only slower.
#[inline]
pub(crate) fn prefetch(bytes: &[u8], at: usize) {
    let Some(byte) = bytes.get(at) else { return };
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of every x86-64, and a prefetch has no effect on memory whatever the
        // address is; this one even points to a byte of a live slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = byte;
}
