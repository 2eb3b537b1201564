//! State and journals in JetStream, as they work on nats-server 2.9 and newer.
