//! Patterns of SCAN, KEYS and CONFIG GET, exactly as Redis matches them, with bounded work.
//!
//! `*` any bytes, `?` one byte, `[a-c]` `[^a-c]` classes, `\x` the byte x itself. Redis tries every
//! split at every star, which takes exponential time on hostile patterns; remembering only
//! the last star gives the same answers (what a star has skipped, a later star can skip as well) in
//! time at most pattern length times key length.

/// True if the whole of `text` matches `pattern`.
pub fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last star fails: behind the star, and one byte further on.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        match (p < pattern.len()).then(|| match_one(&pattern[p..], text[t])) {
            Some(Some(length)) => {
                p += length;
                t += 1;
            }
            _ => match retry {
                Some((behind_star, from)) => {
                    p = behind_star;
                    t = from + 1;
                    retry = Some((behind_star, t));
                }
                None => return false,
            },
        }
    }
}

/// Matches `byte` with the first element of `pattern` (not a star); its length if they match.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (matches, length) = match_class(class, byte);
            matches.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Matches `byte` with what follows a `[`; also tells how long the class is. As in Redis, one that
/// is never closed ends with the pattern, and a range may be given backwards.
fn match_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &class[at..] {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [low, b'-', high, ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, matches: bool) {
        assert_eq!(
            glob_matches(pattern.as_bytes(), text.as_bytes()),
            matches,
            "{pattern} {text}"
        );
    }

    #[test]
    fn patterns_match_as_in_redis() {
        check("*", "", true);
        check("sess:*", "sess:1", true);
        check("sess:*", "ses:1", false);
        check("h?llo", "hello", true);
        check("h?llo", "hllo", false);
        check("h[ae]llo", "hallo", true);
        check("h[ae]llo", "hillo", false);
        check("h[^e]llo", "hallo", true);
        check("h[^e]llo", "hello", false);
        check("h[a-b]llo", "hbllo", true);
        check("h[b-a]llo", "hallo", true);
        check("h[a-b]llo", "hcllo", false);
        check("h\\?llo", "h?llo", true);
        check("h\\?llo", "hallo", false);
        check("[\\]]", "]", true);
        check("a*b*c", "aXbYc", true);
        check("a*b*c", "aXbY", false);
        check("*a*", "bab", true);
        check("", "", true);
        check("", "a", false);
        check("abc[", "abcx", false);
        check("abc[x", "abcx", true);
        check("a\\", "a\\", true);
    }

    #[test]
    fn a_hostile_pattern_takes_bounded_time() {
        let pattern = "a*".repeat(200) + "b";
        check(&pattern, &"a".repeat(5_000), false);
    }
}
