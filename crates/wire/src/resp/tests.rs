use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Commands = Vec<Vec<Vec<u8>>>;

fn limits() -> RespLimits {
    RespLimits {
        bulk_bytes_max: 1000,
        command_bytes_max: 5000,
        arguments_max: 100,
    }
}

/// Everything that comes out when `input` arrives cut at `cuts`, and how it ended. However many requests are
/// read together, and turned to or not, it is the same.
fn parse_in_pieces(input: &[u8], cuts: &[usize]) -> (Commands, Option<RespProtocolError>) {
    let one_by_one = parse_together(input, cuts, 1, 1);
    for (together, turned) in [(2, 1), (3, 3), (8, 5), (8, 8)] {
        let result = parse_together(input, cuts, together, turned);
        assert_eq!(result, one_by_one, "{turned} of {together}");
    }
    one_by_one
}

/// Reads `together` requests at a time and turns to `turned` of them.
fn parse_together(
    input: &[u8],
    cuts: &[usize],
    together: usize,
    turned: usize,
) -> (Commands, Option<RespProtocolError>) {
    let mut parser = RespParser::new(limits());
    parser.set_authenticated(true);
    let mut args = Args::default();
    let mut commands = Vec::new();
    let mut from = 0;
    let mut bounds: Vec<usize> = cuts.iter().map(|cut| (*cut).min(input.len())).collect();
    bounds.push(input.len());
    bounds.sort_unstable();
    for to in bounds {
        parser.feed(Bytes::copy_from_slice(&input[from..to]));
        from = to;
        loop {
            match parser.read(&mut args, together) {
                Ok(0) => break,
                Ok(read) => {
                    let seconds: Vec<Vec<u8>> = args.coming().map(<[u8]>::to_vec).collect();
                    let from = commands.len();
                    for _ in 0..read.min(turned) {
                        assert!(parser.turn(&mut args), "it was read");
                        let words = (0..args.len()).map(|i| args.get(i).to_vec());
                        commands.push(words.collect::<Vec<_>>());
                    }
                    let told = commands[from..].iter().filter_map(|words| words.get(1));
                    assert!(told.zip(&seconds).all(|(word, coming)| word == coming));
                }
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

#[track_caller]
fn check(input: &[u8], expected: &[&[&str]], error: Option<RespProtocolError>) {
    let expected: Commands = expected
        .iter()
        .map(|command| command.iter().map(|arg| arg.as_bytes().to_vec()).collect())
        .collect();
    assert_eq!(parse_in_pieces(input, &[]), (expected.clone(), error));
    let everywhere: Vec<usize> = (0..input.len()).collect();
    assert_eq!(
        parse_in_pieces(input, &everywhere),
        (expected.clone(), error)
    );
    for cut in 0..input.len() {
        assert_eq!(
            parse_in_pieces(input, &[cut]),
            (expected.clone(), error),
            "cut at {cut}"
        );
    }
}

#[test]
fn requests_are_taken_apart_wherever_they_are_cut() {
    check(
        b"*2\r\n$3\r\nGET\r\n$6\r\nsess:1\r\n",
        &[&["GET", "sess:1"]],
        None,
    );
    check(
        b"*1\r\n$4\r\nPING\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*0\r\n\r\nget  a\n",
        &[&["PING"], &["PING"], &["ECHO", ""], &["get", "a"]],
        None,
    );
    check(b"*-1\r\n*1\r\n$4\r\nPING\r\n", &[&["PING"]], None);
    check(b"*1\r\n$6\r\na\r\nb\r\n\r\n", &[&["a\r\nb\r\n"]], None);
}

#[test]
fn inline_requests_know_quotes_and_escapes() {
    check(
        b"set k \"a b\\x41\\n\\\"\" 'c\\'d'\r\n",
        &[&["set", "k", "a bA\n\"", "c'd"]],
        None,
    );
    check(b"set k \"\"\r\n", &[&["set", "k", ""]], None);
    check(
        b"get \"a\r\n",
        &[],
        Some(RespProtocolError::UnbalancedQuotes),
    );
    check(
        b"get \"a\"b\r\n",
        &[],
        Some(RespProtocolError::UnbalancedQuotes),
    );
    check(b"get 'a\\", &[], None);
}

#[test]
fn nonsense_is_refused_in_the_words_of_redis() {
    use RespProtocolError::*;
    check(b"*x\r\n", &[], Some(InvalidMultibulkLength));
    check(b"*101\r\n", &[], Some(InvalidMultibulkLength));
    check(
        b"*99999999999999999999\r\n",
        &[],
        Some(InvalidMultibulkLength),
    );
    check(b"*1\r\n:1\r\n", &[], Some(ExpectedBulk(b':')));
    check(b"*1\r\n$-1\r\n", &[], Some(InvalidBulkLength));
    check(b"*1\r\n$1001\r\n", &[], Some(InvalidBulkLength));
    check(b"*1\r\n$+1\r\n", &[], Some(InvalidBulkLength));
    check(b"*1\r\n$01\r\n", &[], Some(InvalidBulkLength));
    check(
        &[b"*".as_slice(), &[b'1'; 80]].concat(),
        &[],
        Some(MultibulkLineTooLong),
    );
    check(
        &[b"*1\r\n$".as_slice(), &[b'1'; 80]].concat(),
        &[],
        Some(BulkLineTooLong),
    );
    assert_eq!(
        InvalidBulkLength.to_string(),
        "ERR Protocol error: invalid bulk length"
    );
    assert_eq!(
        ExpectedBulk(b':').to_string(),
        "ERR Protocol error: expected '$', got ':'"
    );
    let long = vec![b'a'; LINE_BYTES_MAX];
    assert_eq!(parse_in_pieces(&long, &[]).1, Some(InlineTooLong));
    // Five arguments of a thousand bytes are within the limit of each, not of the request.
    let mut big = b"*6\r\n".to_vec();
    for _ in 0..6 {
        big.extend_from_slice(b"$1000\r\n");
        big.extend_from_slice(&[b'v'; 1000]);
        big.extend_from_slice(b"\r\n");
    }
    assert_eq!(
        parse_in_pieces(&big, &[]).1,
        Some(CommandTooLong { limit: 5000 })
    );
}

#[test]
fn a_stranger_gets_little_room() {
    let mut args = Args::default();
    let refused = |input: &'static [u8], args: &mut Args| {
        let mut parser = RespParser::new(RespLimits::for_values(1 << 20));
        parser.feed(Bytes::from_static(input));
        let error = parser.next(args).expect_err("strangers may not");
        assert_eq!(parser.next(args), Err(error), "the stream stays broken");
        error
    };
    assert_eq!(
        refused(b"*11\r\n", &mut args),
        RespProtocolError::UnauthenticatedMultibulkLength
    );
    assert_eq!(
        refused(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n", &mut args),
        RespProtocolError::UnauthenticatedBulkLength
    );
}

/// P1: a long length allocates nothing before the bytes come.
#[test]
fn lengths_are_not_taken_on_trust() {
    let mut parser = RespParser::new(RespLimits::for_values(1 << 30));
    parser.set_authenticated(true);
    parser.feed(Bytes::from_static(b"*1000000\r\n$1000000000\r\nab"));
    let mut args = Args::default();
    assert_eq!(parser.next(&mut args), Ok(false));
    assert!(parser.allocated_bytes() < 256 * 1024);
    assert_eq!(parser.buffered_bytes(), 25);
}

/// P1: found by the fuzzer; a connection could pin the buffer of its largest request with a few bytes
/// of the next one, which `buffered_bytes` did not tell.
#[test]
fn a_request_under_way_does_not_pin_the_buffer_of_the_one_before() {
    let mut parser = RespParser::new(RespLimits::for_values(8 << 20));
    parser.set_authenticated(true);
    let mut args = Args::default();
    parser.feed(Bytes::from_static(b"*2\r\n$4\r\nECHO\r\n$8388608\r\n"));
    assert_eq!(parser.next(&mut args), Ok(false));
    for _ in 0..128 {
        parser.feed(Bytes::from(vec![b'v'; 64 << 10]));
        assert_eq!(parser.next(&mut args), Ok(parser.buffered_bytes() == 0));
    }
    parser.feed(Bytes::from_static(b"\r\n*2\r\n$3\r\nGET\r\n"));
    assert_eq!(parser.next(&mut args), Ok(true));
    assert_eq!(parser.next(&mut args), Ok(false));
    assert_eq!(parser.buffered_bytes(), 13);
    assert!(parser.whole.is_empty(), "it shares the large buffer");
    assert!(parser.allocated_bytes() < 256 << 10);
    parser.feed(Bytes::from_static(b"$1\r\nk\r\n"));
    assert_eq!(parser.next(&mut args), Ok(true));
}

/// P2: a whole command shares the buffer it came in.
#[test]
fn arguments_share_the_receive_buffer() {
    let input = Bytes::from_static(b"*2\r\n$3\r\nGET\r\n$6\r\nsess:1\r\n");
    let mut parser = RespParser::new(limits());
    parser.feed(input.clone());
    let mut args = Args::default();
    assert_eq!(parser.next(&mut args), Ok(true));
    assert_eq!(args.bytes(1).as_ptr(), input[17..].as_ptr());
}

fn encode(commands: &Commands) -> Vec<u8> {
    let mut out = Vec::new();
    for command in commands {
        out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for arg in command {
            out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            out.extend_from_slice(arg);
            out.extend_from_slice(b"\r\n");
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_come_out_as_they_went_in(
        commands in vec(vec(vec(any::<u8>(), 0..50), 1..6), 0..8),
        cuts in vec(0..2000usize, 0..20),
    ) {
        let input = encode(&commands);
        prop_assert_eq!(parse_in_pieces(&input, &cuts), (commands, None));
    }

    #[test]
    fn noise_means_the_same_however_it_is_cut(
        noise in "[*$0-9a\r\n\"' -]{0,60}",
        cuts in vec(0..60usize, 0..10),
    ) {
        let whole = parse_in_pieces(noise.as_bytes(), &[]);
        prop_assert_eq!(parse_in_pieces(noise.as_bytes(), &cuts), whole);
    }

    #[test]
    fn integers_are_read_as_they_are_written(value in any::<i64>()) {
        prop_assert_eq!(parse_integer(value.to_string().as_bytes()), Some(value));
    }

    #[test]
    fn what_is_read_as_an_integer_is_written_so(text in "[-+ 0-9]{0,21}") {
        let strict = text.parse::<i64>().ok().filter(|value| value.to_string() == text);
        prop_assert_eq!(parse_integer(text.as_bytes()), strict);
    }
}
