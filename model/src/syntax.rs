//! The syntax of names and labels, as Kubernetes has it.

const SUBDOMAIN: &str = "use lower case letters, digits, '-' and '.', at most 253";
const LABEL: &str = "use lower case letters, digits and '-', at most 63";
const KEY: &str = "write a label key, such as \"app\" or \"example.com/app\": letters, digits, '-', '_', '.', at most \
                   63 after the prefix";
const VALUE: &str =
    "use letters, digits, '-', '_' and '.', beginning and ending with a letter or digit, at most 63";

/// A DNS label: names of namespaces and containers.
pub(crate) fn dns_label(text: &str) -> Result<(), &'static str> {
    if text.len() <= 63 && is_dns_label(text) { Ok(()) } else { Err(LABEL) }
}

/// A DNS subdomain: names of pods and nodes.
pub(crate) fn dns_subdomain(text: &str) -> Result<(), &'static str> {
    if text.len() <= 253 && text.split('.').all(is_dns_label) { Ok(()) } else { Err(SUBDOMAIN) }
}

/// The key of a label or annotation.
pub(crate) fn label_key(text: &str) -> Result<(), &'static str> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_fits = prefix.is_none_or(|prefix| dns_subdomain(prefix).is_ok());
    if prefix_fits && !name.is_empty() && label_value(name).is_ok() { Ok(()) } else { Err(KEY) }
}

/// The value of a label.
pub(crate) fn label_value(text: &str) -> Result<(), &'static str> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.len() <= 63 && text.bytes().all(inner) && ends(text, |byte| byte.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(VALUE)
    }
}

fn is_dns_label(text: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty() && text.bytes().all(|byte| edge(byte) || byte == b'-') && ends(text, edge)
}

fn ends(text: &str, edge: impl Fn(u8) -> bool) -> bool {
    text.bytes().next().is_none_or(&edge) && text.bytes().next_back().is_none_or(&edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_kubernetes() {
        for good in ["a", "web-1", "0", &"a".repeat(63)] {
            assert!(dns_label(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64), "\u{e9}"] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
        assert!(dns_subdomain("node-1.example.com").is_ok());
        for bad in ["", ".", "a..b", "a.", &"a".repeat(254)] {
            assert!(dns_subdomain(bad).is_err(), "{bad}");
        }
        for good in ["app", "example.com/app_1.x", "A"] {
            assert!(label_key(good).is_ok(), "{good}");
        }
        for bad in ["", "/app", "a/b/c", "example.com/", "Example.com/a", "-a", "a b"] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        for good in ["", "a", "A_b.c-d"] {
            assert!(label_value(good).is_ok(), "{good}");
        }
        for bad in ["-", "a-", " ", &"a".repeat(64)] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }
}
