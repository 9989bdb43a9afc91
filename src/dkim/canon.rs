//! dkim::canon - canonical forms and the hash over them (RFC 6376 3.4).
//!
//! What: [`BodyHasher`], fed with any pieces of a body, and header canonicalisation for the signer.
//! Why this way: a mail body needs almost no work, and SHA-256 takes 2 bytes a nanosecond; so long
//! clean spans go to the hash straight from the caller's memory, and where blanks must go, some
//! 2 KiB are squeezed into a buffer first; both 64 octets at a time (`engine::blanks`). Only the
//! ends of pieces take the byte-by-byte way. Budget: 10 KiB in 8 us, 7 of them hashing. Bare CR and
//! bare LF are ordinary bytes here; submission refuses them long before.

use aws_lc_rs::digest::{Context, SHA256};

use crate::engine::blanks::{BLOCK, Blanks, ROOM};
use crate::message::{BodyHash, Canon};

impl BodyHash {
    /// Hashes a whole body.
    #[must_use]
    pub fn of(canon: Canon, body: &[u8]) -> Self {
        let mut hasher = BodyHasher::new(canon);
        hasher.update(body);
        hasher.finish()
    }
}

/// Hashes a body as it arrives.
#[derive(Clone)]
pub struct BodyHasher {
    body: Body<Sha256>,
}

impl std::fmt::Debug for BodyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyHasher({:?})", self.body.canon)
    }
}

impl BodyHasher {
    /// A hasher that has seen nothing yet.
    #[must_use]
    pub fn new(canon: Canon) -> Self {
        Self {
            body: Body::new(canon, Sha256::default()),
        }
    }

    /// Takes the next piece; pieces may end anywhere.
    pub fn update(&mut self, piece: &[u8]) {
        self.body.update(piece);
    }

    /// The hash of all pieces.
    #[must_use]
    pub fn finish(self) -> BodyHash {
        let canon = self.body.canon;
        BodyHash {
            canon,
            digest: self.body.finish().finish(),
        }
    }
}

/// Where canonical bytes go.
trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

/// SHA-256 behind a small buffer: short pieces are gathered, long ones go straight through.
#[derive(Clone)]
struct Sha256 {
    context: Context,
    gathered: [u8; GATHER],
    len: usize,
}

/// Room for short pieces: a call of the digest costs 20 ns, as much as hashing 40 bytes.
const GATHER: usize = 128;

impl Default for Sha256 {
    fn default() -> Self {
        Self {
            context: Context::new(&SHA256),
            gathered: [0; GATHER],
            len: 0,
        }
    }
}

impl Sha256 {
    fn flush(&mut self) {
        self.context.update(&self.gathered[..self.len]);
        self.len = 0;
    }

    fn finish(mut self) -> [u8; 32] {
        self.flush();
        sha256_bytes(self.context)
    }
}

impl Sink for Sha256 {
    fn put(&mut self, bytes: &[u8]) {
        if bytes.len() > GATHER - self.len {
            self.flush();
            if bytes.len() >= GATHER {
                self.context.update(bytes);
                return;
            }
        }
        self.gathered[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// The digest of a finished context, as an array.
fn sha256_bytes(context: Context) -> [u8; 32] {
    let digest = context.finish();
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// SHA-256 of one piece.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    sha256_bytes(context)
}

/// The canonicaliser, without knowing what the bytes are for.
#[derive(Clone)]
struct Body<S> {
    canon: Canon,
    blanks: Blanks,
    sink: S,
    /// Line ends seen and not yet written: at the end of the body they are dropped.
    line_ends: u64,
    /// Blanks seen after those line ends and not yet written (relaxed only).
    blank: bool,
    /// The last byte was CR; the next one decides.
    carriage_return: bool,
    /// Something was written.
    any: bool,
}

impl<S: Sink> Body<S> {
    fn new(canon: Canon, sink: S) -> Self {
        Self {
            canon,
            blanks: Blanks::detect(),
            sink,
            line_ends: 0,
            blank: false,
            carriage_return: false,
            any: false,
        }
    }

    fn update(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if self.blank || self.carriage_return {
                self.byte(piece[0]);
                piece = &piece[1..];
                continue;
            }
            let clean = match self.canon {
                Canon::Simple => piece.len(),
                Canon::Relaxed => clean_prefix(self.blanks, piece),
            };
            let (span, rest) = piece.split_at(clean);
            self.span(span);
            piece = self.dirty(rest);
        }
    }

    /// Takes some of a piece that begins with something to change, and returns the rest.
    fn dirty<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        // Squeezing starts where nothing is held back but line ends.
        if !self.carriage_return {
            let mut room = [0; ROOM];
            let (taken, made) = self.blanks.squeeze(piece, &mut room);
            if taken > 0 {
                self.span(&room[..made]);
                return &piece[taken..];
            }
        }
        match piece.split_first() {
            Some((first, rest)) => {
                self.byte(*first);
                rest
            }
            None => piece,
        }
    }

    /// A span without anything to change, except line ends and an unfinished CRLF at its end.
    fn span(&mut self, mut span: &[u8]) {
        let (mut line_ends, mut carriage_return) = (0, false);
        if let [head @ .., b'\r'] = span {
            (span, carriage_return) = (head, true);
        }
        while let [head @ .., b'\r', b'\n'] = span {
            span = head;
            line_ends += 1;
        }
        if !span.is_empty() {
            self.flush();
            self.sink.put(span);
        }
        self.line_ends += line_ends;
        self.carriage_return = carriage_return;
    }

    /// The byte-by-byte way.
    fn byte(&mut self, byte: u8) {
        if self.carriage_return {
            self.carriage_return = false;
            if byte == b'\n' {
                self.blank = false;
                self.line_ends += 1;
                return;
            }
            self.flush();
            self.sink.put(b"\r");
        }
        match byte {
            b'\r' => self.carriage_return = true,
            b' ' | b'\t' if self.canon == Canon::Relaxed => self.blank = true,
            _ => {
                self.flush();
                self.sink.put(&[byte]);
            }
        }
    }

    /// Writes what was held back, because content follows.
    fn flush(&mut self) {
        while self.line_ends > 0 {
            self.sink.put(b"\r\n");
            self.line_ends -= 1;
        }
        if self.blank {
            self.sink.put(b" ");
            self.blank = false;
        }
        self.any = true;
    }

    fn finish(mut self) -> S {
        if self.carriage_return {
            // A bare CR ends the body: content like any other byte.
            self.flush();
            self.sink.put(b"\r");
        }
        // RFC 6376 3.4.3: an empty simple body is one CRLF; 3.4.4: an empty relaxed one is nothing.
        // Content without a final line end gets one.
        if self.any || self.canon == Canon::Simple {
            self.sink.put(b"\r\n");
        }
        self.sink
    }
}

/// The length of a prefix in which relaxed canonicalisation changes nothing. What follows is a
/// block with a tab or a blank before a blank or CR; near the end of the piece it is just that, or
/// a blank that is the last byte.
fn clean_prefix(blanks: Blanks, piece: &[u8]) -> usize {
    let at = blanks.clean_blocks(piece);
    let tail = &piece[at..];
    if tail.len() >= BLOCK + 2 {
        return at;
    }
    for (offset, byte) in tail.iter().enumerate() {
        // Past the end counts as a blank: it is not known yet what follows.
        if is_dirty(*byte, tail.get(offset + 1).copied().unwrap_or(b' ')) {
            return at + offset;
        }
    }
    piece.len()
}

#[inline(always)]
fn is_dirty(byte: u8, next: u8) -> bool {
    (byte == b'\t') | ((byte == b' ') & ((next == b' ') | (next == b'\t') | (next == b'\r')))
}

/// Appends one header field in canonical form with its line end. `field` is the whole field as it
/// stands in the message, with or without the final CRLF; `colon` is the offset of its colon.
pub(crate) fn header_field(canon: Canon, field: &[u8], colon: usize, out: &mut Vec<u8>) {
    let field = field.strip_suffix(b"\r\n").unwrap_or(field);
    match canon {
        // RFC 6376 3.4.1: not changed in any way.
        Canon::Simple => out.extend_from_slice(field),
        Canon::Relaxed => {
            let name = field[..colon].trim_ascii_end();
            out.extend(name.iter().map(u8::to_ascii_lowercase));
            out.push(b':');
            relaxed_value(&field[colon + 1..], out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// RFC 6376 3.4.2: unfolded, runs of blanks made one, none at either end.
fn relaxed_value(value: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let mut blank = false;
    let mut rest = value;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(memchr::memchr(b'\r', rest).unwrap_or(rest.len()));
        relaxed_words(line, start, &mut blank, out);
        rest = match after {
            // A fold: the line end goes, the blank after it stays.
            [b'\r', b'\n', after @ ..] => after,
            // A bare CR (or LF) is an ordinary byte.
            [bare, after @ ..] => {
                relaxed_word(std::slice::from_ref(bare), start, &mut blank, out);
                after
            }
            [] => after,
        };
    }
}

/// The words of one line of a value that starts at `start` of `out`. `blank`: there is one to
/// write before the next word.
fn relaxed_words(line: &[u8], start: usize, blank: &mut bool, out: &mut Vec<u8>) {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(first) = line.iter().position(|byte| !is_blank(byte)) else {
        *blank |= !line.is_empty();
        return;
    };
    *blank |= first > 0;
    let last = line.iter().rposition(|byte| !is_blank(byte));
    let words = &line[first..=last.unwrap_or(first)];
    // Most lines have nothing to change; no branches, so that the compiler makes vectors.
    let tabs = |dirty, byte: &u8| dirty | u8::from(*byte == b'\t');
    let pairs = words.iter().zip(words.iter().skip(1));
    let doubles = |dirty, (a, b): (&u8, &u8)| dirty | u8::from((*a == b' ') & (*b == b' '));
    if words.iter().fold(0, tabs) | pairs.fold(0, doubles) == 0 {
        relaxed_word(words, start, blank, out);
    } else {
        let words = words.split(is_blank).filter(|word| !word.is_empty());
        for word in words {
            relaxed_word(word, start, blank, out);
            *blank = true;
        }
    }
    *blank = first + words.len() < line.len();
}

/// Bytes without anything to change, behind a blank if there is one to write.
fn relaxed_word(word: &[u8], start: usize, blank: &mut bool, out: &mut Vec<u8>) {
    // None before the first word.
    if *blank && out.len() > start {
        out.push(b' ');
    }
    *blank = false;
    out.extend_from_slice(word);
}

#[cfg(test)]
mod tests {
    use super::{Body, BodyHasher, Sink, header_field, sha256};
    use crate::message::{BodyHash, Canon};

    impl Sink for Vec<u8> {
        fn put(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }
    }

    fn canonical(canon: Canon, pieces: &[&[u8]]) -> Vec<u8> {
        let mut body = Body::new(canon, Vec::new());
        for piece in pieces {
            body.update(piece);
        }
        body.finish()
    }

    /// RFC 6376 3.4.3 and 3.4.4, word by word, line by line.
    fn by_the_book(canon: Canon, body: &[u8]) -> Vec<u8> {
        let mut lines = Vec::new();
        let mut rest = body;
        while let Some(at) = memchr::memmem::find(rest, b"\r\n") {
            lines.push(rest[..at].to_vec());
            rest = &rest[at + 2..];
        }
        if !rest.is_empty() {
            lines.push(rest.to_vec());
        }
        if canon == Canon::Relaxed {
            for line in &mut lines {
                let mut out: Vec<u8> = Vec::new();
                for byte in line.iter() {
                    match byte {
                        b' ' | b'\t' if out.last() == Some(&b' ') => {}
                        b' ' | b'\t' => out.push(b' '),
                        _ => out.push(*byte),
                    }
                }
                if out.last() == Some(&b' ') {
                    out.pop();
                }
                *line = out;
            }
        }
        while lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        if lines.is_empty() && canon == Canon::Simple {
            lines.push(Vec::new());
        }
        lines
            .iter()
            .flat_map(|line| [line, &b"\r\n"[..]].concat())
            .collect()
    }

    // RFC 6376 3.4.5, and the empty bodies of 3.4.3 and 3.4.4.
    #[test]
    fn rfc_6376_examples() {
        let body = b" C \r\nD \t E\r\n\r\n\r\n";
        assert_eq!(canonical(Canon::Relaxed, &[body]), b" C\r\nD E\r\n");
        assert_eq!(canonical(Canon::Simple, &[body]), b" C \r\nD \t E\r\n");
        for empty in [&b""[..], b"\r\n", b"\r\n\r\n\r\n"] {
            assert_eq!(canonical(Canon::Relaxed, &[empty]), b"");
            assert_eq!(canonical(Canon::Simple, &[empty]), b"\r\n");
        }
        assert_eq!(canonical(Canon::Relaxed, &[b"  \t\r\n \r\n"]), b"");
        assert_eq!(canonical(Canon::Relaxed, &[b"x"]), b"x\r\n");
        assert_eq!(canonical(Canon::Simple, &[b"x \r\n\r\n"]), b"x \r\n");
    }

    // RFC 6376 3.4.5, header: both forms.
    #[test]
    fn rfc_6376_header_examples() {
        let fields: [(&[u8], &[u8]); 5] = [
            (b"A: X\r\n", b"a:X\r\n"),
            (b"B : Y\t\r\n\tZ  \r\n", b"b:Y Z\r\n"),
            (b"Subject:\r\n", b"subject:\r\n"),
            (b"X-a:  \r\n \t b \r\n\tc\r\n", b"x-a:b c\r\n"),
            (b"8bit: \xc3\xa4  \xff", b"8bit:\xc3\xa4 \xff\r\n"),
        ];
        for (field, relaxed) in fields {
            let colon = field.iter().position(|byte| *byte == b':').unwrap();
            let mut out = Vec::new();
            header_field(Canon::Relaxed, field, colon, &mut out);
            assert_eq!(out, relaxed);
            out.clear();
            header_field(Canon::Simple, field, colon, &mut out);
            assert_eq!(
                out,
                [field.strip_suffix(b"\r\n").unwrap_or(field), b"\r\n"].concat()
            );
        }
    }

    /// A small generator, so that a failure repeats.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (self.0 >> 33) as usize % bound
        }
    }

    /// RFC 6376 3.4.2, step by step.
    fn relaxed_by_the_book(value: &[u8]) -> Vec<u8> {
        let mut unfolded = Vec::new();
        let mut rest = value;
        while let Some((byte, after)) = rest.split_first() {
            if let Some(after) = rest.strip_prefix(b"\r\n") {
                rest = after;
                continue;
            }
            let blank = matches!(byte, b' ' | b'\t');
            if !(blank && matches!(unfolded.last(), None | Some(b' '))) {
                unfolded.push(if blank { b' ' } else { *byte });
            }
            rest = after;
        }
        if unfolded.ends_with(b" ") {
            unfolded.pop();
        }
        unfolded
    }

    #[test]
    fn random_fields_match_the_book() {
        const PIECES: [&[u8]; 9] = [
            b" ",
            b"\t",
            b"\r\n ",
            b"\r\n\t",
            b"\r",
            b"\n",
            b"word",
            b"two words",
            b"\xe4",
        ];
        let mut chance = Chance(342);
        for _ in 0..20_000 {
            let pieces = (0..chance.below(12)).map(|_| PIECES[chance.below(PIECES.len())]);
            let value = pieces.collect::<Vec<_>>().concat();
            let mut out = Vec::new();
            header_field(Canon::Relaxed, &[b"A:", &value[..]].concat(), 1, &mut out);
            // The final line end of the field belongs to the field, not to the value.
            let value = value.strip_suffix(b"\r\n").unwrap_or(&value);
            let expected = [b"a:", &relaxed_by_the_book(value)[..], b"\r\n"].concat();
            assert_eq!(out, expected, "{:?}", String::from_utf8_lossy(value));
        }
    }

    // Random bodies of troublesome and of plain bytes, random splits: the same as the book says.
    #[test]
    fn random_bodies_match_the_book_however_they_are_cut() {
        const TROUBLE: [&[u8]; 11] = [
            b"\r",
            b"\n",
            b" \r",
            b" ",
            b"\t",
            b"\r\n",
            b"\r\n\r\n",
            b"  ",
            b"x",
            b".",
            b"\xe4\xf6",
        ];
        let mut chance = Chance(6376);
        for round in 0..3000 {
            let mut body = Vec::new();
            for _ in 0..chance.below(40) {
                if chance.below(3) == 0 {
                    // Plain text, so that spans cross the blocks of the scan.
                    let len = chance.below(200);
                    body.extend((0..len).map(|at| if at % 7 == 3 { b' ' } else { b'a' }));
                } else {
                    body.extend_from_slice(TROUBLE[chance.below(TROUBLE.len())]);
                }
            }
            let mut pieces = Vec::new();
            let mut rest = &body[..];
            let longest = [90, 900][round % 2];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(1 + chance.below(rest.len().min(longest)));
                pieces.push(piece);
                rest = after;
            }
            for canon in [Canon::Simple, Canon::Relaxed] {
                let book = by_the_book(canon, &body);
                assert_eq!(canonical(canon, &[&body]), book, "round {round}, whole");
                assert_eq!(canonical(canon, &pieces), book, "round {round}, cut");
                let mut hasher = BodyHasher::new(canon);
                pieces.iter().for_each(|piece| hasher.update(piece));
                assert_eq!(hasher.finish().digest, sha256(&book));
            }
        }
    }

    // Bare CR and LF are content; a CR at the very end as well.
    #[test]
    fn bare_line_ends_are_content() {
        for canon in [Canon::Simple, Canon::Relaxed] {
            assert_eq!(canonical(canon, &[b"a\rb\nc\r"]), b"a\rb\nc\r\r\n");
            assert_eq!(canonical(canon, &[b"a\r", b"\r\n\r", b"\n"]), b"a\r\r\n");
            assert_eq!(canonical(canon, &[b"a\r\n\rb"]), b"a\r\n\rb\r\n");
        }
    }

    // A long body goes through every path of the gathering buffer.
    #[test]
    fn long_bodies_hash_right() {
        for len in [127, 128, 129, 1024, 70_000] {
            let body = vec![b'x'; len];
            let mut book = body.clone();
            book.extend_from_slice(b"\r\n");
            assert_eq!(BodyHash::of(Canon::Relaxed, &body).digest, sha256(&book));
            let mut hasher = BodyHasher::new(Canon::Relaxed);
            body.chunks(13).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish().digest, sha256(&book));
        }
    }
}
