//! The spool and the work queue: files and SQLite. Knows UIDs as opaque keys.
