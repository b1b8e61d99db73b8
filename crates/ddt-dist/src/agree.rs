//! Agreement: the point at which all ranks are well, or all learn which one failed.

use std::fmt::Display;

use crate::{error::DistError, group::Group};

/// A rank failed; all ranks know it.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("rank {rank}: {cause}")]
pub struct RankFailed {
    /// The lowest rank that failed.
    pub rank: usize,
    /// Its error.
    pub cause: String,
    /// Whether its process has ended or hangs, so that it cannot say this itself.
    pub lost: bool,
}

impl RankFailed {
    /// The rank that says it to the user: the one that failed, or in its place the lowest other.
    pub fn speaker(&self) -> usize {
        if self.lost { usize::from(self.rank == 0) } else { self.rank }
    }

    /// An exchange failed: by this rank, or by one that every rank knows to be lost.
    fn of_exchange(own: usize, error: &DistError) -> Self {
        match *error {
            DistError::Silent { rank, .. } | DistError::Gone { rank } => {
                let text = error.to_string();
                let cause = text.trim_start_matches(&format!("rank {rank} ")).to_owned();
                Self { rank, cause, lost: rank != own }
            }
            _ => Self { rank: own, cause: error.to_string(), lost: false },
        }
    }
}

/// Bytes of a message. All messages have this length, so a rank that fails meets the others wherever they are.
const FRAME: usize = 512;

/// Bytes before the text: the status and the text's length.
const HEAD: usize = 3;

/// The most bytes that a rank can say.
pub const MAX_PAYLOAD: usize = FRAME - HEAD;

/// Each rank says some bytes, at most [`MAX_PAYLOAD`], or that it failed; returns what every rank said.
///
/// A rank that fails anywhere calls this with its error, and the others learn of it at their next agreement. With one
/// rank it costs nothing.
///
/// # Errors
/// [`RankFailed`], the same on every rank; when the exchange itself fails, it names the rank that is lost, or this one.
pub fn agree(group: &dyn Group, own: Result<&[u8], &dyn Display>) -> Result<Vec<Vec<u8>>, RankFailed> {
    let failed = |cause: String| RankFailed { rank: group.rank(), cause, lost: false };
    if group.size() == 1 {
        return own.map(|it| vec![it.to_vec()]).map_err(|it| failed(it.to_string()));
    }
    let text = own.as_ref().err().map(|it| clipped(it.to_string()));
    let said = match (own, &text) {
        (Ok(bytes), _) if bytes.len() > MAX_PAYLOAD => {
            return Err(failed(format!(
                "expected at most {MAX_PAYLOAD} bytes to agree on, got {}",
                bytes.len()
            )));
        }
        (Ok(bytes), _) => bytes,
        (Err(_), text) => text.as_deref().unwrap_or_default().as_bytes(),
    };
    let mut frame = [0u8; FRAME];
    frame[0] = text.is_some().into();
    frame[1..HEAD].copy_from_slice(&(said.len() as u16).to_le_bytes());
    frame[HEAD..HEAD + said.len()].copy_from_slice(said);
    let all = group.gather(&frame).map_err(|it| RankFailed::of_exchange(group.rank(), &it))?;
    let frames: Vec<(bool, Vec<u8>)> = all
        .chunks_exact(FRAME)
        .map(|it| {
            let len = usize::from(u16::from_le_bytes([it[1], it[2]])).min(MAX_PAYLOAD);
            (it[0] != 0, it[HEAD..HEAD + len].to_vec())
        })
        .collect();
    match frames.iter().position(|it| it.0) {
        Some(rank) => {
            let cause = String::from_utf8_lossy(&frames[rank].1).into_owned();
            Err(RankFailed { rank, cause, lost: false })
        }
        None => Ok(frames.into_iter().map(|it| it.1).collect()),
    }
}

/// The bytes of rank 0, of any length, unless a rank failed: an agreement, then the bytes from rank 0 to each other.
///
/// # Errors
/// As [`agree`].
pub fn broadcast(group: &dyn Group, own: Result<Vec<u8>, &dyn Display>) -> Result<Vec<u8>, RankFailed> {
    let len = own.as_ref().map(|it| (it.len() as u64).to_le_bytes()).map_err(|it| *it);
    let said = agree(group, len.as_ref().map(<[u8; 8]>::as_slice).map_err(|it| *it))?;
    let mut bytes = own.unwrap_or_default();
    let len = said.first().and_then(|it| it.as_slice().try_into().ok()).map_or(0, u64::from_le_bytes);
    let sent = match group.rank() {
        0 => (1..group.size()).try_for_each(|it| group.exchange(it, &bytes, &mut [])),
        _ => {
            bytes = vec![0; len as usize];
            group.exchange(0, &[], &mut bytes)
        }
    };
    sent.map_err(|it| RankFailed::of_exchange(group.rank(), &it))?;
    Ok(bytes)
}

/// The beginning of a text, as much as fits.
fn clipped(mut text: String) -> String {
    if text.len() > MAX_PAYLOAD {
        let end = (0..=MAX_PAYLOAD).rev().find(|it| text.is_char_boundary(*it)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;
    use crate::{group::Alone, threads::thread_group};

    #[test]
    fn all_hear_all_or_the_lowest_failure() {
        let run = |bad: &'static [usize]| -> Vec<Result<Vec<Vec<u8>>, RankFailed>> {
            std::thread::scope(|scope| {
                let ranks = thread_group(5).into_iter().map(|group| {
                    scope.spawn(move || {
                        let rank = group.rank();
                        let error = format!("disk {rank} is full, {}", "ü".repeat(600));
                        let said = vec![rank as u8; rank];
                        let own: Result<&[u8], &dyn Display> =
                            if bad.contains(&rank) { Err(&error) } else { Ok(&said) };
                        agree(&group, own)
                    })
                });
                ranks.collect::<Vec<_>>().into_iter().map(|it| it.join().unwrap()).collect()
            })
        };
        let said: Vec<Vec<u8>> = (0..5).map(|it| vec![it as u8; it]).collect();
        assert!(run(&[]).into_iter().all(|it| it.unwrap() == said));
        for outcome in run(&[4, 2]) {
            let failed = outcome.unwrap_err();
            assert_eq!(failed.rank, 2);
            assert!(failed.to_string().starts_with("rank 2: disk 2 is full, ü"), "{failed}");
        }
        assert_eq!(broadcast(&Alone, Ok(vec![3])).unwrap(), [3]);
        assert_eq!(agree(&Alone, Ok(b"hm")).unwrap(), [b"hm"]);
        assert_eq!(agree(&Alone, Err(&"bad")).unwrap_err().to_string(), "rank 0: bad");
    }

    #[test]
    fn all_get_the_bytes_of_rank_0_or_the_failure() {
        let run = |bad: Option<usize>, len: usize| -> Vec<Result<Vec<u8>, RankFailed>> {
            std::thread::scope(|scope| {
                let ranks = thread_group(3).into_iter().map(|group| {
                    scope.spawn(move || {
                        let rank = group.rank();
                        let own = if bad == Some(rank) {
                            Err(&"no table" as &dyn Display)
                        } else {
                            Ok(vec![rank as u8; len])
                        };
                        broadcast(&group, own)
                    })
                });
                ranks.collect::<Vec<_>>().into_iter().map(|it| it.join().unwrap()).collect()
            })
        };
        for len in [0, 100_000] {
            assert!(run(None, len).into_iter().all(|it| it.unwrap() == vec![0; len]));
        }
        for outcome in run(Some(1), 9) {
            assert_eq!(outcome.unwrap_err().to_string(), "rank 1: no table");
        }
    }

    #[test]
    fn a_lost_rank_is_named_by_the_lowest_other() {
        let failed = |own, rank| RankFailed::of_exchange(own, &DistError::Gone { rank });
        assert_eq!([failed(1, 0), failed(3, 2)].map(|it| (it.rank, it.speaker())), [(0, 1), (2, 0)]);
        assert_eq!(failed(3, 2).to_string(), "rank 2: has ended before the others");
        let other = RankFailed::of_exchange(3, &DistError::Length { rank: 2, expected: 1, got: 2 });
        assert_eq!((other.rank, other.speaker()), (3, 3));
    }
}
