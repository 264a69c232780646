//! Texts of `/proc` that name processes, cgroups or mounts.
//!
//! Whoever makes such a name chooses its bytes, and the kernel cuts the name of a process after 15 of them, in the
//! middle of a character too. What is no UTF-8 is replaced: everything around it still counts.

use std::{fs, io, path::Path};

/// The text of `file`.
pub fn read(file: &Path) -> io::Result<String> {
    fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
