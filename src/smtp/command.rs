//! command - the commands of SMTP, parsed from one line without allocating.
//!
//! What: `parse` takes the octets of a line without its CRLF. Parameters of MAIL and RCPT stay a
//! lazy iterator over the same octets.
//! Why this way: the server's hot path; a line that is whole in the input buffer is never copied.
//! Example: `parse(b"rcpt to:<a@b.example> NOTIFY=NEVER")` is `Command::Rcpt` with path
//! `a@b.example` and one parameter.
//! Standards: RFC 5321 4.1, 3030 2 (BDAT), 3207 (STARTTLS), 4954 (AUTH), 1985 (ETRN).

/// One command; slices borrow from the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// EHLO with its argument: a domain or an address literal, checked for allowed octets only.
    Ehlo(&'a str),
    /// HELO with its argument.
    Helo(&'a str),
    /// MAIL FROM: what stands between the angle brackets (empty: the null sender).
    Mail {
        /// The octets between `<` and `>`.
        path: &'a [u8],
        /// What follows the path.
        parameters: Parameters<'a>,
    },
    /// RCPT TO: what stands between the angle brackets, never empty.
    Rcpt {
        /// The octets between `<` and `>`.
        path: &'a [u8],
        /// What follows the path.
        parameters: Parameters<'a>,
    },
    /// DATA.
    Data,
    /// BDAT: so many octets follow this line (RFC 3030 2).
    Bdat {
        /// Octets of this chunk; may be zero.
        size: u64,
        /// Whether the message ends with this chunk.
        last: bool,
    },
    /// RSET.
    Rset,
    /// NOOP, with or without an argument.
    Noop,
    /// VRFY with an argument.
    Vrfy,
    /// EXPN with an argument.
    Expn,
    /// HELP, with or without an argument.
    Help,
    /// QUIT.
    Quit,
    /// STARTTLS.
    StartTls,
    /// AUTH with its arguments.
    Auth(&'a [u8]),
    /// ETRN, TURN, ATRN: known, and never offered.
    Turn,
    /// The first line of an HTTP request: somebody aims a browser or a proxy at this port.
    Http,
}

/// Why a line is no command. Each has its reply in the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandError {
    /// The verb is not known.
    Unknown,
    /// NUL, other controls, or octets above 127 where only ASCII may stand.
    BadOctet,
    /// A verb that takes no argument has one, or a verb that needs one has none.
    Arguments,
    /// MAIL without `FROM:<path>`, or RCPT without `TO:<path>`.
    Path,
    /// A parameter of MAIL or RCPT breaks the syntax of RFC 5321 4.1.2.
    Parameter,
    /// The size of BDAT is no number of at most 20 digits, or more than 64 bits hold. What follows
    /// cannot be told from commands, so the session cannot go on.
    ChunkSize,
}

/// The parameters of MAIL and RCPT: iterates over `(keyword, value)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters<'a>(&'a [u8]);

/// One parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// As given; compare without case.
    pub keyword: &'a [u8],
    /// What follows `=`; `None` without one. Never empty.
    pub value: Option<&'a [u8]>,
}

impl<'a> Parameters<'a> {
    /// Whether there is none: the usual case, answered without iterating.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<Parameter<'a>, CommandError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = trim_start(self.0);
        if rest.is_empty() {
            self.0 = rest;
            return None;
        }
        let end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        self.0 = tail;
        Some(parameter(word))
    }
}

/// Parses one parameter (RFC 5321 4.1.2 `esmtp-param`).
fn parameter(word: &[u8]) -> Result<Parameter<'_>, CommandError> {
    let (keyword, value) = match memchr::memchr(b'=', word) {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    };
    let starts_well = keyword.first().is_some_and(u8::is_ascii_alphanumeric);
    let keyword_ok = keyword
        .iter()
        .all(|&octet| octet.is_ascii_alphanumeric() || octet == b'-');
    // RFC 5321 excludes "=" from a value; xtext may not hold it either. ORCPT of RFC 3461 has ";".
    let value_ok = value.is_none_or(|value| !value.is_empty() && !value.contains(&b'='));
    if starts_well && keyword_ok && value_ok {
        Ok(Parameter { keyword, value })
    } else {
        Err(CommandError::Parameter)
    }
}

/// Parses one line, given without its CRLF.
///
/// Errors: see [`CommandError`]. Octets above 127 are accepted only in MAIL and RCPT, where
/// SMTPUTF8 may allow them; the caller decides that.
pub fn parse(line: &[u8]) -> Result<Command<'_>, CommandError> {
    // Trailing blanks are tolerated (RFC 5321 4.1.1).
    let line = trim_end(line);
    // Fold over all octets: one branch for the line, vectorised.
    if line
        .iter()
        .fold(false, |bad, &octet| bad | (octet < 0x20) | (octet == 0x7f))
    {
        return Err(CommandError::BadOctet);
    }
    let verb_end = memchr::memchr(b' ', line).unwrap_or(line.len());
    let (verb, rest) = line.split_at(verb_end);
    let argument = trim_start(rest);
    if let [a, b, c, d] = *verb {
        let word = [a, b, c, d].map(|octet| octet.to_ascii_uppercase());
        match &word {
            b"MAIL" => return path_command(argument, b"FROM:").map(mail),
            b"RCPT" => return path_command(argument, b"TO:").and_then(rcpt),
            _ => {}
        }
        if !line.is_ascii() {
            return Err(CommandError::BadOctet);
        }
        return four_letters(&word, argument);
    }
    if !line.is_ascii() {
        return Err(CommandError::BadOctet);
    }
    longer_verbs(verb, argument)
}

/// The commands with four letters, other than MAIL and RCPT.
fn four_letters<'a>(word: &[u8; 4], argument: &'a [u8]) -> Result<Command<'a>, CommandError> {
    match word {
        b"EHLO" => hello(argument).map(Command::Ehlo),
        b"HELO" => hello(argument).map(Command::Helo),
        b"DATA" => alone(argument, Command::Data),
        b"BDAT" => bdat(argument),
        b"RSET" => alone(argument, Command::Rset),
        b"NOOP" => Ok(Command::Noop),
        b"QUIT" => alone(argument, Command::Quit),
        b"HELP" => Ok(Command::Help),
        b"VRFY" if argument.is_empty() => Err(CommandError::Arguments),
        b"VRFY" => Ok(Command::Vrfy),
        b"EXPN" if argument.is_empty() => Err(CommandError::Arguments),
        b"EXPN" => Ok(Command::Expn),
        b"AUTH" if argument.is_empty() => Err(CommandError::Arguments),
        b"AUTH" => Ok(Command::Auth(argument)),
        b"ETRN" | b"TURN" | b"ATRN" => Ok(Command::Turn),
        b"POST" | b"HEAD" if is_http(argument) => Ok(Command::Http),
        _ => Err(CommandError::Unknown),
    }
}

/// The verbs that have not four letters.
fn longer_verbs<'a>(verb: &[u8], argument: &'a [u8]) -> Result<Command<'a>, CommandError> {
    if verb.eq_ignore_ascii_case(b"STARTTLS") {
        // RFC 3207 4: STARTTLS with an argument is a syntax error.
        return alone(argument, Command::StartTls);
    }
    let http: [&[u8]; 7] = [
        b"GET", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"PATCH", b"TRACE",
    ];
    if http.iter().any(|name| verb.eq_ignore_ascii_case(name)) && is_http(argument) {
        return Ok(Command::Http);
    }
    Err(CommandError::Unknown)
}

/// Whether the argument of a verb looks like a request target of HTTP.
fn is_http(argument: &[u8]) -> bool {
    argument.starts_with(b"/")
        || argument.starts_with(b"*")
        || memchr::memmem::find(argument, b"://").is_some()
        || memchr::memmem::find(argument, b"HTTP/").is_some()
}

/// A command that takes no argument.
fn alone<'a>(argument: &[u8], command: Command<'a>) -> Result<Command<'a>, CommandError> {
    if argument.is_empty() {
        Ok(command)
    } else {
        Err(CommandError::Arguments)
    }
}

/// The argument of EHLO and HELO: RFC 5321 wants a domain or an address literal. Real clients send
/// names with underscores and single labels, so only the octets are checked, and the length.
fn hello(argument: &[u8]) -> Result<&str, CommandError> {
    let allowed = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._:[]".contains(octet);
    // RFC 5321 4.5.3.1.2: a domain has at most 255 octets.
    if argument.is_empty() || argument.len() > 255 || !argument.iter().all(allowed) {
        return Err(CommandError::Arguments);
    }
    std::str::from_utf8(argument).map_err(|_| CommandError::Arguments)
}

/// BDAT: a size and perhaps LAST (RFC 3030 2).
fn bdat<'a>(argument: &[u8]) -> Result<Command<'a>, CommandError> {
    let end = memchr::memchr(b' ', argument).unwrap_or(argument.len());
    let (digits, rest) = argument.split_at(end);
    let size = number(digits).ok_or(CommandError::ChunkSize)?;
    let rest = trim_start(rest);
    if rest.is_empty() {
        return Ok(Command::Bdat { size, last: false });
    }
    if rest.eq_ignore_ascii_case(b"LAST") {
        return Ok(Command::Bdat { size, last: true });
    }
    // The size was read but the rest is nonsense: which octets are content is not certain.
    Err(CommandError::ChunkSize)
}

/// A decimal number of 1 to 20 digits that 64 bits hold.
#[must_use]
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        if !digit.is_ascii_digit() {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

fn mail<'a>((path, parameters): (&'a [u8], Parameters<'a>)) -> Command<'a> {
    Command::Mail { path, parameters }
}

fn rcpt<'a>((path, parameters): (&'a [u8], Parameters<'a>)) -> Result<Command<'a>, CommandError> {
    if path.is_empty() {
        return Err(CommandError::Path);
    }
    Ok(Command::Rcpt { path, parameters })
}

/// `FROM:<path> parameters`. Blanks after the colon are tolerated, as nearly everybody does.
fn path_command<'a>(
    argument: &'a [u8],
    prefix: &[u8],
) -> Result<(&'a [u8], Parameters<'a>), CommandError> {
    if argument.len() < prefix.len() || !argument[..prefix.len()].eq_ignore_ascii_case(prefix) {
        return Err(CommandError::Path);
    }
    let rest = trim_start(&argument[prefix.len()..]);
    let Some((b'<', inner)) = rest.split_first() else {
        return Err(CommandError::Path);
    };
    let end = path_end(inner).ok_or(CommandError::Path)?;
    let (path, after) = (&inner[..end], &inner[end + 1..]);
    if !after.is_empty() && after[0] != b' ' {
        return Err(CommandError::Path);
    }
    Ok((path, Parameters(trim_start(after))))
}

/// Where the `>` that ends the path stands: not inside a quoted string (RFC 5321 4.1.2).
fn path_end(inner: &[u8]) -> Option<usize> {
    let first = memchr::memchr3(b'>', b'"', b'<', inner)?;
    if inner[first] == b'>' {
        return Some(first);
    }
    let mut quoted = false;
    let mut escaped = false;
    for (at, &octet) in inner.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            b'<' if !quoted => return None,
            _ => {}
        }
    }
    None
}

fn trim_start(mut octets: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = octets {
        octets = rest;
    }
    octets
}

fn trim_end(mut octets: &[u8]) -> &[u8] {
    while let [rest @ .., b' '] = octets {
        octets = rest;
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(line: &[u8]) -> Vec<Result<Parameter<'_>, CommandError>> {
        match parse(line) {
            Ok(Command::Mail { parameters, .. } | Command::Rcpt { parameters, .. }) => {
                parameters.collect()
            }
            other => panic!("no path command: {other:?}"),
        }
    }

    // Every verb in its plain form, any case, trailing blanks.
    #[test]
    fn verbs_are_recognised() {
        let table: &[(&[u8], Command<'_>)] = &[
            (b"EHLO client.example", Command::Ehlo("client.example")),
            (b"ehlo [IPv6:::1]", Command::Ehlo("[IPv6:::1]")),
            (b"HELO  a_b ", Command::Helo("a_b")),
            (b"data", Command::Data),
            (
                b"BDAT 0 last",
                Command::Bdat {
                    size: 0,
                    last: true,
                },
            ),
            (
                b"BDAT 86",
                Command::Bdat {
                    size: 86,
                    last: false,
                },
            ),
            (
                b"BDAT 18446744073709551615",
                Command::Bdat {
                    size: u64::MAX,
                    last: false,
                },
            ),
            (b"RSET ", Command::Rset),
            (b"NOOP anything at all", Command::Noop),
            (b"VRFY x", Command::Vrfy),
            (b"EXPN list", Command::Expn),
            (b"HELP me", Command::Help),
            (b"qUiT", Command::Quit),
            (b"STARTTLS", Command::StartTls),
            (b"AUTH PLAIN =", Command::Auth(b"PLAIN =")),
            (b"ETRN x", Command::Turn),
            (b"GET / HTTP/1.1", Command::Http),
            (b"POST http://x/ HTTP/1.0", Command::Http),
        ];
        for (line, expected) in table {
            assert_eq!(
                parse(line).as_ref(),
                Ok(expected),
                "{}",
                line.escape_ascii()
            );
        }
    }

    // What is not a command says why.
    #[test]
    fn errors_are_told_apart() {
        use CommandError::{Arguments, BadOctet, ChunkSize, Path, Unknown};
        let table: &[(&[u8], CommandError)] = &[
            (b"", Unknown),
            (b"FOO bar", Unknown),
            (b"GET some", Unknown),
            (b"DATA x", Arguments),
            (b"RSET x", Arguments),
            (b"QUIT now", Arguments),
            (b"EHLO", Arguments),
            (b"EHLO a b", Arguments),
            (b"VRFY", Arguments),
            (b"STARTTLS x", Arguments),
            (b"NOOP \x00", BadOctet),
            (b"NOOP \xc3\xa9", BadOctet),
            (b"\xff\xfe", BadOctet),
            (b"MAIL FROM:<a\rb>", BadOctet),
            (b"MAIL", Path),
            (b"MAIL FROM", Path),
            (b"MAIL TO:<a@b>", Path),
            (b"MAIL FROM:a@b", Path),
            (b"MAIL FROM:<a@b", Path),
            (b"MAIL FROM:<<a@b>>", Path),
            (b"MAIL FROM:<a@b>SIZE=1", Path),
            (b"RCPT TO:<>", Path),
            (b"BDAT", ChunkSize),
            (b"BDAT -1", ChunkSize),
            (b"BDAT +1", ChunkSize),
            (b"BDAT 1 FIRST", ChunkSize),
            (b"BDAT 18446744073709551616", ChunkSize),
            (b"BDAT 99999999999999999999", ChunkSize),
            (b"BDAT 000000000000000000001", ChunkSize),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line), Err(*expected), "{}", line.escape_ascii());
        }
        assert_eq!(
            parse(format!("EHLO {}", "a".repeat(256)).as_bytes()),
            Err(Arguments)
        );
    }

    // A quoted local part may hold ">" and escaped quotes.
    #[test]
    fn path_ends_outside_quotes() {
        let line = br#"MAIL FROM:<"a>\"b"@c.example> SIZE=5"#;
        let Ok(Command::Mail { path, parameters }) = parse(line) else {
            panic!("no MAIL")
        };
        assert_eq!(path, br#""a>\"b"@c.example"#);
        let all: Vec<_> = parameters.collect();
        assert_eq!(
            all,
            [Ok(Parameter {
                keyword: b"SIZE",
                value: Some(b"5")
            })]
        );
    }

    // Parameters split at blanks; keyword syntax and empty values are refused one by one.
    #[test]
    fn parameters_are_lazy_and_strict() {
        assert_eq!(parameters(b"MAIL FROM:<>"), []);
        let given = parameters(b"mail from: <a@b>  BODY=8BITMIME   SMTPUTF8 x= =y a=b=c _z");
        assert_eq!(given.len(), 6);
        assert_eq!(
            given[0],
            Ok(Parameter {
                keyword: b"BODY",
                value: Some(b"8BITMIME")
            })
        );
        assert_eq!(
            given[1],
            Ok(Parameter {
                keyword: b"SMTPUTF8",
                value: None
            })
        );
        assert!(given[2..].iter().all(Result::is_err));
    }
}
