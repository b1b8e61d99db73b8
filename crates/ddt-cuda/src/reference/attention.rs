//! Attention, one query at a time.

const EPS: f64 = 1e-6;

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Tokens of an image.
    pub(super) tokens: usize,
    /// Channels of a token.
    pub(super) hidden: usize,
    /// Channels of a head.
    pub(super) head: usize,
}

/// Queries and keys normalised by root mean square, turned, and compared; values mixed.
///
/// # Shapes
/// `qkv: (T, 3, heads, head) -> (T, heads, head)`; images of `tokens` tokens attend to themselves.
pub(super) fn attention(
    qkv: &[f32],
    (q_norm, k_norm): (&[f32], &[f32]),
    rope: &[f32],
    Heads { tokens, hidden, head }: Heads,
) -> Vec<f32> {
    let total = qkv.len() / (3 * hidden);
    let mut out = vec![0.0; total * hidden];
    let part = |token: usize, which: usize, at: usize| &qkv[(token * 3 + which) * hidden + at..][..head];
    for image in 0..total / tokens {
        let tokens_of = image * tokens..(image + 1) * tokens;
        for at in (0..hidden).step_by(head) {
            let turned = |which: usize, weight: &[f32]| -> Vec<Vec<f64>> {
                let row = |token: usize| {
                    turn(part(token, which, at), weight, &rope[token % tokens * head..][..head])
                };
                tokens_of.clone().map(row).collect()
            };
            let (queries, keys) = (turned(0, q_norm), turned(1, k_norm));
            for (query, token) in queries.iter().zip(tokens_of.clone()) {
                let dot = |key: &Vec<f64>| query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
                let scores: Vec<f64> = keys.iter().map(|key| dot(key) / (head as f64).sqrt()).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|it| (it - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..head {
                    let value = |(token, weight): (usize, &f64)| weight * f64::from(part(token, 2, at)[i]);
                    let mixed: f64 = tokens_of.clone().zip(&weights).map(value).sum();
                    out[token * hidden + at + i] = (mixed / sum) as f32;
                }
            }
        }
    }
    out
}

/// Normalises and turns: `rope` has the cosine and the sine of each pair of elements.
fn turn(xs: &[f32], weight: &[f32], rope: &[f32]) -> Vec<f64> {
    let squares: f64 = xs.iter().map(|it| f64::from(*it).powi(2)).sum();
    let scale = 1.0 / (squares / xs.len() as f64 + EPS).sqrt();
    let normed: Vec<f64> =
        xs.iter().zip(weight).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect();
    let mut out = Vec::with_capacity(xs.len());
    for (pair, turn) in normed.chunks_exact(2).zip(rope.chunks_exact(2)) {
        let (c, s) = (f64::from(turn[0]), f64::from(turn[1]));
        out.extend([pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c]);
    }
    out
}
