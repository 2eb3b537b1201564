//! Against a real NATS server.
