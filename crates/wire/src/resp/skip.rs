//! Finds where requests end without taking them apart: for a server that refuses most of what it reads.
//!
//! Taking a request apart costs a good part of executing it. Whoever refuses it needs its name and its end only, and these
//! are found by its lengths alone; nothing is allocated or counted, and bytes of values are not looked at.
//!
//! S1. `RespParser::skip_while` passes over exactly what `next` would have given out; in every doubt (half a request, one that `next` has got far with, an
//!     inline one, a length that is not plain, a limit) it stops, and leaves the decision to `next`.

use super::{RespLimits, RespParser};

/// A request of which `read` knows no more than so many bytes is looked at from its beginning again: cheaper than to take apart
/// what may only be refused, and what comes in many small pieces is not looked at over and over.
const BEGUN_BYTES_MAX: usize = 1_024;

/// A whole request that has been found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The first argument.
    pub name: &'a [u8],
    /// How long the request is.
    pub bytes: usize,
    /// How much stands behind it.
    pub behind: usize,
}

impl RespParser {
    /// Passes over whole requests, from the next one on, as long as `skips` says so. Says how many.
    pub fn skip_while(&mut self, mut skips: impl FnMut(Found<'_>) -> bool) -> usize {
        // Others have been given out. Or `read` has got far with this one, and knows where it stands.
        if self.failed.is_some() || self.framed > 0 || self.at > BEGUN_BYTES_MAX {
            return 0;
        }
        let limits = self.limits();
        let buffer = self.buffer();
        let (mut at, mut count) = (0, 0);
        while let Some((name, bytes)) = find(&buffer[at..], &limits) {
            let behind = buffer.len() - at - bytes;
            if !skips(Found {
                name,
                bytes,
                behind,
            }) {
                break;
            }
            at += bytes;
            count += 1;
        }
        if at > 0 {
            self.begin_command();
            self.drop_front(at);
        }
        count
    }
}

/// The name and the length of the request that `buffer` begins with, if there is no doubt about it.
fn find<'a>(buffer: &'a [u8], limits: &RespLimits) -> Option<(&'a [u8], usize)> {
    let (arguments, mut at) = length(buffer, 0, b'*')?;
    // None at all is no request, and nothing is to be answered.
    if arguments == 0 || arguments > limits.arguments_max {
        return None;
    }
    let mut name: &[u8] = &[];
    for argument in 0..arguments {
        let (bytes, from) = length(buffer, at, b'$')?;
        if bytes > limits.bulk_bytes_max {
            return None;
        }
        at = from + bytes as usize + 2;
        if at > buffer.len() || at > limits.command_bytes_max as usize {
            return None;
        }
        if argument == 0 {
            name = &buffer[from..from + bytes as usize];
        }
    }
    Some((name, at))
}

/// A length of at most seven digits behind its `mark` at `at`, and where the line after it begins.
fn length(buffer: &[u8], at: usize, mark: u8) -> Option<(u32, usize)> {
    let line = buffer.get(at..)?;
    let (&first, line) = line.split_first()?;
    if first != mark {
        return None;
    }
    let mut length = 0;
    for (digits, &byte) in line.iter().take(8).enumerate() {
        match byte {
            // Zeros do not lead.
            b'0'..=b'9' if digits == 0 || length > 0 => {
                length = length * 10 + u32::from(byte - b'0');
            }
            b'\r' if digits > 0 && line.len() > digits + 1 => {
                return Some((length, at + 1 + digits + 2));
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::Args;
    use super::*;

    fn parser(input: &[u8]) -> RespParser {
        let mut parser = RespParser::new(RespLimits {
            bulk_bytes_max: 1_000,
            command_bytes_max: 5_000,
            arguments_max: 100,
        });
        parser.set_authenticated(true);
        parser.feed(Bytes::copy_from_slice(input));
        parser
    }

    fn next(parser: &mut RespParser) -> Option<Vec<Vec<u8>>> {
        let mut args = Args::default();
        match parser.next(&mut args) {
            Ok(true) => Some((0..args.len()).map(|at| args.get(at).to_vec()).collect()),
            Ok(false) | Err(_) => None,
        }
    }

    #[test]
    fn whole_requests_are_passed_over_and_the_rest_stays() {
        let input = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nb\r\n*2\r\n$3\r\nGE";
        let mut parser = parser(input);
        let mut seen = Vec::new();
        let passed = parser.skip_while(|found| {
            seen.push((found.name.to_vec(), found.bytes, found.behind));
            found.name == b"GET"
        });
        assert_eq!(passed, 1);
        assert_eq!(
            seen,
            [(b"GET".to_vec(), 20, 44), (b"PING".to_vec(), 14, 30)]
        );
        assert_eq!(next(&mut parser), Some(vec![b"PING".to_vec()]));
        assert_eq!(parser.skip_while(|_| true), 1);
        assert_eq!(parser.skip_while(|_| true), 0, "half a request");
        assert_eq!(next(&mut parser), None);
        parser.feed(Bytes::from_static(b"T\r\n$1\r\nc\r\n*2\r\n"));
        assert_eq!(parser.skip_while(|_| false), 0);
        let c = vec![b"GET".to_vec(), b"c".to_vec()];
        assert_eq!(next(&mut parser), Some(c));
        assert_eq!(next(&mut parser), None);
        parser.feed(Bytes::from_static(b"$3\r\nGET\r\n$1\r\nd\r\n*1\r\n"));
        assert_eq!(parser.skip_while(|_| true), 1, "hardly begun by `next`");
        assert_eq!(next(&mut parser), None);
    }

    /// One that `next` has got far with is left to it: looking at it again with every piece would take ever longer.
    #[test]
    fn a_long_request_is_looked_at_once() {
        let long = vec![b'v'; 900];
        let mut input = b"*4\r\n$3\r\nSET\r\n".to_vec();
        for _ in 0..2 {
            input.extend(b"$900\r\n");
            input.extend(&long);
            input.extend(b"\r\n");
        }
        let mut parser = parser(&input);
        assert_eq!(next(&mut parser), None);
        parser.feed(Bytes::from_static(b"$1\r\nx\r\n"));
        assert_eq!(parser.skip_while(|_| true), 0);
        assert_eq!(next(&mut parser).map(|words| words.len()), Some(4));
    }

    #[test]
    fn in_doubt_it_stops() {
        for doubtful in [
            &b"PING\r\n"[..],
            b"*0\r\n*1\r\n$4\r\nPING\r\n",
            b"*-1\r\n",
            b"*01\r\n$4\r\nPING\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n$+4\r\nPING\r\n",
            b"*1\r\n:4\r\nPING\r\n",
            b"*101\r\n$4\r\nPING\r\n",
            b"*1\r\n$1001\r\n",
            b"*12345678\r\n",
            b"*1\r\n$4\r",
            b"",
        ] {
            assert_eq!(parser(doubtful).skip_while(|_| true), 0, "{doubtful:?}");
        }
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        let words = vec(vec(any::<u8>(), 0..40), 1..6).prop_map(|words| {
            let mut out = format!("*{}\r\n", words.len()).into_bytes();
            for word in words {
                out.extend(format!("${}\r\n", word.len()).bytes());
                out.extend(word);
                out.extend(b"\r\n");
            }
            out
        });
        let odd = prop_oneof![
            Just(b"*0\r\n".to_vec()),
            Just(b"GET a\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"*1\r\n$00\r\n".to_vec()),
            vec(any::<u8>(), 0..20),
        ];
        prop_oneof![6 => words, 1 => odd]
    }

    proptest! {
        /// S1: with some requests passed over, in pieces of any size, the others are those that `next` gives without.
        #[test]
        fn what_is_passed_over_is_what_next_would_have_given(
            requests in vec(request(), 0..12),
            cut in 0_usize..600,
            choices in vec(any::<bool>(), 24),
        ) {
            let input = requests.concat();
            let cut = cut.min(input.len());
            let mut plain = parser(&input);
            let mut skipping = parser(&input[..cut]);
            let mut choices = choices.iter().cycle();
            let mut rest = Some(&input[cut..]);
            loop {
                let skips = *choices.next().unwrap();
                let mut names = Vec::new();
                let passed = skipping.skip_while(|found| {
                    names.push(found.name.to_vec());
                    skips && names.len() < 3
                });
                for name in names.iter().take(passed) {
                    let expected = next(&mut plain).expect("it was passed over");
                    prop_assert_eq!(&expected[0], name);
                }
                match next(&mut skipping) {
                    Some(words) => prop_assert_eq!(Some(words), next(&mut plain)),
                    None => match rest.take() {
                        Some(rest) => skipping.feed(Bytes::copy_from_slice(rest)),
                        None => break,
                    },
                }
            }
            prop_assert_eq!(next(&mut plain), None);
            prop_assert_eq!(plain.buffered_bytes(), skipping.buffered_bytes());
        }
    }
}
