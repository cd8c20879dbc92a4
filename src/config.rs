//! Typed settings: one TOML file, unknown keys refused, every value with its origin.
