//! Chat, from the broker's side: what was heard in a network is judged and
//! done here, and what is to be said is put into words, without a word of any
//! network's protocol.

pub mod desk;
pub mod links;
pub mod totp;
