//! The embedded CPU engine: rten.
