//! lab::dns - the laboratory's name server: hickory-server in front of the zone.
//!
//! Role: answers MX, A, TXT and PTR questions about the test domains over UDP and TCP.
//! Shard: a thread of its own with a small tokio runtime; stops when dropped.
//! Limits: one answer per question, computed, nothing is stored.
//! Failure: an address in use is reported by [`DnsServer::start`].
//! Bugs: no zone transfer, no DNSSEC; every name below the zone is served authoritatively.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::{A, MX, PTR, SOA, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

use crate::lab::error::LabError;
use crate::lab::zone::{Answer, Data, Kind, Zone};

/// A running name server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    queries: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Seconds that answers may be kept, negative ones too.
const TTL: u32 = 60;

impl DnsServer {
    /// Listens on `address`, UDP and TCP; port 0 asks the kernel for one that is free for both.
    ///
    /// # Errors
    /// [`LabError::Dns`] where the address cannot be used or no thread can be had.
    pub fn start(zone: Zone, address: SocketAddr) -> Result<Self, LabError> {
        let queries = Arc::new(AtomicU64::new(0));
        let handler = Handler {
            zone,
            queries: Arc::clone(&queries),
        };
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("lab-dns".to_owned())
            .spawn(move || serve(handler, address, &ready, stopped))
            .map_err(LabError::Dns)?;
        let address = started
            .recv()
            .map_err(|_| LabError::Thread("lab-dns"))?
            .map_err(LabError::Dns)?;
        Ok(Self {
            address,
            queries,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many questions it has answered, or left unanswered on purpose.
    #[must_use]
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        // The thread may have ended by itself: then nobody is there to be told.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the laboratory's name server failed");
        }
    }
}

type Ready = std::sync::mpsc::Sender<io::Result<SocketAddr>>;

fn serve(handler: Handler, address: SocketAddr, ready: &Ready, stopped: oneshot::Receiver<()>) {
    let report = |result| {
        if ready.send(result).is_err() {
            tracing::debug!("nobody waits for the name server");
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report(Err(error)),
    };
    runtime.block_on(async {
        let (udp, tcp) = match bind(address).await {
            Ok(sockets) => sockets,
            Err(error) => return report(Err(error)),
        };
        let bound = udp.local_addr();
        let mut server = Server::new(handler);
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(10), 64);
        report(bound);
        // Ends when the other end is dropped; whatever it says, it is time to stop.
        stopped.await.unwrap_or_default();
        if let Err(error) = server.shutdown_gracefully().await {
            tracing::warn!(%error, "the laboratory's name server");
        }
    });
}

async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    // With port 0 the kernel's choice for UDP may be taken for TCP: then the next choice.
    let mut tries = if address.port() == 0 { 16 } else { 1 };
    loop {
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) => {
                tries -= 1;
                if tries == 0 {
                    return Err(error);
                }
            }
        }
    }
}

struct Handler {
    zone: Zone,
    queries: Arc<AtomicU64>,
}

impl Handler {
    fn answer(&self, request: &Request) -> (Answer, Name) {
        let Ok(info) = request.request_info() else {
            return (Answer::ServFail, Name::root());
        };
        let kind = match info.query.query_type() {
            RecordType::MX => Kind::Mx,
            RecordType::A => Kind::A,
            RecordType::TXT => Kind::Txt,
            RecordType::PTR => Kind::Ptr,
            _ => Kind::Other,
        };
        let name = info.query.original().name().clone();
        let text = name.to_ascii();
        (self.zone.answer(text.trim_end_matches('.'), kind), name)
    }

    fn soa(&self) -> Option<Record> {
        let zone = Name::from_ascii(self.zone.name()).ok()?;
        let seconds = 60;
        let soa = SOA::new(
            zone.clone(),
            zone.clone(),
            1,
            seconds,
            seconds,
            seconds,
            TTL,
        );
        Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
    }
}

fn record(owner: &Name, data: &Data) -> Option<Record> {
    let rdata = match data {
        Data::Mx(preference, host) if host.is_empty() => {
            RData::MX(MX::new(*preference, Name::root()))
        }
        Data::Mx(preference, host) => RData::MX(MX::new(*preference, absolute(host)?)),
        Data::A(address) => RData::A(A(*address)),
        // RFC 7208 3.3: a long text is several strings of at most 255 bytes.
        Data::Txt(text) => RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect())),
        Data::Ptr(name) => RData::PTR(PTR(absolute(name)?)),
    };
    Some(Record::from_rdata(owner.clone(), TTL, rdata))
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let (answer, owner) = self.answer(request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        let (code, data) = match answer {
            Answer::Records(data) => (ResponseCode::NoError, data),
            Answer::NoData => (ResponseCode::NoError, Vec::new()),
            Answer::NxDomain => (ResponseCode::NXDomain, Vec::new()),
            Answer::ServFail => (ResponseCode::ServFail, Vec::new()),
            Answer::Silence => return unanswered(metadata),
        };
        metadata.response_code = code;
        let answers: Vec<Record> = data
            .iter()
            .filter_map(|data| record(&owner, data))
            .collect();
        // RFC 2308 2: a negative answer carries the SOA, so that it may be kept.
        let negative = answers.is_empty() && code != ResponseCode::ServFail;
        let soa = if negative { self.soa() } else { None };
        let builder = MessageResponseBuilder::from_message_request(request);
        let message = builder.build(metadata, &answers, [], &soa, []);
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "an answer of the laboratory's name server was not sent");
                unanswered(metadata)
            }
        }
    }
}

fn unanswered(metadata: Metadata) -> ResponseInfo {
    let counts = hickory_server::proto::op::HeaderCounts::default();
    ResponseInfo::from(hickory_server::proto::op::Header { metadata, counts })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hickory_resolver::TokioResolver;
    use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::net::{DnsError, NetError};

    use hickory_server::proto::op::{Message, Query};

    use super::*;

    fn resolver(server: SocketAddr) -> TokioResolver {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        let config = ResolverConfig::from_parts(None, vec![], vec![config]);
        let mut options = ResolverOpts::default();
        options.attempts = 1;
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .unwrap()
    }

    // A reverse name, asked by hand: the resolver answers for 127/8 without asking anybody.
    #[test]
    fn addresses_have_names() {
        let zone = Zone::new("lab.test", 3, Ipv4Addr::new(127, 9, 1, 1), &[]).unwrap();
        let server = DnsServer::start(zone, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let mut question = Message::query();
        let name = Name::from_ascii("3.1.9.127.in-addr.arpa.").unwrap();
        question.add_query(Query::query(name, RecordType::PTR));
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket
            .send_to(&question.to_vec().unwrap(), server.address())
            .unwrap();
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        let RData::PTR(name) = &answer.answers[0].data else {
            panic!("{answer:?}")
        };
        assert_eq!(name.0.to_ascii(), "mx.d2.lab.test.");
        assert_eq!(server.queries(), 1);
    }

    // A resolver that is not ours gets each kind of record, and tells no data from no such name and
    // from a failing server.
    #[test]
    fn a_real_resolver_gets_the_answers() {
        let long = "k".repeat(400);
        let txt = [("s1._domainkey.d1.lab.test".to_owned(), long.clone())];
        let zone = Zone::new("lab.test", 3, Ipv4Addr::new(127, 9, 1, 1), &txt).unwrap();
        let server = DnsServer::start(zone, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let resolver = resolver(server.address());
            let mx = resolver.mx_lookup("d1.lab.test.").await.unwrap();
            let RData::MX(mx) = &mx.answers()[0].data else {
                panic!("{mx:?}")
            };
            assert_eq!(
                (mx.preference, mx.exchange.to_ascii()),
                (10, "mx.d1.lab.test.".into())
            );
            let a = resolver.lookup_ip("mx.d1.lab.test.").await.unwrap();
            assert_eq!(a.iter().collect::<Vec<_>>(), [IpAddr::from([127, 9, 1, 2])]);
            let text = resolver
                .txt_lookup("s1._domainkey.d1.lab.test.")
                .await
                .unwrap();
            let RData::TXT(text) = &text.answers()[0].data else {
                panic!("{text:?}")
            };
            let whole: Vec<u8> = text
                .txt_data
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(whole, long.as_bytes());
            for (name, code) in [
                ("implicit", ResponseCode::NoError),
                ("nx", ResponseCode::NXDomain),
            ] {
                let error = resolver
                    .mx_lookup(format!("{name}.lab.test."))
                    .await
                    .unwrap_err();
                let NetError::Dns(DnsError::NoRecordsFound(none)) = error else {
                    panic!("{name}: {error}");
                };
                assert_eq!(none.response_code, code, "{name}");
                assert!(none.soa.is_some(), "{name}");
            }
            let failed = resolver.mx_lookup("servfail.lab.test.").await.unwrap_err();
            let expected = DnsError::ResponseCode(ResponseCode::ServFail);
            assert_eq!(failed.to_string(), NetError::Dns(expected).to_string());
        });
        assert!(server.queries() >= 6);
    }
}
