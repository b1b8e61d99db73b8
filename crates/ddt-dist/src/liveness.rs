//! Liveness: while ranks wait for each other, they learn which of them has ended or does not answer.
//!
//! Every rank has a connection to rank 0, on which a few bytes go. A rank whose process ends closes it. A rank that has waited
//! too long tells rank 0, which asks all; those that are in a wait themselves answer, and the first of the others is lost.
//! Rank 0 tells everybody which, so that all ranks end with the same error.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread::{sleep, yield_now},
    time::{Duration, Instant},
};

use crate::error::DistError;

/// Messages: one byte, and a number of four.
const MESSAGE: usize = 5;
/// To rank 0: too long a wait, for this rank.
const LATE: u8 = 1;
/// From rank 0, and the answer.
const QUESTION: u8 = 2;
const ANSWER: u8 = 3;
/// From rank 0: this rank does not answer, or has ended.
const SILENT: u8 = 4;
const GONE: u8 = 5;
/// The end of a rank that needs the others no more.
const BYE: u8 = 6;

/// Time that ranks get to answer.
const ANSWERS: Duration = Duration::from_secs(2);
/// Time that ranks get to hear which is lost.
const HEARD: Duration = Duration::from_secs(1);
/// Time that rank 0 gets to say which rank is lost.
const VERDICT: Duration = Duration::from_secs(10);

/// A rank looks this often before it sleeps between looks.
const LOOKS: u32 = 2000;
const BETWEEN_LOOKS: Duration = Duration::from_micros(50);
/// Looks at the connections are rarer.
const BETWEEN_NEWS: Duration = Duration::from_millis(10);

/// A connection with another rank.
struct Link {
    rank: usize,
    stream: TcpStream,
    heard: Vec<u8>,
    answered: bool,
    /// Since when it needs nobody any more.
    left: Option<Instant>,
}

impl Link {
    fn say(&mut self, kind: u8, number: usize) {
        let [a, b, c, d] = (number as u32).to_le_bytes();
        // One that has ended is noticed when it is read.
        self.stream.write_all(&[kind, a, b, c, d]).ok();
    }

    /// The messages that have come; `None` when the process has ended.
    fn hear(&mut self) -> Option<Vec<(u8, usize)>> {
        let mut bytes = [0; 64 * MESSAGE];
        let is_open = loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break false,
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
        };
        let whole = self.heard.len() / MESSAGE * MESSAGE;
        let messages: Vec<(u8, usize)> = self.heard[..whole]
            .chunks_exact(MESSAGE)
            .map(|it| (it[0], u32::from_le_bytes([it[1], it[2], it[3], it[4]]) as usize))
            .collect();
        self.heard.drain(..whole);
        // What it said last counts before its end does.
        if messages.iter().any(|it| it.0 == BYE) {
            self.left.get_or_insert_with(Instant::now);
        }
        (is_open || !messages.is_empty() || self.left.is_some()).then_some(messages)
    }
}

/// The connections of a rank: of rank 0 with all others, of the others with rank 0.
pub(crate) struct Liveness {
    links: Vec<Link>,
    own: usize,
    limit: Duration,
    /// Questions so far: an answer to an old one does not count.
    questions: usize,
}

/// A wait for another rank.
pub(crate) struct Waiting {
    partner: usize,
    since: Instant,
    looks: u32,
    news: Instant,
    late: Option<Late>,
}

/// Somebody has waited too long.
struct Late {
    by: usize,
    for_rank: usize,
    /// When rank 0 asked all ranks; on the others, when rank 0 was told.
    asked: Option<Instant>,
}

impl Waiting {
    pub(crate) fn new(partner: usize) -> Self {
        let now = Instant::now();
        Self { partner, since: now, looks: 0, news: now, late: None }
    }
}

impl Liveness {
    /// `streams` are those of ranks 1, 2 … on rank 0, and that with rank 0 on another.
    pub(crate) fn new(own: usize, streams: Vec<TcpStream>, limit: Duration) -> std::io::Result<Self> {
        let first = usize::from(own == 0);
        let link = |(at, stream): (usize, TcpStream)| {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Link { rank: first + at, stream, heard: Vec::new(), answered: false, left: None })
        };
        let links = streams.into_iter().enumerate().map(link).collect::<std::io::Result<_>>()?;
        Ok(Self { links, own, limit, questions: 0 })
    }

    /// Lets others compute, and, now and then, looks for news. To be called at every look at what is waited for.
    pub(crate) fn look(&mut self, waiting: &mut Waiting) -> Result<(), DistError> {
        waiting.looks = waiting.looks.saturating_add(1);
        if waiting.looks < LOOKS {
            yield_now();
        } else {
            sleep(BETWEEN_LOOKS);
        }
        if waiting.news.elapsed() < BETWEEN_NEWS {
            return Ok(());
        }
        waiting.news = Instant::now();
        if self.own == 0 { self.lead(waiting) } else { self.follow(waiting) }
    }

    /// A rank that needs the others no more.
    pub(crate) fn leave(&mut self) {
        self.links.iter_mut().for_each(|it| it.say(BYE, 0));
    }

    fn lead(&mut self, waiting: &mut Waiting) -> Result<(), DistError> {
        let (mut gone, late) = (None, &mut waiting.late);
        for link in &mut self.links {
            let Some(messages) = link.hear() else {
                gone = gone.or(Some(link.rank));
                continue;
            };
            for (kind, number) in messages {
                match kind {
                    LATE => {
                        late.get_or_insert(Late { by: link.rank, for_rank: number, asked: None });
                    }
                    ANSWER if number == self.questions => link.answered = true,
                    _ => {}
                }
            }
        }
        let left = self.links.iter().find(|it| it.rank == waiting.partner).and_then(|it| it.left);
        if left.is_some_and(|it| it.elapsed() > ANSWERS) {
            gone = gone.or(Some(waiting.partner));
        }
        if let Some(rank) = gone {
            return Err(self.tell(GONE, rank));
        }
        if waiting.since.elapsed() > self.limit {
            late.get_or_insert(Late { by: 0, for_rank: waiting.partner, asked: None });
        }
        let Some(Late { by, for_rank, asked }) = late else { return Ok(()) };
        let Some(since) = *asked else {
            *asked = Some(Instant::now());
            self.questions += 1;
            for link in &mut self.links {
                link.answered = link.left.is_some();
                link.say(QUESTION, self.questions);
            }
            return Ok(());
        };
        if since.elapsed() <= ANSWERS {
            return Ok(());
        }
        if self.links.iter().any(|it| it.rank == *by && !it.answered) {
            // It waits no more: it has got what it waited for since it said so.
            *late = None;
            return Ok(());
        }
        let silent = self.links.iter().find(|it| !it.answered).map_or(*for_rank, |it| it.rank);
        Err(self.tell(SILENT, silent))
    }

    /// Tells the others which rank is lost.
    fn tell(&mut self, kind: u8, rank: usize) -> DistError {
        self.links.iter_mut().for_each(|it| it.say(kind, rank));
        // A connection that closes with something unread loses what the other side has not read. They close theirs then.
        let since = Instant::now();
        let others = |it: &&mut Link| it.rank != rank;
        while since.elapsed() < HEARD
            && self.links.iter_mut().filter(others).filter_map(Link::hear).count() > 0
        {
            sleep(Duration::from_millis(1));
        }
        self.lost(kind, rank)
    }

    fn lost(&self, kind: u8, rank: usize) -> DistError {
        if kind == GONE {
            DistError::Gone { rank }
        } else {
            DistError::Silent { rank, seconds: self.limit.as_secs() }
        }
    }

    fn follow(&mut self, waiting: &mut Waiting) -> Result<(), DistError> {
        let gone = DistError::Gone { rank: 0 };
        let Some(link) = self.links.first_mut() else { return Ok(()) };
        let messages = link.hear().ok_or(gone.clone())?;
        for (kind, number) in messages {
            match kind {
                QUESTION => link.say(ANSWER, number),
                SILENT | GONE => return Err(self.lost(kind, number)),
                _ => {}
            }
        }
        if waiting.partner == 0 && link.left.is_some_and(|it| it.elapsed() > ANSWERS) {
            return Err(gone);
        }
        match &waiting.late {
            None if waiting.since.elapsed() > self.limit => {
                link.say(LATE, waiting.partner);
                let (by, for_rank) = (self.own, waiting.partner);
                waiting.late = Some(Late { by, for_rank, asked: Some(Instant::now()) });
                Ok(())
            }
            Some(Late { asked: Some(told), .. }) if told.elapsed() > VERDICT => Err(self.lost(SILENT, 0)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use std::{net::TcpListener, thread::spawn};

    use super::*;

    /// The connections of ranks 0, 1, 2 …
    fn connected(size: usize, limit: u64) -> Vec<Liveness> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 1..size {
            theirs.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            ours.push(listener.accept().unwrap().0);
        }
        let limit = Duration::from_millis(limit);
        let mut all = vec![Liveness::new(0, ours, limit).unwrap()];
        all.extend(
            theirs.into_iter().zip(1..).map(|(it, rank)| Liveness::new(rank, vec![it], limit).unwrap()),
        );
        all
    }

    /// Waits for another rank, for so long at most.
    fn wait(mut liveness: Liveness, partner: usize, seconds: u64) -> (Result<(), DistError>, Liveness) {
        let (mut waiting, since) = (Waiting::new(partner), Instant::now());
        while since.elapsed() < Duration::from_secs(seconds) {
            if let Err(error) = liveness.look(&mut waiting) {
                return (Err(error), liveness);
            }
        }
        (Ok(()), liveness)
    }

    /// Ranks that wait for partners; the first error of each.
    fn outcomes(waits: Vec<(Liveness, usize)>) -> Vec<Result<(), DistError>> {
        let threads: Vec<_> =
            waits.into_iter().map(|(it, partner)| spawn(move || wait(it, partner, 20))).collect();
        // The connections live until all have ended: an end would be news for the others.
        let ended: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
        ended.into_iter().map(|it| it.0).collect()
    }

    #[test]
    fn a_rank_that_does_not_answer_is_named_by_all() {
        // Rank 2 computes for ever, rank 3 waits for it, and the others for rank 3.
        let mut all = connected(4, 200);
        let (three, two) = (all.pop().unwrap(), all.pop().unwrap());
        let (one, zero) = (all.pop().unwrap(), all.pop().unwrap());
        let expected = Err(DistError::Silent { rank: 2, seconds: 0 });
        assert_eq!(outcomes(vec![(zero, 3), (one, 3), (three, 2)]), vec![expected; 3]);
        drop(two);
    }

    #[test]
    fn a_rank_that_was_late_and_goes_on_is_no_reason_to_end() {
        let mut all = connected(2, 100);
        let (mut one, zero) = (all.pop().unwrap(), all.pop().unwrap());
        let mut waiting = Waiting::new(0);
        while waiting.late.is_none() {
            one.look(&mut waiting).unwrap();
        }
        // Rank 0, which hears of it later, has a longer limit: it asks, and nobody answers.
        let zero = Liveness { limit: Duration::from_secs(60), ..zero };
        assert_eq!(wait(zero, 1, 4).0, Ok(()));
    }

    #[test]
    fn where_all_answer_the_one_that_is_waited_for_is_named() {
        let all = connected(3, 200);
        let waits = all.into_iter().zip([1, 2, 0]).collect();
        let outcomes = outcomes(waits);
        assert!(
            matches!(outcomes[0], Err(DistError::Silent { .. }))
                && outcomes.iter().all(|it| *it == outcomes[0])
        );
    }

    #[test]
    fn a_rank_that_ends_is_named_at_once_and_one_that_leaves_is_not() {
        let begun = Instant::now();
        for victim in [0, 2] {
            let mut all = connected(4, 60_000);
            drop(all.remove(victim));
            let waits =
                all.into_iter().map(|it| (it.own, it)).map(|(own, it)| (it, if own == 3 { 1 } else { 3 }));
            assert_eq!(outcomes(waits.collect()), vec![Err(DistError::Gone { rank: victim }); 3]);
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        let mut all = connected(2, 60_000);
        let mut one = all.pop().unwrap();
        one.leave();
        drop(one);
        // Its last bytes may still be under way.
        let (outcome, zero) = wait(all.pop().unwrap(), 1, 1);
        assert_eq!(outcome, Ok(()));
        assert_eq!(wait(zero, 1, 20).0, Err(DistError::Gone { rank: 1 }));
    }

    #[test]
    fn a_rank_0_that_does_not_answer_is_named() {
        let mut all = connected(2, 100);
        let (one, zero) = (all.pop().unwrap(), all.pop().unwrap());
        assert_eq!(wait(one, 0, 20).0, Err(DistError::Silent { rank: 0, seconds: 0 }));
        drop(zero);
    }
}
