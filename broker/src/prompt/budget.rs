//! How much fits into a model's window, and what stays when not everything does.
//!
//! Without a model's tokenizer ([`super::tokens`]) tokens are estimated from
//! bytes. Two estimates are used, each on its safe side: what is trimmed is
//! trimmed so that it fits with any usual text, and what cannot be trimmed is
//! refused only when it surely does not.

use duo_contract::snapshot::Model;

/// Bytes that are taken for one token when text is trimmed: code in common
/// tokenisers has between three and four.
pub const BYTES_PER_TOKEN: usize = 3;
/// No text worth reading has more bytes per token than this, so a longer prompt
/// surely does not fit.
pub const MOST_BYTES_PER_TOKEN: usize = 8;

/// Share of the room that the text after the cursor may have.
const SUFFIX_PERCENT: usize = 7;
/// Share of the rest that context files may have.
const CONTEXT_PERCENT: usize = 50;
/// Tokens for what a chat template and special tokens add.
const FRAME_TOKENS: u32 = 64;

/// Tokens that a prompt may have beside an answer of `max_tokens` in `model`'s window.
#[must_use]
pub fn prompt_tokens(model: &Model, max_tokens: u32) -> usize {
    let tokens = model
        .context_tokens
        .saturating_sub(max_tokens)
        .saturating_sub(FRAME_TOKENS);
    usize::try_from(tokens).unwrap_or(usize::MAX)
}

/// Bytes of input for which prompt and answer fit into `model`'s window, by the estimate.
#[must_use]
pub fn room(model: &Model, max_tokens: u32, template_bytes: usize) -> usize {
    prompt_tokens(model, max_tokens)
        .saturating_mul(BYTES_PER_TOKEN)
        .saturating_sub(template_bytes)
}

/// A prompt of more bytes than this surely does not fit into `model`'s window.
#[must_use]
pub fn most_bytes(model: &Model) -> usize {
    usize::try_from(model.context_tokens)
        .unwrap_or(usize::MAX)
        .saturating_mul(MOST_BYTES_PER_TOKEN)
}

/// A file cut to its room around the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitted<'a> {
    /// The end of the text before the cursor.
    pub prefix: &'a str,
    /// The beginning of the text after it.
    pub suffix: &'a str,
    /// Bytes left for context files.
    pub context: usize,
}

/// Divides `room` bytes: the beginning of the suffix gets its share, context
/// files (`context` bytes in all) at most half of the rest, and the prefix what is left; it
/// keeps its end, which is nearest to the cursor. What the suffix does not need goes to the others.
#[must_use]
pub fn fit<'a>(room: usize, prefix: &'a str, suffix: &'a str, context: usize) -> Fitted<'a> {
    let share = room / 100 * SUFFIX_PERCENT;
    let spare = room.saturating_sub(prefix.len()).saturating_sub(context);
    let suffix = &suffix[..suffix.floor_char_boundary(share.max(spare))];
    let rest = room.saturating_sub(suffix.len());
    let for_context = context.min((rest / 100 * CONTEXT_PERCENT).max(rest.saturating_sub(prefix.len())));
    let for_prefix = rest - for_context;
    let from = prefix.ceil_char_boundary(prefix.len().saturating_sub(for_prefix));
    Fitted {
        prefix: &prefix[from..],
        suffix,
        context: for_context,
    }
}

/// The items that fit into `room` bytes, in their order; one that does not fit is left out whole.
pub fn whole_items<T>(
    room: usize,
    items: impl IntoIterator<Item = T>,
    bytes: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut left = room;
    items
        .into_iter()
        .filter(|item| match left.checked_sub(bytes(item)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_file_stays_whole() {
        let fitted = fit(1000, "before", "after", 10);
        assert_eq!(
            (fitted.prefix, fitted.suffix, fitted.context),
            ("before", "after", 10)
        );
    }

    #[test]
    fn a_long_file_keeps_what_is_near_the_cursor() {
        let (prefix, suffix) = ("p".repeat(5000) + "|", "|".to_owned() + &"s".repeat(5000));
        let fitted = fit(1000, &prefix, &suffix, 0);
        assert_eq!(fitted.suffix.len(), 70);
        assert!(fitted.suffix.starts_with('|'));
        assert_eq!(fitted.prefix.len(), 930);
        assert!(fitted.prefix.ends_with('|'));
    }

    #[test]
    fn items_are_taken_whole_or_not_at_all() {
        assert_eq!(
            whole_items(5, ["abc", "defg", "hi"], |item| item.len()),
            ["abc", "hi"]
        );
    }

    proptest! {
        #[test]
        fn what_fits_is_never_more_than_the_room(
            room in 0usize..400, prefix in "\\PC{0,200}", suffix in "\\PC{0,200}", context in 0usize..300
        ) {
            let fitted = fit(room, &prefix, &suffix, context);
            prop_assert!(fitted.prefix.len() + fitted.suffix.len() + fitted.context <= room);
            prop_assert!(prefix.ends_with(fitted.prefix) && suffix.starts_with(fitted.suffix));
        }
    }
}
