//! Versions that clients tell in headers.

/// Is `version`, such as `17.5.0-pre`, at least `least`? A text that is no
/// version is not. Pre-releases count as their release, as GitLab means them.
pub(super) fn at_least(version: &str, least: [u32; 3]) -> bool {
    let release = version.trim().split(['-', '+']).next().unwrap_or_default();
    let mut numbers = [0; 3];
    for (number, part) in numbers.iter_mut().zip(release.split('.')) {
        match part.parse() {
            Ok(value) => *number = value,
            Err(_) => return false,
        }
    }
    numbers >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("17.10.0", [17, 5, 0]));
        assert!(at_least("17.5.0-pre", [17, 5, 0]));
        assert!(!at_least("17.4.9", [17, 5, 0]));
        assert!(!at_least("", [17, 5, 0]));
        assert!(!at_least("x", [0, 0, 0]));
    }
}
