//! The token ids of an answer, beside its text in a frame.
//!
//! Wire: four counts (of the prompt's ids, `after`, of lines, of generated
//! ids), then the numbers themselves, all u32 in little endian.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::FrameError;

const COUNTS: usize = 4;
const WIDTH: usize = size_of::<u32>();

/// Token ids of the lines of one frame, where the model server gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Ids of the prompt, in the first frame of an attempt that knows any.
    pub prompt: Vec<u32>,
    /// Beside the prompt's: how many of the earlier attempts' generated ids
    /// this attempt goes on after. Those behind them are void.
    pub after: u32,
    /// How many of `ids` came with each line.
    pub lines: Vec<u32>,
    /// The generated ids.
    pub ids: Vec<u32>,
}

impl Tokens {
    /// Bytes on the wire.
    #[must_use]
    pub fn size(&self) -> usize {
        (COUNTS + self.prompt.len() + self.lines.len() + self.ids.len()) * WIDTH
    }

    /// The ids of each line.
    pub fn by_line(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = &self.ids[..];
        self.lines.iter().map(move |count| {
            let count = usize::try_from(*count).unwrap_or(usize::MAX).min(rest.len());
            let (ids, behind) = rest.split_at(count);
            rest = behind;
            ids
        })
    }

    pub(super) fn put(&self, bytes: &mut BytesMut) {
        let count = |numbers: &[u32]| u32::try_from(numbers.len()).expect("far below 4 thousand million");
        bytes.put_u32_le(count(&self.prompt));
        bytes.put_u32_le(self.after);
        bytes.put_u32_le(count(&self.lines));
        bytes.put_u32_le(count(&self.ids));
        for number in [&self.prompt, &self.lines, &self.ids].into_iter().flatten() {
            bytes.put_u32_le(*number);
        }
    }

    /// Takes what [`Self::put`] wrote off the front.
    pub(super) fn take(bytes: &mut Bytes) -> Result<Self, FrameError> {
        if bytes.len() < COUNTS * WIDTH {
            return Err(FrameError::Short);
        }
        let [prompt, after, lines, ids] = [(); COUNTS].map(|()| bytes.get_u32_le());
        let mut numbers = |count: u32| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            if bytes.len() / WIDTH < count {
                return Err(FrameError::Short);
            }
            Ok((0..count).map(|_| bytes.get_u32_le()).collect())
        };
        Ok(Self {
            prompt: numbers(prompt)?,
            after,
            lines: numbers(lines)?,
            ids: numbers(ids)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_apart_by_their_lines() {
        let tokens = Tokens {
            lines: vec![0, 2, 1],
            ids: vec![7, 8, 9],
            ..Tokens::default()
        };
        assert_eq!(
            tokens.by_line().collect::<Vec<_>>(),
            [&[][..], &[7, 8][..], &[9][..]]
        );
    }
}
