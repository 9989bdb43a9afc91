//! pipelining - messages that follow each other on one connection, seen by a receiver that offers
//! PIPELINING and not CHUNKING.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::harness::{Client, Daemon, free_address};

const MESSAGES: usize = 40;

/// What the receiver saw at once whenever a content ended: how many commands MAIL came with it.
fn receiver(listener: &TcpListener, begin: &Receiver<()>) -> Vec<usize> {
    let (mut stream, _) = listener.accept().unwrap();
    begin.recv().unwrap();
    stream.write_all(b"220 sink.test\r\n").unwrap();
    let (mut with, mut in_content, mut rest) = (Vec::new(), false, Vec::new());
    let mut piece = [0; 65_536];
    while with.len() < MESSAGES {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "closed after {} messages", with.len());
        rest.extend_from_slice(&piece[..count]);
        let (mut replies, mut ended, mut begun) = (String::new(), 0, 0);
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = rest.drain(..end + 2).collect();
            match (in_content, &line[..4.min(line.len())]) {
                (true, b".\r\n") => {
                    (in_content, ended) = (false, ended + 1);
                    replies += "250 taken\r\n";
                }
                (true, _) => {}
                (false, b"EHLO") => replies += "250-sink.test\r\n250 PIPELINING\r\n",
                (false, b"DATA") => {
                    in_content = true;
                    replies += "354 go on\r\n";
                }
                (false, verb) => {
                    begun += usize::from(verb == b"MAIL");
                    replies += "250 good\r\n";
                }
            }
        }
        with.extend((0..ended).map(|_| begun));
        stream.write_all(replies.as_bytes()).unwrap();
    }
    with
}

// RFC 2920 3.1: the commands of the next transaction may follow the content without waiting. They
// go with it in one segment: two cost a tenth more processor time per message.
#[test]
fn the_next_commands_go_with_the_content() {
    let address = free_address();
    let listener = TcpListener::bind(address).unwrap();
    let (begin, begun) = channel();
    let receiver = thread::spawn(move || receiver(&listener, &begun));
    let one = "[delivery]\nconnections_max = 1\nmessages_per_connection = 1000\n";
    let daemon = Daemon::start_with(address, "", |text| text + one);
    let mut client = Client::greeted(daemon.address);
    for number in 0..MESSAGES {
        assert_eq!(client.command("MAIL FROM:<a@a.example>"), 250);
        assert_eq!(client.command("RCPT TO:<b@b.example>"), 250);
        assert_eq!(client.command("DATA"), 354);
        client.send(format!("From: a@a.example\r\n\r\nnumber {number}\r\n"));
        assert_eq!(client.command("."), 250);
    }
    begin.send(()).unwrap();
    let with = receiver.join().unwrap();
    // Nothing follows the last.
    assert!(
        with[..MESSAGES - 1].iter().all(|mails| *mails == 1),
        "{with:?}"
    );
    assert_eq!(with[MESSAGES - 1], 0, "{with:?}");
}
