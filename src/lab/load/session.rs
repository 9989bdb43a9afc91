//! lab::load::session - one connection of the generator.

use std::fmt;
use std::rc::Rc;

use bytes::Bytes;

use super::Dialogue;
use super::campaign::{Next, Work};
use super::reply::ReplyReader;
use super::runner::Run;
use crate::engine::{NetError, Port, Stream};
use crate::lab::fingerprint::Fingerprint;
use crate::lab::identity::{LoadId, push_decimal, push_local_part};
use crate::time::Mono;

/// Why a connection is of no more use.
#[derive(Debug)]
pub(super) enum Lost {
    /// The network's reason.
    Net(NetError),
    /// The peer ended it.
    Ended,
    /// The peer said 421.
    Closing,
    /// The peer does not speak SMTP, or refused the session.
    Refused(u16),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(error) => write!(f, "{error}"),
            Self::Ended => f.write_str("ended by the peer"),
            Self::Closing => f.write_str("421"),
            Self::Refused(code) => write!(f, "refused with {code}"),
        }
    }
}

impl From<NetError> for Lost {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

/// A message being sent.
struct Job {
    work: Work,
    id: LoadId,
    content: Bytes,
    fingerprint: Fingerprint,
    /// MAIL, RCPT... and the command that starts the content.
    commands: Bytes,
    /// When it was handed to the kernel, or when the one before it was answered.
    began: Mono,
}

/// How the transactions of one connection are done.
#[derive(Debug, Clone, Copy)]
struct Manner {
    pipelining: bool,
    chunking: bool,
}

struct Connection<P: Port> {
    stream: P::Stream,
    reader: ReplyReader,
    chunk: Option<<P::Stream as Stream>::Chunk>,
    at: usize,
}

impl<P: Port> Connection<P> {
    async fn reply(&mut self, run: &Run<P>) -> Result<u16, Lost> {
        loop {
            if let Some(chunk) = &self.chunk {
                let (taken, code) = self
                    .reader
                    .read(&chunk[self.at..])
                    .map_err(|_| Lost::Refused(0))?;
                self.at += taken;
                if self.at == chunk.len() {
                    self.chunk = None;
                }
                if let Some(code @ 400..) = code {
                    run.heard(code, || self.reader.refusal());
                }
                match code {
                    Some(421) => {
                        run.refused_with(421);
                        return Err(Lost::Closing);
                    }
                    Some(code) => return Ok(code),
                    None => continue,
                }
            }
            let deadline = run.port.now().after(run.options.timeout);
            let chunk = self.stream.recv(deadline).await?;
            if chunk.is_empty() {
                return Err(Lost::Ended);
            }
            self.chunk = Some(chunk);
            self.at = 0;
        }
    }

    async fn send(&mut self, run: &Run<P>, pieces: Vec<Bytes>) -> Result<(), Lost> {
        let deadline = run.port.now().after(run.options.timeout);
        Ok(self.stream.send(pieces, deadline).await?)
    }

    async fn ask(&mut self, run: &Run<P>, line: Bytes) -> Result<u16, Lost> {
        self.send(run, vec![line]).await?;
        self.reply(run).await
    }
}

/// Works until there is no more work, or the connection is lost for good.
pub(super) async fn session<P: Port>(run: Rc<Run<P>>) {
    while let Some(stream) = run.connect().await {
        let mut connection = Connection::<P> {
            stream,
            reader: ReplyReader::default(),
            chunk: None,
            at: 0,
        };
        match talk(&run, &mut connection).await {
            Ok(()) => break,
            Err(lost) => {
                tracing::debug!(%lost, "a session of the generator was lost");
                run.lost(&lost);
                // 421 is how a server asks for a new connection (RFC 5321 4.2.1).
                let again = run.options.reconnect || matches!(lost, Lost::Closing);
                if !again || run.out_of_patience() {
                    break;
                }
                drop(connection);
                run.pause().await;
            }
        }
    }
    run.session_ended();
}

async fn talk<P: Port>(run: &Run<P>, connection: &mut Connection<P>) -> Result<(), Lost> {
    let manner = hello(run, connection).await?;
    let mut ahead = None;
    loop {
        let job = match ahead.take() {
            Some(job) => job,
            None => match run.next() {
                Next::Send(work) => {
                    let mut job = prepare(run, work, manner);
                    if manner.pipelining && !manner.chunking {
                        let commands = std::mem::take(&mut job.commands);
                        returning(run, work, connection.send(run, vec![commands]).await)?;
                    }
                    job
                }
                Next::Wait(until) => {
                    run.port.sleep_until(until).await;
                    continue;
                }
                Next::Finished if run.busy() => {
                    // Another session's message may come back.
                    run.pause().await;
                    continue;
                }
                Next::Finished => break,
            },
        };
        run.sending(1);
        let result = match manner {
            Manner {
                pipelining: true,
                chunking: true,
            } => chunked(run, connection, &job).await,
            Manner {
                pipelining: true,
                chunking: false,
            } => pipelined(run, connection, &job, manner, &mut ahead).await,
            Manner {
                pipelining: false, ..
            } => basic(run, connection, &job, manner).await,
        };
        run.sending(-1);
        if let Err(lost) = result {
            if let Some(job) = ahead {
                run.put_back(job.work);
            }
            return Err(lost);
        }
    }
    if connection
        .ask(run, Bytes::from_static(b"QUIT\r\n"))
        .await
        .is_err()
    {
        tracing::debug!("the daemon did not say goodbye");
    }
    Ok(())
}

/// Gives the message back where the connection was lost before its content was sent.
fn returning<P: Port, T>(run: &Run<P>, work: Work, result: Result<T, Lost>) -> Result<T, Lost> {
    if result.is_err() {
        run.put_back(work);
    }
    result
}

async fn hello<P: Port>(run: &Run<P>, connection: &mut Connection<P>) -> Result<Manner, Lost> {
    let greeting = connection.reply(run).await?;
    if greeting != 220 {
        run.refused_with(greeting);
        return Err(Lost::Refused(greeting));
    }
    connection.reader.keep_text();
    let line = format!("EHLO {}\r\n", run.options.helo);
    let code = connection.ask(run, Bytes::from(line)).await?;
    if code != 250 {
        run.refused_with(code);
        return Err(Lost::Refused(code));
    }
    let offers = |name: &[u8]| {
        connection
            .reader
            .text()
            .split(|byte| *byte == b'\n')
            .any(|line| {
                line.get(4..)
                    .is_some_and(|word| word.trim_ascii().eq_ignore_ascii_case(name))
            })
    };
    run.greeted();
    Ok(Manner {
        pipelining: run.options.dialogue == Dialogue::Pipelining && offers(b"PIPELINING"),
        chunking: run.options.chunking && offers(b"CHUNKING"),
    })
}

/// Makes the message and its commands.
fn prepare<P: Port>(run: &Run<P>, work: Work, manner: Manner) -> Job {
    let id = LoadId::new(run.run, work.number);
    let mut commands = Vec::with_capacity(96 + 64 * usize::from(run.options.recipients));
    commands.extend_from_slice(&run.mail_command);
    let mut first = 0..0;
    for index in 0..run.options.recipients {
        commands.extend_from_slice(b"RCPT TO:<");
        let start = commands.len();
        push_local_part(index, work.number, &mut commands);
        commands.push(b'@');
        run.zone.push_domain(index, work.number, &mut commands);
        if index == 0 {
            first = start..commands.len();
        }
        commands.extend_from_slice(b">\r\n");
    }
    let content = run.template.make(id, &commands[first]);
    if manner.chunking {
        commands.extend_from_slice(b"BDAT ");
        push_decimal(content.len() as u64, &mut commands);
        commands.extend_from_slice(b" LAST\r\n");
    } else {
        commands.extend_from_slice(b"DATA\r\n");
    }
    let fingerprint = run.fingerprinter.of(&content);
    let (content, commands) = (Bytes::from(content), Bytes::from(commands));
    Job {
        work,
        id,
        content,
        fingerprint,
        commands,
        began: run.port.now(),
    }
}

/// The content with doubled dots and its end.
fn stuffed<P: Port>(run: &Run<P>, content: &Bytes) -> Vec<Bytes> {
    let points = run.template.stuffing();
    let mut pieces = Vec::with_capacity(2 * points.len() + 3);
    let mut from = 0;
    for at in points {
        // The dot at `at` twice: the first time at the end of this piece.
        pieces.push(content.slice(from..=*at));
        from = *at;
    }
    pieces.push(content.slice(from..));
    pieces.push(Bytes::from_static(b".\r\n"));
    pieces
}

/// Reads the replies to MAIL and all RCPT: the first refusal, and whether a recipient was taken.
async fn envelope_replies<P: Port>(
    run: &Run<P>,
    connection: &mut Connection<P>,
) -> Result<(Option<u16>, bool), Lost> {
    let mut refusal = None;
    let mail = connection.reply(run).await?;
    if mail != 250 {
        refusal = Some(mail);
    }
    let mut any = false;
    for _ in 0..run.options.recipients {
        let code = connection.reply(run).await?;
        if (250..=252).contains(&code) {
            any = true;
        } else {
            refusal = refusal.or(Some(code));
        }
    }
    Ok((refusal, any))
}

/// Commands and chunk in one write (RFC 3030 with RFC 2920).
async fn chunked<P: Port>(
    run: &Run<P>,
    connection: &mut Connection<P>,
    job: &Job,
) -> Result<(), Lost> {
    let pieces = vec![job.commands.clone(), job.content.clone()];
    let sent = connection.send(run, pieces).await;
    unanswered(run, job, sent)?;
    let replies = envelope_replies(run, connection).await;
    let (refusal, any) = unanswered(run, job, replies)?;
    let code = connection.reply(run).await;
    let code = unanswered(run, job, code)?;
    conclude(run, job, code, refusal, any);
    if code == 250 {
        Ok(())
    } else {
        reset(run, connection).await
    }
}

/// The commands went out with the message before; content and the next commands follow in one
/// write.
async fn pipelined<P: Port>(
    run: &Run<P>,
    connection: &mut Connection<P>,
    job: &Job,
    manner: Manner,
    ahead: &mut Option<Job>,
) -> Result<(), Lost> {
    let replies = envelope_replies(run, connection).await;
    let (refusal, any) = returning(run, job.work, replies)?;
    let go = returning(run, job.work, connection.reply(run).await)?;
    if go != 354 {
        conclude(run, job, refusal.unwrap_or(go), refusal, false);
        return reset(run, connection).await;
    }
    let mut pieces = stuffed(run, &job.content);
    if let Next::Send(work) = run.next() {
        let next = prepare(run, work, manner);
        pieces.push(next.commands.clone());
        *ahead = Some(next);
    }
    let sent = connection.send(run, pieces).await;
    unanswered(run, job, sent)?;
    let code = connection.reply(run).await;
    let code = unanswered(run, job, code)?;
    if let Some(next) = ahead {
        next.began = run.port.now();
    }
    conclude(run, job, code, refusal, any);
    Ok(())
}

/// Every command waits for the reply to the one before.
async fn basic<P: Port>(
    run: &Run<P>,
    connection: &mut Connection<P>,
    job: &Job,
    manner: Manner,
) -> Result<(), Lost> {
    let mut refusal = None;
    let mut taken = 0;
    let mut from = 0;
    for end in memchr::memchr_iter(b'\n', &job.commands) {
        let line = job.commands.slice(from..=end);
        let content_next = end + 1 == job.commands.len();
        let recipient = from > 0 && !content_next;
        from = end + 1;
        if content_next {
            if taken == 0 {
                break;
            }
            if manner.chunking {
                let sent = connection.send(run, vec![line, job.content.clone()]).await;
                unanswered(run, job, sent)?;
            } else {
                let go = returning(run, job.work, connection.ask(run, line).await)?;
                if go != 354 {
                    refusal = refusal.or(Some(go));
                    break;
                }
                let sent = connection.send(run, stuffed(run, &job.content)).await;
                unanswered(run, job, sent)?;
            }
            let code = connection.reply(run).await;
            let code = unanswered(run, job, code)?;
            conclude(run, job, code, refusal, true);
            return Ok(());
        }
        let code = returning(run, job.work, connection.ask(run, line).await)?;
        if !(250..=252).contains(&code) {
            refusal = refusal.or(Some(code));
            if !recipient {
                break;
            }
        } else if recipient {
            taken += 1;
        }
    }
    conclude(run, job, refusal.unwrap_or(554), refusal, false);
    reset(run, connection).await
}

/// Ends a transaction that may still be open at the other end.
async fn reset<P: Port>(run: &Run<P>, connection: &mut Connection<P>) -> Result<(), Lost> {
    match connection.ask(run, Bytes::from_static(b"RSET\r\n")).await? {
        250 => Ok(()),
        code => Err(Lost::Refused(code)),
    }
}

/// Records a message whose reply can no longer come.
fn unanswered<P: Port, T>(run: &Run<P>, job: &Job, result: Result<T, Lost>) -> Result<T, Lost> {
    if let Err(lost) = &result {
        // 421 instead of the final reply says that the message was not taken (RFC 5321 4.2.2).
        if matches!(lost, Lost::Closing) {
            run.put_back(job.work);
        } else {
            run.unanswered(job.id, job.fingerprint);
        }
    }
    result
}

/// Books the end of a transaction. `any`: content was sent for at least one recipient.
fn conclude<P: Port>(run: &Run<P>, job: &Job, code: u16, refusal: Option<u16>, any: bool) {
    match refusal {
        None if code == 250 => run.acknowledged(job.id, job.fingerprint, job.began, job.work.due),
        None => run.refused(code, job.work),
        Some(first) => {
            // Taken for some recipients only: it may arrive there, and counts as refused.
            if any && code == 250 {
                run.may_arrive(job.id, job.fingerprint);
            }
            run.refused(first, job.work);
        }
    }
}
