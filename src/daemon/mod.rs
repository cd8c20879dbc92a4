//! The service: wires the rooms into tasks; start-up sweep, shutdown, status.
