//! Reads replies as clients do, to see that they are replies.

/// Ends of the whole replies at the beginning of `bytes`. Fails on what is no reply.
pub fn ends(bytes: &[u8]) -> Result<Vec<usize>, String> {
    let mut ends = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        at = end_of(bytes, at, 0)?;
        ends.push(at);
    }
    Ok(ends)
}

fn end_of(bytes: &[u8], at: usize, depth: u32) -> Result<usize, String> {
    let excerpt = || String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 80)]).into_owned();
    if depth > 8 {
        return Err(format!("too deep: {}", excerpt()));
    }
    let line = bytes[at..]
        .windows(2)
        .position(|two| two == b"\r\n")
        .ok_or_else(|| format!("no line: {}", excerpt()))?;
    let text = &bytes[at + 1..at + line];
    let after = at + line + 2;
    let length = || {
        let text = std::str::from_utf8(text).map_err(|_| format!("no length: {}", excerpt()))?;
        text.parse::<i64>()
            .map_err(|_| format!("no length: {}", excerpt()))
    };
    match bytes[at] {
        b'+' | b'-' => match text.contains(&b'\n') || text.contains(&b'\r') {
            true => Err(format!("a line end in a line: {}", excerpt())),
            false => Ok(after),
        },
        b':' => length().map(|_| after),
        b'_' if text.is_empty() => Ok(after),
        b'#' if text == b"t" || text == b"f" => Ok(after),
        kind @ (b'$' | b'=') => {
            let length = length()?;
            if length < 0 {
                return match kind {
                    b'$' if length == -1 => Ok(after),
                    _ => Err(format!("a negative length: {}", excerpt())),
                };
            }
            let end = after + length as usize;
            match bytes.get(end..end + 2) {
                Some(b"\r\n") => Ok(end + 2),
                _ => Err(format!("a string without an end: {}", excerpt())),
            }
        }
        kind @ (b'*' | b'~' | b'>' | b'%') => {
            let mut count = length()?;
            if count < 0 {
                return match kind {
                    b'*' if count == -1 => Ok(after),
                    _ => Err(format!("a negative length: {}", excerpt())),
                };
            }
            if kind == b'%' {
                count *= 2;
            }
            let mut end = after;
            for _ in 0..count {
                if end >= bytes.len() {
                    return Err(format!("items are missing: {}", excerpt()));
                }
                end = end_of(bytes, end, depth + 1)?;
            }
            Ok(end)
        }
        _ => Err(format!("no reply: {}", excerpt())),
    }
}
