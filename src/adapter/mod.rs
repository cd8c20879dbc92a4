//! Adapters: what training makes and the appliance serves.
