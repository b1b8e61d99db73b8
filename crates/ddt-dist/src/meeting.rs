//! Meeting: the other ranks come to rank 0, which gives each the same few bytes; the connections stay.
//!
//! Rank 0 listens at a port that all ranks know. Whatever else comes there, and says something else or nothing, is sent away.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::error::DistError;

/// Bytes that rank 0 gives: an id of NCCL.
pub(crate) const ID_BYTES: usize = 128;

/// What a rank says first, and rank 0 in its answer.
const MAGIC: [u8; 8] = *b"ddt rank";

/// The magic, the rank, and the number of ranks.
const HELLO_BYTES: usize = 16;

/// The magic, a verdict and a number, and the id.
const ANSWER_BYTES: usize = 16 + ID_BYTES;

/// Verdicts of rank 0. The number is that of its ranks.
const WELCOME: u32 = 0;
const OTHER_SIZE: u32 = 1;
const TAKEN: u32 = 2;
const NO_ID: u32 = 3;

/// Time that a stranger gets to say hello, and a machine to accept a connection.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// The most connections that have not said hello.
const MOST_STRANGERS: usize = 64;

const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// A connection that has not said hello yet.
struct Stranger {
    stream: TcpStream,
    since: Instant,
    said: [u8; HELLO_BYTES],
    len: usize,
}

/// What a stranger turned out to be.
enum Came {
    NotYet,
    Nobody,
    Rank(usize, usize),
}

impl Stranger {
    fn hear(&mut self) -> Came {
        loop {
            match self.stream.read(&mut self.said[self.len..]) {
                Ok(0) => return Came::Nobody,
                Ok(count) => self.len += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return if self.since.elapsed() > FIRST_WORD { Came::Nobody } else { Came::NotYet };
                }
                Err(_) => return Came::Nobody,
            }
            if self.len == HELLO_BYTES {
                let number = |at: usize| {
                    u32::from_le_bytes([
                        self.said[at],
                        self.said[at + 1],
                        self.said[at + 2],
                        self.said[at + 3],
                    ])
                };
                let is_ours = self.said[..8] == MAGIC;
                return if is_ours {
                    Came::Rank(number(8) as usize, number(12) as usize)
                } else {
                    Came::Nobody
                };
            }
        }
    }
}

fn answer(stream: &mut TcpStream, verdict: u32, size: usize, id: &[u8; ID_BYTES]) -> std::io::Result<()> {
    let mut bytes = [0; ANSWER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&verdict.to_le_bytes());
    bytes[12..16].copy_from_slice(&(size as u32).to_le_bytes());
    bytes[16..].copy_from_slice(id);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(FIRST_WORD))?;
    stream.write_all(&bytes)
}

/// Rank 0: waits for all others, makes the id, and gives it to them. Returns their connections, rank 1's first.
pub(crate) fn receive(
    listener: &TcpListener,
    size: usize,
    limit: Duration,
    make_id: impl FnOnce() -> Result<[u8; ID_BYTES], DistError>,
) -> Result<([u8; ID_BYTES], Vec<TcpStream>), DistError> {
    let port = listener.local_addr().map_or(0, |it| it.port());
    let failed = |it: std::io::Error| DistError::Listen { port, why: it.to_string() };
    listener.set_nonblocking(true).map_err(failed)?;
    let (begun, none) = (Instant::now(), [0; ID_BYTES]);
    let mut strangers: Vec<Stranger> = Vec::new();
    let mut ranks: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
    while ranks.iter().any(Option::is_none) {
        while let Ok((stream, _)) = listener.accept() {
            if strangers.len() == MOST_STRANGERS {
                strangers.remove(0);
            }
            if stream.set_nonblocking(true).is_ok() {
                strangers.push(Stranger { stream, since: Instant::now(), said: [0; HELLO_BYTES], len: 0 });
            }
        }
        // One that has gone may come again.
        for place in &mut ranks {
            if place.as_ref().is_some_and(|it| matches!(it.peek(&mut [0]), Ok(0))) {
                *place = None;
            }
        }
        for mut it in std::mem::take(&mut strangers) {
            let (rank, its_size) = match it.hear() {
                Came::Nobody => continue,
                Came::NotYet => {
                    strangers.push(it);
                    continue;
                }
                Came::Rank(rank, size) => (rank, size),
            };
            let place = rank.checked_sub(1).and_then(|at| ranks.get_mut(at)).filter(|it| it.is_none());
            // A process that does not hear the answer has gone: nothing to do about it.
            match place {
                _ if its_size != size => drop(answer(&mut it.stream, OTHER_SIZE, size, &none)),
                Some(place) => *place = Some(it.stream),
                None => drop(answer(&mut it.stream, TAKEN, size, &none)),
            }
        }
        if begun.elapsed() > limit {
            let ranks: Vec<String> =
                (1..size).filter(|it| ranks[it - 1].is_none()).map(|it| format!("rank {it}")).collect();
            return Err(DistError::Absent {
                ranks: ranks.join(" and "),
                size,
                port,
                seconds: limit.as_secs(),
            });
        }
        sleep(BETWEEN_LOOKS);
    }
    let id = make_id();
    let verdict = if id.is_ok() { WELCOME } else { NO_ID };
    let mut ranks: Vec<TcpStream> = ranks.into_iter().flatten().collect();
    for it in &mut ranks {
        // Its end is noticed soon.
        answer(it, verdict, size, id.as_ref().unwrap_or(&none)).ok();
    }
    Ok((id?, ranks))
}

/// Listens where the other ranks look for rank 0.
pub(crate) fn listen(host: &str, port: u16) -> Result<TcpListener, DistError> {
    let is_loopback = |it: SocketAddr| it.ip().is_loopback();
    // A machine may know itself by a name that is a loopback address, and be known by another: only what is meant is taken.
    let here = host == "localhost" || host.parse().is_ok_and(|ip| is_loopback(SocketAddr::new(ip, port)));
    let bound = match here {
        true => TcpListener::bind((host, port)),
        // Without IPv6, that of IPv4.
        false => {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        }
    };
    bound.map_err(|error| DistError::Listen { port, why: error.to_string() })
}

/// Another rank: finds rank 0, and returns its bytes and the connection.
pub(crate) fn come(
    (host, port): (&str, u16),
    (rank, size): (usize, usize),
    limit: Duration,
) -> Result<([u8; ID_BYTES], TcpStream), DistError> {
    let (address, begun) = (format!("{host}:{port}"), Instant::now());
    let mut why = String::from("nothing was tried");
    while begun.elapsed() < limit {
        match try_to_come((host, port), (rank, size), limit.saturating_sub(begun.elapsed())) {
            Ok((WELCOME, _, id, stream)) => return Ok((id, stream)),
            Ok((NO_ID, ..)) => return Err(DistError::Gone { rank: 0 }),
            Ok((OTHER_SIZE, theirs, ..)) => {
                let why = format!("it has {theirs} processes, expected {size}");
                return Err(DistError::Refused { address, why });
            }
            Ok((TAKEN, ..)) => {
                return Err(DistError::Refused { address, why: format!("it has a rank {rank} already") });
            }
            Ok((verdict, ..)) => {
                return Err(DistError::Refused {
                    address,
                    why: format!("verdict {verdict} of another version"),
                });
            }
            Err(error) => why = error.to_string(),
        }
        sleep(BETWEEN_TRIES);
    }
    Err(DistError::NoRankZero { address, seconds: limit.as_secs(), why })
}

type Answer = (u32, u32, [u8; ID_BYTES], TcpStream);

fn try_to_come(place: (&str, u16), (rank, size): (usize, usize), limit: Duration) -> std::io::Result<Answer> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the machine has no address");
    let mut found = None;
    for address in place.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, FIRST_WORD.min(limit.max(BETWEEN_TRIES))) {
            Ok(stream) => {
                found = Some(stream);
                break;
            }
            Err(error) => last = error,
        }
    }
    let mut stream = found.ok_or(last)?;
    stream.set_nodelay(true)?;
    let mut hello = [0; HELLO_BYTES];
    hello[..8].copy_from_slice(&MAGIC);
    hello[8..12].copy_from_slice(&(rank as u32).to_le_bytes());
    hello[12..].copy_from_slice(&(size as u32).to_le_bytes());
    stream.set_read_timeout(Some(limit.max(BETWEEN_TRIES)))?;
    stream.write_all(&hello)?;
    let mut heard = [0; ANSWER_BYTES];
    stream.read_exact(&mut heard)?;
    if heard[..8] != MAGIC {
        let what = "another program listens there";
        return Err(std::io::Error::new(ErrorKind::InvalidData, what));
    }
    let number = |at: usize| u32::from_le_bytes([heard[at], heard[at + 1], heard[at + 2], heard[at + 3]]);
    let mut id = [0; ID_BYTES];
    id.copy_from_slice(&heard[16..]);
    Ok((number(8), number(12), id, stream))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use std::thread::{ScopedJoinHandle, scope, spawn};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const ID: [u8; ID_BYTES] = [42; ID_BYTES];

    fn listening() -> (TcpListener, u16) {
        let listener = listen("127.0.0.1", 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[test]
    fn every_rank_gets_the_id_and_keeps_its_connection() {
        let (listener, port) = listening();
        scope(|scope| {
            let come = |rank| scope.spawn(move || come(("127.0.0.1", port), (rank, 4), LIMIT).unwrap());
            let others: Vec<ScopedJoinHandle<'_, _>> = [3, 1, 2].map(come).into();
            let (id, streams) = receive(&listener, 4, LIMIT, || Ok(ID)).unwrap();
            assert_eq!((id, streams.len()), (ID, 3));
            for (mut stream, rank) in streams.into_iter().zip(1u8..) {
                stream.write_all(&[rank]).unwrap();
            }
            for (other, rank) in others.into_iter().zip([3, 1, 2]) {
                let (id, mut stream) = other.join().unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                assert_eq!((id, byte), (ID, [rank]));
            }
        });
    }

    #[test]
    fn strangers_change_nothing() {
        let (listener, port) = listening();
        let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
        let rank_0 = spawn(move || receive(&listener, 3, LIMIT, || Ok(ID)).map(|it| it.0));
        // Silent ones, more than are kept; a part of a hello; another protocol; a rank that is none, and rank 0 again.
        let _silent: Vec<TcpStream> = (0..MOST_STRANGERS + 9).map(|_| connect()).collect();
        connect().write_all(&MAGIC).unwrap();
        connect().write_all(b"GET / HTTP/1.1\r\nHost: rank\r\n\r\n").unwrap();
        let hello = |rank: u32| [&MAGIC[..], &rank.to_le_bytes(), &3u32.to_le_bytes()].concat();
        for rank in [0u32, 3, u32::MAX] {
            let mut stream = connect();
            stream.write_all(&hello(rank)).unwrap();
            let mut heard = [0; ANSWER_BYTES];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(heard[8], TAKEN as u8);
        }
        // A rank that has gone comes again.
        connect().write_all(&hello(1)).unwrap();
        sleep(Duration::from_millis(100));
        let others = [1, 2].map(|rank| spawn(move || come(("127.0.0.1", port), (rank, 3), LIMIT).unwrap().0));
        assert_eq!(rank_0.join().unwrap(), Ok(ID));
        others.into_iter().for_each(|it| assert_eq!(it.join().unwrap(), ID));
    }

    #[test]
    fn other_starts_and_other_programs_are_named() {
        let (listener, port) = listening();
        let rank_0 = spawn(move || receive(&listener, 3, Duration::from_secs(1), || Ok(ID)));
        let refused = |rank, size| come(("127.0.0.1", port), (rank, size), LIMIT).unwrap_err().to_string();
        assert!(refused(1, 2).contains("it has 3 processes, expected 2"), "{}", refused(1, 2));
        let first = spawn(move || come(("127.0.0.1", port), (1, 3), Duration::from_secs(2)));
        sleep(Duration::from_millis(100));
        assert!(refused(1, 3).contains("it has a rank 1 already") && refused(7, 3).contains("DDT_PORT"));
        let absent = rank_0.join().unwrap().unwrap_err().to_string();
        assert!(absent.contains("rank 2 of 3 did not come to rank 0"), "{absent}");
        first.join().unwrap().unwrap_err();

        // A web server in the place of rank 0, then nothing.
        let (listener, port) = listening();
        spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(&[b'x'; 400]).unwrap();
        });
        let limit = Duration::from_millis(300);
        let message = come(("127.0.0.1", port), (1, 2), limit).unwrap_err().to_string();
        assert!(
            message.contains(&format!("127.0.0.1:{port}")) && message.contains("MASTER_ADDR"),
            "{message}"
        );
        let taken = listening();
        let message = listen("127.0.0.1", taken.1).unwrap_err().to_string();
        assert!(message.contains("set DDT_PORT to a free one"), "{message}");
    }

    #[test]
    fn a_rank_0_that_cannot_make_an_id_ends_all() {
        let (listener, port) = listening();
        let other = spawn(move || come(("127.0.0.1", port), (1, 2), LIMIT).map(|it| it.0));
        let failed = DistError::MpiInUse;
        let own = receive(&listener, 2, LIMIT, || Err(failed.clone())).map(|it| it.0);
        assert_eq!((own, other.join().unwrap()), (Err(failed), Err(DistError::Gone { rank: 0 })));
    }
}
