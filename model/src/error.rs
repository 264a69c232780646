//! Errors that a user can act on.

use std::fmt;

/// One thing wrong with what a user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field, such as `spec.selector.pods[web]`.
    pub field: String,
    /// What was found there, as written.
    pub found: String,
    /// What is allowed, or what to do instead.
    pub allowed: String,
}

impl FieldError {
    /// An error on `field`.
    pub fn new(field: impl Into<String>, found: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), found: found.to_string(), allowed: allowed.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {:?}; {}", self.field, self.found, self.allowed)
    }
}

impl std::error::Error for FieldError {}
