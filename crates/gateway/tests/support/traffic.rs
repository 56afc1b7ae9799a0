//! Streams of requests for the fuzzers: what session clients send, and what is left of it after mutation.
//!
//! Mutation knows the structure: it changes words of a request, then the way the request is written
//! down, then single bytes. Noise alone would hardly ever get past the first length.

/// SplitMix64: a case is its seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

/// As session libraries, drivers and tools were recorded to send them, one exchange a line, requests
/// separated by `|`. `\r`, `\n`, `\s` and `\0` are escapes, `""` is an empty word.
const RECORDED: &[&str] = &[
    // Handshakes, pipelined as they come.
    "HELLO 3|CLIENT SETINFO LIB-NAME node-redis|CLIENT SETINFO LIB-VER 6.3.1|CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type external-ip",
    "HELLO 3 AUTH default secret SETNAME web|SELECT 1",
    "AUTH secret|CLIENT SETNAME web-1|SELECT 2|CLIENT SETINFO LIB-NAME redis-py|CLIENT SETINFO LIB-VER 6.4.0",
    "client setname ioredis-cluster(refresher)|cluster SLOTS|info|cluster INFO",
    "hello 3 auth default secret|client setname go|client setinfo LIB-NAME go-redis(,go1.22)|client setinfo LIB-VER 9.7.3",
    "PING|HELLO 3|CLIENT ID|INFO server|CLUSTER SLOTS",
    "HELLO 3|CLUSTER NODES|INFO|READONLY|COMMAND",
    "CLIENT SETNAME app|CLIENT ID|CONFIG GET timeout|CONFIG GET replica-read-only|CONFIG GET databases|SENTINEL MASTERS|INFO replication|INFO server|CLUSTER NODES|GET __Booksleeve_TieBreak|ECHO \\0\\rguid",
    "COMMAND DOCS|COMMAND COUNT|COMMAND INFO get set nosuch|COMMAND GETKEYS set k v",
    "CLIENT SETNAME redis_exporter|CONFIG GET *|INFO ALL|LATENCY LATEST|SLOWLOG LEN|SLOWLOG GET 1",
    // Page views.
    "GET sess:1|EXPIRE sess:1 86400",
    "GET sess:1|SET sess:1 {\"cookie\":{\"originalMaxAge\":null},\"user\":7} EX 86400",
    "DEL sess:1|SET sess:2 v EX 60",
    "SCAN 0 MATCH sess:* COUNT 100|MGET sess:1 sess:2 sess:3|DEL sess:1 sess:2 sess:3",
    "SETEX koa:sess:1 86410 v|GET koa:sess:1",
    "EXISTS :1:django.contrib.sessions.cache1|SET :1:django.contrib.sessions.cache1 \\0pickle\\r\\n NX EX 1209600",
    "SET :1:s v NX PX 1209600000|PEXPIRE :1:s 5|PERSIST :1:s|PTTL :1:s",
    "SET c29tZSBpZA v EXAT 1800000000 NX|SET c29tZSBpZA w EXAT 1800000001 XX|GET c29tZSBpZA",
    "SET PHPREDIS_SESSION:1_LOCK host|7 NX PX 30000|GET PHPREDIS_SESSION:1|GET PHPREDIS_SESSION:1_LOCK|SETEX PHPREDIS_SESSION:1 1440 v|EVALSHA b70c2384248f88e6b75b9f89241a180f856ad852 1 PHPREDIS_SESSION:1_LOCK host",
    "EVAL if\\sredis.call(\"get\",KEYS[1])\\s==\\sARGV[1]\\sthen\\sreturn\\sredis.call(\"del\",KEYS[1])\\selse\\sreturn\\s0\\send 1 foo w",
    "EVALSHA a4e8783852e6b949f9ef3a97212805108459a890 1 foo w 60000 1|EVALSHA c3f8721cbb97f72bc19e972846bd7aaf91901658 1 foo w|SCRIPT EXISTS a4e8783852e6b949f9ef3a97212805108459a890|SCRIPT FLUSH",
    "SCRIPT LOAD return\\s1|EVAL return\\s1 0",
    "GETEX PHPREDIS_SESSION:1 EX 1440|GETDEL one-shot|GETSET k v|STRLEN k|TYPE k|TOUCH k foo",
    "UNLINK sf_s1|GET sf_s1|EXPIREAT sf_s1 1800000000 GT|PEXPIREAT sf_s1 1800000000000|EXPIRETIME sf_s1|PEXPIRETIME sf_s1|TTL sf_s1",
    "FLUSHDB ASYNC|DBSIZE|KEYS *|FLUSHALL",
    "CLUSTER SHARDS|CLUSTER MYID|CLUSTER KEYSLOT foo{bar}|ASKING|READWRITE|WAIT 1 100|ROLE|TIME",
    "RESET|QUIT",
    "CLIENT LIST TYPE normal|CLIENT INFO|CLIENT GETNAME|CLIENT KILL ID 77|CLIENT NO-EVICT on",
    "SET foo w KEEPTTL GET|SET foo w EX 10 XX|PSETEX foo 10 w|SETNX foo w|EXPIRE foo 10 XX LT",
    "MULTI|INCR n|EXEC|HSET h f v|NOSUCH command",
    "POST /|Host: localhost",
];

/// One request: its words.
pub type Words = Vec<Vec<u8>>;

fn words_of(line: &str) -> Words {
    let words = line.split_whitespace().map(|word| match word {
        "\"\"" => Vec::new(),
        word => word
            .replace("\\r", "\r")
            .replace("\\n", "\n")
            .replace("\\s", " ")
            .replace("\\0", "\0")
            .into_bytes(),
    });
    words.collect()
}

/// Some exchanges, recorded or mutated by words.
pub fn requests(dice: &mut Dice) -> Vec<Words> {
    let mut list: Vec<Words> = Vec::new();
    for _ in 0..1 + dice.below(6) {
        list.extend(dice.pick(RECORDED).split('|').map(words_of));
    }
    list.retain(|words| !words.is_empty());
    for _ in 0..dice.below(2 * list.len()) {
        let at = dice.below(list.len());
        change_words(dice, &mut list, at);
    }
    list
}

fn change_words(dice: &mut Dice, list: &mut Vec<Words>, at: usize) {
    let donor = list[dice.below(list.len())].clone();
    let others = list.len() - 1;
    let request = &mut list[at];
    let word = dice.below(request.len());
    match dice.below(12) {
        0 => request[word] = number(dice),
        1 => request.push(number(dice)),
        2 => request.push(donor[dice.below(donor.len())].clone()),
        3 if request.len() > 1 => {
            request.remove(word);
        }
        4 => {
            let other = dice.below(request.len());
            request.swap(word, other);
        }
        5 => request[word].make_ascii_uppercase(),
        6 => request[word].make_ascii_lowercase(),
        7 => request[word] = binary(dice),
        8 => {
            let text = request[word].clone();
            request.push(text);
        }
        9 => list.push(donor),
        10 if others > 0 => {
            list.swap_remove(at);
        }
        // Many words, as MGET and DEL of a whole shop.
        _ => {
            let more = dice.below(300);
            request.extend((0..more).map(|n| format!("k{}", n % 7).into_bytes()));
        }
    }
}

fn number(dice: &mut Dice) -> Vec<u8> {
    let edge = [
        "0",
        "1",
        "-1",
        "-0",
        "00",
        "+1",
        "2147483647",
        "2147483648",
        "4294967295",
        "4294967296",
        "9007199254740992",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "18446744073709551616",
        "1e3",
        "0x10",
        " 1",
        "",
        "nan",
    ];
    match dice.below(3) {
        0 => dice.roll().to_string().into_bytes(),
        1 => dice.below(20_000).to_string().into_bytes(),
        _ => dice.pick(&edge).as_bytes().to_vec(),
    }
}

fn binary(dice: &mut Dice) -> Vec<u8> {
    let length = match dice.below(8) {
        0 => 0,
        1 => 70_000,
        2 => 5_000,
        _ => dice.below(60),
    };
    let all = dice.once_in(2);
    let telling = b"\r\n$*:-+\0 \"'\\{}\xff";
    (0..length)
        .map(|_| match all {
            true => dice.roll() as u8,
            false => telling[dice.below(telling.len())],
        })
        .collect()
}

/// The requests as well-formed bytes: as arrays, or in a line where words allow it.
pub fn encode(dice: &mut Dice, requests: &[Words]) -> Vec<u8> {
    let mut out = Vec::new();
    for words in requests {
        let plain = |word: &Vec<u8>| {
            !word.is_empty()
                && word
                    .iter()
                    .all(|b| b.is_ascii_graphic() && !b"\"'\\".contains(b))
        };
        let inline = words.iter().all(plain)
            && words[0][0] != b'*'
            && words.iter().map(|word| word.len() + 1).sum::<usize>() < 60_000;
        if inline && dice.once_in(5) {
            out.extend_from_slice(&words.join(&b' '));
            out.extend_from_slice(dice.pick(&["\r\n", "\n"]).as_bytes());
            continue;
        }
        if dice.once_in(9) {
            out.extend_from_slice(dice.pick(&["\r\n", "*0\r\n", "*-1\r\n", "\n"]).as_bytes());
        }
        out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }
    out
}

/// Damages an encoded stream, so that lengths lie, lines break and bytes go missing.
pub fn damage(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..1 + dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.below(bytes.len());
        match dice.below(9) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => {
                bytes.remove(at);
            }
            2 => bytes.insert(at, dice.roll() as u8),
            3 => bytes.truncate(at),
            4 => {
                let to = (at + dice.below(40)).min(bytes.len());
                let copied = bytes[at..to].to_vec();
                let into = dice.below(bytes.len());
                bytes.splice(into..into, copied);
            }
            // A length that is none, or another one.
            5 | 6 => {
                let marks: Vec<usize> = (0..bytes.len())
                    .filter(|&at| bytes[at] == b'$' || bytes[at] == b'*')
                    .collect();
                if let Some(&mark) = marks.get(dice.below(marks.len().max(1))) {
                    let digits = bytes[mark + 1..].iter().take_while(|b| b.is_ascii_digit());
                    let end = mark + 1 + digits.count();
                    bytes.splice(mark + 1..end, number(dice));
                }
            }
            7 => {
                let piece = dice.pick(&[
                    "*",
                    "$",
                    "\r",
                    "\n",
                    "\r\n",
                    "*1048576\r\n",
                    "*1048577\r\n",
                    "$1000000\r\n",
                    "$-1\r\n",
                    "*2\r\n$3\r\nGET\r\n",
                    "\"",
                    "'",
                    "\\x",
                    "*11\r\n",
                    "$16385\r\n",
                ]);
                bytes.splice(at..at, piece.bytes());
            }
            _ => {
                let noise = binary(dice);
                bytes.splice(at..at, noise);
            }
        }
    }
}

/// Where to cut `length` bytes into pieces.
pub fn cuts(dice: &mut Dice, length: usize) -> Vec<usize> {
    let mut at: Vec<usize> = match dice.below(3) {
        0 => (0..length.min(4_000)).collect(),
        1 => (0..1 + dice.below(60))
            .map(|_| dice.below(length + 1))
            .collect(),
        _ => {
            let step = 1 + dice.below(1_500);
            (0..length).step_by(step).collect()
        }
    };
    at.sort_unstable();
    at
}
