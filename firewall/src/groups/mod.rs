//! Security groups: what machines' interfaces may say and hear.
