//! Agreement: the point at which all ranks are well, or all learn which one failed.

use std::fmt::Display;

use crate::group::Group;

/// A rank failed; all ranks know it.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("rank {rank}: {cause}")]
pub struct RankFailed {
    /// The lowest rank that failed.
    pub rank: usize,
    /// Its error.
    pub cause: String,
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
/// [`RankFailed`], the same on every rank; when the exchange itself fails, it names this rank.
pub fn agree(group: &dyn Group, own: Result<&[u8], &dyn Display>) -> Result<Vec<Vec<u8>>, RankFailed> {
    let failed = |cause: String| RankFailed { rank: group.rank(), cause };
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
    let all = group.gather(&frame).map_err(|it| failed(it.to_string()))?;
    let frames: Vec<(bool, Vec<u8>)> = all
        .chunks_exact(FRAME)
        .map(|it| {
            let len = usize::from(u16::from_le_bytes([it[1], it[2]])).min(MAX_PAYLOAD);
            (it[0] != 0, it[HEAD..HEAD + len].to_vec())
        })
        .collect();
    match frames.iter().position(|it| it.0) {
        Some(rank) => Err(RankFailed { rank, cause: String::from_utf8_lossy(&frames[rank].1).into_owned() }),
        None => Ok(frames.into_iter().map(|it| it.1).collect()),
    }
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
        assert_eq!(agree(&Alone, Ok(b"hm")).unwrap(), [b"hm"]);
        assert_eq!(agree(&Alone, Err(&"bad")).unwrap_err().to_string(), "rank 0: bad");
    }
}
