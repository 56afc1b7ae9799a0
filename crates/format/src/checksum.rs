//! CRC32C, the one checksum of everything that is stored or replicated.
//!
//! The `crc32c` crate uses the processor's instruction where there is one, and has the `unsafe` that
//! this needs; nothing here does.

/// CRC32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// CRC32C of `a ++ b`, given `crc == crc32c(a)`: how certificates grow with a replica.
#[inline]
pub fn crc32c_extend(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_polynomial() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(
            crc32c_extend(crc32c(b"1234"), b"56789"),
            crc32c(b"123456789")
        );
        assert_eq!(crc32c(b""), 0);
    }
}
